"""Devices, precision and processes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from lightning.fabric import Fabric, wrappers
from lightning.fabric.strategies.ddp import DDPStrategy

from medduet.config import TrainConfig
from medduet.errors import ConfigError


def launch_fabric(config: TrainConfig) -> Fabric:
    """Return a launched Fabric for the device and precision of `config`.

    Under torchrun (or another launcher that sets ``WORLD_SIZE``) it joins the other processes,
    with gloo on CPUs and NCCL on GPUs.

    Raises:
        ConfigError: the device or precision is not to be had on this machine.
    """
    device = config.device
    if device == "auto":
        device = _best_device()
    kind, _, number = device.partition(":")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _mps_available()}
    if not available[kind]:
        raise ConfigError(f"--device {device} was asked for, but torch sees none: try --device cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {device} was asked for, but torch sees {torch.cuda.device_count()} GPU(s): "
            f"give cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        )
    if config.precision == "16-mixed" and kind == "cpu":
        raise ConfigError("--precision 16-mixed needs a GPU: on a CPU give bf16-mixed or 32-true")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with _without_remarks():
        fabric = Fabric(
            accelerator=kind,
            devices=[int(number)] if number else local_size,
            num_nodes=max(1, world_size // local_size),
            # The others wait while the first process converts images, which may take hours.
            strategy=DDPStrategy(timeout=timedelta(days=1)) if world_size > 1 else "auto",
            precision=config.precision,
        )
        fabric.launch()
    return fabric


@contextmanager
def gradients_by_hand() -> Iterator[None]:
    """Let `torch.autograd.grad` through a module of Fabric's.

    With mixed precision Fabric refuses every backward pass but its own, since float16 needs the
    loss scaled; bfloat16 does not.
    """
    before = wrappers._in_fabric_backward
    wrappers._in_fabric_backward = True
    try:
        yield
    finally:
        wrappers._in_fabric_backward = before


def peak_memory(device: torch.device) -> float | None:
    """Return the most memory that this process has held so far, in GB: on the GPU, else of all.

    ``None`` on a CPU under Windows, which has no such count.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep Lightning from printing which precision and processes it uses; environment.json says it.

    On import Lightning gives its loggers handlers of their own and the level INFO.
    """
    # Which of the two speaks depends on the order of Lightning's own imports.
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("fabric", "pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if _mps_available() else "cpu"


def _mps_available() -> bool:
    return bool(torch.backends.mps.is_available())
