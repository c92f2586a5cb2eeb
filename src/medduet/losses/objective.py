"""The losses of a run: which tasks, and how they become one number."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from medduet.config import ObjectiveConfig, Task
from medduet.losses.tasks import (
    PerImage,
    classification_loss,
    classification_weight,
    reconstruction_loss,
    segmentation_loss,
)
from medduet.types import UNKNOWN_LABEL, Batch, DenseLayout, Outputs


class Objective(nn.Module):
    """The terms of the loss of a batch, one per task; `class_weight` see `balanced_weights`."""

    class_weight: Tensor | None

    def __init__(
        self, config: ObjectiveConfig, layout: DenseLayout, class_weight: Tensor | None = None
    ) -> None:
        super().__init__()
        self.tasks = config.tasks
        self.factors = {task: config.weight(task) for task in config.tasks}
        self.layout = layout
        self.register_buffer("class_weight", class_weight)

    def forward(self, outputs: Outputs, batch: Batch, normalized: Tensor) -> dict[Task, PerImage]:
        """Return the loss of each image in each task; `normalized` as the network sees them."""
        terms: dict[Task, PerImage] = {}
        logits, dense = outputs
        if "classify" in self.tasks and logits is not None:
            terms["classify"] = classification_loss(logits, batch.label, self.class_weight)
        if "segment" in self.tasks and dense is not None and batch.mask is not None:
            terms["segment"] = segmentation_loss(dense, batch.mask, batch.has_mask, self.layout)
        if "reconstruct" in self.tasks and dense is not None:
            terms["reconstruct"] = reconstruction_loss(self.layout.image(dense), normalized)
        return terms

    def weights(self, batch: Batch) -> Tensor:
        """Return ``(T,)`` the sum of the image weights of each term, which are known beforehand."""
        sums = {
            "classify": lambda: classification_weight(batch.label, self.class_weight),
            "segment": lambda: batch.has_mask.float(),
            "reconstruct": lambda: torch.ones_like(batch.has_mask, dtype=torch.float32),
        }
        return torch.stack([sums[task]().sum() for task in self.tasks])

    def losses(self, terms: Mapping[Task, PerImage], weights: Tensor) -> Tensor:
        """Return ``(T,)`` the mean loss of each term times its factor; zero where no image counts.

        `weights` are the ``(T,)`` sums of the image weights of each term, over all processes.
        """
        means = [
            self.factors[task] * term.total() / weight.clamp(min=torch.finfo(weight.dtype).tiny)
            for (task, term), weight in zip(terms.items(), weights, strict=True)
        ]
        return torch.stack(means)


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
