"""Which images a folder has, and what is known of each.

A folder is ``[SPLIT/][CLASS/][GROUP/]IMAGE``: sub-folders called train, val and test (or training,
valid, validation, testing) are splits, those below them classes, unless they are called as patients
are, and those below these groups, such as patients: two studies of a patient are one. How masks are
named, `medduet.data.folders` says.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from medduet.data.folders import (
    CHANNEL,
    PATIENT,
    Place,
    further_channels,
    groups_by_name,
    images_and_masks,
    natural,
    split_word,
    stem_of,
)
from medduet.errors import DataError, MissingFileError
from medduet.types import Modality
from medduet.utils.parsing import read_json

SPLIT_OF = {
    **dict.fromkeys(("train", "training", "tr", "trainval", "train_val", "train-val"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "va", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "ts"), "test"),
}
_FEW, DATASET = 10, "dataset.json"  # folders that may be classes; of nnU-Net
_MR = re.compile(r"mr|t1|t2|flair|adc|dwi|swi|pd")
"""In names of channels, lower case, that are sequences of MR."""
_NUMBER = re.compile(r"(?!(19|20)\d\d$)([a-z_-]*[_-])?\d{4,}([_-].*)?", re.IGNORECASE)
_NO_PATIENT = re.compile(r"\d+x|(19|20)\d\d|t[12].*", re.IGNORECASE)
"""Numbers of many patients; names with a digit that are magnifications, years and sequences."""
_PART = re.compile(
    r"(.*[\W_])?(cent(er|re)|site|hospital|scanner|fold|part|batch|chunk|shard|set|images|imgs)"
    r"[\W_]*\d+",
    re.IGNORECASE,
)
"""Names of folders that are parts of a set, neither classes nor patients."""


class Item(NamedTuple):
    """One image file, called `name` in the set, and its masks, which are united.

    Labels of ``None``, an empty group and an empty split are not known. Of several `channels`, the
    `path` is that of the first, see `medduet.data.reading.core.channel_paths`.
    """

    name: str
    path: Path
    masks: tuple[Path, ...] = ()
    labels: tuple[str, ...] | None = None
    group: str = ""
    split: str = ""
    channels: int = 1


class Listing(NamedTuple):
    """The files of a set; `faults` are those that can't be used, and why.

    `notes` are sentences on how it was read, for the first lines of a training. `mask_values` (as
    of `medduet.DataConfig`) and `modality` are what the set says of itself.
    """

    name: str
    items: tuple[Item, ...]
    multi_label: bool = False
    faults: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    mask_values: str | None = None
    modality: Modality = "auto"

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes, in order; numbers are ordered as numbers."""
        return tuple(sorted({x for item in self.items for x in item.labels or ()}, key=natural))


