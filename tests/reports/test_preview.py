"""The preview: every class, with the right masks."""

from pathlib import Path
from typing import Any

import pytest

import medduet.reports.preview as module
from medduet import DataConfig
from medduet.reports.preview import preview

PHANTOM = DataConfig(name="phantom", size=16, count=60)


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The panels and headings of the grids that are drawn from now on."""
    drawn, image_grid = [], module.image_grid

    def note(panels: Any, headings: Any, *texts: str, **options: Any) -> Any:
        drawn.append((panels, headings))
        return image_grid(panels, headings, *texts, **options)

    monkeypatch.setattr(module, "image_grid", note)
    return drawn


def test_every_class_with_its_masks(tmp_path: Path, grids: list[Any]) -> None:
    path = preview(PHANTOM, tmp_path / "a.png", count=9, split="val")
    assert path.read_bytes()[1:4] == b"PNG"
    ((panel,), headings) = grids[0]
    assert headings == ["normal", "normal", "smooth", "smooth", "spiculated", "ring"]
    assert panel.masks.any(axis=(1, 2)).tolist() == [name != "normal" for name in headings]
