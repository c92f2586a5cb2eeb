"""The typed values that flow from data to report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:  # some of it is needed where torch is not
    from torch import Tensor

Fit = Literal["pad", "stretch", "crop"]
"""How an image becomes square: by black borders, by stretching, or by its centre."""
Task = Literal["classify", "segment", "reconstruct"]
Select = Literal["auto", "accuracy", "balanced_accuracy", "auc", "dice", "mse", "last"]
Balance = Literal["sum", "uncertainty"]
Precision = Literal["auto", "32-true", "bf16-mixed"]
Augment = Literal["none", "flip", "light", "strong"]
TestTime = Literal["none", "flip", "flips", "turns"]
Preset = Literal["fast", "balanced", "best"]
Modality = Literal[
    "auto", "xray", "ultrasound", "ct", "mri", "fundus", "oct", "dermoscopy", "microscopy"
]
TASKS: tuple[Task, ...] = get_args(Task)
UNKNOWN_LABEL = -1
"""The label of an image whose class is not known; it counts zero in every loss and metric."""
IGNORED_MASK = 255
"""The mask class of pixels that count in no loss and no metric."""

KINDS = {2: "images", 3: "volumes"}
"""What data are called, by their spatial dimensions."""


class Batch(NamedTuple):
    """Some images, or volumes, of one split, with whatever truth is known of them.

    Volumes have ``D, H, W`` where shapes say ``H, W``, here and everywhere.

    Attributes:
        image: ``(N, C, H, W)`` uint8, 0 to 255; after augmentation float in [0, 1].
        label: ``(N,)`` int64 class index, or ``(N, K)`` int64 of 0 and 1 for multi-label sets;
            `UNKNOWN_LABEL` where it is not known.
        mask: ``(N, H, W)`` int64 mask class, 0 is background, `IGNORED_MASK` counts nowhere;
            ``None`` if the set has no masks.
        has_mask: ``(N,)`` bool, whether the mask of the image is known.
        indices: ``(N,)`` int64, position of each image in its split.
    """

    image: Tensor
    label: Tensor
    mask: Tensor | None
    has_mask: Tensor
    indices: Tensor

    def apply(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch of what `function` makes of each part that is there."""
        return Batch(*(None if part is None else function(part) for part in self))  # type: ignore[arg-type]


class Outputs(NamedTuple):
    """What every network returns, whatever its heads.

    Attributes:
        class_logits: ``(N, K)`` float scores before softmax or sigmoid; ``None`` without class
            head.
        dense: ``(N, D, H, W)`` float map at the input's size, no activation; ``None`` without
            dense head.
    """

    class_logits: Tensor | None
    dense: Tensor | None


class DenseLayout(NamedTuple):
    """Which channels of the dense output belong to which task; those of the mask come first.

    Attributes:
        mask_classes: classes of the mask, background included; 0 if masks are not predicted. Two
            classes share one channel (sigmoid), more have one each (softmax).
        image_channels: channels of the reconstructed image; 0 if it is not predicted.

    Example:
        >>> DenseLayout(mask_classes=2, image_channels=3).channels
        4
    """

    mask_classes: int
    image_channels: int

    @property
    def mask_channels(self) -> int:
        """Channels of the mask logits."""
        return 1 if self.mask_classes == 2 else self.mask_classes

    @property
    def channels(self) -> int:
        """Channels D of the whole dense output."""
        return self.mask_channels + self.image_channels

    def mask_logits(self, dense: Tensor) -> Tensor:
        """Return the ``(N, mask_channels, H, W)`` mask logits in ``(N, D, H, W)``."""
        return dense[:, : self.mask_channels]

    def image(self, dense: Tensor) -> Tensor:
        """Return the ``(N, image_channels, H, W)`` reconstruction in ``(N, D, H, W)``."""
        return dense[:, self.mask_channels :]

    def mask_probability(self, dense: Tensor) -> Tensor:
        """Return ``(N, mask_classes, H, W)`` of a dense output, of the background first."""
        logits = self.mask_logits(dense)
        if self.mask_channels > 1:
            return logits.softmax(dim=1)
        signs = logits.new_tensor([-1.0, 1.0]).view(2, *[1] * (logits.ndim - 2))
        return (signs * logits).sigmoid()

    def mask(self, dense: Tensor) -> Tensor:
        """Return the predicted mask ``(N, H, W)`` int64 of a dense output ``(N, D, H, W)``."""
        logits = self.mask_logits(dense)
        return (logits[:, 0] > 0).long() if self.mask_channels == 1 else logits.argmax(dim=1)
