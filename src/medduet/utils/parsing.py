"""Reading JSON that may come from a stranger, tables, and texts."""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medduet.errors import DataError, MedDuetError, MissingFileError

MAX_JSON = 32 << 20
"""Bytes of a JSON file. In memory it may take twenty times as much."""
_MAX_DEPTH = 100
_MISREAD = (
    *(ArithmeticError, AssertionError, AttributeError),
    *(LookupError, RuntimeError, TypeError, ValueError),
)


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
    """Return the value of a JSON text, which may be a stranger's; ValueError if it is not sound."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"more than {_MAX_DEPTH} levels") from error
    _check_depth(value, _MAX_DEPTH)
    if re.search(r"\\u[dD]", text):  # halves of characters can't be written again
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _check_depth(value: Any, levels: int) -> None:
    if isinstance(value, (dict, list)):
        if not levels:
            raise ValueError(f"more than {_MAX_DEPTH} levels")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, levels - 1)


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"it has more than {MAX_JSON >> 20} MB")
    return path.read_text(encoding="utf-8")


@contextmanager
def misread(source: str | Path, error: type[MedDuetError] = DataError) -> Iterator[None]:
    """Turn the errors of values in a stranger's file that are not as expected into `error`."""
    try:
        yield
    except MedDuetError:
        raise
    except _MISREAD as e:
        raise error(f"{source} is not as MedDuet writes it: {e!r}") from e


def read_text(path: Path) -> str:
    """Return the text in the file at `path`; MissingFileError or DataError if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingFileError(f"expected a text file, but there is no {path}") from error
    except ValueError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}") from error


def csv_rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of the CSV file at `path`; DataError if it is no CSV in UTF-8."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.reader(file)
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} can't be read as a table: {error}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file at `path`, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_text(path: str | Path) -> str:
    r"""Return a path as it can be written down: bytes of it that are not UTF-8 become ``\xNN``."""
    return os.fsencode(path).decode(errors="backslashreplace")