def list_folder(root: Path, masks: Path | None = None) -> Listing:
    """List the images in and under `root`, and their masks; `masks` as of `images_and_masks`."""
    images, drawn, notes = images_and_masks(root, masks)
    if not images:
        names = " and ".join(str(each[0].relative_to(root)) for each in islice(drawn.values(), 2))
        only = f"files that are called as masks are, such as {names}: give the folder above, too"
        raise DataError(
            f"{root}: expected images (PNG, JPEG, TIFF, DICOM, NIfTI, ...) in it or in sub-folders "
            f"named after classes, given {only if drawn else '; '.join(['none', *notes])}"
        )
    images, drawn = _unwrapped(root, images, drawn)
    splits, items = _splits(root, images), []
    inners = {path: _in_split(place, splits) for path, place in images.items()}

    def masks_of(path: Path) -> list[tuple[Place, str]]:
        match = CHANNEL.fullmatch(stem_of(path))
        stems = [stem_of(path), *([match["of"]] if match else [])]
        above = [x[:n] for x in (images[path], inners[path]) for n in range(len(x), -1, -1)]
        return [(up, stem) for up in above for stem in stems if (up, stem) in drawn]

    if (masks and not masks.is_dir()) or not any(map(masks_of, images)):
        drawn, found = by_name_alone(images, drawn)
        notes += found
    named = {stem for _, stem in drawn}
    is_nnunet = (root / DATASET).is_file() and not any(stem_of(path) in named for path in images)
    further = further_channels(images, None if is_nnunet else named)
    more = Counter(further.values())
    folders = Counter(inner[:1] for inner in inners.values())
    if len(folders) > 1 and all(x and _PART.fullmatch(x[0]) for x in folders):
        notes.append(f"folders are parts of the set, such as {min(folders)[0]}, and no classes")
        inners = {path: inner[1:] for path, inner in inners.items()}
        folders = Counter(inner[:1] for inner in inners.values())
    patients = len(folders) > 2 and all(x and PATIENT.fullmatch(x[0]) for x in folders)
    patients |= len(folders) > 2 and all(x and _NUMBER.fullmatch(x[0]) for x in folders)
    # A folder for each image is no class either.
    cases = patients or (len(folders) > 2 and {*folders.values()} == {1})
    if cases and all(folders):
        what = "are called as patients are" if patients else "have one image each"
        notes.append(f"folders {what}, such as {min(folders)[0]}, so they are no classes")
    for path, place in images.items():
        if path in further:
            continue
        inner, split = inners[path], splits[place[0]] if splits else ""
        match, of_image = CHANNEL.fullmatch(stem_of(path)), masks_of(path)
        if match and of_image and of_image[0][1] == match["of"] and int(match["number"]):
            raise DataError(f"{path}: expected the first channel, {match['of']}_0000, beside it")
        name, below = path.relative_to(root).as_posix(), inner[not cases :]
        group = "/".join(below[: _widest(below) + 1])
        of_it, labels = tuple(drawn[of_image[0]]) if of_image else (), () if cases else inner[:1]
        items.append(Item(name, path, of_it, labels or None, group, split, 1 + more[path]))
    uses = Counter(chain(*(item.masks for item in items)))
    if drawn and not uses:
        raise DataError(
            f"{next(iter(drawn.values()))[0]}: expected one mask called as its image, given "
            f"images as {items[0].name}: rename masks, or channels (X_0000, X_0001), say which "
            "are masks, as in --data.masks '*_lesion.png' or 'lung masks/*', or give a table (.csv)"
        )
    if shared := [mask for mask, count in uses.items() if count > 1]:
        raise DataError(
            f"{shared[0]}: expected a mask of one image, given {uses[shared[0]]} images of this "
            "name: put masks into folders as their images are"
        )
    reason = "expected an image of this name, but there is only its mask"
    alone = tuple((str(mask), reason) for mask in chain(*drawn.values()) if not uses[mask])
    known = {item.split for item in items if item.masks or item.labels}
    without = {item.split for item in items if item.split not in known}
    if "train" in known and without:
        count = sum(item.split in without for item in items)
        names = " and ".join(sorted(without))
        others = "" if "test" in known else ", and the others are split anew"
        notes.append(f"{count} images of {names} without class and mask are left out{others}")
        items = [x if "test" in known else x._replace(split="") for x in items if x.split in known]
    classes = {item.split: item.labels for item in items if item.labels}
    if classes and not {"", "train"} & classes.keys():
        notes.append(f"folders of {' and '.join(classes)} are no classes, as train has none")
        items = [item._replace(labels=None) for item in items]
    groups = groups_by_name([Path(item.path.name) for item in items])
    if any(groups) and not any(item.group for item in items):
        items = [item._replace(group=group) for item, group in zip(items, groups, strict=True)]
        notes.append(f"names tell patients apart, such as {next(filter(None, groups))}")
    _check_classes(root, items)
    items.sort(key=lambda item: natural(item.name))
    values, modality = _described(root, items[0].channels)
    notes += ["names of masks are those of dataset.json"] * bool(values)
    tables = (x for pattern in ("[!.]*.[ct]sv", "[!._]*/[!.]*.[ct]sv") for x in root.glob(pattern))
    if listed := [path.name for path in sorted(tables)]:
        notes.append(f"not read: {', '.join(listed[:3])}; a table of the images is given as --data")
    return Listing(root.resolve().name, tuple(items), False, alone, tuple(notes), values, modality)


