"""Finds out how the arrays of an ``.npz`` make up a set, and whether they contradict each other.

Everything is checked before a single image is unpacked; see `medduet.data.npz` for the layouts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.data.archive import Archive
from medduet.data.imageset import SPLITS
from medduet.types import UNKNOWN_LABEL

logger = logging.getLogger(__name__)

MAX_CLASSES = 10_000
MAX_MASK_CLASSES = 64


@dataclass(frozen=True)
class SplitLayout:
    """The members that make up one split.

    Attributes:
        images: keys of the images, one after the other.
        masks: keys of the masks, as many; or none.
        labels: key of the labels; ``None`` if there are none, or the subsets tell the class.
        has_mask: key of what masks are known; ``None`` if all are.
        by_subset: whether images of the i-th key have label i.
    """

    archive: Archive
    images: tuple[str, ...]
    masks: tuple[str, ...]
    labels: str | None
    has_mask: str | None
    by_subset: bool

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of images under each key."""
        return tuple(self.archive.header(key).shape[0] for key in self.images)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """``(N, H, W)`` or ``(N, H, W, 3)`` of the whole split."""
        tails = {key: self._image_tail(key) for key in self.images}
        first = tails[self.images[0]]
        for key, tail in tails.items():
            if tail != first:
                self.archive.fail(key, f"expected images of {first} as before, given {tail}")
        if sum(self.counts) == 0:
            self.archive.fail(self.images[0], "expected at least one image, given an empty split")
        return (sum(self.counts), *first)

    def _image_tail(self, key: str) -> tuple[int, ...]:
        shape, dtype = self.archive.header(key)
        if len(shape) == 4 and shape[3] == 4:
            self.archive.fail(key, f"expected 1 or 3 channels, given 4 {shape}; drop the alpha one")
        grey = len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)
        if dtype != np.uint8 or 0 in shape[1:] or not (grey or (len(shape) == 4 and shape[3] == 3)):
            self.archive.fail(
                key, f"expected uint8 (N, H, W) or (N, H, W, 3), given {dtype} {shape}"
            )
        return shape[1:3] if grey else shape[1:]

    def check_masks(self) -> None:
        """Check shape and dtype of the masks, and what is said of which are known."""
        for image_key, mask_key in zip(self.images, self.masks, strict=bool(self.masks)):
            shape, dtype = self.archive.header(mask_key)
            wanted = self.archive.header(image_key).shape[:3]
            if dtype not in (np.uint8, np.bool_) or shape not in (wanted, (*wanted, 1)):
                hint = "; class labels are called _labels" if mask_key.endswith("_label") else ""
                self.archive.fail(
                    mask_key,
                    f"expected uint8 masks {wanted} as {image_key}, given {dtype} {shape}{hint}",
                )
        if self.has_mask is not None:
            shape, dtype = self.archive.header(self.has_mask)
            if dtype != np.bool_ or shape != self.shape[:1] or not self.masks:
                self.archive.fail(
                    self.has_mask,
                    f"expected bool {self.shape[:1]} beside masks, given {dtype} {shape}",
                )

    def read_has_mask(self) -> NDArray[np.bool_] | None:
        """Return which masks are known, ``(N,)`` bool, or ``None`` if that isn't in the file."""
        return None if self.has_mask is None else self.archive.array(self.has_mask)

    def read_labels(self) -> NDArray[np.int64]:
        """Return ``(N,)`` or, with several classes at once, ``(N, K)`` labels; -1 if unknown."""
        total = self.shape[0]
        if self.by_subset:
            return np.repeat(np.arange(len(self.counts), dtype=np.int64), self.counts)
        if self.labels is None:
            return np.full(total, UNKNOWN_LABEL, np.int64)
        shape, dtype = self.archive.header(self.labels)
        if dtype.kind not in "iub" or len(shape) not in (1, 2) or 0 in shape[1:]:
            self.archive.fail(
                self.labels, f"expected integers (N,), (N, 1) or (N, K), given {dtype} {shape}"
            )
        if shape[0] != total:
            self.archive.fail(
                self.labels, f"expected {total} labels as {self.images[0]}, given {shape[0]}"
            )
        labels = self.archive.array(self.labels)
        several = len(shape) == 2 and shape[1] > 1
        low, high = int(labels.min()), int(labels.max())
        limit = 1 if several else MAX_CLASSES - 1
        if low < UNKNOWN_LABEL or high > limit:
            bad = low if low < UNKNOWN_LABEL else high
            self.archive.fail(
                self.labels, f"expected labels from 0 to {limit}, or -1 for unknown, given {bad}"
            )
        return labels.astype(np.int64).reshape(shape if several else total)

    def mask_rows(self) -> Iterator[NDArray[np.uint8]]:
        """Give the masks in pieces ``(n, H, W)``; those that aren't known are all zero."""
        known = self.read_has_mask()
        start = 0
        for key in self.masks:
            for piece in self.archive.rows(key):
                masks: NDArray[np.uint8] = piece.reshape(piece.shape[:3]).view(np.uint8)
                if known is not None:
                    masks = masks * known[start : start + len(masks), None, None]
                start += len(masks)
                yield masks

    def mask_values(self) -> set[int]:
        """Return the mask classes that occur in the split."""
        seen = np.zeros(256, np.bool_)
        for masks in self.mask_rows():
            seen |= np.bincount(masks.reshape(-1), minlength=256) > 0
        return set(np.flatnonzero(seen).tolist())


