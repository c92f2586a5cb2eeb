"""Lock files: which process works on something."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medduet.utils.files import storage_errors


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
