"""Files of every kind, changed and made, are read or refused in one line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fuzz_parsers import PARSERS, REGRESSIONS, attempt, contents, warm
from hypothesis import HealthCheck, Phase, given, settings

SHORT = settings(
    max_examples=30,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
KEPT = sorted(path for path in REGRESSIONS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("name", PARSERS)
def test_valid_files_are_read(name: str, tmp_path: Path) -> None:
    warm(PARSERS[name])
    for number, content in enumerate(PARSERS[name].seeds()):
        assert attempt(PARSERS[name], tmp_path / str(number), content) == "accepted"


@pytest.mark.parametrize("name", PARSERS)
def test_other_files_are_read_or_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said: Counter[str] = Counter()
    warm(PARSERS[name])

    @SHORT
    @given(content=contents(PARSERS[name]))
    def one(content: bytes) -> None:
        said[attempt(PARSERS[name], tmp_path_factory.mktemp("one"), content)] += 1

    one()
    # What is changed so much is not all valid; but of a journal the rest is forgotten.
    assert said["refused"] or name == "journal"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_crashed_is_read_or_refused(path: Path, tmp_path: Path) -> None:
    warm(PARSERS[path.parent.name])
    attempt(PARSERS[path.parent.name], tmp_path, path.read_bytes())


def test_every_folder_of_regressions_is_of_a_parser() -> None:
    assert {path.parent.name for path in KEPT} <= PARSERS.keys()
    assert all(path.stat().st_size <= 4096 for path in KEPT)
