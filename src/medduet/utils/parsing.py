"""Reading JSON and CSV that may come from a stranger."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from medduet.errors import DataError, MedDuetError, MissingFileError

MOST_JSON = 32 << 20
"""Bytes of a JSON file. In memory it may take twenty times as much."""
_DEEPEST = 100
_MISREAD = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
_MOST_LINE, _MOST_COLUMNS = 1 << 20, 50_000


def read_json(path: Path, error: type[MedDuetError] = DataError) -> Any:
    """Read the JSON file at `path`, which may come from a stranger; `error` if it is none."""
    try:
        return parse_json(_text(path))
    except ValueError as reason:
        raise error(f"{path} is not JSON: {reason}") from reason


def read_text(path: Path) -> str:
    """Return the text in the file at `path`; MissingFileError or DataError if there is none."""
    try:
        return _text(path)
    except FileNotFoundError as error:
        raise MissingFileError(f"expected a text file, but there is no {path}") from error
    except ValueError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}") from error


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


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file at `path`, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_text(path: str | Path) -> str:
    r"""Return a path as it can be written down: bytes of it that are not UTF-8 become ``\xNN``.

    Example:
        >>> print(as_text("set/caf\udce9.png"), as_text("set/café.png"))
        set/caf\xe9.png set/café.png
    """
    return os.fsencode(path).decode(errors="backslashreplace")


def _text(path: Path) -> str:
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"it has more than {MOST_JSON >> 20} MB")
    return path.read_text(encoding="utf-8")
