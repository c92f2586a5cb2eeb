"""Where images and masks lie in a folder, and which belong together.

At any level there may be ``images`` and ``masks``, or ``X`` (or ``X_images``) and ``X_masks``; also
``image``, ``img``, ``imgs`` and ``mask``. These words are left out of a path, and the folders that
remain are the place of a file: ``ill/masks/a.png`` is at ``ill``. A mask belongs to the image of
its name at its place, or else below it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from medduet.data.reading.names import is_image, stem_of
from medduet.errors import DataError
from medduet.utils.parsing import as_text

Place = tuple[str, ...]
Masks = dict[tuple[Place, str], list[Path]]
"""Files of masks by their place and the name of their image."""
_KIND = re.compile(r"(?:(?P<of>.+)[_-])?(?P<kind>image|img|mask)s?", re.IGNORECASE)
_MASK_OF = re.compile(r"(?P<of>.+)_mask(?:[_-]?\d+)?")


def images_and_masks(
    root: Path, masks: Path | None = None
) -> tuple[dict[Path, Place], Masks, list[tuple[str, str]]]:
    """Return the place of each image, the masks, and the files that can't be used and why.

    Links are followed, but not in circles. Names that are not UTF-8 can't be used: nothing could
    write them down.

    Args:
        root: the folder of images.
        masks: that of masks; ``None`` if names of files and folders tell them.

    Raises:
        DataError: there are other images beside folders of images and of masks.
    """
    images: dict[Path, Place] = {}
    drawn: Masks = defaultdict(list)
    faults: list[tuple[str, str]] = []
    for folder in [root] if masks is None else [root, masks]:
        apart = masks is not None and folder is root
        files = walk(folder, {_identity(masks)} if masks and apart else set(), faults)
        named = {path: _MASK_OF.fullmatch(stem_of(path)) for path in files}
        inside: dict[Place, set[str]] = defaultdict(set)  # what has images, "" for a folder itself
        inside[()] = {"masks"} if apart else set()
        for path in files:
            parts = path.parent.relative_to(folder).parts
            for depth, name in enumerate(parts if named[path] and not masks else (*parts, "")):
                inside[parts[:depth]].add(name)
        kinds = {
            (*up, name): _kind(folder / Path(*up), name, inside[up])
            for up in inside
            for name in inside[up]
            if name
        }
        for path in files:
            parts, of = path.parent.relative_to(folder).parts, named[path]
            folders = [kinds[parts[: depth + 1]] for depth in range(len(parts))]
            place = tuple(name for name, _ in folders if name)
            is_named = masks is None and (of or any(is_mask for _, is_mask in folders))
            if folder is masks or is_named:
                drawn[place, of["of"] if of else stem_of(path)].append(path)
            else:
                images[path] = place
    return images, drawn, faults


def masks_of(image: Path, places: Sequence[Place], drawn: Masks) -> tuple[Path, ...]:
    """Return the masks of an image at the first of `places` that has some, or else above it.

    Example:
        >>> drawn = {(("ill",), "a"): [Path("ill/masks/a.png")]}
        >>> [path.as_posix() for path in masks_of(Path("a.png"), [("ill", "p1")], drawn)]
        ['ill/masks/a.png']
    """
    keys = ((place[:n], stem_of(image)) for place in places for n in range(len(place), -1, -1))
    return tuple(next((drawn[key] for key in keys if key in drawn), ()))


def natural(name: str) -> list[tuple[int, int | str]]:
    """Return a key that sorts ``a (2)`` before ``a (10)``."""
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", name) if p]


def _kind(folder: Path, name: str, beside: set[str]) -> tuple[str, bool]:
    """Return what the folder `name` in `folder` adds to a place, and whether it has masks.

    One that is called images, or something_masks, may be a class: those `beside` it tell.
    """
    of, kind = _split_name(name)
    if not kind:
        return name, False
    siblings = {each: _split_name(each) for each in beside}
    pictured = {"", *(what for what, other in siblings.values() if other != "mask")}
    drawn = {
        each for each, (what, other) in siblings.items() if other == "mask" and what in pictured
    }
    if name in drawn:
        return of, True
    more = sorted(beside - drawn - {name})
    if kind == "mask" or (not drawn and (of or more)):
        return name, False
    if more and not of:
        raise DataError(
            f"{folder / name}: expected nothing but masks beside a folder of images, given "
            f"{more[0] or 'images'}, too: move it, or list the images in a table (.csv)"
        )
    return of, False


def _split_name(name: str) -> tuple[str, str]:
    """Return what a folder is of, and whether of its images or masks.

    Example:
        >>> [_split_name(name) for name in ("train_masks", "Imgs", "ill")]
        [('train', 'mask'), ('', 'img'), ('ill', '')]
    """
    match = _KIND.fullmatch(name)
    return (match["of"] or "", match["kind"].lower()) if match else (name, "")


def walk(folder: Path, above: set[tuple[int, int]], faults: list[tuple[str, str]]) -> list[Path]:
    """Return the images in and under `folder`, in order; what is hidden is left out.

    It does not go into the folders `above`.
    """
    identity = _identity(folder)
    if identity in above:
        return []
    files, folders = [], []
    for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            folders.append(path)
        elif is_image(path):
            text = as_text(path)
            if text == str(path):
                files.append(path)
            else:
                faults.append((text, "expected a name in UTF-8, given other bytes: rename it"))
    return files + [path for each in folders for path in walk(each, {*above, identity}, faults)]


def _identity(folder: Path) -> tuple[int, int]:
    """Return what tells a folder from others, whichever link leads to it."""
    stat = folder.stat()
    return stat.st_dev, stat.st_ino
