"""One step of training: the gradient of a batch, whole or in micro-batches, and the update."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from operator import itemgetter

import torch
from torch import Tensor

from medduet.errors import TrainingError
from medduet.training.experiment import Experiment
from medduet.training.fabric import all_sum
from medduet.training.monitor import NotFiniteError, save_batch
from medduet.training.state import TrainState
from medduet.types import Batch
from medduet.utils.devices import free_memory, is_out_of_memory

MAX_SKIPPED = 20
"""Steps that a run may skip because they were not finite."""


def train_step(experiment: Experiment, state: TrainState, batch: Batch) -> bool:
    """Do one optimizer step; return whether to stop after it.

    Raises:
        NotFiniteError: a loss or gradient is not, and the step is not to be skipped.
        TrainingError: the memory does not do for two images at a time.
    """
    skip = experiment.config.train.on_not_finite == "skip"
    buffers = [buffer.clone() for buffer in state.network.buffers()] if skip else []
    stop_requests = torch.zeros(())
    try:
        sums, stop_requests = _backward(experiment, state, batch)
        _clip_gradient(experiment, state, batch)
    except NotFiniteError as fault:
        if not skip:
            raise
        for buffer, before in zip(state.network.buffers(), buffers, strict=True):
            buffer.copy_(before)
        _note_skipped(experiment, state, fault)
    else:
        state.optimizer.step()
        state.sums += sums
    state.optimizer.zero_grad()
    return state.monitor.must_stop(stop_requests)


def _backward(experiment: Experiment, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
    """Give every trained parameter its gradient, in as many micro-batches as the memory needs.

    Returns:
        The sums ``(2, T)`` of the weighted losses and of the weights of each task on this process,
        and on how many processes training was asked to stop.
    """
    while True:
        try:
            return _backward_once(experiment, state, batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            images = min(len(batch.image), state.progress.micro_batch or sys.maxsize)
            can_split = state.balancer.can_split_batch
            # Several processes can't agree on it in the middle of a step.
            if images < 4 or not can_split or experiment.fabric.world_size > 1:
                smaller = f"--train.micro-batch-size {max(2, images // 2)}"
                raise TrainingError(
                    f"out of memory with {images} images at a time: give "
                    f"{smaller if can_split and images > 3 else 'a smaller --batch-size'}, "
                    "--train.activation-checkpointing, or a smaller --size or --model.width"
                ) from error
        # Only here, where the error and with it the feature maps are gone.
        state.optimizer.zero_grad()
        free_memory(experiment.fabric.device)
        state.progress.micro_batch = images // 2
        experiment.reporter.message(
            f"out of memory with {images} images at a time: gradients of {images // 2} at a time "
            "are added up from now on, which is the same step but for batch normalisation"
        )


def _backward_once(
    experiment: Experiment, state: TrainState, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Add up the gradients of micro-batches, divided by the weights of the whole batch.

    What is noted is summed over all processes, so that all come to the same end. The angle between
    the tasks is measured on the first micro-batch.
    """
    fabric, objective, balancer = experiment.fabric, experiment.objective, state.balancer
    note = _note_of(state, batch)
    weights = objective.weights(batch)
    all_weights = all_sum(fabric, weights)
    totals = torch.zeros_like(weights)
    micro_batches = split_batch(batch, state.progress.micro_batch)
    for number, micro in enumerate(micro_batches):
        is_last = number + 1 == len(micro_batches)
        with fabric.no_backward_sync(state.module, balancer.combines_gradients or not is_last):
            normalized = experiment.network.normalize(micro.image)
            terms = objective(state.module(micro.image), micro, normalized)
            all_totals = micro_totals = torch.stack([x.total().detach() for x in terms.values()])
            if not balancer.can_split_batch:  # it needs the losses of all processes now
                all_totals = all_sum(fabric, micro_totals)
                note("loss", all_totals)
            step = sys.maxsize if number else state.progress.step
            balancer.backward(terms, all_weights, all_totals, step, note)
        totals += micro_totals
    stop_request = torch.full_like(weights[:1], float(state.monitor.stop.is_set()))
    shared = all_sum(fabric, torch.cat([totals, stop_request]))
    note("loss", shared[:-1])
    return torch.stack([totals, weights]), shared[-1]


def split_batch(batch: Batch, most: int | None) -> list[Batch]:
    """Split a batch into micro-batches of `most` images, of about the same size, never of one.

    Example:
        >>> batch = Batch(torch.zeros(9, 1, 4, 4), *[torch.zeros(9)] * 4)
        >>> [len(micro.image) for micro in split_batch(batch, 4)], len(split_batch(batch, None))
        ([3, 3, 3], 1)
    """
    images = len(batch.image)
    if most is None or images <= most:
        return [batch]
    # A feature map of one pixel from one image has no variance for batch normalisation.
    count = min(-(-images // most), images // 2)
    edges = [images * number // count for number in range(count + 1)]
    return [batch.apply(itemgetter(slice(start, end))) for start, end in pairwise(edges)]


def _clip_gradient(experiment: Experiment, state: TrainState, batch: Batch) -> None:
    """Scale a gradient down that is too long, and note whether it is finite."""
    config = experiment.config.train
    # float16 scales its loss by trial: there, a step that overflows is skipped, not wrong.
    by_trial = config.precision == "16-mixed"
    if config.grad_clip is None and (config.on_not_finite == "stop" or by_trial):
        return
    norm = experiment.fabric.clip_gradients(
        state.module,
        state.optimizer,
        max_norm=float("inf") if config.grad_clip is None else config.grad_clip,
        error_if_nonfinite=False,
    )
    if not by_trial and norm is not None:
        _note_of(state, batch)("gradient", norm)


def _note_of(state: TrainState, batch: Batch) -> Callable[[str, Tensor], None]:
    epoch, step = state.progress.epoch, state.progress.step + 1
    return partial(state.monitor.note, epoch=epoch, step=step, batch=batch)


def _note_skipped(experiment: Experiment, state: TrainState, fault: NotFiniteError) -> None:
    """Note a step that is skipped, and keep its batch; TrainingError if there were too many."""
    progress, path = state.progress, save_batch(experiment, fault)
    progress.skipped_steps.append(fault.step)
    progress.skipped += 1
    if progress.skipped > MAX_SKIPPED:
        raise TrainingError(
            f"{fault}; {progress.skipped} steps were not finite, so skipping them does not help: "
            "lower --lr, or set --train.grad-clip 1"
        )
    experiment.reporter.message(f"{fault}: the step is skipped; its images are in {path}")
