"""Images and masks that look wrong."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from medduet.data.audit.findings import Finding, counted_images, listed, per_split, split_numbers
from medduet.data.audit.pixels import Looks, MaskCounts
from medduet.data.imageset import SPLITS, ImageSet, Split

BLACK = 8
"""Grey level that no pixel of a black image is above."""
_FLAT = 1.0  # grey levels of standard deviation
_SATURATED = 0.5  # share of the pixels
MARKS = 15
"""Pixels in strokes from which on an image may bear letters or callipers: those of 2 letters."""
_TEXTURE = 0.01  # share of the pixels in strokes, above which they are its texture
_APART = 5.0  # grey levels between blue and red
_MOSTLY = 0.9  # share of the images
_TOUCHING = 0.1  # share of the masks
_NORMAL = re.compile(r"\b(normal|healthy|no[ _-]?(finding|lesion|tumou?r)s?|negative)\b", re.I)
_NOT_NORMAL = re.compile(r"\b(ab|not[ _-]|non[ _-]?)normal", re.I)


def look_findings(images: ImageSet, looks: Looks) -> list[Finding]:
    """Return images without a picture, with marks on them, or of doubtful colour."""
    splits = split_numbers(images)
    black = looks.brightest <= BLACK
    flat = (looks.spread < _FLAT) & ~black
    bright = (looks.saturated > _SATURATED) & ~flat
    size = images.size[0] * images.size[1]
    marked = (looks.strokes >= MARKS) & (looks.strokes <= _TEXTURE * size)
    found = []
    for kind, severity, which, words in (
        ("black", "warning", black, "black"),
        ("blank", "warning", flat, "of one grey level"),
        ("saturated", "note", bright, "white over more than half of their area"),
    ):
        rows = np.flatnonzero(which)
        if len(rows):
            verb = "is" if len(rows) == 1 else "are"
            text = f"{counted_images(len(rows))} {verb} {words}: {per_split(rows, splits)}."
            found.append(Finding(kind, severity, text, rows))  # type: ignore[arg-type]
    rows = np.flatnonzero(marked)
    if len(rows):
        text = f"{counted_images(len(rows))} may bear letters or callipers "
        text += f"({per_split(rows, splits)}): narrow bright strokes. A hint, look at them; a "
        text += "network can learn the marks instead of the disease."
        found.append(Finding("marks", "note", text, rows))
    return found + _colours(looks, splits)


def _colours(looks: Looks, splits: NDArray[np.int64]) -> list[Finding]:
    if looks.grey is None or looks.red_blue is None:
        return []
    if looks.grey.all():
        text = "All images are grey, but stored as RGB: one channel is enough, and three times "
        text += "faster to read (image files: --data.channels 1)."
        return [Finding("grey-as-rgb", "note", text)]
    found = []
    if looks.grey.any():
        rows = np.flatnonzero(looks.grey)
        text = (
            f"{counted_images(len(rows))} among colour images {'is' if len(rows) == 1 else 'are'}"
        )
        text += f" grey: {per_split(rows, splits)}."
        found.append(Finding("some-grey", "note", text, rows))
    bluish = looks.red_blue[~looks.grey] < -_APART
    if bluish.mean() > _MOSTLY:
        text = f"{bluish.mean():.0%} of the colour images are more blue than red. Skin, fundus and "
        text += "tissue are red, so red and blue may be exchanged (BGR instead of RGB). A hint."
        found.append(Finding("blue-red", "note", text))
    return found


def is_normal(name: str) -> bool:
    """Return whether a class is that of images without a finding.

    Example:
        >>> [is_normal(name) for name in ("normal", "No finding", "abnormal", "benign")]
        [True, True, False, False]
    """
    return bool(_NORMAL.search(name)) and not _NOT_NORMAL.search(name)


def mask_findings(images: ImageSet, pool: Split, masks: MaskCounts) -> list[Finding]:
    """Return masks that are empty, full, at odds with the class, or not there."""
    splits, known = split_numbers(images), pool.known_masks
    filled = masks.pixels[:, 1:].sum(axis=1) > 0
    full = masks.pixels[:, 0] == 0
    normal = _normal_images(images, pool)
    found = []

    def note(kind: str, which: NDArray[np.bool_], words: str, *, warn: bool = False) -> None:
        rows = np.flatnonzero(which & known)
        if len(rows):
            text = f"{counted_images(len(rows))} {words}: {per_split(rows, splits)}."
            found.append(Finding(kind, "warning" if warn else "note", text, rows))

    note("empty-masks", ~filled & ~normal & ~_of_empty_class(pool, filled), "have an empty mask")
    note("full-masks", full, "have a mask without any background", warn=True)
    named = listed(name for name in images.class_names if is_normal(name)) if normal.any() else ""
    note("normal-with-mask", filled & normal, f"of class {named} have a mask", warn=True)
    touching = masks.border & filled & known & ~full
    if touching.sum() > _TOUCHING * max((filled & known).sum(), 1):
        share = touching.sum() / (filled & known).sum()
        note("border-masks", touching, f"have a mask that touches the border ({share:.0%} of all)")
    unknown = np.flatnonzero(~known)
    if len(unknown):
        text = f"{counted_images(len(unknown))} have no known mask: {per_split(unknown, splits)}."
        found.append(Finding("unknown-masks", "note", text, unknown))
    for number, name in enumerate(images.mask_names[1:], start=1):
        has = masks.pixels[:, number] > 0
        lacking = [split for k, split in enumerate(SPLITS) if not (has & (splits == k)).any()]
        if lacking:
            text = f"Mask class {name} does not occur in {listed(lacking)}."
            found.append(Finding("mask-class-missing", "warning", text))
    return found


def _normal_images(images: ImageSet, pool: Split) -> NDArray[np.bool_]:
    """Return which images are of a class without findings, ``(N,)``."""
    normal = [k for k, name in enumerate(images.class_names) if is_normal(name)]
    if images.multi_label:
        return np.asarray((pool.labels[:, normal] == 1).any(axis=1))
    return np.isin(pool.labels, normal)


def _of_empty_class(pool: Split, filled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which images are of a class without any mask: a normal one, whatever its name."""
    if pool.labels.ndim > 1:
        return np.zeros(len(pool), dtype=bool)
    with_masks = np.unique(pool.labels[filled & pool.known_masks])
    return (pool.labels >= 0) & ~np.isin(pool.labels, with_masks)
