from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from medduet.data import cache as module
from medduet.data.cache import cache_folder, file_digests


def test_argument_then_variable_then_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MEDDUET_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "medduet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "medduet"
    monkeypatch.setenv("MEDDUET_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"
    assert cache_folder(tmp_path / "given") == tmp_path / "given"


def test_a_file_is_hashed_once_until_it_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    reads = []
    real = module._read_digests
    monkeypatch.setattr(
        module, "_read_digests", lambda path, *rest: reads.append(path) or real(path, *rest)
    )
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = file_digests(path, cache)
    assert first == (hashlib.md5(b"one").hexdigest(), hashlib.sha256(b"one").hexdigest())
    assert file_digests(path, cache) == first
    assert len(reads) == 1
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"two")  # same size; then the old time is put back, as some copy tools do
    os.utime(path, ns=times)
    assert file_digests(path, cache).sha256 == hashlib.sha256(b"two").hexdigest()


def test_a_damaged_note_only_costs_a_second_reading(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = file_digests(path, cache)
    for note in (cache / "digests").iterdir():
        note.write_text("[1")
    assert file_digests(path, cache) == first
