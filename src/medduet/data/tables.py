"""Which images a table has, and what is known of each.

A table, a CSV, has one row per image: ``path``, and where known ``label`` (or ``labels``:
several, separated by ``|``), ``mask`` (one or more, separated by ``|``), ``group`` and ``split``.
Paths are relative to the table.
"""

import csv
from pathlib import Path

from medduet.data.imageset import SPLITS
from medduet.data.listing import SPLIT_OF, Item, Listing
from medduet.errors import DataError, MissingFileError

_COLUMNS = {
    **dict.fromkeys(("path", "image", "file", "filename", "filepath"), "path"),
    **dict.fromkeys(("label", "class", "diagnosis"), "label"),
    "labels": "labels",
    **dict.fromkeys(("mask", "masks", "mask_path"), "mask"),
    **dict.fromkeys(("group", "patient", "patient_id", "case"), "group"),
    "split": "split",
}


def list_table(path: Path) -> Listing:
    """List the images of a CSV; see the module for its columns.

    In ``labels`` an empty cell is an image without any class; elsewhere it is unknown, as is ``?``.
    """
    rows = _read_rows(path)
    given = {str(name).strip().lower(): name for name in rows[0]}
    columns = {column: given[name] for name, column in reversed(_COLUMNS.items()) if name in given}
    if "path" not in columns:
        raise DataError(f"{path}: expected a column path, given {', '.join(given)}: rename one")
    items: dict[str, Item] = {}
    for number, row in enumerate(rows, start=2):
        cells = {column: (row[name] or "").strip() for column, name in columns.items()}
        name, split = cells["path"], cells.get("split", "").lower()
        where = f"{path}, row {number}: expected"
        if split and split not in SPLIT_OF:
            raise DataError(f"{where} split {', '.join(SPLITS)}, given '{split}'")
        if not name or name in items:
            raise DataError(f"{where} the path of another image, given '{name}'")
        if "labels" in cells:
            labels = None if cells["labels"] == "?" else _several(cells["labels"])
        else:
            labels = tuple({cells.get("label", "")} - {"", "?"}) or None
        masks = tuple(path.parent / mask for mask in _several(cells.get("mask", "")))
        split = SPLIT_OF.get(split, "")
        items[name] = Item(name, path.parent / name, masks, labels, cells.get("group", ""), split)
    if len({bool(item.split) for item in items.values()}) > 1:
        raise DataError(f"{path}: expected a split for every image or for none, given it for some")
    return Listing(path.stem, tuple(items.values()), "labels" in columns)


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|") if part.strip())


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table as text by the names of its columns; an empty cell is ``""``."""
    if not path.is_file():
        raise MissingFileError(f"expected a table at {path}, but there is no such file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} can't be read as a table: {error}") from error
    if not rows:
        raise DataError(f"{path}: expected one row per image under a row of names, given none")
    if any(None in row for row in rows):
        raise DataError(f"{path}: expected no more cells than names in a row, given more")
    return rows
