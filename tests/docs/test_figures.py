"""The figures of the concepts can be drawn again, and are where the pages look for them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure

from medduet.reports.style import STYLE

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("concepts", ROOT / "docs/figures/concepts.py")
assert SPEC is not None
assert SPEC.loader is not None
concepts = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(concepts)


@pytest.mark.parametrize("name", concepts.FIGURES)
def test_it_is_drawn_and_shown_with_its_command(name: str) -> None:
    draw, file = concepts.FIGURES[name]
    with rc_context(STYLE):
        figure = draw()
    assert isinstance(figure, Figure)
    assert all(axis.has_data() for axis in figure.axes)
    assert (concepts.IMAGES / file).stat().st_size < 300_000
    page = (ROOT / "docs" / "concepts" / f"{name}.md").read_text()
    assert f"](../images/{file})" in page
    assert f"`python docs/figures/concepts.py {name}`" in page
    alternative = re.search(r"!\[([^\]]+)\]", page)
    assert alternative is not None
    assert len(alternative[1]) > 20  # for those who can't see it
