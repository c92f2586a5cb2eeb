"""Which images there are, and what is known of each: from a folder, or from a table.

A folder is ``[SPLIT/][CLASS/][GROUP/]IMAGE``: sub-folders called train, val and test (or training,
valid, validation, testing) are splits, those below them classes, and those below these groups such
as patients. How masks are named, `medduet.data.folders` says.

A table, a CSV, has one row per image: ``path``, and where known ``label`` (or ``labels``:
several, separated by ``|``), ``mask`` (one or more, separated by ``|``), ``group`` and ``split``.
Paths are relative to the table.
"""

import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from medduet.data.folders import Place, images_and_masks, natural, stem_of
from medduet.data.imageset import SPLITS
from medduet.errors import DataError, MissingFileError

_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_COLUMNS = {
    **dict.fromkeys(("path", "image", "file", "filename", "filepath"), "path"),
    **dict.fromkeys(("label", "class", "diagnosis"), "label"),
    "labels": "labels",
    **dict.fromkeys(("mask", "masks", "mask_path"), "mask"),
    **dict.fromkeys(("group", "patient", "patient_id", "case"), "group"),
    "split": "split",
}


class Item(NamedTuple):
    """One image file, called `name` in the set, and its masks, which are united.

    Labels of ``None``, an empty group and an empty split are not known.
    """

    name: str
    path: Path
    masks: tuple[Path, ...] = ()
    labels: tuple[str, ...] | None = None
    group: str = ""
    split: str = ""


class Listing(NamedTuple):
    """The files of a set; `faults` are those that can't be used, and why."""

    name: str
    items: tuple[Item, ...]
    multi_label: bool = False
    faults: tuple[tuple[str, str], ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes, in order; numbers are ordered as numbers."""
        return tuple(sorted({x for item in self.items for x in item.labels or ()}, key=natural))


def list_folder(root: Path, masks: Path | None = None) -> Listing:
    """List the images in and under `root`, and their masks, or those in the folder `masks`."""
    for folder in (root, masks or root):
        if not folder.is_dir():
            raise MissingFileError(f"expected a folder at {folder}, given none")
    images, drawn = images_and_masks(root, masks)
    if not images:
        raise DataError(
            f"{root}: expected images (PNG, JPEG, TIFF, DICOM, NIfTI, ...) in it or in sub-folders "
            "named after classes, there are none"
        )
    splits, items = _splits(root, images), []
    for path, place in images.items():
        inner = place[1:] if splits else place
        above = [each[:n] for each in (place, inner) for n in range(len(each), -1, -1)]
        of_image = (drawn[up, stem_of(path)] for up in above if (up, stem_of(path)) in drawn)
        split = splits[place[0]] if splits else ""
        name, group = path.relative_to(root).as_posix(), "/".join(inner[1:])
        items.append(Item(name, path, tuple(next(of_image, [])), inner[:1] or None, group, split))
    uses = Counter(mask for item in items for mask in item.masks)
    if shared := [mask for mask, count in uses.items() if count > 1]:
        raise DataError(
            f"{shared[0]}: expected a mask of one image, given {uses[shared[0]]} images of this "
            "name: put masks into folders as their images are"
        )
    reason = "expected an image of this name, but there is only its mask"
    alone = tuple(
        (str(each), reason) for paths in drawn.values() for each in paths if not uses[each]
    )
    items.sort(key=lambda item: natural(item.name))
    return Listing(root.resolve().name, tuple(items), faults=alone)


def _splits(root: Path, images: Mapping[Path, Place]) -> dict[str, str]:
    """Return the split that each first folder of a place stands for, if they are splits."""
    names = dict.fromkeys(place[0] if place else path.name for path, place in images.items())
    splits = {name: _SPLIT_OF[name.lower()] for name in names if name.lower() in _SPLIT_OF}
    different = len(set(splits.values()))
    if different < 2:  # one folder may be a class of that name
        return {}
    if different < len(names):
        given = ", ".join(sorted(names, key=lambda name: name not in splits)[:8])
        raise DataError(
            f"{root}: expected one folder for each of train, val and test and no images beside "
            f"them, given {given}; masks in another folder are given by --data.masks"
        )
    return splits


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
        if split and split not in _SPLIT_OF:
            raise DataError(f"{where} split {', '.join(SPLITS)}, given '{split}'")
        if not name or name in items:
            raise DataError(f"{where} the path of another image, given '{name}'")
        if "labels" in cells:
            labels = None if cells["labels"] == "?" else _several(cells["labels"])
        else:
            labels = tuple({cells.get("label", "")} - {"", "?"}) or None
        masks = tuple(path.parent / mask for mask in _several(cells.get("mask", "")))
        split = _SPLIT_OF.get(split, "")
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
