"""Folders of results: what may lie in them, and which process writes there."""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from medduet.errors import ConfigError
from medduet.utils.files import storage_errors


def result_folder(folder: Path, name: str = "") -> Path:
    """Return ``folder/name``; ConfigError if a link, pipe or device in `folder` leads elsewhere."""
    place = folder / name
    above = [place, *place.parents][: len(Path(name).parts)]  # `folder` itself may be a link
    inside = (Path(up, each) for up, *names in os.walk(place) for each in chain(*names))
    for path in chain(reversed(above), inside):
        with suppress(FileNotFoundError):  # of another process
            if stat.S_IFMT(path.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                expected = f"expected folders and files in {folder}, given another kind"
                raise ConfigError(f"{expected} (a link, a pipe, a device): remove {path}")
    return place


@contextmanager
def exclusive(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock file at `path`, and say whether this is the only process that does.

    With `wait` it is, sooner or later. The system gives the lock back if the process dies.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        with suppress(OSError):  # a full disk
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield True


def holder(path: Path) -> str:
    """Return which process holds the lock file at `path`, in words."""
    return path.read_text("utf-8", errors="replace").strip() or "another process"


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock file at `path`."""
    if not path.is_file():
        return False
    with path.open() as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    return True
