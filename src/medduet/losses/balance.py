"""How several losses become one step: TorchJD's rules, under short names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torchjd import aggregation, scalarization
from torchjd.aggregation import Aggregator, WeightedAggregator
from torchjd.linalg import DualConeProjector, PSDMatrix
from torchjd.scalarization import DWA, FAMO, Scalarizer

from medduet.errors import ConfigError

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


BALANCES: dict[str, Callable[[int], Scalarizer | Aggregator]] = {
    # Of the losses: each takes the number of tasks.
    "uncertainty": scalarization.UW,
    "dwa": lambda tasks: DWA(),
    "famo": FAMO,
    "geometric_mean": lambda tasks: scalarization.GeometricMean(),
    "imtl_l": scalarization.IMTLL,
    "random": lambda tasks: scalarization.Random(),
    "stch": lambda tasks: scalarization.STCH(mu=0.1),
    # Of the gradients.
    "pcgrad": lambda tasks: aggregation.PCGrad(),
    "cagrad": lambda tasks: aggregation.CAGrad(c=0.5),
    "upgrad": lambda tasks: aggregation.UPGrad(projector=_Projector()),
    "dualproj": lambda tasks: aggregation.DualProj(projector=_Projector()),
    "mgda": lambda tasks: aggregation.MGDA(),
    "imtl_g": lambda tasks: aggregation.IMTLG(),
    "aligned_mtl": lambda tasks: aggregation.AlignedMTL(),
    # With alpha 1 it solves the bargaining problem of Nash-MTL.
    "fairgrad": lambda tasks: aggregation.FairGrad(alpha=1.0),
    "graddrop": lambda tasks: aggregation.GradDrop(),
    "config": lambda tasks: aggregation.ConFIG(),
}


class Balance:
    """The rule by which the losses of several tasks, or their gradients, become one.

    A scalarizer gives each loss a coefficient. A task of which nothing is known in a batch enters
    it with its last known loss, so that the other coefficients stay what they would be; the task
    itself gives no gradient. An aggregator combines the gradients of the tasks that are known.

    Args:
        name: ``"sum"`` or one of `BALANCES`. With one task every rule is the sum.
        tasks: number of tasks.
        optimizer: trains the parameters of a scalarizer that has some, such as torch's ``Adam``.
        device: of the losses.

    Raises:
        ConfigError: the rule needs a library that is not installed.

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
        self.scalarizer: Scalarizer | None = None
        self.aggregator: Aggregator | None = None
        self.optimizer: Optimizer | None = None
        self._last = torch.full((tasks,), torch.nan, device=device)
        if name == "sum" or tasks < 2:
            return
        try:
            method = BALANCES[name](tasks).to(device)
        except ImportError as error:
            raise ConfigError(
                f"--balance {name} needs cvxpy: pip install 'medduet[balance]'"
            ) from error
        if isinstance(method, Aggregator):
            self.aggregator = method
        else:
            self.scalarizer = method
            parameters = [] if isinstance(method, FAMO) else list(method.parameters())
            self.optimizer = optimizer(parameters) if parameters else None

    def coefficients(self, losses: Tensor, known: Tensor, learning_rate: float) -> Tensor:
        """Return ``(T,)`` the derivative of the scalarizer's value by each loss.

        A scalarizer's own parameters take their step, too.

        Args:
            losses: ``(T,)`` float, over all processes.
            known: ``(T,)`` bool, of which losses something is known.
            learning_rate: of the scalarizer's own parameters.
        """
        if self.scalarizer is None:
            return torch.ones_like(losses)
        never = torch.where(known, losses, 0).sum() / known.sum().clamp(min=1)
        entered = torch.where(self._last.isnan(), torch.where(never > 0, never, 1.0), self._last)
        self._last = torch.where(known, losses, entered)
        leaf = self._last.clone().requires_grad_()
        torch.autograd.backward(self.scalarizer(leaf))
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self.optimizer.zero_grad()
        assert leaf.grad is not None
        return leaf.grad

    @property
    def looks_twice(self) -> bool:
        """Whether `look_again` wants the losses of the same batch after the step."""
        return isinstance(self.scalarizer, FAMO)

    def look_again(self, losses: Tensor, known: Tensor) -> None:
        """Take the ``(T,)`` losses of the same batch after the network's step."""
        if isinstance(self.scalarizer, FAMO):
            self.scalarizer.update(torch.where(known, losses, self._last))

    def end_epoch(self) -> None:
        """Take note that an epoch is over."""
        if isinstance(self.scalarizer, DWA):
            self.scalarizer.step()

    @torch.no_grad()
    def aggregate(self, matrix: Tensor, known: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradient ``(P,)`` of the step and, if there are any, the weights ``(T,)``.

        Args:
            matrix: ``(T, P)`` float, the gradient of each task.
            known: ``(T,)`` bool; the other rows are left out.
        """
        assert self.aggregator is not None
        rows = matrix if known.all() else matrix[known]
        if len(rows) < 2:
            return rows.sum(dim=0), known.to(matrix)
        if not isinstance(self.aggregator, WeightedAggregator):
            return self.aggregator(rows), None
        shares = self.aggregator.weighting(rows)
        return shares @ rows, torch.zeros_like(matrix[:, 0]).masked_scatter(known, shares)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as tensors and plain values."""
        state: dict[str, Any] = {"last": self._last}
        if self.scalarizer is not None:
            state["scalarizer"] = dict(self.scalarizer.state_dict())
        if self.optimizer is not None:
            state["optimizer"] = self.optimizer.state_dict()
        # TorchJD keeps these out of its modules' own state.
        if isinstance(self.scalarizer, DWA):
            state["dwa"] = {name: getattr(self.scalarizer, name) for name in _DWA_STATE}
        if isinstance(self.scalarizer, FAMO) and self.scalarizer._optimizer is not None:
            state["famo"] = self.scalarizer._optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        device = self._last.device
        self._last = state["last"].to(device)
        if self.scalarizer is not None:
            self.scalarizer.load_state_dict(state["scalarizer"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.scalarizer, DWA):
            total, batches, averages = (state["dwa"][name] for name in _DWA_STATE)
            self.scalarizer._loss_sum = None if total is None else total.to(device)
            self.scalarizer._n_batches = batches
            self.scalarizer._previous_averages = [average.to(device) for average in averages]
        if isinstance(self.scalarizer, FAMO) and "famo" in state:
            own = Adam([self.scalarizer._w])
            own.load_state_dict(state["famo"])
            self.scalarizer._optimizer = own


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
