"""Which images there are, and what is known of each: from a folder, or from a table.

A folder is ``[SPLIT/][CLASS/][GROUP/]IMAGE``: sub-folders called train, val and test (or training,
valid, validation, testing) are splits, those below them classes, and those below these groups such
as patients. Masks lie beside their images as ``NAME_mask.png`` (and ``NAME_mask_1.png``, ...), or
in another folder under the same names, as where ``DATA`` holds ``images`` and ``masks``.

A table, CSV or Parquet, has one row per image: ``path``, and where known ``label`` (or ``labels``:
several, separated by ``|``), ``mask`` (one or more, separated by ``|``), ``group`` and ``split``.
Paths are relative to the table.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medduet.data.imageset import SPLITS
from medduet.data.reading import is_image, stem_of
from medduet.errors import DataError, MissingFileError

TABLES = (".csv", ".parquet")
"""Endings of tables of images."""
UNKNOWN = "?"
_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_IMAGES, _MASKS = ("images", "image", "imgs"), ("masks", "mask")
_MASK_OF = re.compile(r"(?P<of>.+)_mask(?:[_-]?\d+)?")
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

    Args:
        root: see the module.
        masks: folder that holds the masks under the names of the images; ``None`` for those beside
            the images, or in ``root/masks`` if there is also ``root/images``.

    Raises:
        MissingFileError: there is no such folder.
        DataError: no image is in it.
    """
    for folder, what in ((root, "images"), (masks, "masks")):
        if folder is not None and not folder.is_dir():
            raise MissingFileError(f"expected a folder of {what} at {folder}, given no folder")
    items: list[Item] = []
    faults: list[tuple[str, str]] = []
    for split, images, beside in _places(root, masks):
        found, orphans = _list_place(root, images, beside, split)
        items += found
        faults += orphans
    if not items:
        raise DataError(
            f"{root}: expected images (PNG, JPEG, TIFF, DICOM, NIfTI, ...) in it or in sub-folders "
            "named after classes, found none"
        )
    # A folder of masks may serve several splits, each of which uses some of them.
    uses = Counter(mask for item in items for mask in item.masks)
    faults = [fault for fault in dict.fromkeys(faults) if Path(fault[0]) not in uses]
    if shared := [mask for mask, count in uses.items() if count > 1]:
        raise DataError(
            f"{shared[0]}: expected a mask of one image, given {uses[shared[0]]} images of this "
            "name: put masks into folders as their images are"
        )
    items.sort(key=lambda item: _natural(item.name))
    names = _class_names({label for item in items for label in item.labels or ()})
    return Listing(root.resolve().name, tuple(items), names, False, tuple(faults))


def _places(root: Path, masks: Path | None) -> Iterator[tuple[str, Path, Path | None]]:
    """Give each split's name, folder of images and folder of masks (``None``: beside them)."""
    images, masks = _pair(root, masks)
    folders = [(_SPLIT_OF.get(path.name.lower(), ""), path) for path in _folders(images)]
    splits = [split for split, _ in folders if split]
    if len(set(splits)) < 2:  # one folder may be a class of that name
        yield "", images, masks
        return
    others = [path.name for split, path in folders if not split and next(_walk(path), None)]
    others += [path.name for path in _files(images) if is_image(path)]
    if others or len(splits) > len(set(splits)):
        given = ", ".join([path.name for split, path in folders if split] + others)
        raise DataError(
            f"{images}: expected one folder for each of train, val and test and no images beside "
            f"them, given {given}; masks in another folder are given by --data.masks"
        )
    for split, folder in folders:
        if not split:
            continue
        if masks is None:
            yield split, *_pair(folder, None)
        else:
            yield split, folder, masks / folder.name if (masks / folder.name).is_dir() else masks


def _pair(root: Path, masks: Path | None) -> tuple[Path, Path | None]:
    """Return the folders of images and of masks in `root`, where these are apart."""
    inside = {path.name.lower(): path for path in _folders(root)}
    images = next((inside[name] for name in _IMAGES if name in inside), None)
    apart = masks or next((inside[name] for name in _MASKS if name in inside), None)
    if images is None or (apart is None and len(inside) > 1):
        return root, masks
    return images, apart


