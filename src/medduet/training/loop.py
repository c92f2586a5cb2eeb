"""The training loop."""

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medduet.config import TrainConfig
from medduet.data.augment import build_augmentation
from medduet.data.batches import balanced_shares, train_batches
from medduet.data.patches import patches_and_views
from medduet.errors import DataError, DownloadError, Interrupted, MissingFileError, TrainingError
from medduet.losses.objective import Objective
from medduet.models.base import DuetNetwork, trains_on_one
from medduet.training.experiment import Experiment
from medduet.training.fabric import all_sum, load_batches, peak_memory
from medduet.training.setup import encoder_rate
from medduet.training.state import Best, Progress, StepMonitor, TrainState, save_checkpoint
from medduet.training.step import train_step
from medduet.training.validation import quick_metrics, selection_score


def fit(experiment: Experiment) -> Progress:
    """Train from the last checkpoint, if there is one, until the last epoch or patience runs out.

    After each epoch val is evaluated (and test, in the paper's protocol), and all is saved.
    """
    fabric, config = experiment.fabric, experiment.config.train
    patience = config.patience or config.epochs
    with torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []):
        torch.manual_seed(config.seed + 1 + fabric.global_rank)
        state = new_state(experiment)
        state.restore(experiment.folder, fabric)
        while (done := state.progress.epoch - 1) < config.epochs:
            if done - state.progress.best.epoch >= patience or _out_of_time(experiment, state):
                break
            try:
                _train_epoch(experiment, state)
            except (DataError, DownloadError, MissingFileError):
                # The server of the images is gone. Other processes may be in the middle of a step,
                # and can't help saving.
                if fabric.world_size == 1:
                    state.save(experiment.folder, fabric)
                raise
            _end_epoch(experiment, state)
    return state.progress


def _out_of_time(experiment: Experiment, state: TrainState) -> bool:
    """Return whether another epoch would exceed the time budget, by the first process's clock."""
    config, history = experiment.config.train, state.progress.history
    if config.time_budget is None or not history:
        return False
    spent = sum(row["seconds"] for row in history)
    late = spent * (1 + 1 / len(history)) > config.budget_seconds
    return bool(experiment.fabric.broadcast(late))


def new_state(experiment: Experiment, fused: bool = True) -> TrainState:
    """Return where training starts; `fused` optimizers update all weights in one pass."""
    config, fabric, network = experiment.config.train, experiment.fabric, experiment.network
    smallest = 1 if trains_on_one(network, *network.sides_at_once(experiment.data.size)) else 2
    fabric.to_device(network)
    if config.sync_batch_norm and fabric.world_size > 1:
        for name, child in network.named_children():
            setattr(network, name, convert_sync_batchnorm(child))
    average = None
    if config.ema:
        average_fn = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
        average = AveragedModel(network, multi_avg_fn=average_fn, use_buffers=True)
    if config.compile:
        network.compile()
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    objective = experiment.objective.to(fabric.device)
    groups = _parameter_groups(network, encoder_rate(experiment.config))
    if objective.log_variance is not None:
        groups.append({"params": [objective.log_variance], "weight_decay": 0.0})
    optimizer = optimizer_class(
        groups,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=fused,
    )
    module, wrapped_optimizer = fabric.setup(network, optimizer)
    return TrainState(
        network=network,
        module=module,
        optimizer=wrapped_optimizer,
        scheduler=_schedule(optimizer, config),
        average=average,
        sums=torch.zeros(2, len(objective.tasks), dtype=torch.float64, device=fabric.device),
        objective=objective,
        monitor=StepMonitor(fabric, experiment.stop, config.remedy),
        smallest_batch=smallest,
        progress=Progress(micro_batch=config.micro_batch_size),
    )


def _schedule(optimizer: torch.optim.Optimizer, config: TrainConfig) -> LRScheduler:
    """Return the rate of each epoch: a linear rise, then a cosine."""
    warmup, length = config.warmup_epochs, config.cosine_epochs or config.epochs
    cosine = CosineAnnealingLR(optimizer, T_max=max(1, length - warmup))
    if not warmup:
        return cosine
    rise = LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rise, cosine], milestones=[warmup])