def _in_split(place: Place, splits: Mapping[str, str]) -> Place:
    """Return a place within its split, and within a folder of the split's name there."""
    inner = place[1:] if splits else place
    again = bool(splits and inner) and SPLIT_OF.get(split_word(inner[0]).lower())
    return inner[1:] if again and again == splits[place[0]] else inner


def _widest(below: Place) -> int:
    """Return the level called as a patient is, else with a number of one, else all; or -1: none."""
    named = [n for n, name in enumerate(below) if PATIENT.fullmatch(name)]
    others = {x for x in below if _NO_PATIENT.fullmatch(x) or _PART.fullmatch(x)}
    numbered = (n for n, x in enumerate(below) if any(map(str.isdigit, x)) and x not in others)
    return min(named, default=next(numbered, len(below) if {*below} - others else -1))


def by_name_alone(
    images: Mapping[Path, Place], drawn: Mapping[tuple[Place, str], list[Path]]
) -> tuple[dict[tuple[Place, str], list[Path]], list[str]]:
    """Find images of masks where folders and whole names don't tell.

    Where no image lies at the place of masks or below, one of their name elsewhere will do. If no
    mask has the name of an image, that may be longer at either end; and one image without another
    beside it, and one mask, are a pair. All of it must be unique.
    """
    stems = {path: stem_of(path) for path in images}
    whole: dict[str, list[Path]] = defaultdict(list)
    longer, at = defaultdict[str, set[Path]](set), defaultdict[Place, set[Path]](set)
    for path, place in images.items():
        whole[stem := stems[path]].append(path)
        for end in re.finditer(r"[ _-]", stem):
            longer[stem[: end.start()]].add(path)
            longer[stem[end.end() :]].add(path)
        for n in range(len(place) + 1):
            at[place[:n]].add(path)
            at[place[1:][:n]].add(path)
    is_whole = any(of in whole for _, of in drawn)
    several = Counter(up for up, _ in drawn)
    found: dict[tuple[Place, str], Path] = {}
    for up, of in drawn:
        near = at.get(up, at[()])
        called = set() if up in at else {*whole.get(of, [])[:2]}
        if not is_whole:
            alone = len(near) == several[up] == 1 and not any(map(str.isdigit, of))
            called = longer.get(of, set()) & near or (near if alone else called)
        if len(called) == 1:
            (found[up, of],) = called
    own = {key: (images[path], stems[path]) for key, path in found.items()}
    uses = Counter(chain(own.values(), drawn))  # of several places they may be several classes
    moved = {key: place for key, place in own.items() if uses[place] == 1}
    shown = (f"{drawn[key][0].name} of {found[key].name}" for key in moved)
    note = f"{len(moved)} masks by their names, as {next(shown)}" if moved else ""
    return {moved.get(key, key): masks for key, masks in drawn.items()}, [note] * bool(note)


def _check_classes(root: Path, items: Sequence[Item]) -> None:
    """Refuse classes of which those of train are not those of test."""
    train, test = (
        {x for item in items if item.split == split for x in item.labels or ()}
        for split in ("train", "test")
    )
    if train and test and not train & test:
        given = " and ".join(", ".join(sorted(x, key=natural)[:3]) for x in (train, test))
        raise DataError(
            f"{root}: expected the same classes in train and test, given {given}: rename folders, "
            "or give a table (.csv) with the columns path, label, group and split"
        )


