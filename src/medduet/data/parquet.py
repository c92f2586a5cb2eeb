"""Reads tables in Parquet, in a process of its own. Imports no torch.

A small file may say that it holds anything, and what reads it was not made for that: there it has a
limit of memory and of time, and may die.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medduet.data.workers import map_files
from medduet.errors import DataError

_MEMORY = 2 << 30  # bytes of addresses
_SHOWN = 8


def parquet_rows(path: Path, known: Collection[str], most: int) -> Iterator[Sequence[Any]]:
    """Give the names of the columns of the table at `path`, then its rows, of text and numbers.

    Args:
        path: of the file.
        known: names of the columns that are wanted, in lower case; if it has none of them, only the
            names that it has are given.
        most: rows that it may have.

    Raises:
        DataError: it is damaged or too large, or holds other values.
    """
    for _, rows in map_files(
        partial(_rows, known=known, most=most), [path], processes=1, memory=_MEMORY
    ):
        if isinstance(rows, str):
            raise DataError(f"{path} can't be read as a table: {rows}")
        yield from rows


def _rows(path: Path, known: Collection[str], most: int) -> list[Sequence[Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            'reading Parquet needs pyarrow: pip install "medduet[medical]", or save a CSV'
        ) from error
    with parquet.ParquetFile(path) as file:
        given, number = file.schema_arrow.names, file.metadata.num_rows
        if number > most:
            raise DataError(f"expected at most {most:,} rows, given {number:,}")
        names = [name for name in given if name.strip().lower() in known]
        if not names:
            return [given[:_SHOWN], []]
        rows: list[Sequence[Any]] = [names]
        for batch in file.iter_batches(1 << 10, columns=names, use_threads=False):
            rows += zip(*map(_plain, batch.columns), strict=True)
        return rows


def _plain(column: Any) -> list[str | int | float | None]:
    values: list[Any] = column.to_pylist()
    if not all(value is None or isinstance(value, (str, int, float)) for value in values):
        raise DataError(f"expected text and numbers, given {column.type}")
    return values
