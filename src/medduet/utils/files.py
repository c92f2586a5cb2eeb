"""Files that are either old or new, never half written."""

import ctypes
import errno
import fcntl
import glob
import gzip
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from medduet.errors import MedDuetError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there, synced to disk, if the body succeeds."""
    with _temporary(path, Path.touch) as temporary:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; if the body succeeds, it takes the place of `path`."""
    sweep(path)
    with _temporary(path, Path.mkdir) as temporary:
        yield temporary
        for inside in (*temporary.rglob("*"), temporary):
            sync(inside)
        if not path.exists():
            temporary.rename(path)
        elif not _exchange(temporary, path):
            # Where two folders can't change places, there is a moment without either.
            old = path.with_name(f"{temporary.stem}.old.tmp")
            path.rename(old)
            temporary.rename(path)
            _remove(old)
        sync(path.parent)


@contextmanager
def _temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Give a temporary file or folder beside `path`, locked, and remove what is left of it."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        make(temporary)
        try:
            with _opened(temporary) as handle:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(handle, fcntl.LOCK_EX)  # `sweep` sees that its process lives
                yield temporary
        finally:
            _remove(temporary)


def sweep(path: Path) -> None:
    """Remove what killed processes left of `path` and below it; living ones keep what is theirs."""
    beside = path.parent.glob(f".{glob.escape(path.name)}.*.tmp")
    for leftover in [*beside, *path.rglob(".*.tmp")]:
        with suppress(OSError), _opened(leftover) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(leftover)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for
    try:
        yield handle
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
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
    """Return `value` with ``None`` for every NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn errors of a full disk, or of one that can't be written, into a `StorageError`."""
    try:
        yield
    except MedDuetError:
        raise
    except Exception as error:
        code, text = getattr(error, "errno", None), str(error)
        if of_rust := re.search(r"os error (\d+)", text):
            code = int(of_rust[1])
        elif re.search(r"No space left|requested and \d+ written", text):  # numpy says the latter
            code = errno.ENOSPC
        if code in _FULL:
            full = "the disk is full" if code == errno.ENOSPC else os.strerror(code)
            reason = f"{full}: make room"
        elif code in _FORBIDDEN and _is_near(getattr(error, "filename", None) or path, path):
            reason = f"{os.strerror(code)}: give a folder that can be written"
        else:
            raise
        raise StorageError(f"can't write {path}: {reason}; what was there is unchanged") from error


def _is_near(name: str | bytes | Path, path: Path) -> bool:
    """Return whether a file is beside `path` or above it, and no source that was read."""
    there, folder = Path(os.fsdecode(name)).absolute(), path.absolute().parent
    return there.is_relative_to(folder) or folder.is_relative_to(there)


def unpacked(file: BinaryIO) -> BinaryIO:
    """Return an open file from its start; of gzip, one that is unpacked as it is read."""
    file.seek(0)
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return cast("BinaryIO", gzip.GzipFile(fileobj=file)) if is_packed else file


def sync(path: Path) -> None:
    """Make the file or the names in the folder at `path` survive a power cut."""
    with _opened(path) as handle:
        os.fsync(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places at one moment; return whether the system can do that."""
    with suppress(AttributeError):
        rename = ctypes.CDLL(None).renameat2
        return not rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return False