def _parameter_groups(network: DuetNetwork, rate: float | None) -> list[dict[str, Any]]:
    """Return the trained parameters, those of the encoder apart if it has a `rate` of its own."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if rate is None:
        return [{"params": trained}]
    shared = set(network.encoder_parameters())
    encoder = [parameter for parameter in trained if parameter in shared]
    return [
        {"params": [parameter for parameter in trained if parameter not in shared]},
        {"params": encoder, "lr": rate},
    ]


def _train_epoch(experiment: Experiment, state: TrainState) -> None:
    fabric, config, train = experiment.fabric, experiment.config.train, experiment.data.train
    progress, reporter = state.progress, experiment.reporter
    batches = train_batches(
        len(train),
        config.batch_size,
        seed=config.seed,
        epoch=progress.epoch,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        smallest=state.smallest_batch,
        shares=balanced_shares(train.labels) if config.sampling == "balanced" else None,
        shards=train.shard_sizes,
    )
    if not batches:
        raise TrainingError(f"{experiment.data.name} has too few training images, {len(train)}")
    reporter.begin_epoch(progress.epoch, config.epochs, len(batches))
    sides = experiment.network.sides_at_once(experiment.data.size)
    modality = experiment.config.data.modality
    augment = build_augmentation(config.augment, experiment.data, modality, sides)
    state.module.train()
    started = time.perf_counter()
    for batch in load_batches(fabric, train, batches[progress.step :]):
        part = patches_and_views(batch, sides, "classify" in experiment.objective.tasks)
        must_stop = train_step(experiment, state, augment(part) if augment else part)
        progress.step += 1
        now = time.perf_counter()
        progress.seconds, started = progress.seconds + now - started, now
        images = len(batch.indices) * fabric.world_size
        reporter.step(images, lambda: _means(state.sums, experiment.objective))
        if must_stop:
            state.save(experiment.folder, fabric)
            raise Interrupted(
                f"stopped in epoch {progress.epoch} after step {progress.step} of {len(batches)}; "
                f"go on with: {experiment.folder.resume_command}"
            )
    state.monitor.check()


def _end_epoch(experiment: Experiment, state: TrainState) -> None:
    fabric, progress, objective = experiment.fabric, state.progress, experiment.objective
    rate = state.scheduler.get_last_lr()[0]
    with warnings.catch_warnings():
        # A run that was stopped after the last step of an epoch goes on without one before this.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        state.scheduler.step()
    # Each process has seen other images; all evaluate with the running means of the first.
    for buffer in state.evaluated.buffers():
        buffer.copy_(fabric.broadcast(buffer))
    experiment = replace(experiment, network=state.evaluated)
    means = _means(all_sum(fabric, state.sums), objective)
    row: dict[str, Any] = {
        "epoch": progress.epoch,
        "learning_rate": rate,
        "seconds": round(progress.seconds, 3),
        "images_per_second": round(len(experiment.data.train) / max(progress.seconds, 1e-9), 2),
        "train": _with_loss(means, objective),
        **({"weights": weights} if (weights := objective.learnt_weights()) else {}),
        "peak_memory_gb": peak_memory(fabric.device),
        "val": _evaluate(experiment, "val", progress.epoch),
    }
    select = experiment.config.evaluate.select
    score = progress.epoch if select == "last" else selection_score(row["val"], select)
    row["val"]["score"] = score
    _keep_best(experiment, "best", progress.best, progress.epoch, score)
    if experiment.config.evaluate.protocol == "paper":
        row["test"] = _evaluate(experiment, "test", progress.epoch)
        # The paper ranks epochs by accuracy; sets without classes are ranked as ever.
        score = selection_score(row["test"], "accuracy" if "accuracy" in row["test"] else "auto")
        _keep_best(experiment, "best-test", progress.best_test, progress.epoch, score)
    progress.history.append(row)
    progress.epoch, progress.step, progress.seconds = progress.epoch + 1, 0, 0.0
    state.sums = torch.zeros_like(state.sums)
    state.save(experiment.folder, fabric)
    experiment.reporter.end_epoch(row)


def _evaluate(experiment: Experiment, split: str, epoch: int) -> dict[str, float]:
    predictions = experiment.predict(split, thorough=False)
    if predictions.probability is not None and not np.isfinite(predictions.probability).all():
        raise TrainingError(
            f"the network's outputs for {split} are not finite after epoch {epoch}: "
            f"{experiment.config.train.remedy}"
        )
    return _with_loss(quick_metrics(predictions), experiment.objective)


def _keep_best(experiment: Experiment, name: str, best: Best, epoch: int, score: float) -> None:
    if best.update(epoch, score) and experiment.fabric.is_global_zero:
        save_checkpoint(experiment.folder.checkpoint(name), experiment.network.state_dict())


def _means(sums: Tensor, objective: Objective) -> dict[str, float]:
    """Return the mean loss of each task; NaN for a task without labelled images."""
    return dict(zip(objective.tasks, (sums[0] / sums[1]).tolist(), strict=True))


def _with_loss(means: Mapping[str, float], objective: Objective) -> dict[str, float]:
    """Return `means` after the loss over the tasks that have labelled images."""
    tasks = [task for task in objective.tasks if not math.isnan(means[task])]
    return {"loss": sum(objective.factors[task] * means[task] for task in tasks), **means}
