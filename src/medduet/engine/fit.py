"""The training loop."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from medduet.config import Task, TrainConfig
from medduet.data.augment import build_augmentation
from medduet.data.batches import balanced_shares, train_batches
from medduet.engine.balance import Balancer
from medduet.engine.checkpoint import save_state
from medduet.engine.evaluate import quick_metrics, selection_score
from medduet.engine.experiment import Experiment
from medduet.engine.fabric import peak_memory
from medduet.engine.state import Progress, TrainState
from medduet.errors import Interrupted, TrainingError
from medduet.models import DuetNetwork
from medduet.objectives import Objective, PerImage
from medduet.types import Batch, Outputs


def fit(experiment: Experiment) -> Progress:
    """Train until the last epoch, or until patience runs out.

    Goes on from the last checkpoint in the run's folder, if there is one. After each epoch val is
    judged (and test, in the paper's protocol), the weights of the best epoch so far are kept, and
    the checkpoint is written.

    Returns:
        Where it ended, with the best epochs.

    Raises:
        Interrupted: ``experiment.stop`` was set; the last step is saved.
        TrainingError: a loss or gradient is not finite, or there are too few images.
    """
    fabric, config = experiment.fabric, experiment.config.train
    with _private_generators(fabric):
        torch.manual_seed(config.seed + 1 + fabric.global_rank)
        state = _new_state(experiment)
        state.restore(experiment.folder, fabric)
        progress = state.progress
        while progress.epoch <= config.epochs and not _patience_is_out(progress, config):
            _train_epoch(experiment, state)
            _end_epoch(experiment, state)
    return progress


def _new_state(experiment: Experiment) -> TrainState:
    config, fabric = experiment.config.train, experiment.fabric
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    optimizer = optimizer_class(
        _parameter_groups(experiment.network, config),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=config.cosine_epochs or config.epochs
    )
    module, wrapped_optimizer = fabric.setup(experiment.network, optimizer)
    objective = experiment.objective.to(fabric.device)
    sums = torch.zeros(2, len(objective.tasks), dtype=torch.float64, device=fabric.device)
    balancer = Balancer(experiment, optimizer)
    return TrainState(experiment.network, module, wrapped_optimizer, scheduler, sums, balancer)


def _parameter_groups(network: DuetNetwork, config: TrainConfig) -> list[dict[str, Any]]:
    """Return what is trained; the encoder stands apart if it has a learning rate of its own."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if config.encoder_learning_rate is None:
        return [{"params": trained}]
    shared = {id(parameter) for parameter in network.encoder_parameters()}
    encoder = [parameter for parameter in trained if id(parameter) in shared]
    return [
        {"params": [parameter for parameter in trained if id(parameter) not in shared]},
        {"params": encoder, "lr": config.encoder_learning_rate},
    ]


def _patience_is_out(progress: Progress, config: TrainConfig) -> bool:
    since_best = progress.epoch - 1 - progress.best.epoch
    return config.patience is not None and since_best >= config.patience


def _train_epoch(experiment: Experiment, state: TrainState) -> None:
    fabric, config, train = experiment.fabric, experiment.config.train, experiment.data.train
    progress = state.progress
    batches = train_batches(
        len(train),
        config.batch_size,
        seed=config.seed,
        epoch=progress.epoch,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        shares=balanced_shares(train.labels) if config.sampling == "balanced" else None,
    )
    if not batches:
        raise TrainingError(
            f"expected at least {2 * fabric.world_size} training images, but "
            f"{experiment.data.name} has {len(train)}: give more images or fewer processes"
        )
    experiment.reporter.begin_epoch(progress.epoch, config.epochs, len(batches))
    augment = build_augmentation(config.augment, experiment.data, experiment.config.data.modality)
    state.module.train()
    for indices in batches[progress.step :]:
        started = time.perf_counter()
        batch = fabric.to_device(train.batch(indices))
        must_stop = _train_step(experiment, state, augment(batch) if augment else batch)
        progress.step += 1
        progress.seconds += time.perf_counter() - started
        images = len(indices) * fabric.world_size
        experiment.reporter.step(images, lambda: _means(state.sums, experiment.objective))
        if must_stop:
            state.save(experiment.folder, fabric)
            raise Interrupted(
                f"stopped in epoch {progress.epoch} after step {progress.step} of {len(batches)}; "
                f"go on with: medduet train --resume {experiment.folder.path}"
            )


def _train_step(experiment: Experiment, state: TrainState, batch: Batch) -> bool:
    """Do one optimizer step; return whether a process was asked to stop."""
    fabric, config, balancer = experiment.fabric, experiment.config, state.balancer
    with fabric.no_backward_sync(state.module, enabled=balancer.needs_gradients):
        terms = _terms(experiment, state, batch)
    weights = torch.stack([term.weight.sum() for term in terms.values()])
    totals = torch.stack([term.total().detach() for term in terms.values()])
    asked = torch.full_like(weights[:1], float(experiment.stop.is_set()))
    shared = fabric.all_reduce(torch.cat([weights, totals, asked]), reduce_op="sum")
    assert isinstance(shared, Tensor)
    all_weights, all_totals = shared[:-1].chunk(2)
    try:
        balancer.backward(terms, all_weights, all_totals, state.progress.step)
        if config.train.clip is not None:
            _clip(fabric, state, config.train)
    except FloatingPointError as error:
        raise TrainingError(_not_finite(str(error), state.progress, batch)) from error
    state.optimizer.step()
    state.optimizer.zero_grad()
    balancer.after_step(lambda: _terms(experiment, state, batch), all_weights)
    state.sums[0] += totals
    state.sums[1] += weights
    return bool(shared[-1] > 0) if fabric.world_size > 1 else experiment.stop.is_set()


def _terms(experiment: Experiment, state: TrainState, batch: Batch) -> dict[Task, PerImage]:
    outputs: Outputs = state.module(batch.image)
    normalized = experiment.network.normalize(batch.image)
    terms: dict[Task, PerImage] = experiment.objective(outputs, batch, normalized)
    return terms


def _clip(fabric: Fabric, state: TrainState, config: TrainConfig) -> None:
    # float16 scales its loss by trial: there, a step that overflows is skipped, not wrong.
    strict = config.precision != "16-mixed"
    try:
        fabric.clip_gradients(
            state.module, state.optimizer, max_norm=config.clip, error_if_nonfinite=strict
        )
    except RuntimeError as error:
        raise FloatingPointError("gradient") from error


def _not_finite(what: str, progress: Progress, batch: Batch) -> str:
    return (
        f"the {what} is not finite in epoch {progress.epoch}, step {progress.step + 1}, for the "
        f"training images {batch.indices.tolist()}: lower --lr, or set --train.clip 1"
    )


def _end_epoch(experiment: Experiment, state: TrainState) -> None:
    fabric, progress, objective = experiment.fabric, state.progress, experiment.objective
    rate = state.scheduler.get_last_lr()[0]
    with warnings.catch_warnings():
        # A run that was stopped after the last step of an epoch goes on without one before this.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        state.scheduler.step()
    sums = fabric.all_reduce(state.sums, reduce_op="sum")
    assert isinstance(sums, Tensor)
    if fabric.world_size > 1:
        # Each process has seen other images; all judge with the running means of the first.
        for buffer in experiment.network.buffers():
            buffer.copy_(fabric.broadcast(buffer))
    means = _means(sums, objective)
    row: dict[str, Any] = {
        "epoch": progress.epoch,
        "learning_rate": rate,
        "seconds": round(progress.seconds, 3),
        "images_per_second": round(len(experiment.data.train) / max(progress.seconds, 1e-9), 2),
        "train": {"loss": _total(means, objective), **means},
        **state.balancer.summary(),
        "peak_memory_gb": peak_memory(fabric.device),
        "val": _judge(experiment, "val"),
    }
    score = selection_score(row["val"], experiment.config.evaluate.select)
    row["val"]["score"] = score
    if progress.best.beaten_by(progress.epoch, score):
        _keep_weights(experiment, "best")
    if experiment.config.evaluate.protocol == "paper":
        row["test"] = _judge(experiment, "test")
        if progress.best_test.beaten_by(progress.epoch, _paper_score(row["test"])):
            _keep_weights(experiment, "best-test")
    progress.history.append(row)
    progress.epoch, progress.step, progress.seconds = progress.epoch + 1, 0, 0.0
    state.sums = torch.zeros_like(state.sums)
    state.balancer.end_epoch()
    state.save(experiment.folder, fabric)
    experiment.reporter.end_epoch(row)


def _judge(experiment: Experiment, split: str) -> dict[str, float]:
    metrics = quick_metrics(experiment.predict(split, thorough=False), experiment.data.multi_label)
    return {"loss": _total(metrics, experiment.objective), **metrics}


def _paper_score(metrics: Mapping[str, float]) -> float:
    """The paper ranks epochs by accuracy; sets without classes are ranked as ever."""
    return selection_score(metrics, "accuracy" if "accuracy" in metrics else "auto")


def _keep_weights(experiment: Experiment, name: str) -> None:
    if experiment.fabric.is_global_zero:
        save_state(experiment.folder.checkpoint(name), experiment.network.state_dict())


def _means(sums: Tensor, objective: Objective) -> dict[str, float]:
    """Return the mean loss of each task; NaN for a task of which nothing is known."""
    return dict(zip(objective.tasks, (sums[0] / sums[1]).tolist(), strict=True))


def _total(means: Mapping[str, float], objective: Objective) -> float:
    """Return the loss of all tasks of which something is known."""
    known = [task for task in objective.tasks if not math.isnan(means[task])]
    return sum(objective.factors[task] * means[task] for task in known)


@contextmanager
def _private_generators(fabric: Fabric) -> Iterator[None]:
    """Give torch's global generators back as they were."""
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield
