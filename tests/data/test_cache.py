import hashlib
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medduet.data.cache import file_digests


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, cache: Path) -> None:
    reads, path = list[str](), tmp_path / "a"

    def bar(description: str, total: int) -> Any:
        reads.append(description)
        return tqdm(total=total, disable=True)

    path.write_bytes(b"one")
    first = file_digests(path, cache, bar)
    assert first == (hashlib.md5(b"one").hexdigest(), hashlib.sha256(b"one").hexdigest())
    assert file_digests(path, cache, bar) == first
    assert reads == ["check a"]
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"two")  # same size; then the old time is put back, as some copy tools do
    os.utime(path, ns=times)
    second = file_digests(path, cache)
    assert second[1] == hashlib.sha256(b"two").hexdigest()
    for note in (cache / "digests").iterdir():
        note.write_text("[1")  # only costs a second reading
    assert file_digests(path, cache) == second
