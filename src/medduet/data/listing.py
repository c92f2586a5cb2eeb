"""Which images a folder has, and what is known of each.

A folder is ``[SPLIT/][CLASS/][GROUP/]IMAGE``: sub-folders called train, val and test (or training,
valid, validation, testing) are splits, those below them classes, and those below these groups such
as patients. How masks are named, `medduet.data.folders` says.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from medduet.data.folders import (
    CHANNEL,
    Place,
    further_channels,
    images_and_masks,
    natural,
    split_word,
    stem_of,
)
from medduet.errors import DataError
from medduet.types import Modality
from medduet.utils.parsing import read_json

SPLIT_OF = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing", "ts"), "test"),
}
_FEW, DATASET = 10, "dataset.json"  # folders that may be classes; of nnU-Net
_MR = re.compile(r"mr|t1|t2|flair|adc|dwi|swi|pd")
"""In names of channels, lower case, that are sequences of MR."""


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
            f"named after classes, given {only if drawn else 'none'}"
        )
    images, drawn = _unwrapped(root, images, drawn)
    splits, items = _splits(root, images), []
    of_masks = None if (root / DATASET).is_file() else {stem for _, stem in drawn}
    further = further_channels(images, of_masks)
    more = Counter(further.values())
    folders = Counter(place[bool(splits) :][:1] for place in images.values())
    cases = len(folders) > 2 and {*folders.values()} == {1}  # a folder for each image is no class
    for path, place in images.items():
        if path in further:
            continue
        inner = place[1:] if splits else place
        above = [each[:n] for each in (place, inner) for n in range(len(each), -1, -1)]
        match = CHANNEL.fullmatch(stem_of(path))
        stems = [stem_of(path), *([match["of"]] if match else [])]
        of_image = [(up, stem) for up in above for stem in stems if (up, stem) in drawn]
        if match and of_image and of_image[0][1] != stems[0] and int(match["number"]):
            raise DataError(f"{path}: expected the first channel, {match['of']}_0000, beside it")
        split = splits[place[0]] if splits else ""
        name, group = path.relative_to(root).as_posix(), "/".join(inner[not cases :])
        of_it, labels = tuple(drawn[of_image[0]]) if of_image else (), () if cases else inner[:1]
        items.append(Item(name, path, of_it, labels or None, group, split, 1 + more[path]))
    uses = Counter(mask for item in items for mask in item.masks)
    if drawn and not uses:
        raise DataError(
            f"{next(iter(drawn.values()))[0]}: expected a mask that is called as its image, given "
            f"images as {items[0].name}: rename masks, say which are, as in --data.masks "
            "'*_lesion.png' or 'lung masks/*', or list both in a table (.csv)"
        )
    if shared := [mask for mask, count in uses.items() if count > 1]:
        raise DataError(
            f"{shared[0]}: expected a mask of one image, given {uses[shared[0]]} images of this "
            "name: put masks into folders as their images are"
        )
    reason = "expected an image of this name, but there is only its mask"
    alone = tuple(
        (str(each), reason) for paths in drawn.values() for each in paths if not uses[each]
    )
    if united := sum(len(item.masks) > 1 for item in items):
        notes.append(f"{united} images have several masks each, which are united")
    known = {item.split for item in items if item.masks or item.labels}
    without = {item.split for item in items if item.split not in known}
    if known == {"train"} and without:
        count = sum(item.split in without for item in items)
        names = " and ".join(sorted(without))
        notes.append(f"{count} images of {names} have neither class nor mask, and are left out")
        items = [item._replace(split="") for item in items if item.split in known]
    items.sort(key=lambda item: natural(item.name))
    values, modality = _described(root, items[0].channels)
    notes += ["names of masks are those of dataset.json"] * bool(values)
    about = root.resolve().name, tuple(items)
    return Listing(*about, False, alone, tuple(notes), values, modality)


def _described(root: Path, count: int) -> tuple[str | None, Modality]:
    """Return what values of masks mean, and the modality, by nnU-Net's ``dataset.json``, if any."""
    path = root / DATASET
    about = read_json(path, DataError) if path.is_file() else {}
    about = about if isinstance(about, dict) else {}
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
    are_splits = len(parts) > 1 and {split_word(name).lower() for name in parts} & SPLIT_OF.keys()
    if are_splits or not below:
        return images, drawn
    numbered = all(any(map(str.isdigit, name)) for name in below)
    wrapped = len(parts) == 1 and all(len(place) > 1 for place in images.values())
    if wrapped and (len(below) == 1 or not numbered):
        inner = {(place[1:], of): paths for (place, of), paths in drawn.items()}
        return _unwrapped(root, {path: place[1:] for path, place in images.items()}, inner)
    repeated = len(parts) > 1 < len(below) and all(names == {*below} for names in parts.values())
    if (wrapped and len(below) <= _FEW) or (repeated and not numbered):
        outer, shown = (", ".join(sorted(x, key=natural)[:4]) for x in (parts, below))
        raise DataError(
            f"{root}: expected sub-folders that are classes, and {outer} may be those, with groups "
            f"such as patients called {shown}; or {shown} are the classes: give the folder above "
            "those, or a table (.csv) with the columns path, label and group"
        )
    return images, drawn


def _splits(root: Path, images: Mapping[Path, Place]) -> dict[str, str]:
    """Return the split that each first folder of a place stands for, if they are splits."""
    names = dict.fromkeys(place[0] if place else path.name for path, place in images.items())
    words = {name: split_word(name).lower() for name in names}
    splits = {name: SPLIT_OF[word] for name, word in words.items() if word in SPLIT_OF}
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
