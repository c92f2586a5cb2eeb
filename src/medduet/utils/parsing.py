"""Reading what may come from a stranger: JSON, texts, and tables, which are also written here."""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medduet.errors import DataError, MedDuetError, MissingFileError

MAX_JSON = 32 << 20
"""Bytes of a JSON file, of which most are in long texts."""
_MAX_DEPTH, _MAX_VALUES = 100, 1 << 20
_MAX_CSV, _MAX_COLUMNS = 1 << 30, 1 << 15
_FORMULA = r"(^|;)(?='*[-=+@\t\r\n＝＋－＠])(?!^[-+]?(\d+(\.\d+)?(e[-+]?\d+)?|inf)$)"


def read_json(path: Path, error: type[MedDuetError] = DataError) -> dict[str, Any]:
    """Read the JSON object in a file, which may come from a stranger; `error` if it is none."""
    try:
        value = parse_json(read_bytes(path).decode())
    except ValueError as reason:
        raise error(f"{path} is not JSON: {reason}") from reason
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, given another value")
    return value


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, which may be a stranger's; ValueError if it is not sound."""
    if sum(map(text.count, "[{,")) > _MAX_VALUES:
        raise ValueError(f"more than {_MAX_VALUES:,} values")
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


def read_bytes(path: Path, most: int = MAX_JSON) -> bytes:
    """Return what a file contains; MissingFileError, or ValueError if that is above `most`."""
    if not path.is_file():  # a pipe would be waited for, a device has no end
        raise MissingFileError(f"expected a file at {path}, but there is none")
    if path.stat().st_size > most:
        raise ValueError(f"it has more than {most >> 20} MB")
    return path.read_bytes()


@contextmanager
def misread(source: str | Path) -> Iterator[None]:
    """Turn the errors of values in a stranger's file that are not as expected into a DataError."""
    try:
        yield
    except (MedDuetError, OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{source} is not as MedDuet writes it: {error!r}") from error


def csv_text(table: Any, **options: Any) -> str:
    """Return a DataFrame as CSV in which an apostrophe keeps texts from being formulas."""
    mixed = [name for name, cells in table.items() if cells.dtype.kind == "O"]
    texts = [name for name in mixed if any(isinstance(cell, str) for cell in table[name])]
    table = table.replace(dict.fromkeys(texts, _FORMULA), r"\1'", regex=True)
    options |= {"index": False, "lineterminator": "\n"}
    text = str(table.to_csv(**options))
    return str(table.to_csv(quoting=csv.QUOTE_NONNUMERIC, **options)) if "\r" in text else text


def read_csv(path: Path, **options: Any) -> Any:
    """Return a DataFrame of texts, as it was for `csv_text`; ValueError if it is none."""
    import pandas as pd

    content = io.BytesIO(read_bytes(path, _MAX_CSV))
    if content.readline().count(b",") > _MAX_COLUMNS or content.seek(0):
        raise ValueError(f"it has more than {_MAX_COLUMNS:,} columns")
    table = pd.read_csv(content, dtype=str, keep_default_na=False, **options)
    return table.replace({"image": f"(^|;)'{_FORMULA[5:]}"}, r"\1", regex=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file at `path`, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_text(path: str | Path) -> str:
    r"""Return a path as it can be written down: bytes of it that are not UTF-8 become ``\xNN``."""
    return os.fsencode(path).decode(errors="backslashreplace")
