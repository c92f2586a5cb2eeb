"""Which images there are, and what is known of each: from a folder, or from a table.

A folder is ``[SPLIT/][CLASS/][GROUP/]IMAGE``: sub-folders called train, val and test (or training,
valid, validation, testing) are splits, those below them classes, and those below these groups such
as patients. Masks lie beside their images as ``NAME_mask.png`` (and ``NAME_mask_1.png``, ...), or
in another folder under the same names, see `medduet.data.folders`.

A table, CSV or Parquet, has one row per image: ``path``, and where known ``label`` (or ``labels``:
several, separated by ``|``), ``mask`` (one or more, separated by ``|``), ``group`` and ``split``.
Paths are relative to the table.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medduet.data.folders import Place, images_and_masks, masks_of, natural
from medduet.data.imageset import SPLITS
from medduet.errors import DataError, MissingFileError

if TYPE_CHECKING:
    import pandas

TABLES = (".csv", ".parquet")
"""Endings of tables of images."""
UNKNOWN = "?"
_SHOWN = 8
_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_ALIASES = {
    "path": ("path", "image", "file", "filename", "filepath"),
    "label": ("label", "class", "diagnosis"),
    "labels": ("labels",),
    "mask": ("mask", "masks", "mask_path"),
    "group": ("group", "patient", "patient_id", "case"),
    "split": ("split",),
}


@dataclass(frozen=True)
class Item:
    """One image file.

    Attributes:
        name: what it is called in the set: its path in the folder, or in the table.
        path: where it is.
        masks: its mask files; several are united.
        labels: its class, or classes; ``None`` is unknown.
        group: whose images belong together, such as a patient; empty is unknown.
        split: train, val or test; empty if it is to be made.
    """

    name: str
    path: Path
    masks: tuple[Path, ...] = ()
    labels: tuple[str, ...] | None = None
    group: str = ""
    split: str = ""


@dataclass(frozen=True)
class Listing:
    """The files of a set.

    Attributes:
        name: of the set.
        items: its images, in order of their names.
        class_names: all classes, in order.
        multi_label: whether an image can have several.
        faults: what can't be used before any file is opened, and why.
    """

    name: str
    items: tuple[Item, ...]
    class_names: tuple[str, ...]
    multi_label: bool
    faults: tuple[tuple[str, str], ...] = ()


def list_folder(root: Path, masks: Path | None = None) -> Listing:
    """List the images in and under the folder `root`.

    Links are followed, but not in circles. Files whose names are not UTF-8 are faults.

    Args:
        root: see the module.
        masks: folder that holds the masks under the names of the images; ``None`` for those beside
            the images, or in folders called so.

    Raises:
        MissingFileError: there is no such folder.
        DataError: no image is in it, or what belongs together is not clear.
    """
    for folder, what in ((root, "images"), (masks, "masks")):
        if folder is not None and not folder.is_dir():
            raise MissingFileError(f"expected a folder of {what} at {folder}, given no folder")
    images, drawn, faults = images_and_masks(root, masks)
    if not images:
        unusable = f" but {faults[0][0]}: {faults[0][1]}" if faults else ""
        raise DataError(
            f"{root}: expected images (PNG, JPEG, TIFF, DICOM, NIfTI, ...) in it or in sub-folders "
            f"named after classes, there are none{unusable}"
        )
    splits = _splits(root, images)
    items = []
    for path, place in images.items():
        inner = place[1:] if splits else place
        name, mask_files = path.relative_to(root).as_posix(), masks_of(path, (place, inner), drawn)
        labels, group, split = inner[:1] or None, "/".join(inner[1:]), splits.get(place[:1], "")
        items.append(Item(name, path, mask_files, labels, group, split))
        if len(folders := {mask.parent for mask in mask_files}) > 1:
            given = " and ".join(sorted(map(str, folders)))
            raise DataError(f"{path}: expected its masks in one folder, given {given}: move one")
    uses = Counter(mask for item in items for mask in item.masks)
    if shared := [mask for mask, count in uses.items() if count > 1]:
        raise DataError(
            f"{shared[0]}: expected a mask of one image, given {uses[shared[0]]} images of this "
            "name: put masks into folders as their images are"
        )
    alone = [path for paths in drawn.values() for path in paths if path not in uses]
    reason = "expected an image of this name, but there is only its mask"
    faults += [(str(path), reason) for path in alone]
    items.sort(key=lambda item: natural(item.name))
    names = _class_names({label for item in items for label in item.labels or ()})
    return Listing(root.resolve().name, tuple(items), names, False, tuple(faults))


def _splits(root: Path, images: Mapping[Path, Place]) -> dict[Place, str]:
    """Return the split that each first folder of a place stands for, if they are splits."""
    names = dict.fromkeys(place[0] if place else path.name for path, place in images.items())
    splits = {name: _SPLIT_OF[name.lower()] for name in names if name.lower() in _SPLIT_OF}
    if len(set(splits.values())) < 2:  # one folder may be a class of that name
        return {}
    if len(splits) < len(names) or len(splits) > len(set(splits.values())):
        given = ", ".join([*splits, *(name for name in names if name not in splits)][:_SHOWN])
        raise DataError(
            f"{root}: expected one folder for each of train, val and test and no images beside "
            f"them, given {given}; masks in another folder are given by --data.masks"
        )
    return {(name,): split for name, split in splits.items()}


def _class_names(labels: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(labels, key=natural))


def list_table(path: Path) -> Listing:
    """List the images of a CSV or Parquet table; see the module for its columns.

    In ``labels`` an empty cell is an image without any class; elsewhere it is unknown, as is ``?``.

    Raises:
        MissingFileError: there is no such table.
        DataError: it has no column of paths, no rows, a path twice, or an unknown split.
    """
    table = _read_table(path)
    multi_label = "labels" in table
    items: dict[str, Item] = {}
    for number, cells in enumerate(table.to_dict("records"), start=2):
        split = cells.get("split", "").lower()
        if split and split not in _SPLIT_OF:
            raise DataError(
                f"{path}, row {number}: expected split {', '.join(SPLITS)}, given '{split}'"
            )
        name = cells["path"]
        if not name or name in items:
            wrong = f"{name} again" if name else "none"
            raise DataError(
                f"{path}, row {number}: expected the path of another image, given {wrong}"
            )
        items[name] = Item(
            name,
            path.parent / name,
            tuple(path.parent / mask for mask in _several(cells.get("mask", ""))),
            _labels(cells, multi_label),
            cells.get("group", ""),
            _SPLIT_OF.get(split, ""),
        )
    if len({bool(item.split) for item in items.values()}) > 1:
        raise DataError(f"{path}: expected a split for every image or for none, given it for some")
    names = _class_names({label for item in items.values() for label in item.labels or ()})
    return Listing(path.stem, tuple(items.values()), names, multi_label)


def _labels(cells: Mapping[str, str], multi_label: bool) -> tuple[str, ...] | None:
    text = cells.get("labels" if multi_label else "label", UNKNOWN)
    if text == UNKNOWN or (not text and not multi_label):
        return None
    return _several(text) if multi_label else (text,)


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|") if part.strip())


def _read_table(path: Path) -> pandas.DataFrame:
    """Return the columns that have a meaning, by the first of their names, as text."""
    import pandas

    if not path.is_file():
        raise MissingFileError(f"expected a table at {path}, but there is no such file")
    try:
        if path.suffix.lower() == ".parquet":
            table = pandas.read_parquet(path)
        else:
            text = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
            with warnings.catch_warnings():  # of cells beyond the columns, which it would drop
                warnings.simplefilter("error", pandas.errors.ParserWarning)
                table = pandas.read_csv(path, index_col=False, **text)
    except ImportError as error:
        raise DataError(
            f'reading {path} needs pyarrow: pip install "medduet[medical]", or save a CSV'
        ) from error
    except pandas.errors.EmptyDataError:
        table = pandas.DataFrame()
    except (ValueError, OSError, pandas.errors.ParserWarning) as error:
        raise DataError(f"{path} can't be read as a table: {error}") from error
    if table.empty:
        raise DataError(f"{path}: expected one row per image under a row of names, given none")
    columns = {str(name).strip().lower(): name for name in table.columns}
    cells = {
        name: table[columns[next(alias for alias in aliases if alias in columns)]].map(_text)
        for name, aliases in _ALIASES.items()
        if not columns.keys().isdisjoint(aliases)
    }
    if "path" not in cells:
        raise DataError(f"{path}: expected a column path, given {', '.join(columns)}: rename one")
    return pandas.DataFrame(cells)


def _text(value: Any) -> str:
    if value is None or value != value:  # NaN
        return ""
    whole = isinstance(value, float) and value.is_integer()  # integers with gaps come as floats
    return str(int(value) if whole else value).strip()
