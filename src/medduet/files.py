"""Files that are either old or new, never half written."""

from __future__ import annotations

import csv
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from medduet.errors import DataError, MedDuetError, StorageError

MOST_JSON = 32 << 20
"""Bytes of a JSON file. In memory it may take twenty times as much."""
_DEEPEST = 100
_MISREAD = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
_MOST_LINE, _MOST_COLUMNS = 1 << 20, 50_000
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


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file at `path`, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def as_text(path: str | Path) -> str:
    r"""Return a path as it can be written down: bytes of it that are not UTF-8 become ``\xNN``.

    Example:
        >>> print(as_text("set/caf\udce9.png"), as_text("set/café.png"))
        set/caf\xe9.png set/café.png
    """
    return os.fsencode(path).decode(errors="backslashreplace")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically as indented JSON; NaN becomes ``null``."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path, error: type[MedDuetError] = DataError) -> Any:
    """Read the JSON file at `path`, which may come from a stranger; `error` if it is none."""
    try:
        return parse_json(_text(path))
    except ValueError as reason:
        raise error(f"{path} is not JSON: {reason}") from reason


def read_object(path: Path, error: type[MedDuetError] = DataError) -> dict[str, Any]:
    """Read the JSON object in the file at `path`; `error` if it is none."""
    value = read_json(path, error)
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, given another value")
    return value


def read_objects(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects in the lines of the file at `path`; DataError if they are none."""
    try:
        values = [parse_json(line) for line in _text(path).splitlines()]
    except ValueError as reason:
        raise DataError(f"{path} is damaged: {reason}") from reason
    if not all(isinstance(value, dict) for value in values):
        raise DataError(f"{path} is damaged: expected a JSON object in each line")
    return values


def parse_json(text: str) -> Any:
    r"""Return the value of a JSON text, which may be a stranger's.

    Raises:
        ValueError: it is none, has more than 100 levels, or halves of characters.

    Example:
        >>> parse_json("[1, {}]")
        [1, {}]
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: more than 100 levels
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"more than {_DEEPEST} levels") from error
    inside: list[Any] = [value]
    for _ in range(_DEEPEST + 1):
        found = (each for each in inside if isinstance(each, (dict, list)))
        parts = (each.values() if isinstance(each, dict) else each for each in found)
        inside = [each for part in parts for each in part]
    if inside:
        raise ValueError(f"more than {_DEEPEST} levels")
    if re.search(r"\\u[dD]", text):  # halves of characters can't be written again
        json.dumps(value, ensure_ascii=False).encode()
    return value


def csv_rows(path: Path) -> Iterator[list[str]]:
    """Give the rows of the CSV file at `path`, which may come from a stranger.

    Raises:
        DataError: it is no CSV in UTF-8, or has lines, cells or columns that no table has.
    """

    def lines(file: IO[str]) -> Iterator[str]:  # the reader's own would take one of any length
        while line := file.readline(_MOST_LINE + 1):
            if len(line) > _MOST_LINE:
                raise ValueError(f"a line has more than {_MOST_LINE >> 20} MB")
            yield line

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.reader(lines(file)):
                if len(row) > _MOST_COLUMNS:
                    raise ValueError(f"expected {_MOST_COLUMNS} columns at most, given {len(row)}")
                yield row
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} can't be read as a table: {error}") from error


@contextmanager
def misread(what: str | Path, error: type[MedDuetError] = DataError) -> Iterator[None]:
    """Turn what values of a stranger's file that are not as expected do in the body into `error`.

    Example:
        >>> with misread("a.json"):
        ...     {}["b"]
        Traceback (most recent call last):
        medduet.errors.DataError: a.json is not as MedDuet writes it: KeyError('b')
    """
    try:
        yield
    except MedDuetError:
        raise
    except _MISREAD as e:
        raise error(f"{what} is not as MedDuet writes it: {e!r}") from e


def _text(path: Path) -> str:
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"it has more than {MOST_JSON >> 20} MB")
    return path.read_text(encoding="utf-8")


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
def exclusive(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock file at `path`, and say whether this is the only process that does.

    With `wait` it is, sooner or later. The system gives the lock back whatever happens to the
    process. Who holds it stands in the file, see `holder`.

    Example:
        >>> import tempfile
        >>> with exclusive(Path(tempfile.mkdtemp()) / "lock") as alone:
        ...     alone
        True
    """
    with storage_faults_told(path):
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
    """Return which process holds the lock file at `path`, in words.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> with exclusive(path):
        ...     holder(path) == f"process {os.getpid()} on {socket.gethostname()}"
        True
    """
    with suppress(OSError):
        if text := path.read_text("utf-8", errors="replace").strip():
            return text
    return "another process"


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock file at `path`."""
    if not path.is_file():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
