"""Where training stands, and the checkpoint that holds all of it."""

import math
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from medduet.errors import MissingFileError, TrainingError
from medduet.losses.objective import Objective
from medduet.models.base import DuetNetwork
from medduet.runs.folder import RunFolder
from medduet.utils.files import atomic_path

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
        self._noted: list[tuple[Tensor, tuple[str, int, int, Tensor]]] = []

    def note(self, quantity: str, value: Tensor, epoch: int, step: int, indices: Tensor) -> None:
        """Note whether the ``"loss"`` or ``"gradient"`` of a step (from 1) is finite."""
        self._noted.append((torch.isfinite(value).all(), (quantity, epoch, step, indices)))
        if self.interval == 1:
            self.check()

    def check(self) -> None:
        """Check all that was noted; `TrainingError` for the first that is not finite."""
        noted, self._noted = self._noted, []
        finite = torch.stack([value for value, _ in noted]).tolist() if noted else []
        if not all(finite):
            quantity, epoch, step, indices = noted[finite.index(False)][1]
            raise TrainingError(
                f"the {quantity} is not finite in epoch {epoch}, step {step}, for the training "
                f"images {indices.tolist()}: {self.remedy}"
            )

    def must_stop(self, stop_requests: Tensor) -> bool:
        """Return after a step whether to stop: the same in all processes."""
        self._steps += 1
        alone, is_due = self.fabric.world_size == 1, self._steps % self.interval == 0
        if is_due:
            self.check()
        return self.stop.is_set() if alone else is_due and bool(stop_requests > 0)


@dataclass
class Best:
    """The epoch with the highest score so far; epoch 0 is none."""

    epoch: int = 0
    score: float = -math.inf

    def update(self, epoch: int, score: float) -> bool:
        """Take the new epoch if its score is higher, or there is none (NaN); return whether."""
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
    micro_batch: int | None = None
    """Images computed at a time on each process; ``None`` for all of a step."""


@dataclass
class TrainState:
    """What changes while training goes on."""

    network: DuetNetwork
    module: Any
    """What Fabric made of `network`, for the training step."""
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    sums: Tensor
    """``(2, T)`` float64, losses and weights of each task over the epoch, on this process."""
    objective: Objective
    """Which may learn the weights of its terms."""
    monitor: StepMonitor
    average: AveragedModel | None = None
    """Moving average of the weights and of batch normalisation's means."""
    smallest_batch: int = 1
    """Images of a batch on one process that batch normalisation takes."""
    progress: Progress = field(default_factory=Progress)

    @property
    def evaluated(self) -> DuetNetwork:
        """The network that is evaluated and kept: the average, if there is one."""
        return self.network if self.average is None else cast("DuetNetwork", self.average.module)

    def save(self, folder: RunFolder, fabric: Fabric) -> None:
        """Write the checkpoint, then the epochs' records; each is old or new, never half."""
        self.monitor.check()
        weights = *self.network.parameters(), *self.objective.parameters()
        if not all(torch.isfinite(weight).all() for weight in weights):
            raise TrainingError(
                f"weights are not finite after epoch {self.progress.epoch}, step "
                f"{self.progress.step}: {self.monitor.remedy}"
            )
        process = {"sums": self.sums, "cpu": torch.get_rng_state()}
        if fabric.device.type == "cuda":
            process["cuda"] = torch.cuda.get_rng_state(fabric.device)
        checkpoint = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "objective": self.objective.state_dict(),
            "average": self.average and self.average.state_dict(),
            # Each process has its own generators, and in the middle of an epoch its own sums.
            "own": fabric.all_gather(process),
            "world_size": fabric.world_size,
            "progress": asdict(self.progress),
        }
        if fabric.is_global_zero:
            save_checkpoint(folder.checkpoint("last"), checkpoint)
            folder.write_epochs(self.progress.history)
        fabric.barrier()

    def restore(self, folder: RunFolder, fabric: Fabric) -> None:
        """Go back to the last checkpoint, if there is one."""
        path = folder.checkpoint("last")
        if not path.is_file():
            return
        state = load_checkpoint(path)
        if state["world_size"] != fabric.world_size:
            raise TrainingError(
                f"expected {state['world_size']} process(es) as {folder.path} began with, given "
                f"{fabric.world_size}: use torchrun --nproc-per-node {state['world_size']}"
            )
        for name in ("network", "optimizer", "scheduler", "objective"):
            getattr(self, name).load_state_dict(state[name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        best = {name: Best(**state["progress"][name]) for name in ("best", "best_test")}
        self.progress = Progress(**state["progress"] | best)
        rank = fabric.global_rank if fabric.world_size > 1 else slice(None)
        # A clone: torch 2.14 refuses a row of several states, which begins within its memory.
        process = {name: value[rank].clone() for name, value in state["own"].items()}
        self.sums = process["sums"].to(fabric.device)
        torch.set_rng_state(process["cpu"])
        if fabric.device.type == "cuda" and "cuda" in process:
            torch.cuda.set_rng_state(process["cuda"], fabric.device)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, nested in dicts and lists, to `path`, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # behind which torch hides that of a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; tensors come to the CPU, and no code is run."""
    if not path.is_file():
        raise MissingFileError(f"expected a checkpoint at {path}, but there is no such file")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise TrainingError(f"{path} is damaged, or no checkpoint of MedDuet") from error
    return state
