"""Files that are either old or new, never half written."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medduet.errors import MedDuetError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux's renameat2
_HERE = -100  # AT_FDCWD


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there, synced to disk, if the body succeeds.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'

    Raises:
        StorageError: the disk is full or can't be written; `path` is as it was.
    """
    with _temporary(path, tempfile.mkstemp) as temporary:
        yield temporary
        sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; if the body succeeds, it takes the place of `path`.

    What a killed process left of an earlier one is removed.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "bundle"
        >>> for text in ("old", "new"):
        ...     with atomic_folder(target) as temporary:
        ...         _ = (temporary / "a.txt").write_text(text)
        >>> (target / "a.txt").read_text(), len(list(target.parent.iterdir()))
        ('new', 1)

    Raises:
        StorageError: the disk is full or can't be written; `path` is as it was.
    """
    _sweep(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
    with _temporary(path, tempfile.mkdtemp) as temporary:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for inside in (*temporary.rglob("*"), temporary):
            sync(inside)
        if not path.exists():
            temporary.rename(path)
        elif not _exchange(temporary, path):
            # Where two folders can't change places, there is a moment without either.
            old = path.with_name(f"{temporary.stem}.old.tmp")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        sync(path.parent)


@contextmanager
def _temporary(path: Path, make: Callable[..., Any]) -> Iterator[Path]:
    """Give a temporary file or folder beside `path`, locked, and remove what is left of it."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(made if isinstance(made, str) else made[1])
        handle = os.open(temporary, os.O_RDONLY) if isinstance(made, str) else made[0]
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)  # by which `sweep` sees that its process lives
            yield temporary
        finally:
            os.close(handle)
            _remove(temporary)


def sweep(path: Path) -> None:
    """Remove what killed processes left of the file or folder `path`, and below it.

    What a living process writes is left alone.
    """
    _sweep(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
    if path.is_dir():
        _sweep(path.rglob(".*.tmp"))


def _sweep(leftovers: Iterable[Path]) -> None:
    for leftover in list(leftovers):
        with suppress(OSError):
            handle = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(leftover)
            finally:
                os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically as indented JSON; NaN becomes ``null``."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Return `value` with every NaN and infinity, which JSON does not know, replaced by ``None``.

    Example:
        >>> finite({"a": [1.5, float("nan")]})
        {'a': [1.5, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn errors of a full disk, or of one that can't be written, into a `StorageError`.

    Libraries have errors of their own for that.
    """
    try:
        yield
    except MedDuetError:
        raise
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        text = str(error)
        if code in _FULL or "No space left" in text or "os error 28" in text:
            reason = "the disk is full: make room"
        elif code in _FORBIDDEN and _concerns(error, path):
            reason = f"{os.strerror(code)}: give a folder that can be written"
        else:
            raise
        raise StorageError(f"can't write {path}: {reason}; what was there is unchanged") from error


def sync(path: Path) -> None:
    """Make the file or the names in the folder at `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _concerns(error: Exception, path: Path) -> bool:
    """Return whether an error is of `path` or its folder, and not of a file that was read."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes):
        return True
    there, parent = Path(os.fsdecode(name)).absolute(), path.absolute().parent
    return there == parent or parent in there.parents or there in parent.parents


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places at one moment; return whether the system can do that."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
