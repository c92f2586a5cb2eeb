"""From the losses of a step to gradients, on any number of processes."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medduet.losses.objective import PerImage
from medduet.training.experiment import Experiment
from medduet.training.fabric import all_sum, gradients_by_hand
from medduet.types import Task


class Balance(nn.Module):
    """The factors of the losses of several tasks in their sum.

    ``"sum"`` adds them as they are. ``"uncertainty"`` learns a factor for each (arXiv:1705.07115);
    a task without labels in a batch enters it with its last loss.
    """

    _last: Tensor

    def __init__(
        self,
        name: str,
        tasks: int,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = Adam,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.is_sum = name == "sum" or tasks == 1
        self._log_variance = nn.Parameter(torch.zeros(tasks, device=device))
        self._optimizer = optimizer([self._log_variance])
        self.register_buffer("_last", torch.full((tasks,), torch.nan, device=device))

    @torch.no_grad()
    def coefficients(self, losses: Tensor, labelled: Tensor, learning_rate: float) -> Tensor:
        """Return the factor of each loss ``(T,)``; learned ones take their step."""
        if self.is_sum:
            return torch.ones_like(losses)
        mean = torch.where(labelled, losses, 0).sum() / labelled.sum().clamp(min=1)
        unseen = torch.where(mean > 0, mean, 1.0)
        last = torch.where(self._last.isnan(), unseen, self._last)
        self._last = torch.where(labelled, losses, last)
        # The loss is the sum of exp(-s) L / 2 + s / 2, for s the logarithm of the variance.
        shares = 0.5 * torch.exp(-self._log_variance)
        self._log_variance.grad = 0.5 - shares * self._last
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        return shares

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the tensors."""
        return self._optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go back to what `get_extra_state` gave."""
        self._optimizer.load_state_dict(state)


class Balancer(nn.Module):
    """Does the backward pass of a step by its `Balance`; records weights and angles.

    Of each task's coefficients, `weights`, and the cosine between each two tasks' gradients on the
    encoder, `conflict`, it keeps sum and number over the epoch; they are the same on all processes.
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
        shared = dict.fromkeys(experiment.network.encoder_parameters() if self.pairs else ())
        self.encoder = [parameter for parameter in shared if parameter.requires_grad]
        self.conflict_steps = config.conflict_steps if self.encoder else 0
        self.factors = torch.tensor(list(self.objective.factors.values()), device=device)
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self.register_buffer("weights", zeros(2, len(tasks)))
        self.register_buffer("conflict", zeros(2, len(self.pairs)))

    def backward(
        self, terms: Mapping[Task, PerImage], weights: Tensor, totals: Tensor, step: int
    ) -> None:
        """Give every trained parameter its gradient; measure the conflict in the first steps.

        `terms` are of this process's images; the sums ``(T,)`` of their `weights` and losses, the
        `totals`, of all.
        """
        losses, labelled = self.objective.losses(terms, weights), weights > 0
        means = self.factors * totals / weights.clamp(min=torch.finfo(weights.dtype).tiny)
        active, rate = labelled & (self.factors > 0), self.optimizer.param_groups[0]["lr"]
        shares = self.balance.coefficients(means, active, rate)
        if step < self.conflict_steps:
            self._record_conflict(losses)
        # Processes average their gradients; times their number they become the global mean.
        self.fabric.backward((shares * losses).sum() * self.fabric.world_size)
        self.weights[0] += torch.where(labelled, shares * self.factors, 0.0)
        self.weights[1] += labelled

    def _record_conflict(self, losses: Tensor) -> None:
        """Add the cosine between each two tasks' gradients, over all processes, if none is zero."""
        rows = []
        for loss in losses:
            with gradients_by_hand():
                gradients = torch.autograd.grad(
                    loss, self.encoder, retain_graph=True, materialize_grads=True
                )
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        matrix = all_sum(self.fabric, torch.stack(rows))
        unit = matrix / matrix.norm(dim=1, keepdim=True)
        first, second = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
        cosines = (unit @ unit.T)[first, second]
        self.conflict[0] += cosines.nan_to_num(0.0)
        self.conflict[1] += cosines.isfinite()

    def summary(self) -> dict[str, Any]:
        """Return the mean weight of each task and the mean cosine of each two, for the epoch."""
        if not self.pairs:
            return {}
        return {
            "weights": _means_by_name(self.objective.tasks, self.weights),
            "conflict": _means_by_name(map("-".join, self.pairs), self.conflict),
        }

    def end_epoch(self) -> None:
        """Forget the sums of the epoch."""
        self.weights.zero_()
        self.conflict.zero_()


def _means_by_name(names: Iterable[str], sums: Tensor) -> dict[str, float | None]:
    """Return the mean under each name; ``None`` where nothing was counted."""
    means = [None if math.isnan(mean) else mean for mean in (sums[0] / sums[1]).tolist()]
    return dict(zip(names, means, strict=True))
