"""How files and folders are named: which are images, which are masks, and which belong together.

A mask is called after its image, as ``X_mask``, ``X-Segmentation``, ``X_gt_2`` or ``mask_X``, or it
lies in a folder for masks. At any level there may be ``images`` and ``masks`` (or ``labels``,
``gt``, ...), or ``X`` (or ``X_images``) and ``X_masks``, or nnU-Net's ``imagesTr`` and
``labelsTr``. These words are left out of a path, and the folders that remain are the place of a
file: ``ill/masks/a.png`` is at ``ill``. A mask belongs to the image of its name at its place, or
else below it.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from medduet.errors import DataError
from medduet.utils.parsing import as_text

_ENDING = re.compile(r"(?<=.)\.(png|jpe?g|tiff?|bmp|gif|webp|dcm|dicom|ima|nii(\.gz)?)$", re.I)
_MASK = (
    r"masks?|msks?|segs?|segm|segmentations?|gts?|ground[ _-]?truths?|labels?|annotations?|annots?"
)
_IMAGE = r"images?|imgs?|inputs?"
_SPLIT = r"tr|train(ing)?|val(id(ation)?)?|ts|test(ing)?"
_MASK_FILES = (
    re.compile(rf"(?P<of>.+)[ _.-]({_MASK})([ _.-]*(\(?\d+\)?|left|right|l|r))?", re.IGNORECASE),
    re.compile(rf"({_MASK})[ _.-](?P<of>.+)", re.IGNORECASE),
)
MASK_FOLDER, _IMAGE_FOLDER = (
    re.compile(rf"((?P<of>.+)[ _-])?({words})[ _-]?(?P<split>{_SPLIT})?", re.IGNORECASE)
    for words in (_MASK, _IMAGE)
)
_SPLIT_LAST = re.compile(rf"(.*[ _-])?(?P<split>{_SPLIT})", re.IGNORECASE)
CHANNEL = re.compile(r"(?P<of>.+)_(?P<number>\d{4})")
"""Of nnU-Net: the image ``X_0000`` is the first channel of X, whose mask is called X."""

Place = tuple[str, ...]


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its ending, or a DICOM file without one."""
    if _ENDING.search(path.name):
        return True
    # The last component of a UID, as in 1.2.840.10008, is no ending.
    if (path.suffix and not path.suffix[1:].isdigit()) or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def stem_of(path: Path) -> str:
    """Return the name of an image file without its ending, its letters composed (NFC)."""
    return unicodedata.normalize("NFC", _ENDING.sub("", path.name))


def natural(name: str) -> list[tuple[int, int | str]]:
    """Return a key that sorts ``a (2)`` before ``a (10)``."""
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", name) if p]


def images_and_masks(
    root: Path, masks: Path | None = None
) -> tuple[dict[Path, Place], dict[tuple[Place, str], list[Path]]]:
    """Return the place of each image, and the masks by their place and the name of their image.

    `masks` is a folder of them, if names don't tell. What is hidden is left out. Links are
    followed, but not in circles.
    """
    files = {path: path.parent.relative_to(root).parts for path in _walk(root, masks)}
    candidates = dict(files)
    if masks is not None:  # as if they were in ROOT/masks
        candidates = {x: ("masks", *x.parent.relative_to(masks).parts) for x in _walk(masks)}
        files |= candidates
    if odd := [as_text(path) for path in files if as_text(path) != str(path)]:
        raise DataError(f"{odd[0]}: expected a name in UTF-8, given other bytes: rename it")
    named = {
        path: match
        for path in candidates
        for match in [next(filter(None, (x.fullmatch(stem_of(path)) for x in _MASK_FILES)), None)]
        if match
    }
    inside: dict[Place, set[str]] = defaultdict(set)  # what has images, "" for a folder itself
    for path, parts in files.items():
        for depth, name in enumerate(parts if path in named else (*parts, "")):
            inside[parts[:depth]].add(name)
    roles = {up: _roles(root.joinpath(*up), names) for up, names in inside.items()}
    images: dict[Path, Place] = {}
    drawn: dict[tuple[Place, str], list[Path]] = defaultdict(list)
    for path, parts in files.items():
        along = [roles[parts[:depth]][name] for depth, name in enumerate(parts)]
        place = tuple(of for of, _ in along if of)
        if path in named or any(is_mask for _, is_mask in along):
            of = named[path]["of"] if path in named else stem_of(path)
            drawn[place, of].append(path)
        else:
            images[path] = place
    return images, drawn


def _roles(folder: Path, names: set[str]) -> dict[str, tuple[str, bool]]:
    """Return what each sub-folder adds to a place, and whether it has masks.

    One that is called images, or something_masks, may be a class: those beside it tell.
    """
    masks, images = _named(MASK_FOLDER, names), _named(_IMAGE_FOLDER, names)
    if len(masks) == len(images) == 1 and len(names) == 2:
        (of_mask,), (of_image,) = masks.values(), images.values()
        if of_mask != of_image or _SPLIT_LAST.fullmatch(of_image):  # there is nothing to tell apart
            masks, images = dict.fromkeys(masks, ""), dict.fromkeys(images, "")
    pictured = {"", *images.values(), *(names - masks.keys())}
    masks = {name: of for name, of in masks.items() if of in pictured}
    roles = {name: (masks.get(name, name), name in masks) for name in names}
    for name, of in images.items():
        others = sorted(names - masks.keys() - {name})
        if others and masks and not of:
            raise DataError(
                f"{folder / name}: expected nothing but masks beside a folder of images, given "
                f"{others[0] or 'images'}, too: move it, or list the images in a table (.csv)"
            )
        if masks or not (of or others):
            roles[name] = of, False
    return roles


def _named(pattern: re.Pattern[str], names: set[str]) -> dict[str, str]:
    """Return the folders that a pattern fits, and what their names say beside its words.

    That is the split alone where it tells them apart: ISIC calls them otherwise for each task.
    """
    matches = {name: match for name in names if (match := pattern.fullmatch(name))}
    of = {name: match["of"] or match["split"] or "" for name, match in matches.items()}
    short = {name: _SPLIT_LAST.sub(r"\g<split>", text) for name, text in of.items()}
    return short if len({*short.values()}) == len(short) else of


def _walk(folder: Path, *above: Path | None) -> Iterator[Path]:
    """Yield the images in and under `folder`, in order, but not in the folders `above`."""
    if any(each is not None and each.samefile(folder) for each in above):
        return
    for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        if path.name.startswith((".", "__MACOSX")):
            continue
        if path.is_dir():
            yield from _walk(path, folder, *above)
        elif is_image(path):
            yield path
