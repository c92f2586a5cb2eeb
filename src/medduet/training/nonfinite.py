"""Steps of training whose loss or gradient is not finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from medduet.data.imageset import Split
from medduet.errors import TrainingError
from medduet.runs.folder import RunFolder
from medduet.types import Batch
from medduet.utils.files import atomic_path

MOST_LEFT_OUT = 20
"""Steps that a run may leave out because they were not finite."""


class NotFiniteError(TrainingError):
    """A loss or gradient is NaN or infinite.

    Attributes:
        what: ``"loss"`` or ``"gradient"``.
        epoch: from 1.
        step: of the epoch, from 1.
        batch: what was trained on, as the network got it.
    """

    def __init__(self, what: str, epoch: int, step: int, batch: Batch) -> None:
        self.what, self.epoch, self.step, self.batch = what, epoch, step, batch
        super().__init__(
            f"the {what} is not finite in epoch {epoch}, step {step}, for the training images "
            f"{batch.indices.tolist()}"
        )


def save_batch(folder: RunFolder, fault: NotFiniteError, split: Split, rank: int) -> Path:
    """Write the batch of a fault to ``not-finite/`` in the run's folder, and return the file.

    It is an ``.npz``: ``images`` ``(N, C, H, W)`` as the network got them, ``labels``, ``indices``
    in the train split, and where they are known ``masks``, ``has_mask`` and ``ids``.
    """
    batch = fault.batch.apply(Tensor.cpu)
    indices = batch.indices.numpy()
    arrays: dict[str, NDArray[np.generic]] = {
        "images": batch.image.float().numpy()
        if batch.image.is_floating_point()
        else batch.image.numpy(),
        "labels": batch.label.numpy(),
        "indices": indices,
    }
    if batch.mask is not None:
        arrays |= {"masks": batch.mask.numpy(), "has_mask": batch.has_mask.numpy()}
    if split.ids is not None:
        arrays["ids"] = split.ids[indices]
    name = f"epoch-{fault.epoch}-step-{fault.step}" + (f"-rank-{rank}" if rank else "")
    path = folder.path / "not-finite" / f"{name}.npz"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


class RunningValues:
    """Keeps the buffers of a network, to which a step that is left out must not leave its traces.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(1)
        >>> values = RunningValues(norm)
        >>> values.keep()
        >>> _ = norm(torch.full((2, 1), 5.0))
        >>> values.give_back()
        >>> norm.running_mean.item(), norm.num_batches_tracked.item()
        (0.0, 0)
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Remember the buffers as they are now."""
        self._kept = [buffer.clone() for buffer in self.network.buffers()]

    def give_back(self) -> None:
        """Set them to what was kept."""
        for buffer, kept in zip(self.network.buffers(), self._kept, strict=True):
            buffer.copy_(kept)
