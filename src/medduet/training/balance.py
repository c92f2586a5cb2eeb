"""From the losses of a step to gradients, on any number of processes.

Losses are weighed, or their gradients combined by TorchJD's rules.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torchjd import aggregation
from torchjd.aggregation import WeightedAggregator
from torchjd.linalg import DualConeProjector, PSDMatrix

from medduet.losses.objective import PerImage
from medduet.training.experiment import Experiment
from medduet.training.fabric import all_sum, gradients_by_hand
from medduet.types import Task

_REGULARISATION = 1e-4  # of the Gramian, TorchJD's own


class _Projector(DualConeProjector):
    """TorchJD's quadratic program, as SciPy's non-negative least squares in ``v - u``.

    Unlike TorchJD's own projector it doesn't take small gradients for zero.
    """

    def __call__(self, U: Tensor, G: PSDMatrix) -> Tensor:  # noqa: N803 (names of the base)
        gramian = G.double().cpu().numpy()
        gramian = gramian / max(np.trace(gramian), np.finfo(np.float64).tiny)
        root = np.linalg.cholesky(gramian + _REGULARISATION * np.eye(len(gramian))).T
        rows = U.double().cpu().numpy().reshape(-1, len(gramian))
        solved = np.stack([row + nnls(root, -root @ row)[0] for row in rows])
        return torch.as_tensor(solved.reshape(U.shape)).to(G)


AGGREGATORS: dict[str, Callable[[], WeightedAggregator]] = {
    "pcgrad": aggregation.PCGrad,
    "upgrad": lambda: aggregation.UPGrad(projector=_Projector()),
}
"""The rules that combine the gradients of the tasks."""


class Balance(nn.Module):
    """The rule by which the losses of several tasks, or their gradients, become one.

    ``"uncertainty"`` learns a coefficient for each loss (arXiv:1705.07115). A task without labels
    in a batch enters it with its last loss. `AGGREGATORS` combine the gradients of the tasks that
    have labels.
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
        self.name = name if tasks > 1 else "sum"
        self.is_sum = self.name == "sum"  # losses are added as they are
        self.aggregator = AGGREGATORS[self.name]() if self.name in AGGREGATORS else None
        self._log_variance = nn.Parameter(torch.zeros(tasks, device=device))
        self._optimizer = optimizer([self._log_variance])
        self.register_buffer("_last", torch.full((tasks,), torch.nan, device=device))

    @torch.no_grad()
    def coefficients(self, losses: Tensor, labelled: Tensor, learning_rate: float) -> Tensor:
        """Return the factor of each loss ``(T,)``; learned ones take their step."""
        if self.name != "uncertainty":
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

    @torch.no_grad()
    def aggregate(self, matrix: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient ``(P,)`` of the `labelled` rows of ``(T, P)``, and their weights."""
        assert self.aggregator is not None
        rows = matrix if labelled.all() else matrix[labelled]
        if len(rows) < 2:
            return rows.sum(dim=0), labelled.to(matrix)
        weights = self.aggregator.weighting(rows)
        all_weights = torch.zeros_like(matrix[:, 0]).masked_scatter(labelled, weights)
        return weights @ rows, all_weights

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the tensors."""
        return {"optimizer": self._optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go back to what `get_extra_state` gave."""
        self._optimizer.load_state_dict(state["optimizer"])


def cosines(matrix: Tensor) -> Tensor:
    """Return the cosine between each two rows, ``(0, 1), (0, 2), ...``; NaN where one is zero."""
    gramian = matrix @ matrix.T
    norm = gramian.diagonal().sqrt()
    first, second = torch.triu_indices(len(matrix), len(matrix), 1, device=matrix.device)
    return gramian[first, second] / (norm[first] * norm[second])


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
        """Take the first process's value: each draws other random numbers and rounds otherwise."""
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
        """Forget the sums of the epoch."""
        self.weights.zero_()
        self.conflict.zero_()


def _means_by_name(names: Iterable[str], sums: Tensor) -> dict[str, float | None]:
    """Return the mean under each name; ``None`` where nothing was counted."""
    means = [None if math.isnan(mean) else mean for mean in (sums[0] / sums[1]).tolist()]
    return dict(zip(names, means, strict=True))
