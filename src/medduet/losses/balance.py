"""How several losses become one step: weights of the losses, or TorchJD's rules for gradients."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torchjd import aggregation
from torchjd.aggregation import WeightedAggregator
from torchjd.linalg import DualConeProjector, PSDMatrix

_TEMPERATURE = 2.0  # of dynamic weight averaging, as in its paper
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
    "mgda": aggregation.MGDA,
}
"""The rules that combine the gradients of the tasks."""


class Balance(nn.Module):
    """The rule by which the losses of several tasks, or their gradients, become one.

    ``"uncertainty"`` learns a coefficient for each loss (arXiv:1705.07115), ``"dwa"`` compares the
    losses of the last two epochs (arXiv:1803.10704). A task without labels in a batch enters it
    with its last loss. `AGGREGATORS` combine the gradients of the tasks that have labels.
    """

    _last: Tensor
    _sum: Tensor

    def __init__(
        self,
        name: str,
        tasks: int,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = Adam,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.name = name if tasks > 1 else "sum"
        self.aggregator = AGGREGATORS[self.name]() if self.name in AGGREGATORS else None
        self._log_variance = nn.Parameter(torch.zeros(tasks, device=device))
        self._optimizer = optimizer([self._log_variance])
        self.register_buffer("_last", torch.full((tasks,), torch.nan, device=device))
        self.register_buffer("_sum", torch.zeros(tasks, device=device))
        self._batches = 0
        self._averages: list[Tensor] = []  # of the last two epochs

    @property
    def is_sum(self) -> bool:
        """Whether losses are added as they are."""
        return self.name == "sum"

    @torch.no_grad()
    def coefficients(self, losses: Tensor, labelled: Tensor, learning_rate: float) -> Tensor:
        """Return ``(T,)`` by what each loss is multiplied; what is learned takes its step."""
        if self.name not in ("uncertainty", "dwa"):
            return torch.ones_like(losses)
        mean = torch.where(labelled, losses, 0).sum() / labelled.sum().clamp(min=1)
        unseen = torch.where(mean > 0, mean, 1.0)
        last = torch.where(self._last.isnan(), unseen, self._last)
        self._last = torch.where(labelled, losses, last)
        if self.name == "dwa":
            self._sum, self._batches = self._sum + self._last, self._batches + 1
            if len(self._averages) < 2:
                return torch.ones_like(losses)
            rates = self._averages[1] / self._averages[0]
            return len(losses) * torch.softmax(rates / _TEMPERATURE, dim=0)
        # The loss is the sum of exp(-s) L / 2 + s / 2, for s the logarithm of the variance.
        shares = 0.5 * torch.exp(-self._log_variance)
        self._log_variance.grad = 0.5 - shares * self._last
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        return shares

    def end_epoch(self) -> None:
        """Let dynamic weight averaging compare the losses of the epoch with those before."""
        if self._batches:
            self._averages = [*self._averages, self._sum / self._batches][-2:]
            self._sum, self._batches = torch.zeros_like(self._sum), 0

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
        progress = {"batches": self._batches, "averages": self._averages}
        return progress | {"optimizer": self._optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go back to what `get_extra_state` gave."""
        self._batches = state["batches"]
        self._averages = [average.to(self._last.device) for average in state["averages"]]
        self._optimizer.load_state_dict(state["optimizer"])


def cosines(matrix: Tensor) -> Tensor:
    """Return the cosine between each two rows, ``(0, 1), (0, 2), ...``; NaN where one is zero."""
    gramian = matrix @ matrix.T
    norm = gramian.diagonal().sqrt()
    first, second = torch.triu_indices(len(matrix), len(matrix), 1, device=matrix.device)
    return gramian[first, second] / (norm[first] * norm[second])
