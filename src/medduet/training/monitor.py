"""Losses and gradients that are not finite, and requests to stop, noticed without a wait."""

import threading

import torch
from lightning.fabric import Fabric
from torch import Tensor

from medduet.errors import TrainingError
from medduet.types import Batch

GPU_INTERVAL = 20
"""Steps between two checks on a GPU, where each one waits for it; a CPU has its values at once."""


class StepMonitor:
    """Checks losses and gradients, and whether training was asked to stop.

    On a GPU, what was noted in `interval` steps is checked together, and before anything is saved.
    """

    def __init__(self, fabric: Fabric, stop: threading.Event, remedy: str = "lower --lr") -> None:
        self.fabric, self.stop, self.remedy = fabric, stop, remedy
        self.interval = 1 if fabric.device.type == "cpu" else GPU_INTERVAL
        self._steps = 0
        self._noted: list[tuple[Tensor, tuple[str, int, int, Batch]]] = []

    def note(self, quantity: str, value: Tensor, epoch: int, step: int, batch: Batch) -> None:
        """Note whether the ``"loss"`` or ``"gradient"`` of a step (from 1) is finite."""
        self._noted.append((torch.isfinite(value).all(), (quantity, epoch, step, batch)))
        if self.interval == 1:
            self.check()

    def check(self) -> None:
        """Check all that was noted; `TrainingError` for the first that is not finite."""
        noted, self._noted = self._noted, []
        finite = torch.stack([value for value, _ in noted]).tolist() if noted else []
        if not all(finite):
            quantity, epoch, step, batch = noted[finite.index(False)][1]
            raise TrainingError(
                f"the {quantity} is not finite in epoch {epoch}, step {step}, for the training "
                f"images {batch.indices.tolist()}: {self.remedy}"
            )

    def must_stop(self, stop_requests: Tensor) -> bool:
        """Return after a step whether to stop: the same in all processes."""
        self._steps += 1
        alone, is_due = self.fabric.world_size == 1, self._steps % self.interval == 0
        if is_due:
            self.check()
        return self.stop.is_set() if alone else is_due and bool(stop_requests > 0)
