"""The cache folder, digests of files, and progress bars. Imports no torch."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

Progress = Callable[[str, int], Any] | None
"""Makes a bar, as of tqdm, from a description and a total in bytes, images or the like."""


@contextmanager
def counted(progress: Progress, description: str, total: int) -> Iterator[Callable[[int], object]]:
    """Give a function that counts on a new bar, or does nothing without `progress`."""
    if progress is None:
        yield lambda amount: None
        return
    with closing(progress(description, total)) as bar:
        yield bar.update


def cache_folder(cache: Path | None = None) -> Path:
    """Return the cache folder, not created: `cache`, ``$MEDDUET_CACHE`` or the user's own."""
    folder = cache or os.environ.get("MEDDUET_CACHE") or user_cache_path("medduet")
    return Path(folder).expanduser().absolute()


def file_digests(path: Path, cache: Path, progress: Progress = None) -> tuple[str, str]:
    """Return MD5 and SHA-256 of the file at `path`, remembered by its path, size and times."""
    path = path.absolute()
    stat = path.stat()
    stamp = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    note = cache / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):  # a lost note only costs time
        remembered = read_json(note)
        if remembered["stamp"] == stamp:
            return str(remembered["md5"]), str(remembered["sha256"])
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file, counted(progress, f"check {path.name}", stat.st_size) as count:
        while chunk := file.read(1 << 20):
            md5.update(chunk)
            sha256.update(chunk)
            count(len(chunk))
    digests = {"md5": md5.hexdigest(), "sha256": sha256.hexdigest()}
    with suppress(OSError):
        write_json(note, {"stamp": stamp, **digests})
    return digests["md5"], digests["sha256"]
