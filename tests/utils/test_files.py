import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medduet.utils.files import atomic_folder, atomic_path, finite, sweep, write_json
from medduet.utils.parsing import read_json


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "folder" / "target"
    made = atomic_path(path) if kind == "file" else atomic_folder(path)
    with made as temporary:
        (temporary if kind == "file" else temporary / "a.txt").write_text("old")

    def fail_half_way() -> None:
        again = atomic_path(path) if kind == "file" else atomic_folder(path)
        with again as temporary:
            (temporary if kind == "file" else temporary / "b.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert (path if kind == "file" else path / "a.txt").read_text() == "old"
    names = sorted(file.name for file in path.parent.rglob("*"))
    assert names == ["target"] if kind == "file" else ["a.txt", "target"]


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    left = tmp_path / ".bundle.killed.tmp"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    (tmp_path / ".other.killed.tmp").mkdir()
    with atomic_folder(tmp_path / "bundle") as first:
        assert not left.exists()
        with atomic_folder(tmp_path / "bundle") as second:
            assert first.exists()
            (second / "a.txt").write_text("second")
        (first / "a.txt").write_text("first")
    assert (tmp_path / "bundle" / "a.txt").read_text() == "first"
    (tmp_path / "bundle" / ".a.txt.killed.tmp").touch()
    (tmp_path / ".bundle.killed.tmp").touch()
    with atomic_path(tmp_path / "bundle" / "a.txt") as temporary:
        temporary.write_text("third")
        sweep(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "a.txt").read_text() == "third"
    names = sorted(path.name for path in tmp_path.rglob("*"))
    assert names == [".other.killed.tmp", "a.txt", "bundle"]


def test_a_folder_is_there_at_every_moment(tmp_path: Path) -> None:
    """A reader beside a writer always finds one whole state."""
    path, stop, seen = tmp_path / "bundle", threading.Event(), set[str]()

    def read() -> None:
        while not stop.is_set():
            seen.add((path / "a.txt").read_text())

    with atomic_folder(path) as folder:
        (folder / "a.txt").write_text("0")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for number in range(1, 200):
            with atomic_folder(path) as folder:
                (folder / "a.txt").write_text(str(number))
        stop.set()
        reading.result()
    assert len(seen) > 1
    assert "" not in seen


def test_json_without_nan(tmp_path: Path) -> None:
    nan, infinity = float("nan"), float("inf")
    value = {"a": [1, nan, (infinity, -infinity)], "b": {"c": nan}, "d": "NaN", "e": True}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert strict == {"a": [1, None, [None, None]], "b": {"c": None}, "d": "NaN", "e": True}
    assert read_json(tmp_path / "a.json") == finite(value) == strict
