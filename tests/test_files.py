from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from medduet.files import atomic_path, finite, read_json, write_json, write_text


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.txt"
    write_text(path, "old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old", "the file is not whole, and can be seen"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "file.txt", "ä\n")
        assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o644
        assert os.umask(0o022) == 0o022, "the umask was not given back"
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").read_bytes() == b"\xc3\xa4\n"


def test_json_without_nan(tmp_path: Path) -> None:
    nan, infinity = float("nan"), float("inf")
    value = {
        "a": [1, nan, (infinity, -infinity)],
        "b": {"c": nan},
        "d": "NaN",
        "e": True,
        "f": None,
    }
    write_json(tmp_path / "a.json", value)
    strict = json.loads(
        (tmp_path / "a.json").read_text(), parse_constant=lambda name: pytest.fail(name)
    )
    expected = {"a": [1, None, [None, None]], "b": {"c": None}, "d": "NaN", "e": True, "f": None}
    assert strict == expected
    assert read_json(tmp_path / "a.json") == expected
    assert finite(1.5) == 1.5
