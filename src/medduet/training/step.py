"""One step of training: the gradient of a batch, whole or in parts, and the optimizer's step."""

from __future__ import annotations

import sys
from functools import partial

import torch
from torch import Tensor

from medduet.config import Task
from medduet.errors import TrainingError
from medduet.losses.tasks import PerImage
from medduet.training.experiment import Experiment
from medduet.training.memory import (
    free_memory,
    is_out_of_memory,
    lasts,
    parts_of,
    smaller_micro_batch,
)
from medduet.training.nonfinite import MOST_LEFT_OUT, NotFiniteError, save_batch
from medduet.training.state import TrainState
from medduet.types import Batch, Outputs


def train_step(experiment: Experiment, state: TrainState, batch: Batch) -> bool:
    """Do one optimizer step; return whether a process was asked to stop.

    Raises:
        NotFiniteError: a loss or gradient is not, and the step is not to be skipped.
        TrainingError: the memory does not do for two images at a time.
    """
    skips = experiment.config.train.on_not_finite == "skip"
    if skips:
        state.running.keep()
    try:
        totals, wishes = _gradients(experiment, state, batch)
        _limit_gradient(experiment, state, batch)
    except NotFiniteError as fault:
        if not skips:
            raise
        state.running.give_back()
        state.optimizer.zero_grad()
        leave_out(experiment, state, fault)
        return state.watch.after_step(torch.zeros(()))
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.sums[0] += totals[0]
    state.sums[1] += totals[1]
    return state.watch.after_step(wishes)


def leave_out(experiment: Experiment, state: TrainState, fault: NotFiniteError) -> None:
    """Take note of a step that is left out, and keep its batch for inspection.

    Raises:
        TrainingError: too many were.
    """
    fabric = experiment.fabric
    path = save_batch(experiment.folder, fault, experiment.data.train, fabric.global_rank)
    left_out = state.progress.left_out
    left_out.append([fault.epoch, fault.step])
    if len(left_out) > MOST_LEFT_OUT:
        raise TrainingError(
            f"{fault}; {len(left_out)} steps were not finite, which no step that is left out will "
            "mend: lower --lr, or set --train.clip 1"
        )
    experiment.reporter.message(f"{fault}: the step is left out; its images are in {path}")


def _gradients(
    experiment: Experiment, state: TrainState, batch: Batch
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Give every trained parameter its gradient, in as many parts as the memory asks for.

    Returns:
        The totals and weights of the terms of this process, and how many processes are asked to
        stop.
    """
    progress = state.progress
    while True:
        try:
            if progress.micro_batch is None:
                return _of_whole(experiment, state, batch)
            return _in_parts(experiment, state, batch, progress.micro_batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if not state.balancer.can_split_batch:
                raise TrainingError(
                    f"out of memory, and --balance {experiment.config.objective.balance} needs all "
                    "images of a step at a time: give a smaller --batch-size, or "
                    "--train.activation-checkpointing"
                ) from error
            lasting = lasts(error)
        # Only here, where the error and with it the feature maps are gone.
        state.optimizer.zero_grad()
        free_memory(experiment.fabric.device)
        images = min(len(batch.image), progress.micro_batch or sys.maxsize)
        fewer = smaller_micro_batch(experiment.folder, experiment.fabric, images, lasting)
        progress.micro_batch = fewer
        experiment.reporter.message(
            f"out of memory with {images} images at a time: gradients of {fewer} at a time are "
            "added up from now on, which is the same step but for batch normalisation"
        )


def _of_whole(
    experiment: Experiment, state: TrainState, batch: Batch
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    fabric, balancer, watch = experiment.fabric, state.balancer, state.watch
    finite = partial(watch.finite, progress=state.progress, batch=batch)
    with fabric.no_backward_sync(state.module, enabled=balancer.combines_gradients):
        terms = _terms(experiment, state, batch)
    weights = torch.stack([term.weight.sum() for term in terms.values()])
    totals = torch.stack([term.total().detach() for term in terms.values()])
    wish = torch.full_like(weights[:1], watch.wish())
    shared = fabric.all_reduce(torch.cat([weights, totals, wish]), reduce_op="sum")
    assert isinstance(shared, Tensor)
    all_weights, all_totals = shared[:-1].chunk(2)
    # Of all processes, so that all come to the same end.
    finite("loss", all_totals)
    balancer.backward(terms, all_weights, all_totals, state.progress.step, finite)
    return (totals, weights), shared[-1]


def _in_parts(
    experiment: Experiment, state: TrainState, batch: Batch, most: int
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Add up the gradients of parts of the batch, weighed by what is known of the whole batch.

    The angle between the tasks is measured on the first part.
    """
    fabric, balancer, watch = experiment.fabric, state.balancer, state.watch
    weights = experiment.objective.weights(batch)
    all_weights = fabric.all_reduce(weights, reduce_op="sum")
    assert isinstance(all_weights, Tensor)
    totals = torch.zeros_like(weights)
    parts = parts_of(batch, most)
    for number, part in enumerate(parts):
        with fabric.no_backward_sync(state.module, enabled=number + 1 < len(parts)):
            terms = _terms(experiment, state, part)
            own = torch.stack([term.total().detach() for term in terms.values()])
            step = sys.maxsize if number else state.progress.step
            balancer.backward(terms, all_weights, own, step, lambda what, value: None)
        totals += own
    wish = torch.full_like(weights[:1], watch.wish())
    shared = fabric.all_reduce(torch.cat([totals, wish]), reduce_op="sum")
    assert isinstance(shared, Tensor)
    watch.finite("loss", shared[:-1], progress=state.progress, batch=batch)
    return (totals, weights), shared[-1]


def _limit_gradient(experiment: Experiment, state: TrainState, batch: Batch) -> None:
    """Scale a gradient down that is too long, and look whether it is finite."""
    config = experiment.config.train
    # float16 scales its loss by trial: there, a step that overflows is skipped, not wrong.
    by_trial = config.precision == "16-mixed"
    if config.clip is None and (config.on_not_finite == "stop" or by_trial):
        return
    norm = experiment.fabric.clip_gradients(
        state.module,
        state.optimizer,
        max_norm=float("inf") if config.clip is None else config.clip,
        error_if_nonfinite=False,
    )
    if not by_trial:
        assert norm is not None
        state.watch.finite("gradient", norm, progress=state.progress, batch=batch)


def _terms(experiment: Experiment, state: TrainState, batch: Batch) -> dict[Task, PerImage]:
    outputs: Outputs = state.module(batch.image)
    normalized = experiment.network.normalize(batch.image)
    terms: dict[Task, PerImage] = experiment.objective(outputs, batch, normalized)
    return terms
