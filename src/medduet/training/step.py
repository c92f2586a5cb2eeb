"""One step of training: the gradient of a batch, whole or in micro-batches, and the update."""

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
    """Do one optimizer step; return whether to stop after it."""
    progress, skip = state.progress, experiment.config.train.on_not_finite == "skip"
    note = partial(state.monitor.note, epoch=progress.epoch, step=progress.step + 1, batch=batch)
    buffers = [buffer.clone() for buffer in state.network.buffers()] if skip else []
    stop_requests = torch.zeros(())
    try:
        sums, stop_requests = _backward(experiment, state, batch, note)
        _clip_gradient(experiment, state, note)
        state.optimizer.step()
        state.sums += sums
    except NotFiniteError as fault:
        if not skip:
            raise
        for buffer, before in zip(state.network.buffers(), buffers, strict=True):
            buffer.copy_(before)
        path = save_batch(experiment, fault)
        progress.skipped_steps.append(fault.step)
        progress.skipped += 1
        if progress.skipped > MAX_SKIPPED:
            raise TrainingError(
                f"{fault}; {progress.skipped} steps were not finite, so skipping them does not "
                "help: lower --lr, or set --train.grad-clip 1"
            ) from fault
        experiment.reporter.message(f"{fault}: the step is skipped; its images are in {path}")
    state.optimizer.zero_grad()
    return state.monitor.must_stop(stop_requests)


def _backward(
    experiment: Experiment, state: TrainState, batch: Batch, note: Callable[[str, Tensor], None]
) -> tuple[Tensor, Tensor]:
    """Give every trained parameter its gradient, in as many micro-batches as the memory needs.

    Returns the sums ``(2, T)`` of the weighted losses and of the weights of each task on this
    process, and on how many processes training was asked to stop.
    """
    progress, can_split = state.progress, state.balancer.can_split_batch
    while True:
        try:
            return _backward_once(experiment, state, batch, note)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            images = min(len(batch.image), progress.micro_batch or sys.maxsize)
            # Several processes can't agree on it in the middle of a step.
            if images < 4 or not can_split or experiment.fabric.world_size > 1:
                raise TrainingError(
                    f"out of memory with {images} images at a time: give a smaller --batch-size, "
                    "--train.micro-batch-size, --size or --model.width, or "
                    "--train.activation-checkpointing"
                ) from error
        # Only here, where the error and with it the feature maps are gone.
        state.optimizer.zero_grad()
        free_memory(experiment.fabric.device)
        progress.micro_batch = images // 2
        experiment.reporter.message(
            f"out of memory with {images} images at a time: gradients of {images // 2} at a time "
            "are added up from now on, which is the same step but for batch normalisation"
        )


def _backward_once(
    experiment: Experiment, state: TrainState, batch: Batch, note: Callable[[str, Tensor], None]
) -> tuple[Tensor, Tensor]:
    """Add up the gradients of micro-batches, divided by the weights of the whole batch.

    What is noted is summed over all processes, so that all come to the same end. The angle between
    the tasks is measured on the first micro-batch.
    """
    fabric, objective, balancer = experiment.fabric, experiment.objective, state.balancer
    weights = objective.weights(batch)
    all_weights = all_sum(fabric, weights)
    totals = torch.zeros_like(weights)
    micro_batches = split_batch(batch, state.progress.micro_batch)
    for number, micro in enumerate(micro_batches, start=1):
        has_more = number < len(micro_batches)
        with fabric.no_backward_sync(state.module, balancer.combines_gradients or has_more):
            normalized = experiment.network.normalize(micro.image)
            terms = objective(state.module(micro.image), micro, normalized)
            all_totals = micro_totals = torch.stack([x.total().detach() for x in terms.values()])
            if not balancer.can_split_batch:  # it needs the losses of all processes now
                all_totals = all_sum(fabric, micro_totals)
                note("loss", all_totals)
            step = state.progress.step if number == 1 else sys.maxsize
            balancer.backward(terms, all_weights, all_totals, step, note)
        totals += micro_totals
    stop_request = torch.full_like(weights[:1], float(state.monitor.stop.is_set()))
    shared = all_sum(fabric, torch.cat([totals, stop_request]))
    note("loss", shared[:-1])
    return torch.stack([totals, weights]), shared[-1]


def split_batch(batch: Batch, most: int | None) -> list[Batch]:
    """Split a batch into micro-batches of `most` images, of about the same size, never of one."""
    images = len(batch.image)
    if most is None or images <= most:
        return [batch]
    # A feature map of one pixel from one image has no variance for batch normalisation.
    count = min(-(-images // most), images // 2)
    edges = [images * number // count for number in range(count + 1)]
    return [batch.apply(itemgetter(slice(start, end))) for start, end in pairwise(edges)]


def _clip_gradient(
    experiment: Experiment, state: TrainState, note: Callable[[str, Tensor], None]
) -> None:
    """Scale a gradient down that is too long, and note whether it is finite."""
    config = experiment.config.train
    # float16 scales its loss by trial: there, a step that overflows is skipped, not wrong.
    by_trial = config.precision == "16-mixed"
    if config.grad_clip is None and (config.on_not_finite == "stop" or by_trial):
        return
    norm = experiment.fabric.clip_gradients(
        *(state.module, state.optimizer),
        max_norm=config.grad_clip or float("inf"),
        error_if_nonfinite=False,
    )
    if norm is not None and not by_trial:
        note("gradient", norm)