def find_layout(archive: Archive) -> dict[str, SplitLayout]:
    """Return where each split lies in `archive`; DataError if something is missing or misshapen."""
    subsets = {split: _subsets(archive, split) for split in SPLITS}
    common = subsets["train"] if len(set(subsets.values())) == 1 else ()
    endings = tuple(f"_C{number}" for number in common) or ("",)

    def given(base: str) -> bool:  # one split with masks or labels means all should have them
        return any(f"{split}_{base}{endings[0]}" in archive.keys for split in SPLITS)

    mask_base = next((base for base in ("masks", "label") if given(base)), None)
    has_labels = not common and given("labels")
    layouts = {}
    for split in SPLITS:
        layout = layouts[split] = SplitLayout(
            archive=archive,
            images=tuple(f"{split}_images{end}" for end in endings),
            masks=tuple(f"{split}_{mask_base}{end}" for end in endings) if mask_base else (),
            labels=f"{split}_labels" if has_labels else None,
            has_mask=key if (key := f"{split}_has_mask") in archive.keys else None,
            by_subset=bool(common),
        )
        for key in (*layout.images, *layout.masks, *([layout.labels] if layout.labels else [])):
            archive.require(key)
        wanted = layouts["train"].shape[1:]
        if layout.shape[1:] != wanted:
            archive.fail(
                layout.images[0],
                f"expected images of {wanted} as in train, given {layout.shape[1:]}",
            )
        layout.check_masks()
    if not (mask_base or has_labels or common):
        archive.require("train_labels")
    return layouts


def class_meta(
    archive: Archive, labels: dict[str, NDArray[np.int64]], layouts: dict[str, SplitLayout]
) -> tuple[tuple[str, ...], bool]:
    """Return the class names and whether an image can have several classes at once."""
    widths = {split: array.shape[1:] for split, array in labels.items()}
    for split, width in widths.items():
        if width != widths["train"]:
            archive.fail(
                str(layouts[split].labels),
                f"expected K as in train {widths['train']}, given {width}",
            )
    several = bool(widths["train"])
    number = widths["train"][0] if several else int(labels["train"].max()) + 1
    names = read_names(archive, "class_names")
    if names is not None and (len(names) != number if several else len(names) < number):
        archive.fail("class_names", f"expected {number} names, given {len(names)}")
    names = tuple(f"class {index}" for index in range(number)) if names is None else names
    for split, array in labels.items():
        if not several and int(array.max()) >= len(names):
            archive.fail(
                str(layouts[split].labels),
                f"expected labels from 0 to {len(names) - 1}, as in train or class_names, or -1 "
                f"for unknown, given {int(array.max())}",
            )
    if not several and (unseen := set(range(number)) - set(np.unique(labels["train"]).tolist())):
        logger.warning("%s: no image of train has label %s", archive.path, sorted(unseen))
    return names, several


def mask_meta(archive: Archive, layouts: dict[str, SplitLayout]) -> tuple[tuple[str, ...], int]:
    """Return the mask names, empty without masks, and by what mask values are to be divided."""
    if not layouts["train"].masks:
        return (), 1
    seen = {split: layout.mask_values() for split, layout in layouts.items()}
    everywhere = set().union(*seen.values())
    divisor = 255 if 255 in everywhere and everywhere <= {0, 255} else 1
    seen = {split: {value // divisor for value in values} for split, values in seen.items()}
    names = read_names(archive, "mask_names")
    allowed = seen["train"] | {0} if names is None else set(range(len(names)))
    for split, values in seen.items():
        key = layouts[split].masks[0]
        if max(values) >= MAX_MASK_CLASSES:
            archive.fail(
                key,
                f"expected mask classes 0 to {MAX_MASK_CLASSES - 1}, or only 0 and 255, given "
                f"{max(values)}",
            )
        if extra := values - allowed:
            source = "in train" if names is None else "by mask_names"
            archive.fail(key, f"expected mask classes known {source}, given also {min(extra)}")
    if names is not None:
        return names, divisor
    number = max(2, max(allowed) + 1)
    if number == 2:
        return ("background", "lesion"), divisor
    return ("background", *(f"mask {index}" for index in range(1, number))), divisor


def read_names(archive: Archive, key: str) -> tuple[str, ...] | None:
    """Return the names under `key`, or ``None`` if there are none."""
    if key not in archive.keys:
        return None
    shape, dtype = archive.header(key)
    if dtype.kind != "U" or len(shape) != 1 or not shape[0]:
        archive.fail(key, f"expected text (K,), given {dtype} {shape}")
    names: list[Any] = archive.array(key).tolist()
    if len(set(names)) != len(names):
        archive.fail(key, f"expected different names, given {', '.join(names)}")
    return tuple(names)


def _subsets(archive: Archive, split: str) -> tuple[int, ...]:
    """Return the numbers of the class subsets of `split`, ascending."""
    found = (re.fullmatch(rf"{split}_images_C(\d+)", key) for key in archive.keys)
    return tuple(sorted(int(match[1]) for match in found if match))
