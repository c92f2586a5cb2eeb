"""Noticing what ends training, without waiting for the GPU at each step."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch
from lightning.fabric import Fabric
from torch import Tensor

from medduet.training.nonfinite import NotFiniteError
from medduet.types import Batch

if TYPE_CHECKING:
    from medduet.training.state import Progress

EVERY = 20
"""Steps between two looks at what a GPU has found; a CPU has it at once."""


class Watch:
    """Looks for losses and gradients that are not finite, and for a wish to stop.

    On a GPU, values that are looked at make Python wait for all that was asked before. There, what
    was noted at `EVERY` steps is looked at together; nothing is saved before it was.

    Args:
        fabric: device and processes.
        stop: set from outside to end training.
        every: steps between two looks; ``None`` for what suits the device.
    """

    def __init__(self, fabric: Fabric, stop: threading.Event, every: int | None = None) -> None:
        self.fabric, self.stop = fabric, stop
        self.every = every or (1 if fabric.device.type == "cpu" else EVERY)
        self._steps = 0
        self._noted: list[tuple[str, int, int, Batch]] = []
        self._finite: list[Tensor] = []

    def wish(self) -> float:
        """Return 1 if this process is asked to stop, else 0; the sum goes to `after_step`."""
        return float(self.stop.is_set())

    def finite(self, what: str, value: Tensor, progress: Progress, batch: Batch) -> None:
        """Take note of whether `value`, the loss or gradient of a step, is finite.

        Raises:
            NotFiniteError: this or an earlier one is known not to be.
        """
        self._noted.append((what, progress.epoch, progress.step + 1, batch))
        self._finite.append(torch.isfinite(value).all())
        if self.every == 1:
            self.look()

    def look(self) -> None:
        """Look at all that was noted; `NotFiniteError` for the first that is not finite."""
        noted, finite = self._noted, self._finite
        self._noted, self._finite = [], []
        if not finite:
            return
        known = torch.stack(finite).tolist()
        if not all(known):
            raise NotFiniteError(*noted[known.index(False)])

    def after_step(self, wishes: Tensor) -> bool:
        """Return whether a process was asked to stop; all processes get the same answer.

        `wishes` is the sum of `wish` over all processes, of the step.
        """
        self._steps += 1
        if self._steps % self.every:
            return self.fabric.world_size == 1 and self.stop.is_set()
        self.look()
        return bool(wishes > 0) if self.fabric.world_size > 1 else self.stop.is_set()
