"""Training with less memory: fewer images at a time, or activations that are computed again."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medduet.errors import TrainingError
from medduet.models.base import DuetNetwork
from medduet.types import Batch
from medduet.utils.devices import trim_memory
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from medduet.runs.folder import RunFolder


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
    return [_between(batch, start, end) for start, end in pairwise(edges)]


def _between(batch: Batch, start: int, end: int) -> Batch:
    return batch.apply(lambda values: values[start:end])


def _micro_batch_file(folder: RunFolder) -> Path:
    return folder.path / "checkpoints" / "micro-batch.json"


def saved_micro_batch(folder: RunFolder) -> int | None:
    """Return to how many images at a time an earlier process went down, if it did."""
    path = _micro_batch_file(folder)
    return int(read_json(path)) if path.is_file() else None


def smaller_micro_batch(folder: RunFolder, fabric: Fabric, images: int, permanent: bool) -> int:
    """Return how many images to try next after so many did not fit, and save it in the folder.

    Args:
        folder: of the run.
        fabric: its processes.
        images: how many did not fit.
        permanent: whether this process can't go on, see `is_permanent`.

    Raises:
        TrainingError: it was the fewest already; or the run has to be started again, and goes on
            with fewer. So have several processes, which can't agree in the middle of a step.
    """
    fewer = images // 2
    if fewer < 2:
        raise TrainingError(
            f"out of memory with {images} images: give a smaller --size or --model.width, or "
            "--train.activation-checkpointing"
        )
    write_json(_micro_batch_file(folder), fewer)
    if permanent or fabric.world_size > 1:
        where = f" on process {fabric.global_rank}" if fabric.world_size > 1 else ""
        raise TrainingError(
            f"out of memory{where} with {images} images at a time: start "
            f"again with medduet train --resume {folder.path}, which goes on with {fewer}"
        )
    return fewer


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
