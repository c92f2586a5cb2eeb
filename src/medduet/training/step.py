"""One step of training: the gradient of a batch, whole or in micro-batches, and the update."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from medduet.config import Task
from medduet.errors import TrainingError
from medduet.losses.tasks import PerImage
from medduet.training.experiment import Experiment
from medduet.training.memory import split_batch
from medduet.training.monitor import NotFiniteError, save_batch
from medduet.training.state import TrainState
from medduet.types import Batch, Outputs
from medduet.utils.devices import free_memory, is_out_of_memory, is_permanent

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
    try:
        totals, weights, stop_requests = _backward(experiment, state, batch)
        _clip_gradient(experiment, state, batch)
    except NotFiniteError as fault:
        if not skip:
            raise
        for buffer, before in zip(state.network.buffers(), buffers, strict=True):
            buffer.copy_(before)
        state.optimizer.zero_grad()
        _note_skipped(experiment, state, fault)
        return state.monitor.must_stop(torch.zeros(()))
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.sums[0] += totals
    state.sums[1] += weights
    return state.monitor.must_stop(stop_requests)


def _losses(experiment: Experiment, state: TrainState, batch: Batch) -> dict[Task, PerImage]:
    outputs: Outputs = state.module(batch.image)
    normalized = experiment.network.normalize(batch.image)
    losses: dict[Task, PerImage] = experiment.objective(outputs, batch, normalized)
    return losses


def _backward(
    experiment: Experiment, state: TrainState, batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """Give every trained parameter its gradient, in as many micro-batches as the memory needs.

    Returns:
        The sums ``(T,)`` of the weighted losses and of the weights of each task on this process,
        and on how many processes training was asked to stop.
    """
    progress, balance = state.progress, experiment.config.objective.balance
    while True:
        try:
            return _backward_once(experiment, state, batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            images = min(len(batch.image), progress.micro_batch or sys.maxsize)
            can_go_on = state.balancer.can_split_batch and not is_permanent(error)
            # Several processes can't agree on it in the middle of a step.
            if images < 4 or not can_go_on or experiment.fabric.world_size > 1:
                smaller = f"--train.micro-batch-size {max(2, images // 2)}"
                raise TrainingError(
                    f"out of memory with {images} images at a time: give "
                    f"{smaller if balance == 'sum' and images > 3 else 'a smaller --batch-size'}, "
                    "--train.activation-checkpointing, or a smaller --size or --model.width"
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
    experiment: Experiment, state: TrainState, batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """Add up the gradients of micro-batches, divided by the weights of the whole batch.

    What is checked is summed over all processes, so that all come to the same end. The angle
    between the tasks is measured on the first micro-batch.
    """

    def check(quantity: str, value: Tensor) -> None:
        if not balancer.can_split_batch:  # it needs the losses of all processes now
            _note(state, quantity, value, batch)

    fabric, balancer = experiment.fabric, state.balancer
    weights = experiment.objective.weights(batch)
    all_weights = _sum_over_processes(experiment, weights)
    totals = torch.zeros_like(weights)
    micro_batches = split_batch(batch, state.progress.micro_batch)
    for number, micro_batch in enumerate(micro_batches):
        has_more = number + 1 < len(micro_batches)
        with fabric.no_backward_sync(state.module, balancer.combines_gradients or has_more):
            losses = _losses(experiment, state, micro_batch)
            micro_totals = torch.stack([loss.total().detach() for loss in losses.values()])
            all_totals = micro_totals
            if not balancer.can_split_batch:
                all_totals = _sum_over_processes(experiment, micro_totals)
                check("loss", all_totals)
            step = sys.maxsize if number else state.progress.step
            balancer.backward(losses, all_weights, all_totals, step, check)
        totals += micro_totals
    stop_request = torch.full_like(weights[:1], float(state.monitor.stop.is_set()))
    shared = _sum_over_processes(experiment, totals, stop_request)
    _note(state, "loss", shared[:-1], batch)
    return totals, weights, shared[-1]


def _sum_over_processes(experiment: Experiment, *values: Tensor) -> Tensor:
    total = experiment.fabric.all_reduce(torch.cat(values), reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def _note(state: TrainState, quantity: str, value: Tensor, batch: Batch) -> None:
    state.monitor.note(quantity, value, state.progress.epoch, state.progress.step + 1, batch)


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
    if not by_trial:
        assert norm is not None
        _note(state, "gradient", norm, batch)


def _note_skipped(experiment: Experiment, state: TrainState, fault: NotFiniteError) -> None:
    """Note a step that is skipped, and keep its batch; TrainingError if there were too many."""
    fabric, progress = experiment.fabric, state.progress
    path = save_batch(experiment.folder, fault, experiment.data.train, fabric.global_rank)
    progress.skipped_steps.append(fault.step)
    progress.skipped += 1
    if progress.skipped > MAX_SKIPPED:
        raise TrainingError(
            f"{fault}; {progress.skipped} steps were not finite, so skipping them does not help: "
            "lower --lr, or set --train.grad-clip 1"
        )
    experiment.reporter.message(f"{fault}: the step is skipped; its images are in {path}")