def _described(root: Path, count: int) -> tuple[str | None, Modality]:
    """Return what values of masks mean, and the modality, by nnU-Net's ``dataset.json``, if any."""
    path = root / DATASET
    about: dict[str, Any] = {}
    with suppress(MissingFileError, DataError):  # it may be of something else
        about = read_json(path)
    labels, channels = about.get("labels"), about.get("channel_names", about.get("modality"))
    if not (isinstance(labels, dict) and isinstance(channels, dict)):
        return None, "auto"  # of something else
    if count not in (1, len(channels)):  # the three of a photograph are in one file
        raise DataError(f"{path} names {len(channels)} channels, but images have {count}")
    sequences = {str(name).lower() for name in channels.values()} or {"unknown"}
    modality: Modality = "ct" if sequences == {"ct"} else "auto"
    modality = "mri" if all(map(_MR.search, sequences)) else modality
    pairs = [(k, v) if k.isdecimal() else (v, k) for k, v in labels.items()]  # version 1, or 2
    if not all(str(value).isdecimal() for value, _ in pairs):
        return None, modality  # regions, of several values each
    names = {int(value): re.sub(r"[,:]", " ", str(name)) for value, name in pairs}
    names |= {0: "background"}
    return ",".join(f"{value}:{name}" for value, name in sorted(names.items())), modality


def _unwrapped(
    root: Path, images: dict[Path, Place], drawn: dict[tuple[Place, str], list[Path]]
) -> tuple[dict[Path, Place], dict[tuple[Place, str], list[Path]]]:
    """Leave out a folder around all classes, as an unzipped archive is; DataError in doubt."""
    parts: dict[str, set[str]] = defaultdict(set)  # below each first folder
    for place in images.values():
        parts[place[0] if place else ""] |= {*place[1:2]}
    below = sorted({*chain(*parts.values())}, key=natural)
    are_parts = len(parts) > 1 and all(map(_PART.fullmatch, parts))
    if not below or are_parts or _splits(root, images):
        return images, drawn
    twice = all(place[:1] == place[1:2] for place in images.values())  # im_A/im_A, im_B/im_B
    digits = [any(map(str.isdigit, name)) for name in below]
    numbered, patients = all(digits), all(map(PATIENT.fullmatch, below))
    wrapped = len(parts) == 1 and all(len(place) > 1 for place in images.values())
    if twice or (wrapped and (len(below) == 1 or not numbered or patients)):
        inner = {(place[1:], of): paths for (place, of), paths in drawn.items()}
        return _unwrapped(root, {path: place[1:] for path, place in images.items()}, inner)
    repeated = len(parts) > 1 < len(below) and min(Counter(chain(*parts.values())).values()) > 1
    # One of several classes may be all that a patient has; patients have numbers, and seldom words.
    many = len(parts) > max(_FEW, len(below)) or all(map(PATIENT.fullmatch, parts))
    several = repeated and not patients and (many or not numbered)
    few = len(parts) > 1 < len(below) <= _FEW and not any(digits)
    words = few and all(len(place) > 1 for place in images.values())
    if (wrapped and len(below) <= _FEW) or several or words:
        outer, shown = (", ".join(sorted(x, key=natural)[:4]) for x in (parts, below))
        raise DataError(
            f"{root}: expected sub-folders that are classes, and {outer} may be those, with groups "
            f"such as patients called {shown}; or {shown} are the classes: give the folder above "
            "those, or a table (.csv) with the columns path, label and group"
        )
    return images, drawn


def _splits(root: Path, images: Mapping[Path, Place]) -> dict[str, str]:
    """Return the split that each first folder of a place stands for, if they are splits."""
    names = dict.fromkeys(place[0] if place else "" for place in images.values())
    words = {name: split_word(name).lower() for name in names}
    splits = {name: SPLIT_OF[word] for name, word in words.items() if word in SPLIT_OF}
    different = len(set(splits.values()))
    alone = any(name.lower() in SPLIT_OF and len(name) > 2 for name in splits)
    if different < 2 and (not alone or len(names) == 1):  # a class may be called "test strips"
        return {}
    if different < len(names):
        named = (name or "single files" for name in names)
        given = ", ".join(sorted(named, key=lambda name: name not in splits)[:8])
        raise DataError(
            f"{root}: expected one folder for each of train, val and test and no images beside "
            f"them, given {given}; masks in another folder are given by --data.masks"
        )
    return splits
