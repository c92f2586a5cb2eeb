"""The training loop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from medduet.config import RunConfig
from medduet.data.augment import build_augmentation
from medduet.data.batches import train_batches
from medduet.data.imageset import ImageSet
from medduet.engine.checkpoint import load_state, random_state, save_state, set_random_state
from medduet.engine.evaluate import predict_split, quick_metrics, selection_score
from medduet.engine.folder import RunFolder
from medduet.engine.reporter import Reporter
from medduet.errors import TrainingError
from medduet.models import DuetNetwork
from medduet.objectives import Objective
from medduet.types import Batch, Outputs


class Interrupted(TrainingError):  # noqa: N818  (an answer to a signal, not an error)
    """Training was asked to stop; everything up to the last step is saved."""


@dataclass
class Best:
    """The epoch with the highest score so far; epoch 0 is none."""

    epoch: int = 0
    score: float = -math.inf


@dataclass
class Progress:
    """Where training stands, besides weights and generators; plain values only."""

    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    best_test: Best = field(default_factory=Best)


class Trainer:
    """Fits one network; its state is what a checkpoint holds.

    Args:
        fabric: launched; device, precision and processes.
        network: takes images, gives `Outputs`, and has ``normalize``.
        objective: the losses.
        data: train is fitted on, val is judged after each epoch (and test, in the paper's
            protocol).
        config: of the run.
        folder: where checkpoints and the epochs' records go.
        reporter: is told of each step and epoch.
        stop: when it is set, the step is finished, the state saved, and `Interrupted` raised.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: DuetNetwork,
        objective: Objective,
        data: ImageSet,
        config: RunConfig,
        folder: RunFolder,
        reporter: Reporter | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.fabric, self.data, self.config, self.folder = fabric, data, config, folder
        self.reporter = reporter or Reporter()
        self.stop = stop or threading.Event()
        self.network = network
        self.objective = objective.to(fabric.device)
        train = config.train
        optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimizer]
        optimizer = optimizer_class(
            network.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay
        )
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=train.cosine_epochs or train.epochs
        )
        self.module, self.optimizer = fabric.setup(network, optimizer)
        self.augment = build_augmentation(train.augment)
        self.progress = Progress()
        # Sum of the losses and of the weights of each task over the epoch so far.
        self.sums = torch.zeros(2, len(objective.tasks), dtype=torch.float64, device=fabric.device)

    def fit(self) -> Progress:
        """Train until the last epoch, or until patience runs out; return where it ended."""
        with _generators(self.fabric):
            torch.manual_seed(self.config.train.seed + 1 + self.fabric.global_rank)
            self._resume()
            self.reporter.begin(self.config.train.epochs, self._batch_count())
            while self.progress.epoch <= self.config.train.epochs and not self._patience_is_out():
                self._train_epoch()
                self._end_epoch()
        return self.progress

    def _batch_count(self) -> int:
        size = self.config.train.batch_size
        return len(train_batches(len(self.data.train), size, seed=0, epoch=0))

    def _patience_is_out(self) -> bool:
        patience, done = self.config.train.patience, self.progress.epoch - 1
        return patience is not None and done - self.progress.best.epoch >= patience

    def _train_epoch(self) -> None:
        progress, fabric = self.progress, self.fabric
        self.module.train()
        batches = train_batches(
            len(self.data.train),
            self.config.train.batch_size,
            seed=self.config.train.seed,
            epoch=progress.epoch,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
        )
        if not batches:
            raise TrainingError(
                f"expected at least {2 * fabric.world_size} training images, but {self.data.name} "
                f"has {len(self.data.train)}: give more images or fewer processes"
            )
        for index in batches[progress.step :]:
            started = time.perf_counter()
            batch = fabric.to_device(self.data.train.batch(index))
            must_stop = self._train_step(self.augment(batch) if self.augment else batch)
            progress.step += 1
            progress.seconds += time.perf_counter() - started
            self.reporter.step(progress.epoch, len(index) * fabric.world_size, self._means)
            if must_stop:
                self.save()
                raise Interrupted(
                    f"stopped in epoch {progress.epoch} after step {progress.step} of "
                    f"{len(batches)}; go on with: medduet train --resume {self.folder.path}"
                )

    def _train_step(self, batch: Batch) -> bool:
        """Do one optimizer step; return whether a process was asked to stop."""
        fabric = self.fabric
        outputs: Outputs = self.module(batch.image)
        terms = self.objective(outputs, batch, self.network.normalize(batch.image))
        weights = torch.stack([term.weight.sum() for term in terms.values()])
        asked = torch.full_like(weights[:1], float(self.stop.is_set()))
        shared = fabric.all_reduce(torch.cat([weights, asked]), reduce_op="sum")
        assert isinstance(shared, Tensor)
        # Gradients are averaged over processes; times their number they become the global mean.
        loss = self.objective.combine(terms, shared[:-1]) * fabric.world_size
        if not torch.isfinite(loss):
            raise TrainingError(_not_finite("loss", self.progress, batch))
        fabric.backward(loss)
        if self.config.train.clip is not None:
            # float16 scales its loss by trial: there, a step that overflows is skipped, not wrong.
            strict = self.config.train.precision != "16-mixed"
            try:
                fabric.clip_gradients(
                    self.module,
                    self.optimizer,
                    max_norm=self.config.train.clip,
                    error_if_nonfinite=strict,
                )
            except RuntimeError as error:
                raise TrainingError(_not_finite("gradient", self.progress, batch)) from error
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.sums[0] += torch.stack([term.total().detach() for term in terms.values()])
        self.sums[1] += weights
        return bool(shared[-1] > 0) if fabric.world_size > 1 else self.stop.is_set()

    def _means(self) -> dict[str, float]:
        """Return the mean loss of each task over the epoch so far, on this process."""
        losses = (self.sums[0] / self.sums[1].clamp(min=1e-12)).tolist()
        return dict(zip(self.objective.tasks, losses, strict=True))

    def _total(self, means: Mapping[str, float]) -> float:
        """Return the loss of all tasks together."""
        factors = self.objective.factors
        known = {task: means[task] for task in factors if not math.isnan(means[task])}
        return sum(factors[task] * mean for task, mean in known.items())

    def _end_epoch(self) -> None:
        progress, fabric = self.progress, self.fabric
        rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        shared = fabric.all_reduce(self.sums, reduce_op="sum")
        assert isinstance(shared, Tensor)
        self.sums = shared
        if fabric.world_size > 1:
            # Each process has seen other images; all judge with the running means of the first.
            for buffer in self.network.buffers():
                buffer.copy_(fabric.broadcast(buffer))
        means = self._means()
        row: dict[str, Any] = {
            "epoch": progress.epoch,
            "learning_rate": rate,
            "seconds": round(progress.seconds, 3),
            "images_per_second": round(len(self.data.train) / max(progress.seconds, 1e-9), 2),
            "train": {"loss": self._total(means), **means},
            "val": self._judge("val"),
        }
        row["val"]["loss"] = self._total(row["val"])
        score = selection_score(row["val"], self.config.evaluate.select)
        row["val"]["score"] = score
        self._keep_if_best(progress.best, score, "best")
        if self.config.evaluate.protocol == "paper":
            row["test"] = self._judge("test")
            self._keep_if_best(progress.best_test, _paper_score(row["test"]), "best-test")
        progress.history.append(row)
        progress.epoch, progress.step, progress.seconds = progress.epoch + 1, 0, 0.0
        self.sums = torch.zeros_like(self.sums)
        self.save()
        self.reporter.epoch(row)

    def _judge(self, split: str) -> dict[str, float]:
        predictions = predict_split(
            self.fabric,
            self.network,
            self.data.split(split),
            self.objective.layout,
            multi_label=self.data.multi_label,
            batch_size=self.config.evaluate.batch_size,
            objective=self.objective,
            thorough=False,
        )
        return quick_metrics(predictions, self.data.multi_label)

    def _keep_if_best(self, best: Best, score: float, name: str) -> None:
        if score > best.score or best.epoch == 0:
            best.epoch, best.score = self.progress.epoch, score
            if self.fabric.is_global_zero:
                save_state(self.folder.checkpoint(name), self.network.state_dict())

    def save(self) -> None:
        """Write the checkpoint, then the epochs' records; each is old or new, never half."""
        state = random_state(self.fabric.device)
        generators = {name: self.fabric.all_gather(value) for name, value in state.items()}
        # In the middle of an epoch each process has its own sums.
        sums = self.fabric.all_gather(self.sums)
        if self.fabric.is_global_zero:
            checkpoint = {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "generators": generators,
                "sums": sums,
                "world_size": self.fabric.world_size,
                "progress": asdict(self.progress),
            }
            save_state(self.folder.checkpoint("last"), checkpoint)
            self.folder.write_epochs(self.progress.history)
        self.fabric.barrier()

    def _resume(self) -> None:
        path = self.folder.checkpoint("last")
        if not path.is_file():
            return
        state = load_state(path)
        if state["world_size"] != self.fabric.world_size:
            raise TrainingError(
                f"{self.folder.path} was trained by {state['world_size']} process(es), this is one "
                f"of {self.fabric.world_size}: use torchrun --nproc-per-node {state['world_size']}"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        saved = state["progress"]
        self.progress = Progress(
            **saved | {name: Best(**saved[name]) for name in ("best", "best_test")}
        )
        mine = {name: self._own(value) for name, value in state["generators"].items()}
        set_random_state(mine, self.fabric.device)
        self.sums = self._own(state["sums"]).to(self.fabric.device)

    def _own(self, gathered: Tensor) -> Tensor:
        return gathered[self.fabric.global_rank] if self.fabric.world_size > 1 else gathered


def _paper_score(metrics: dict[str, float]) -> float:
    """The paper ranks epochs by accuracy; sets without classes by Dice or reconstruction."""
    return selection_score(metrics, "accuracy" if "accuracy" in metrics else "auto")


def _not_finite(what: str, progress: Progress, batch: Batch) -> str:
    return (
        f"the {what} is not finite in epoch {progress.epoch}, step {progress.step + 1}, for the "
        f"training images {batch.indices.tolist()}: lower --lr, or set --train.clip 1"
    )


@contextmanager
def _generators(fabric: Fabric) -> Iterator[None]:
    """Give torch's global generators back as they were."""
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield
