"""Where training stands: all that a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from medduet.errors import DataError, DownloadError, MissingFileError, TrainingError
from medduet.runs.folder import RunFolder
from medduet.training.balance import Balancer
from medduet.training.checkpoint import load_state, random_state, save_state, set_random_state
from medduet.training.loader import Feed
from medduet.training.memory import noted_micro_batch
from medduet.training.nonfinite import RunningValues
from medduet.training.stopping import Watch
from medduet.utils.parsing import misread

if TYPE_CHECKING:
    from lightning.fabric.wrappers import _FabricModule


@dataclass
class Best:
    """The epoch with the highest score so far; epoch 0 is none."""

    epoch: int = 0
    score: float = -math.inf

    def beaten_by(self, epoch: int, score: float) -> bool:
        """Take the new epoch over if its score is higher; return whether it is.

        The first epoch is always taken, and where no score is known (NaN) the last one.
        """
        if score > self.score or self.epoch == 0 or math.isnan(self.score):
            self.epoch, self.score = epoch, score
            return True
        return False


@dataclass
class Progress:
    """Where training stands, besides weights and generators; plain values only."""

    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    best_test: Best = field(default_factory=Best)
    left_out: list[list[int]] = field(default_factory=list)
    """Epoch and step, from 1, of the steps that were not finite."""
    micro_batch: int | None = None
    """Images computed at a time on each process; ``None`` for all of a step."""


@dataclass
class TrainState:
    """What changes while training goes on.

    Attributes:
        network: the network, whose weights are saved.
        module: what Fabric made of it, for the training step.
        optimizer: of its parameters.
        scheduler: of the learning rate, stepped once per epoch.
        sums: ``(2, T)`` float64, the sum of the losses and of the weights of each task over the
            epoch so far, on this process.
        balancer: how the losses become one step.
        feed: gives the batches.
        watch: notices what is not finite.
        running: what a step that is left out must not change.
        progress: epoch, step and history.
    """

    network: nn.Module
    module: _FabricModule
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    sums: Tensor
    balancer: Balancer
    feed: Feed
    watch: Watch
    running: RunningValues
    progress: Progress = field(default_factory=Progress)

    def save(self, folder: RunFolder, fabric: Fabric) -> None:
        """Write the checkpoint, then the epochs' records; each is old or new, never half.

        Raises:
            NotFiniteError: a step was not finite; nothing is written.
            StorageError: the disk is full; the last checkpoint is unharmed.
            TrainingError: weights are not finite; nothing is written.
        """
        self.watch.look()
        if not all(torch.isfinite(weight).all() for weight in self.network.parameters()):
            raise TrainingError(
                f"weights are not finite after epoch {self.progress.epoch}, step "
                f"{self.progress.step}: lower --lr, set --train.clip 1, or --train.on-not-finite "
                "rollback"
            )
        # Each process has its own generators, and in the middle of an epoch its own sums.
        state = random_state(fabric.device)
        generators = {name: fabric.all_gather(value) for name, value in state.items()}
        sums = fabric.all_gather(self.sums)
        if fabric.is_global_zero:
            checkpoint = {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "generators": generators,
                "sums": sums,
                "balancer": self.balancer.state_dict(),
                "world_size": fabric.world_size,
                "progress": asdict(self.progress),
            }
            save_state(folder.checkpoint("last"), checkpoint)
            folder.write_epochs(self.progress.history)
        fabric.barrier()

    def restore(self, folder: RunFolder, fabric: Fabric) -> None:
        """Go back to the last checkpoint, if there is one.

        Raises:
            TrainingError: it was written by another number of processes, or is damaged.
        """
        path = folder.checkpoint("last")
        if path.is_file():
            state = load_state(path)
            with misread(path, TrainingError):
                self._take(state, folder, fabric)
        self.progress.micro_batch = noted_micro_batch(folder) or self.progress.micro_batch

    def _take(self, state: dict[str, Any], folder: RunFolder, fabric: Fabric) -> None:
        """Take over what a checkpoint holds."""
        if state["world_size"] != fabric.world_size:
            raise TrainingError(
                f"{folder.path} was trained by {state['world_size']} process(es), this is one of "
                f"{fabric.world_size}: use torchrun --nproc-per-node {state['world_size']}"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.balancer.load_state_dict(state["balancer"])
        bests = {name: Best(**state["progress"][name]) for name in ("best", "best_test")}
        self.progress = Progress(**state["progress"] | bests)
        rank = fabric.global_rank if fabric.world_size > 1 else slice(None)
        generators = {name: value[rank] for name, value in state["generators"].items()}
        set_random_state(generators, fabric.device)
        self.sums = state["sums"][rank].to(fabric.device)


@contextmanager
def saved_if_cut_off(state: TrainState, folder: RunFolder, fabric: Fabric) -> Iterator[None]:
    """Save the last step if the images of the next one can't be had, such as from a server.

    Not with several processes: the others may be in the middle of a step, and can't help saving.
    """
    try:
        yield
    except (DataError, DownloadError, MissingFileError):
        if fabric.world_size == 1:
            state.save(folder, fabric)
        raise
