"""How several losses become one step: TorchJD's rules, under short names."""

from __future__ import annotations

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
from torchjd.scalarization import DWA, UW

_DWA_STATE = ("_loss_sum", "_n_batches", "_previous_averages")
# TorchJD's own regularisation of the Gramian.
_REGULARISATION = 1e-4


class _Projector(DualConeProjector):
    """TorchJD's quadratic program, solved by SciPy, which needs nothing more to be installed.

    ``min v' G v`` with ``v >= u`` is a least squares problem in ``v - u >= 0``. Unlike TorchJD's
    own projector it doesn't take small gradients for zero.
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
"""The rules that combine the gradients of the tasks; ``"uncertainty"`` and ``"dwa"`` weigh their
losses."""


class Balance:
    """The rule by which the losses of several tasks, or their gradients, become one.

    A rule for losses gives each loss a coefficient. A task without labels in a batch enters it with
    its last loss, so that the other coefficients stay what they would be; the task itself gives no
    gradient. A rule for gradients combines those of the tasks that have labels.

    Args:
        name: ``"sum"``, ``"uncertainty"``, ``"dwa"`` or one of `AGGREGATORS`. With one task every
            rule is the sum.
        tasks: number of tasks.
        optimizer: trains the parameters of ``"uncertainty"``, such as torch's ``Adam``.
        device: of the losses.

    Example:
        >>> balance = Balance("uncertainty", 2)
        >>> balance.coefficients(torch.tensor([1.0, 3.0]), torch.tensor([True, True]), 0.001)
        tensor([0.5000, 0.5000])
        >>> matrix = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
        >>> Balance("pcgrad", 2).aggregate(matrix, torch.tensor([True, True]))[0]
        tensor([0.5000, 1.5000])
    """

    def __init__(
        self,
        name: str,
        tasks: int,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = Adam,
        device: torch.device | str = "cpu",
    ) -> None:
        self.scalarizer: UW | DWA | None = None
        self.aggregator: WeightedAggregator | None = None
        self.optimizer: Optimizer | None = None
        self._last = torch.full((tasks,), torch.nan, device=device)
        if name == "sum" or tasks < 2:
            return
        if name in AGGREGATORS:
            self.aggregator = AGGREGATORS[name]()
        elif name == "dwa":
            self.scalarizer = DWA()
        else:
            self.scalarizer = UW(tasks).to(device)
            self.optimizer = optimizer(self.scalarizer.parameters())

    @property
    def is_sum(self) -> bool:
        """Whether losses are added as they are."""
        return self.aggregator is None and self.scalarizer is None

    def coefficients(self, losses: Tensor, labelled: Tensor, learning_rate: float) -> Tensor:
        """Return ``(T,)`` the derivative of the scalarizer's value by each loss.

        A scalarizer's own parameters take their step, too.

        Args:
            losses: ``(T,)`` float, over all processes.
            labelled: ``(T,)`` bool, of which tasks the batch has labels.
            learning_rate: of the scalarizer's own parameters.
        """
        if self.scalarizer is None:
            return torch.ones_like(losses)
        mean = torch.where(labelled, losses, 0).sum() / labelled.sum().clamp(min=1)
        unseen = torch.where(mean > 0, mean, 1.0)
        last = torch.where(self._last.isnan(), unseen, self._last)
        self._last = torch.where(labelled, losses, last)
        leaf = self._last.clone().requires_grad_()
        torch.autograd.backward(self.scalarizer(leaf))
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self.optimizer.zero_grad()
        assert leaf.grad is not None
        return leaf.grad

    def end_epoch(self) -> None:
        """Let dynamic weight averaging compare the losses of the epoch with those before."""
        if isinstance(self.scalarizer, DWA):
            self.scalarizer.step()

    @torch.no_grad()
    def aggregate(self, matrix: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient ``(P,)`` of the step and the weights ``(T,)`` of the tasks.

        Args:
            matrix: ``(T, P)`` float, the gradient of each task.
            labelled: ``(T,)`` bool; the other rows are left out.
        """
        assert self.aggregator is not None
        rows = matrix if labelled.all() else matrix[labelled]
        if len(rows) < 2:
            return rows.sum(dim=0), labelled.to(matrix)
        weights = self.aggregator.weighting(rows)
        all_weights = torch.zeros_like(matrix[:, 0]).masked_scatter(labelled, weights)
        return weights @ rows, all_weights

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as tensors and plain values."""
        state: dict[str, Any] = {"last": self._last}
        if isinstance(self.scalarizer, UW) and self.optimizer is not None:
            state["scalarizer"] = dict(self.scalarizer.state_dict())
            state["optimizer"] = self.optimizer.state_dict()
        if isinstance(self.scalarizer, DWA):  # TorchJD keeps these out of the module's own state
            state["dwa"] = {name: getattr(self.scalarizer, name) for name in _DWA_STATE}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        device = self._last.device
        self._last = state["last"].to(device)
        if isinstance(self.scalarizer, UW) and self.optimizer is not None:
            self.scalarizer.load_state_dict(state["scalarizer"])
            self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.scalarizer, DWA):
            total, batches, averages = (state["dwa"][name] for name in _DWA_STATE)
            self.scalarizer._loss_sum = None if total is None else total.to(device)
            self.scalarizer._n_batches = batches
            self.scalarizer._previous_averages = [average.to(device) for average in averages]


def cosines(matrix: Tensor) -> Tensor:
    """Return the cosine between each two rows, ``(0, 1), (0, 2), ... (1, 2), ...``.

    NaN where a row is zero.

    Example:
        >>> cosines(torch.tensor([[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]]))
        tensor([ 0.7071, -1.0000, -0.7071])
    """
    gramian = matrix @ matrix.T
    norm = gramian.diagonal().sqrt()
    first, second = torch.triu_indices(len(matrix), len(matrix), 1, device=matrix.device)
    return gramian[first, second] / (norm[first] * norm[second])
