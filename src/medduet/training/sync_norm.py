"""Batch normalisation over the images of all processes."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medduet.errors import ConfigError


class _Sum(torch.autograd.Function):
    """The sum over all processes, and so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def _normalized(norm: nn.BatchNorm2d, given: Tensor) -> Tensor:
    """Return ``(N, C, H, W)``, normalised by the mean and variance over all processes.

    They are put together from those of each process, so that they round as those of the whole
    batch do.
    """
    x = given.float()
    count = x.new_full((1,), x.numel() / x.shape[1])
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    sums = _Sum.apply(torch.cat([count * mean, count]))
    total, together = sums[-1], sums[:-1] / sums[-1]
    variance = _Sum.apply(count * (var + (mean - together).square())) / total
    if norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
            momentum = norm.momentum or 1.0 / float(norm.num_batches_tracked)
            norm.running_mean.lerp_(together, momentum)
            norm.running_var.lerp_(variance * total / (total - 1), momentum)
    scale = (variance + norm.eps).rsqrt()
    shift = -together * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    normalized: Tensor = x * scale[:, None, None] + shift[:, None, None]
    return normalized.to(given.dtype)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over all processes, also on CPUs; torch's own knows GPUs only."""

    def forward(self, given: Tensor) -> Tensor:
        """Return ``(N, C, H, W)``, normalised."""
        return _normalized(self, given) if self.training else super().forward(given)


class SyncedBatchNormAct2d(BatchNormAct2d):  # type: ignore[misc]  # timm has no types
    """timm's `BatchNormAct2d` over all processes, also on CPUs."""

    def forward(self, given: Tensor) -> Tensor:
        """Return ``(N, C, H, W)``, normalised, with the activation."""
        if not self.training:
            activated: Tensor = super().forward(given)
        else:
            activated = self.act(self.drop(_normalized(self, given)))
        return activated


_SYNCED = {nn.BatchNorm2d: SyncedBatchNorm2d, BatchNormAct2d: SyncedBatchNormAct2d}


def sync_batch_norm(network: nn.Module, kind: str) -> None:
    """Let batch normalisation in `network` see the images of all processes.

    Args:
        network: changed in place; names and weights stay as they are.
        kind: of the device, ``"cpu"`` or ``"cuda"``.

    Raises:
        ConfigError: on a CPU, a kind of batch normalisation that brings more with it.
    """
    if kind == "cuda":
        for name, child in network.named_children():
            setattr(network, name, convert_sync_batchnorm(child))
        return
    for norm in [module for module in network.modules() if isinstance(module, _BatchNorm)]:
        if type(norm) not in _SYNCED:
            raise ConfigError(
                f"--train.sync-batch-norm does not know {type(norm).__name__}, which this network "
                "has, on CPUs: leave it out, or train on GPUs or on one process"
            )
        norm.__class__ = _SYNCED[type(norm)]
