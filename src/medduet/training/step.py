"""One step of training: the gradient of a batch, whole or in micro-batches, and the update."""

import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import prod
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medduet.errors import TrainingError
from medduet.training.experiment import Experiment
from medduet.training.fabric import all_sum
from medduet.training.state import TrainState
from medduet.types import Batch
from medduet.utils.devices import free_memory, is_out_of_memory

_PATCHES = 8


def train_step(experiment: Experiment, state: TrainState, batch: Batch) -> bool:
    """Do one optimizer step; return whether to stop after it."""
    config, progress = experiment.config.train, state.progress
    number, indices = progress.step + 1, batch.indices
    note = partial(state.monitor.note, epoch=progress.epoch, step=number, indices=indices)
    sums, stop_requests = _backward(experiment, state, batch, note)
    variance = experiment.objective.log_variance
    slope, fabric = None if variance is None else variance.grad, experiment.fabric
    if variance is not None:
        variance.grad = None  # the norm is that of the network
    if config.grad_clip is not None:
        norm = fabric.clip_gradients(
            *(state.module, state.optimizer), max_norm=config.grad_clip, error_if_nonfinite=False
        )
        assert norm is not None
        note("gradient", norm)
    if variance is not None and slope is not None:  # Fabric averages the network's alone
        variance.grad = all_sum(fabric, slope) / fabric.world_size
    state.optimizer.step()
    if state.average is not None:
        state.average.update_parameters(experiment.network)
    state.sums += sums
    state.optimizer.zero_grad()
    return state.monitor.must_stop(stop_requests)


def _backward(
    experiment: Experiment, state: TrainState, batch: Batch, note: Callable[[str, Tensor], None]
) -> tuple[Tensor, Tensor]:
    """Give every trained parameter its gradient, in as many micro-batches as the memory needs.

    Returns the sums ``(2, T)`` of the weighted losses and of the weights of each task on this
    process, and on how many processes training was asked to stop.
    """
    progress = state.progress
    while True:
        try:
            return _backward_once(experiment, state, batch, note)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            images = min(len(batch.image), progress.micro_batch or sys.maxsize)
            # Several processes can't agree on it in the middle of a step.
            if images < 4 or experiment.fabric.world_size > 1:
                raise TrainingError(
                    f"out of memory with {images} images at a time: give a smaller --batch-size, "
                    "--train.micro-batch-size, --size or --model.width"
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

    What is noted is summed over all processes, so that all come to the same end.
    """
    fabric, objective = experiment.fabric, experiment.objective
    weights = objective.weights(batch)
    all_weights = all_sum(fabric, weights)
    totals = torch.zeros_like(weights)
    micro_batches = split_batch(batch, state.progress.micro_batch)
    part = 1 / len(micro_batches) / fabric.world_size
    for number, micro in enumerate(micro_batches, start=1):
        has_more = number < len(micro_batches)
        with fabric.no_backward_sync(state.module, has_more):
            normalized = experiment.network.normalize(micro.image)
            image, hidden = hide(micro.image, experiment.config.train.mask_ratio)
            outputs = state.module(image)
            terms = objective(outputs, micro, normalized, hidden)
            # Processes average their gradients; times their number they become the global mean.
            fabric.backward(objective.loss(terms, all_weights, part) * fabric.world_size)
        totals += torch.stack([term.total().detach() for term in terms.values()])
    stop_request = torch.full_like(weights[:1], float(state.monitor.stop.is_set()))
    shared = all_sum(fabric, torch.cat([totals, stop_request]))
    note("loss", shared[:-1])
    return torch.stack([totals, weights]), shared[-1]


def hide(image: Tensor, ratio: float) -> tuple[Tensor, Tensor | None]:
    """Return ``(N, C, H, W)`` images with a share of their patches blanked, and which pixels are.

    Patches have an eighth of each side, and all images have as many hidden (SimMIM,
    arXiv:2111.09886).
    """
    if not ratio:
        return image, None
    grid = [_PATCHES] * (image.ndim - 2)
    order = torch.rand(len(image), prod(grid)).argsort(dim=1).argsort(dim=1)
    patches = (order < max(1, round(ratio * prod(grid)))).view(-1, 1, *grid)
    hidden = interpolate(patches.float(), size=image.shape[2:]).to(image.device) > 0
    grey = 127 if image.dtype == torch.uint8 else 0.5
    return image.masked_fill(hidden, grey), hidden


def split_batch(batch: Batch, most: int | None) -> list[Batch]:
    """Split a batch into micro-batches of `most` images, of about the same size, never of one."""
    images = len(batch.image)
    if most is None or images <= most:
        return [batch]
    # A feature map of one pixel from one image has no variance for batch normalisation.
    count = min(-(-images // most), images // 2)
    edges = [images * number // count for number in range(count + 1)]
    return [batch.apply(itemgetter(slice(start, end))) for start, end in pairwise(edges)]
