"""The loss of each task: one value and one weight per image, of which a batch has the mean.

So images without a label or mask weigh zero, and processes can share a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from medduet.types import UNKNOWN_LABEL, DenseLayout


class PerImage(NamedTuple):
    """The loss of each image, ``(N,)`` float, and its weight, ``(N,)`` float."""

    loss: Tensor
    weight: Tensor

    def total(self) -> Tensor:
        """Return the weighted sum, a scalar."""
        return (self.loss * self.weight).sum()


def classification_loss(logits: Tensor, label: Tensor, class_weight: Tensor | None) -> PerImage:
    """Cross-entropy; for multi-label sets the mean binary cross-entropy over the known labels.

    Takes logits ``(N, K)`` and labels ``(N,)`` int64, or ``(N, K)`` 0/1 for multi-label sets; -1 is
    unknown. `class_weight` ``(K,)`` is that of each class, or of its positive images (multi-label).
    """
    labelled = label != UNKNOWN_LABEL
    weight = classification_weight(label, class_weight).to(logits.dtype)
    label = label.clamp(min=0)
    if label.ndim == 2:
        each = F.binary_cross_entropy_with_logits(
            logits, label.to(logits.dtype), pos_weight=class_weight, reduction="none"
        )
        return PerImage((each * labelled).sum(dim=1) / labelled.sum(dim=1).clamp(min=1), weight)
    return PerImage(F.cross_entropy(logits, label, reduction="none"), weight)


def classification_weight(label: Tensor, class_weight: Tensor | None) -> Tensor:
    """Return ``(N,)`` float, what each image weighs in the `classification_loss`."""
    labelled = label != UNKNOWN_LABEL
    if label.ndim == 2:
        return labelled.any(dim=1).float()
    return labelled.float() if class_weight is None else labelled * class_weight[label.clamp(min=0)]


def reconstruction_loss(image: Tensor, normalized: Tensor) -> PerImage:
    """Mean squared error between ``(N, C, H, W)`` and the normalised input of the same shape."""
    loss = F.mse_loss(image, normalized, reduction="none").mean(dim=(1, 2, 3))
    return PerImage(loss, torch.ones_like(loss))


def segmentation_loss(
    dense: Tensor, mask: Tensor, has_mask: Tensor, layout: DenseLayout
) -> PerImage:
    """Dice loss (MONAI) plus cross-entropy, binary or multi-class.

    The Dice term is ``1 - (2 |P T| + e) / (|P| + |T| + e)`` with e = 1e-5 per image and class, the
    background left out. Takes the output ``(N, D, H, W)`` and the true mask ``(N, H, W)`` int64.
    """
    from monai.losses import DiceLoss  # slow to import, and only masks need it

    logits = layout.mask_logits(dense)
    if layout.mask_channels == 1:
        target = mask.unsqueeze(1).to(logits.dtype)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        of_dice = {"sigmoid": True}
    else:
        target = mask.unsqueeze(1)
        cross_entropy = F.cross_entropy(logits, mask, reduction="none")
        of_dice = {"softmax": True, "to_onehot_y": True, "include_background": False}
    dice = DiceLoss(**of_dice, reduction="none")(logits, target)
    loss = dice.flatten(1).mean(dim=1) + cross_entropy.flatten(1).mean(dim=1)
    return PerImage(loss, has_mask.to(loss.dtype))
