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
from collections.abc import Iterator
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
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'

    Raises:
        StorageError: the disk is full or can't be written; `path` is as it was.
    """
    temporary = None
    with storage_faults_told(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            sync(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            sync(path.parent)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; if the body succeeds, it takes the place of `path`.

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
    temporary = None
    with storage_faults_told(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
                _remove_unless_held(left)
            made = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            temporary = Path(made)
            with _held(temporary):
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
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)


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
def storage_faults_told(path: Path) -> Iterator[None]:
    """Turn the errors of a full disk, or of one that can't be written, into a `StorageError`.

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


def sweep(folder: Path) -> None:
    """Remove what killed processes left below `folder`, to which no other one may write now."""
    for left in list(folder.rglob(".*.tmp")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sweep_beside(path: Path) -> None:
    """Remove what killed processes left of the file `path`, to which no other one may write now."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)


def _concerns(error: Exception, path: Path) -> bool:
    """Return whether an error is of `path` or its folder, and not of a file that was read."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes):
        return True
    there, parent = Path(os.fsdecode(name)).absolute(), path.absolute().parent
    return there == parent or parent in there.parents or there in parent.parents


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, by which others see that its process lives."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_unless_held(folder: Path) -> None:
    """Remove a folder that a killed process has left."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


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
