"""From the losses of a step to gradients, on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from medduet.config import Task
from medduet.losses.balance import Balance, cosines
from medduet.losses.tasks import PerImage
from medduet.training.experiment import Experiment
from medduet.training.fabric import gradients_by_hand

Terms = Mapping[Task, PerImage]
CheckFinite = Callable[[str, Tensor], None]
# float16 would lose small gradients; a power of two changes no cosine.
_CONFLICT_SCALE = 1024.0


class Balancer:
    """Does the backward pass of a step by the rule of its `Balance`; records weights and angles.

    Args:
        experiment: its objective names the rule.
        optimizer: of the network; a rule with parameters of its own trains them with one of the
            same class, at the first learning rate of this one.

    Attributes:
        weights: ``(2, T)`` float64, sum and number of the coefficients of each task's loss over
            the epoch so far; the same on all processes, as is the next one.
        conflict: ``(2, T (T - 1) / 2)`` float64, sum and number of the cosines of each two tasks.
    """

    def __init__(self, experiment: Experiment, optimizer: Optimizer) -> None:
        self.fabric, self.objective = experiment.fabric, experiment.objective
        self.config, self.optimizer = experiment.config.objective, optimizer
        tasks, device = len(self.objective.tasks), self.fabric.device
        # Its parameters are no weights to decay: AdamW would by itself.
        kind: Callable[..., Optimizer] = type(optimizer)
        make_optimizer = partial(kind, weight_decay=0.0, fused=True)
        self.balance = Balance(self.config.balance, tasks, make_optimizer, device)
        self.pairs = list(combinations(self.objective.tasks, 2))
        network = experiment.network
        encoder = dict.fromkeys(network.encoder_parameters() if self.pairs else ())
        self.encoder = [parameter for parameter in encoder if parameter.requires_grad]
        self.rest = [p for p in network.parameters() if p.requires_grad and p not in encoder]
        self.factors = torch.tensor(list(self.objective.factors.values()), device=device)
        self._reset()

    @property
    def combines_gradients(self) -> bool:
        """Whether gradients are combined here, so that processes must not average theirs."""
        return self.balance.aggregator is not None

    @property
    def can_split_batch(self) -> bool:
        """Whether the gradient of a batch is the sum of those of its pieces."""
        return self.balance.is_sum

    def backward(
        self, terms: Terms, weights: Tensor, totals: Tensor, step: int, check: CheckFinite
    ) -> None:
        """Give every trained parameter its gradient.

        Args:
            terms: the losses of this process's images.
            weights: ``(T,)`` sum of the image weights of each term, over all processes.
            totals: ``(T,)`` sum of the weighted losses of each term, over all processes.
            step: of the epoch, from 0; the conflict between the tasks is measured in the first
                ones, and in all where the rule itself needs their gradients.
            check: gets ``"loss"`` and its value, and ``"gradient"`` where it is at hand, and may
                raise.
        """
        losses, labelled = self.objective.losses(terms, weights), weights > 0
        active = labelled & (self.factors > 0)
        # Gradients are averaged over processes; times their number they become the global mean.
        if self.combines_gradients:
            check("loss", losses.sum() * self.fabric.world_size)
            shares = self._combine_gradients(losses, active, check)
        else:
            means = self.factors * totals / weights.clamp(min=torch.finfo(weights.dtype).tiny)
            shares = self.balance.coefficients(means, active, self.optimizer.param_groups[0]["lr"])
            if not self.balance.is_sum:
                self._broadcast(shares)
            loss = (shares * losses).sum() * self.fabric.world_size
            check("loss", loss)
            if step < self.config.conflict_steps and self.encoder and self.pairs:
                scaled = losses * _CONFLICT_SCALE
                self._record_conflict(self._task_gradients(scaled, with_rest=False)[0])
            self.fabric.backward(loss)
        self.weights[0] += torch.where(labelled, shares * self.factors, 0.0)
        self.weights[1] += labelled

    def summary(self) -> dict[str, Any]:
        """Return the mean weight of each task and the mean cosine of each two, for the epoch."""
        if not self.pairs:
            return {}
        return {
            "weights": _means_by_name(self.objective.tasks, self.weights),
            "conflict": _means_by_name(map("-".join, self.pairs), self.conflict),
        }

    def end_epoch(self) -> None:
        """End the epoch of the rule, and forget the sums."""
        self.balance.end_epoch()
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        sums = {"weights": self.weights, "conflict": self.conflict}
        return sums | {"balance": self.balance.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        self.weights = state["weights"].to(self.fabric.device)
        self.conflict = state["conflict"].to(self.fabric.device)
        self.balance.load_state_dict(state["balance"])

    def _reset(self) -> None:
        tasks, device = len(self.factors), self.fabric.device
        self.weights = torch.zeros(2, tasks, dtype=torch.float64, device=device)
        self.conflict = torch.zeros(2, len(self.pairs), dtype=torch.float64, device=device)

    def _sum(self, value: Tensor) -> Tensor:
        total = self.fabric.all_reduce(value, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _broadcast(self, value: Tensor) -> None:
        """Each process draws other random numbers and rounds its own way: the first one counts."""
        if self.fabric.world_size > 1:
            torch.distributed.broadcast(value, 0)

    def _task_gradients(self, losses: Tensor, *, with_rest: bool) -> tuple[Tensor, list[Tensor]]:
        """Return each task's gradient on the encoder ``(T, P)``, and their sum on the rest."""
        parameters = self.encoder + (self.rest if with_rest else [])
        sizes = [parameter.numel() for parameter in self.encoder]
        matrix = torch.zeros(len(losses), sum(sizes), device=losses.device)
        rest = [torch.zeros_like(parameter) for parameter in parameters[len(sizes) :]]
        for task, (row, loss) in enumerate(zip(matrix, losses, strict=True)):
            # Without the rest the graph is still needed for the step itself.
            keep = not with_rest or task + 1 < len(losses)
            with gradients_by_hand():
                gradients = torch.autograd.grad(
                    loss, parameters, retain_graph=keep, allow_unused=True
                )
            pieces = [*torch.split(row, sizes), *rest]
            for piece, gradient in zip(pieces, gradients, strict=True):
                if gradient is not None:
                    piece += gradient.reshape(piece.shape)
        return self._sum(matrix), rest

    def _combine_gradients(self, losses: Tensor, active: Tensor, check: CheckFinite) -> Tensor:
        """Set the gradients; return the weights of the tasks ``(T,)``."""
        matrix, rest = self._task_gradients(losses, with_rest=True)
        check("gradient", matrix)
        self._record_conflict(matrix)
        vector, shares = self.balance.aggregate(matrix, active)
        self._broadcast(vector)
        self._broadcast(shares)
        if self.fabric.world_size > 1 and rest:
            flat = self._sum(torch.cat([gradient.flatten() for gradient in rest]))
            _set_gradients(self.rest, flat)
        else:
            for parameter, gradient in zip(self.rest, rest, strict=True):
                parameter.grad = gradient
        _set_gradients(self.encoder, vector)
        return shares

    def _record_conflict(self, matrix: Tensor) -> None:
        values = cosines(matrix)
        self.conflict[0] += values.nan_to_num(0.0)
        self.conflict[1] += values.isfinite()


def _set_gradients(parameters: list[torch.nn.Parameter], flat: Tensor) -> None:
    pieces = torch.split(flat, [parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)


def _means_by_name(names: Iterable[str], sums: Tensor) -> dict[str, float | None]:
    """Return the mean under each name; ``None`` where nothing was counted."""
    means = (sums[0] / sums[1]).tolist()
    return {
        name: None if math.isnan(mean) else mean for name, mean in zip(names, means, strict=True)
    }
