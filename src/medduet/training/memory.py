"""Training with less memory: activations that are computed again in the backward pass."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medduet.models.base import DuetNetwork
from medduet.utils.devices import trim_memory


def checkpoint_activations(network: DuetNetwork) -> None:
    """Keep only what enters each stage of `network` for the backward pass, which computes the rest.

    Losses, gradients and running means stay bit for bit what they were.
    """
    for stage in network.stages():
        stage.forward = partial(_checkpointed, stage, stage.forward)


def _checkpointed(stage: nn.Module, forward: Any, *inputs: Any, **options: Any) -> Any:
    if not (stage.training and torch.is_grad_enabled()):
        return forward(*inputs, **options)
    contexts = (nullcontext(), _Recomputation(stage))
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=lambda: contexts, **options)


class _Recomputation:
    """While `stage` is computed again: batch normalisation must not count its images twice."""

    def __init__(self, stage: nn.Module) -> None:
        norms = [module for module in stage.modules() if isinstance(module, _BatchNorm)]
        self.norms = [
            (norm, norm.momentum, norm.num_batches_tracked)
            for norm in norms
            if norm.training and norm.track_running_stats
        ]

    def __enter__(self) -> None:  # each backward pass through the same graph does
        trim_memory()  # that is when a process needs most
        for norm, _, _ in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *_: object) -> None:
        for norm, momentum, tracked in self.norms:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
