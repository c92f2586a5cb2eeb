"""Losses and gradients that are not finite, and requests to stop, noticed without a wait."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor

from medduet.errors import TrainingError
from medduet.training.experiment import Experiment
from medduet.types import Batch
from medduet.utils.files import atomic_path

GPU_INTERVAL = 20
"""Steps between two checks on a GPU, where each one waits for it; a CPU has its values at once."""


class NotFiniteError(TrainingError):
    """The loss or gradient of `batch`, as the network got it, is NaN or infinite."""

    def __init__(self, quantity: str, epoch: int, step: int, batch: Batch) -> None:
        self.epoch, self.step, self.batch = epoch, step, batch
        super().__init__(
            f"the {quantity} is not finite in epoch {epoch}, step {step}, for the training images "
            f"{batch.indices.tolist()}"
        )


class StepMonitor:
    """Checks losses and gradients, and whether training was asked to stop.

    On a GPU, what was noted in `interval` steps is checked together, and before anything is saved.
    """

    def __init__(self, fabric: Fabric, stop: threading.Event, interval: int | None = None) -> None:
        self.fabric, self.stop = fabric, stop
        self.interval = interval or (1 if fabric.device.type == "cpu" else GPU_INTERVAL)
        self._steps = 0
        self._noted: list[tuple[Tensor, tuple[str, int, int, Batch]]] = []

    def note(self, quantity: str, value: Tensor, epoch: int, step: int, batch: Batch) -> None:
        """Note whether the ``"loss"`` or ``"gradient"`` of a step (from 1) is finite."""
        self._noted.append((torch.isfinite(value).all(), (quantity, epoch, step, batch)))
        if self.interval == 1:
            self.check()

    def check(self) -> None:
        """Check all that was noted; `NotFiniteError` for the first that is not finite."""
        noted, self._noted = self._noted, []
        finite = torch.stack([value for value, _ in noted]).tolist() if noted else []
        if not all(finite):
            raise NotFiniteError(*noted[finite.index(False)][1])

    def must_stop(self, stop_requests: Tensor) -> bool:
        """Return after a step whether to stop: the same in all processes, some of which asked."""
        self._steps += 1
        alone, is_due = self.fabric.world_size == 1, self._steps % self.interval == 0
        if is_due:
            self.check()
        return self.stop.is_set() if alone else is_due and bool(stop_requests > 0)


def save_batch(experiment: Experiment, fault: NotFiniteError) -> Path:
    """Write the batch of a fault, as the network got it, to ``not-finite/``; return the file."""
    image, labels, masks, has_mask, indices = fault.batch.apply(Tensor.cpu)
    arrays: dict[str, Any] = {"labels": labels, "indices": indices}
    arrays["images"] = image.float() if image.is_floating_point() else image
    if masks is not None:
        arrays |= {"masks": masks, "has_mask": has_mask}
    if (ids := experiment.data.train.ids) is not None:
        arrays["ids"] = ids[indices.numpy()]
    rank = experiment.fabric.global_rank
    name = f"epoch-{fault.epoch}-step-{fault.step}" + (f"-rank-{rank}" if rank else "")
    path = experiment.folder.path / "not-finite" / f"{name}.npz"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path
