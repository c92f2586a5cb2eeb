"""Training with less memory: fewer images at a time, or activations that are computed again."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medduet.models.base import DuetNetwork
from medduet.types import Batch
from medduet.utils.devices import trim_memory


def split_batch(batch: Batch, most: int | None) -> list[Batch]:
    """Split a batch into micro-batches of `most` images, of about the same size, never of one.

    Example:
        >>> batch = Batch(torch.zeros(9, 1, 4, 4), *[torch.zeros(9)] * 4)
        >>> [len(micro.image) for micro in split_batch(batch, 4)], len(split_batch(batch, None))
        ([3, 3, 3], 1)
    """
    images = len(batch.image)
    if most is None or images <= most:
        return [batch]
    # A feature map of one pixel from one image has no variance for batch normalisation.
    count = min(-(-images // most), images // 2)
    edges = [images * number // count for number in range(count + 1)]
    return [batch.apply(itemgetter(slice(start, end))) for start, end in pairwise(edges)]


def checkpoint_activations(network: DuetNetwork) -> None:
    """Keep only what enters each stage of `network` for the backward pass, which computes the rest.

    Losses, gradients and running means stay bit for bit what they were. On a CPU the process gives
    back what it kept free before it computes a stage again: that is when it needs most.
    """
    for stage in network.stages():
        _checkpoint(stage)


def _checkpoint(stage: nn.Module) -> None:
    plain = stage.forward

    def forward(*inputs: Any, **options: Any) -> Any:
        if not (stage.training and torch.is_grad_enabled()):
            return plain(*inputs, **options)
        return checkpoint(
            plain,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _Recomputation(stage)),
            **options,
        )

    stage.forward = forward


class _Recomputation:
    """While `stage` is computed again: batch normalisation must not count its images twice.

    Each backward pass through the same graph enters it.
    """

    def __init__(self, stage: nn.Module) -> None:
        self.stage = stage
        self.norms: list[tuple[_BatchNorm, float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        if any(parameter.device.type == "cpu" for parameter in self.stage.parameters()):
            trim_memory()
        self.norms = [
            (module, module.momentum, module.num_batches_tracked)
            for module in self.stage.modules()
            if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        ]
        for norm, _, _ in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *_: object) -> None:
        for norm, momentum, tracked in self.norms:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
