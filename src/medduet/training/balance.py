"""From the losses of a step to gradients, on any number of processes."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from medduet.config import Task
from medduet.losses.balance import Balance, cosines
from medduet.losses.objective import PerImage
from medduet.training.experiment import Experiment
from medduet.training.fabric import all_sum, gradients_by_hand


class Balancer(nn.Module):
    """Does the backward pass of a step by the rule of its `Balance`; records weights and angles.

    Of each task's coefficients, `weights`, and each two tasks' cosines, `conflict`, it keeps sum
    and number over the epoch; they are the same on all processes.
    """

    weights: Tensor
    conflict: Tensor

    def __init__(self, experiment: Experiment, optimizer: Optimizer) -> None:
        super().__init__()
        self.fabric, self.objective = experiment.fabric, experiment.objective
        config, self.optimizer = experiment.config.objective, optimizer
        tasks, device = self.objective.tasks, self.fabric.device
        # Its parameters are no weights to decay: AdamW would by itself.
        kind: Callable[..., Optimizer] = type(optimizer)
        make_optimizer = partial(kind, weight_decay=0.0, fused=True)
        self.balance = Balance(config.balance, len(tasks), make_optimizer, device)
        self.pairs = list(combinations(tasks, 2))
        network = experiment.network
        shared = dict.fromkeys(network.encoder_parameters() if self.pairs else ())
        self.encoder = [parameter for parameter in shared if parameter.requires_grad]
        self.rest = [p for p in network.parameters() if p.requires_grad and p not in shared]
        self.conflict_steps = config.conflict_steps if self.encoder else 0
        self.factors = torch.tensor(list(self.objective.factors.values()), device=device)
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.register_buffer("weights", zeros(2, len(tasks)))
        self.register_buffer("conflict", zeros(2, len(self.pairs)))

    def backward(
        self,
        terms: Mapping[Task, PerImage],
        weights: Tensor,
        totals: Tensor,
        step: int,
        note: Callable[[str, Tensor], None],
    ) -> None:
        """Give every trained parameter its gradient.

        `terms` are of this process's images; the sums ``(T,)`` of their `weights` and losses, the
        `totals`, of all. The conflict is measured in the first steps, or where gradients are at
        hand: those `note` gets, and may raise.
        """
        losses, labelled = self.objective.losses(terms, weights), weights > 0
        active = labelled & (self.factors > 0)
        if self.balance.aggregator is not None:
            shares = self._combine_gradients(losses, active, note)
        else:
            means = self.factors * totals / weights.clamp(min=torch.finfo(weights.dtype).tiny)
            shares = self.balance.coefficients(means, active, self.optimizer.param_groups[0]["lr"])
            if not self.balance.is_sum:
                self._broadcast(shares)
            if step < self.conflict_steps:
                self._record_conflict(self._gradients(losses, self.encoder))
            # Processes average their gradients; times their number they become the global mean.
            self.fabric.backward((shares * losses).sum() * self.fabric.world_size)
        self.weights[0] += torch.where(labelled, shares * self.factors, 0.0)
        self.weights[1] += labelled

    def _gradients(self, losses: Tensor, parameters: list[nn.Parameter]) -> Tensor:
        """Return the gradient of each task ``(T, P)``, over all processes."""
        rows = []
        for loss in losses:
            with gradients_by_hand():
                gradients = torch.autograd.grad(
                    loss, parameters, retain_graph=True, materialize_grads=True
                )
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        return all_sum(self.fabric, torch.stack(rows))

    def _combine_gradients(
        self, losses: Tensor, active: Tensor, note: Callable[[str, Tensor], None]
    ) -> Tensor:
        """Set the gradients; return the weights of the tasks ``(T,)``."""
        parameters = self.encoder + self.rest
        matrix = self._gradients(losses, parameters)
        note("gradient", matrix)
        shared, rest = matrix.tensor_split([sum(p.numel() for p in self.encoder)], dim=1)
        self._record_conflict(shared)
        vector, shares = self.balance.aggregate(shared, active)
        flat = torch.cat([vector, rest.sum(dim=0)])
        self._broadcast(flat)
        self._broadcast(shares)
        pieces = torch.split(flat, [parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        return shares

    def _broadcast(self, value: Tensor) -> None:
        """Each process draws other random numbers and rounds its own way: the first one counts."""
        if self.fabric.world_size > 1:
            torch.distributed.broadcast(value, 0)

    def _record_conflict(self, gradients: Tensor) -> None:
        values = cosines(gradients)
        self.conflict[0] += values.nan_to_num(0.0)
        self.conflict[1] += values.isfinite()

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
        self.weights.zero_()
        self.conflict.zero_()


def _means_by_name(names: Iterable[str], sums: Tensor) -> dict[str, float | None]:
    """Return the mean under each name; ``None`` where nothing was counted."""
    means = [None if math.isnan(mean) else mean for mean in (sums[0] / sums[1]).tolist()]
    return dict(zip(names, means, strict=True))
