"""What every data source gives: uint8 images in three splits, with labels and masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medduet.types import Batch

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """The images of one split, usually memory-mapped.

    Attributes:
        images: ``(N, H, W)`` grey or ``(N, H, W, 3)`` RGB, uint8.
        labels: ``(N,)`` int64 class index, or ``(N, K)`` 0/1 for multi-label sets; -1 is unknown.
        masks: ``(N, H, W)`` uint8 mask class, 0 is background; ``None`` without masks.
        has_mask: ``(N,)`` bool, which masks are known; ``None`` means all of them (or, without
            masks, none).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8] | None = None
    has_mask: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def known_masks(self) -> NDArray[np.bool_]:
        """Whether the mask of each image is known, ``(N,)``."""
        if self.has_mask is None:
            return np.full(len(self), self.masks is not None)
        return self.has_mask

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """Gather the images at `index` (``(n,)`` int64) into a `Batch` of uint8 tensors."""
        images = torch.from_numpy(np.take(self.images, index, axis=0))
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        masks = None
        if self.masks is not None:
            masks = torch.from_numpy(np.take(self.masks, index, axis=0)).long()
        labels, known = (torch.from_numpy(x[index]) for x in (self.labels, self.known_masks))
        return Batch(images, labels, masks, known, torch.from_numpy(index))


@dataclass(frozen=True)
class ImageSet:
    """A data set: three splits and what their numbers mean.

    Attributes:
        name: what figures and tables call it.
        train, val, test: the splits to fit weights on, to select epochs on and to report.
        class_names: one name per class; empty if the set has no labels.
        mask_names: one name per mask class, background first; empty if the set has no masks.
        multi_label: whether an image can have several classes at once.
        fingerprint: SHA-256 of the content, so that a run knows what it was trained on.
        info: further facts for the record (source, licence, MedMNIST flag, original size, ...).
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    mask_names: tuple[str, ...]
    multi_label: bool
    fingerprint: str
    info: Mapping[str, Any]

    @property
    def in_channels(self) -> int:
        """Channels of the images, 1 or 3."""
        return 1 if self.train.images.ndim == 3 else self.train.images.shape[-1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return int(self.train.images.shape[1]), int(self.train.images.shape[2])

    def split(self, name: str) -> Split:
        """Return the split called `name` (``train``, ``val`` or ``test``)."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]
