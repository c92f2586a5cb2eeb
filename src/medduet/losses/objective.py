"""The losses of a run: one value and weight per image and task, and how they become one number.

Images without a label or mask weigh zero, so processes can share a batch.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medduet.config import ObjectiveConfig
from medduet.types import IGNORED_MASK, UNKNOWN_LABEL, Batch, DenseLayout, Outputs, Task

_SMOOTH, _EMPTY = 1e-5, 0.01  # of Dice: pixels; share of the pixels where there is no such class


class PerImage(NamedTuple):
    """The loss of each image, ``(N,)`` float, and its weight, ``(N,)`` float."""

    loss: Tensor
    weight: Tensor

    def total(self) -> Tensor:
        """Return the weighted sum, a scalar."""
        return (self.loss * self.weight).sum()


def classification_loss(
    logits: Tensor, label: Tensor, class_weight: Tensor | None, smoothing: float = 0.0
) -> PerImage:
    """Cross-entropy; for multi-label sets the mean binary cross-entropy over the known labels.

    Takes logits ``(N, K)`` and labels ``(N,)`` int64, or ``(N, K)`` 0/1 for multi-label sets; -1 is
    unknown. `class_weight` ``(K,)`` is that of each class, or of its positive images (multi-label).
    With a `smoothing` s a label is ``1 - s`` of its class and ``s / K`` of all (arXiv:1512.00567).
    """
    weight = classification_weight(label, class_weight).to(logits.dtype)
    target = label.clamp(min=0)
    if label.ndim == 1:
        losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
        return PerImage(losses, weight)
    labelled = label != UNKNOWN_LABEL
    soft = target.to(logits.dtype) * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(
        logits, soft, pos_weight=class_weight, reduction="none"
    )
    return PerImage((losses * labelled).sum(dim=1) / labelled.sum(dim=1).clamp(min=1), weight)


def classification_weight(label: Tensor, class_weight: Tensor | None) -> Tensor:
    """Return ``(N,)`` float, what each image weighs in the `classification_loss`."""
    labelled = label != UNKNOWN_LABEL
    if label.ndim == 2:
        return labelled.any(dim=1).float()
    return labelled.float() if class_weight is None else labelled * class_weight[label.clamp(min=0)]


def reconstruction_loss(
    image: Tensor, normalized: Tensor, hidden: Tensor | None = None
) -> PerImage:
    """Mean squared error between ``(N, C, H, W)`` and the normalised input of the same shape.

    With `hidden` ``(N, 1, H, W)`` bool it is that of the hidden pixels alone.
    """
    loss, axes = F.mse_loss(image, normalized, reduction="none"), tuple(range(1, image.ndim))
    if hidden is None:
        loss = loss.mean(dim=axes)
    else:
        loss = (loss * hidden).sum(dim=axes) / (hidden.sum(dim=axes) * image.shape[1])
    return PerImage(loss, torch.ones_like(loss))


def segmentation_loss(
    dense: Tensor, mask: Tensor, has_mask: Tensor, layout: DenseLayout
) -> PerImage:
    """Dice loss plus cross-entropy, binary or multi-class.

    The Dice term is ``1 - (2 |P T| + e) / (|P| + |T| + e)`` per image and class, the background
    left out; e is 1e-5, as in MONAI. Where an image lacks the class, it is 1% of the pixels: with a
    small one the term would be 1 whatever is drawn, and teach nothing. Takes the output
    ``(N, D, H, W)`` and the true mask ``(N, H, W)`` int64; pixels of 255 are ignored.
    """
    logits, counts = layout.mask_logits(dense), mask.unsqueeze(1) != IGNORED_MASK
    target, counted = mask.unsqueeze(1).where(counts, 0), counts.to(logits.dtype)
    if layout.mask_channels == 1:
        truth, probability = target.to(logits.dtype), logits.sigmoid()
        cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, counted, reduction="none")
    else:
        cross_entropy = F.cross_entropy(logits, mask, reduction="none", ignore_index=IGNORED_MASK)
        classes = torch.arange(1, layout.mask_classes, device=mask.device)
        truth = (target == classes.view(-1, *[1] * (mask.ndim - 1))).to(logits.dtype)
        probability = logits.softmax(dim=1)[:, 1:]
    overlap, drawn, true = (
        x.flatten(2).sum(dim=2) for x in (probability * truth, probability * counted, truth)
    )
    pixels = counted.flatten(1).sum(dim=1, keepdim=True).clamp(min=1)
    smooth = torch.where(true > 0, _SMOOTH, _EMPTY * pixels)
    dice = 1 - (2 * overlap + smooth) / (drawn + true + smooth)
    # From the mean of all pixels to that of the counted: times 1 where none is ignored.
    share = mask[0].numel() / pixels[:, 0]
    loss = dice.mean(dim=1) + cross_entropy.flatten(1).mean(dim=1) * share
    return PerImage(loss, segmentation_weight(mask, has_mask).to(loss.dtype))


def segmentation_weight(mask: Tensor, has_mask: Tensor) -> Tensor:
    """Return ``(N,)`` float, what each image weighs: 0 if the class of no pixel is known."""
    return (has_mask & (mask != IGNORED_MASK).flatten(1).any(dim=1)).float()


class Objective(nn.Module):
    """The loss of a batch, of one term per task; `class_weight` see `balanced_weights`.

    With the balance ``"uncertainty"`` it is the sum of ``exp(-s) L / 2 + s / 2`` over the terms L,
    and each s is learnt (arXiv:1705.07115).
    """

    class_weight: Tensor | None
    log_variance: nn.Parameter | None
    used: Tensor

    def __init__(
        self, config: ObjectiveConfig, layout: DenseLayout, class_weight: Tensor | None = None
    ) -> None:
        super().__init__()
        self.tasks = config.tasks
        self.factors = {task: float(getattr(config, f"{task}_weight")) for task in config.tasks}
        self.layout, self.smoothing = layout, config.label_smoothing
        self.register_buffer("class_weight", class_weight)
        learns = config.balance == "uncertainty" and len(self.tasks) > 1
        zeros = nn.Parameter(torch.zeros(len(self.tasks))) if learns else None
        self.register_parameter("log_variance", zeros)
        used = torch.tensor([factor > 0 for factor in self.factors.values()])
        self.register_buffer("used", used, persistent=False)

    def forward(
        self, outputs: Outputs, batch: Batch, normalized: Tensor, hidden: Tensor | None = None
    ) -> dict[Task, PerImage]:
        """Return the loss of each image in each task.

        `normalized` are the images as the network sees them, `hidden` the pixels that it doesn't.
        """
        terms: dict[Task, PerImage] = {}
        logits, dense = outputs
        if "classify" in self.tasks and logits is not None:
            terms["classify"] = classification_loss(
                logits, batch.label, self.class_weight, self.smoothing
            )
        if "segment" in self.tasks and dense is not None and batch.mask is not None:
            terms["segment"] = segmentation_loss(dense, batch.mask, batch.has_mask, self.layout)
        if "reconstruct" in self.tasks and dense is not None:
            terms["reconstruct"] = reconstruction_loss(self.layout.image(dense), normalized, hidden)
        return terms

    def weights(self, batch: Batch) -> Tensor:
        """Return ``(T,)`` the sum of the image weights of each term, which are known beforehand."""
        mask, has_mask = batch.mask, batch.has_mask
        weights = {
            "classify": classification_weight(batch.label, self.class_weight),
            "segment": has_mask.float() if mask is None else segmentation_weight(mask, has_mask),
            "reconstruct": torch.ones_like(batch.has_mask, dtype=torch.float32),
        }
        return torch.stack([weights[task].sum() for task in self.tasks])

    def loss(self, terms: Mapping[Task, PerImage], weights: Tensor, share: float = 1.0) -> Tensor:
        """Return the loss, a scalar, of images that are a `share` of the batch.

        It is the sum of the mean of each term times its factor, zero where no image counts.
        `weights` are the ``(T,)`` sums of the image weights of each term over the whole batch, so
        that the losses of its shares add up.
        """
        pairs = zip(terms.items(), weights.clamp(min=torch.finfo(weights.dtype).tiny), strict=True)
        losses = torch.stack([self.factors[task] * term.total() / w for (task, term), w in pairs])
        if self.log_variance is None:
            return losses.sum()
        scaled = torch.exp(-self.log_variance) * losses
        return (scaled + share * self.log_variance * (self.used & (weights > 0))).sum() / 2

    @torch.no_grad()
    def learnt_weights(self) -> dict[Task, float]:
        """Return the weight of each task, if they are learnt."""
        if self.log_variance is None:
            return {}
        shares = (torch.exp(-self.log_variance) / 2).tolist()
        return {task: self.factors[task] * x for task, x in zip(self.tasks, shares, strict=True)}


def balanced_weights(label: Tensor, num_classes: int) -> Tensor:
    """Return ``(K,)`` weights by which each class counts the same, from the labels of train.

    Single label: ``n / (K * n_k)``, as scikit-learn's ``"balanced"``. Multi-label: negatives
    divided by positives, as torch's ``pos_weight``. A class without images weighs zero.
    """
    if label.ndim == 2:
        positive, negative = (label == 1).sum(dim=0), (label == 0).sum(dim=0)
        return torch.where(positive > 0, negative / positive.clamp(min=1), 0.0)
    labelled = label[label != UNKNOWN_LABEL]
    count = torch.bincount(labelled, minlength=num_classes)
    return torch.where(count > 0, len(labelled) / (num_classes * count.clamp(min=1)), 0.0)