def _list_place(
    root: Path, images: Path, masks: Path | None, split: str
) -> tuple[list[Item], list[tuple[str, str]]]:
    beside: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    files: list[Path] = []
    mask_files: list[Path] = []
    for path in _walk(images):
        if masks is not None and path.is_relative_to(masks):
            continue
        named = _MASK_OF.fullmatch(stem_of(path)) if masks is None else None
        (mask_files if named else files).append(path)
    for path in _walk(masks) if masks is not None else mask_files:
        named = _MASK_OF.fullmatch(stem_of(path))
        place = path.parent.relative_to(images if masks is None else masks)
        beside[place, named["of"] if named else stem_of(path)].append(path)
    items, used = [], set()
    for path in files:
        place = path.parent.relative_to(images)
        parts = place.parts
        if any(part.lower() in _MASKS for part in parts):
            raise DataError(
                f"{path}: expected masks beside their images as NAME_mask.png, or in one folder of "
                "their own beside images, given a folder of masks within a class: list them in a "
                "table (.csv)"
            )
        # Masks in another folder may lie there without the folders of the classes.
        key = next(
            (k for k in ((place, stem_of(path)), (Path(), stem_of(path))) if k in beside), None
        )
        used.add(key)
        items.append(
            Item(
                path.relative_to(root).as_posix(),
                path,
                tuple(beside[key]) if key else (),
                (parts[0],) if parts else None,
                "/".join(parts[1:]),
                split,
            )
        )
    orphans = [path for key, paths in beside.items() if key not in used for path in paths]
    return items, [
        (str(path), "expected an image of this name, too, found a mask alone") for path in orphans
    ]


def _walk(folder: Path) -> Iterator[Path]:
    """Give the images in and under `folder`, in order; what is hidden is left out."""
    for path in _files(folder):
        if is_image(path):
            yield path
    for inside in _folders(folder):
        yield from _walk(inside)


def _files(folder: Path) -> list[Path]:
    shown = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted((path for path in shown if path.is_file()), key=lambda path: _natural(path.name))


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Return a key that sorts ``a (2)`` before ``a (10)``."""
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", name) if p]


def _class_names(found: set[str]) -> tuple[str, ...]:
    return tuple(sorted(found, key=_natural))


def list_table(path: Path) -> Listing:
    """List the images of a CSV or Parquet table; see the module for its columns.

    In ``labels`` an empty cell is an image without any class; elsewhere it is unknown, as is ``?``.

    Raises:
        MissingFileError: there is no such table.
        DataError: it has no column of paths, no rows, a path twice, or an unknown split.
    """
    rows = _read_table(path)
    columns = _columns(path, rows[0])
    multi_label = "labels" in columns
    items: dict[str, Item] = {}
    for number, row in enumerate(rows, start=2):
        cell = {name: _text(row.get(column)) for name, column in columns.items()}
        split = cell.get("split", "").lower()
        if split and split not in _SPLIT_OF:
            raise DataError(
                f"{path}, row {number}: expected split {', '.join(SPLITS)}, given '{split}'"
            )
        name = cell["path"]
        if not name or name in items:
            wrong = f"{name} again" if name else "none"
            raise DataError(
                f"{path}, row {number}: expected the path of another image, given {wrong}"
            )
        items[name] = Item(
            name,
            path.parent / name,
            tuple(path.parent / mask for mask in _several(cell.get("mask", ""))),
            _labels(cell, multi_label),
            cell.get("group", ""),
            _SPLIT_OF.get(split, ""),
        )
    if len({bool(item.split) for item in items.values()}) > 1:
        raise DataError(f"{path}: expected a split for every image or for none, given it for some")
    names = _class_names({label for item in items.values() for label in item.labels or ()})
    return Listing(path.stem, tuple(items.values()), names, multi_label)


def _labels(cell: Mapping[str, str], multi_label: bool) -> tuple[str, ...] | None:
    text = cell.get("labels" if multi_label else "label", UNKNOWN)
    if text == UNKNOWN or (not text and not multi_label):
        return None
    return _several(text) if multi_label else (text,)


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|") if part.strip())


def _text(value: Any) -> str:
    if value is None or value != value:  # NaN
        return ""
    whole = isinstance(value, float) and value.is_integer()  # integers with gaps come as floats
    return str(int(value) if whole else value).strip()


def _columns(path: Path, row: Mapping[str, Any]) -> dict[str, str]:
    lower = {str(column).strip().lower(): str(column) for column in row}
    columns = {
        name: next((lower[alias] for alias in aliases if alias in lower), "")
        for name, aliases in _ALIASES.items()
    }
    if not columns["path"]:
        raise DataError(f"{path}: expected a column path, given {', '.join(lower)}: rename one")
    return {name: column for name, column in columns.items() if column}


def _read_table(path: Path) -> Sequence[Mapping[str, Any]]:
    if not path.is_file():
        raise MissingFileError(f"expected a table at {path}, but there is no such file")
    try:
        if path.suffix.lower() == ".parquet":
            rows = _read_parquet(path)
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
    except (ValueError, OSError, csv.Error) as error:
        raise DataError(
            f"{path} can't be read as a table: {' '.join(str(error).split())}"
        ) from error
    if not rows:
        raise DataError(f"{path}: expected one row per image under a row of names, given none")
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f'{path}: reading Parquet needs pyarrow: pip install "medduet[medical]", or save a CSV'
        ) from error
    table: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return table
