"""What makes training fast on this machine: arithmetic, memory format, memory, recomputation."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medduet.models.base import DuetNetwork
from medduet.utils.devices import best_memory_format, keep_freed_memory, trim_memory


def arrange(fabric: Fabric, network: DuetNetwork, size: tuple[int, int]) -> dict[str, Any]:
    """Let `network` and this process compute as suits the device; call it before the first batch.

    On a CPU the process then keeps the memory that it frees, see `keep_freed_memory`.

    Args:
        fabric: device and precision.
        network: whose images are brought into the memory format.
        size: height and width of the images in pixels.

    Returns:
        What was chosen, for the records of the run.
    """
    kind, precision = fabric.device.type, fabric.strategy.precision.precision
    chosen = best_memory_format(kind, precision, max(size))
    network.normalize.memory_format = {
        "contiguous": torch.contiguous_format,
        "channels_last": torch.channels_last,
    }[chosen]
    kept = kind == "cpu" and keep_freed_memory()
    return {"precision": precision, "memory_format": chosen, "keeps_freed_memory": kept}


def judged_together(kind: str, height: int, width: int) -> int:
    """Return how many images of that size are judged at a time, if no number is given.

    A CPU is no faster with more, but needs memory for them: about 0.1 GB for each image of 224
    pixels at the paper's width.

    Example:
        >>> judged_together("cpu", 224, 224), judged_together("cpu", 28, 28)
        (16, 256)
    """
    pixels, most = (128 * 224**2, 2048) if kind == "cuda" else (16 * 224**2, 256)
    return max(1, min(most, pixels // (height * width)))


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
            context_fn=lambda: (nullcontext(), _Again(stage)),
            **options,
        )

    stage.forward = forward


class _Again:
    """While `stage` is computed again: keeps batch normalisation from taking note of its images.

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
