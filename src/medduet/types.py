"""The typed values that flow from data to report."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

UNKNOWN_LABEL = -1
"""The label of an image whose class is not known; it counts zero in every loss and metric."""


class Batch(NamedTuple):
    """Some images of one split, with whatever truth is known of them.

    Attributes:
        image: ``(N, C, H, W)`` uint8, 0 to 255.
        label: ``(N,)`` int64 class index, or ``(N, K)`` int64 of 0 and 1 for multi-label sets;
            `UNKNOWN_LABEL` where it is not known.
        mask: ``(N, H, W)`` int64 mask class, 0 is background; ``None`` if the set has no masks.
        has_mask: ``(N,)`` bool, whether the mask of the image is known.
        index: ``(N,)`` int64, position of each image in its split.
    """

    image: Tensor
    label: Tensor
    mask: Tensor | None
    has_mask: Tensor
    index: Tensor


class Outputs(NamedTuple):
    """What every network returns, whatever its heads.

    Attributes:
        class_logits: ``(N, K)`` float scores before softmax or sigmoid; ``None`` without class head.
        dense: ``(N, D, H, W)`` float map at the input's size, no activation; ``None`` without
            dense head.
    """

    class_logits: Tensor | None
    dense: Tensor | None
