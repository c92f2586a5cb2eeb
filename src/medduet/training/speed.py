"""What makes training fast on this machine: arithmetic, memory format, memory, recomputation."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medduet.config import TrainConfig
from medduet.models.base import DuetNetwork
from medduet.utils.allocator import keep_freed_memory, return_holes

_LARGE = 64
"""Side in pixels from which a CPU computes faster if the channels of a pixel lie side by side."""


def arrange(
    fabric: Fabric, network: DuetNetwork, config: TrainConfig, size: tuple[int, int]
) -> dict[str, Any]:
    """Let `network` and this process compute as suits the device; call it before the first batch.

    On a CPU the process then keeps the memory that it frees, see `keep_freed_memory`.

    Args:
        fabric: device and precision.
        network: whose images are brought into the memory format.
        config: what is not auto in it is done as it says.
        size: height and width of the images in pixels.

    Returns:
        What was chosen, for the records of the run.
    """
    kind, precision = fabric.device.type, fabric.strategy.precision.precision
    chosen = config.memory_format
    if chosen == "auto":
        chosen = best_memory_format(kind, precision, max(size))
    network.normalize.memory_format = {
        "contiguous": torch.contiguous_format,
        "channels_last": torch.channels_last,
    }[chosen]
    kept = kind == "cpu" and keep_freed_memory()
    return {"precision": precision, "memory_format": chosen, "keeps_freed_memory": kept}


def best_precision(kind: str) -> Literal["32-true", "bf16-mixed"]:
    """Return the arithmetic that ``precision: auto`` means on a ``"cpu"``, ``"cuda"`` or ``"mps"``.

    bfloat16 where the machine computes in it, not merely emulates it: GPUs from Ampere on, CPUs
    with AVX-512 BF16 or AMX.

    Example:
        >>> best_precision("mps")
        '32-true'
    """
    if kind == "cuda":
        real = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        found = torch.cpu.get_capabilities()
        real = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    else:
        real = False
    return "bf16-mixed" if real else "32-true"


def best_memory_format(
    kind: str, precision: str, side: int
) -> Literal["contiguous", "channels_last"]:
    """Return the memory format that ``memory_format: auto`` means; docs/performance.md has why.

    Args:
        kind: of device, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: as Lightning calls it.
        side: the longer one of the images in pixels.

    Example:
        >>> best_memory_format("cpu", "32-true", 28), best_memory_format("cpu", "32-true", 224)
        ('contiguous', 'channels_last')
    """
    if kind == "cuda":
        return "contiguous" if precision == "32-true" else "channels_last"
    if kind == "cpu":
        return "channels_last" if side >= _LARGE else "contiguous"
    return "contiguous"


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
            return_holes()
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
