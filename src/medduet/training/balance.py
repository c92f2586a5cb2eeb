"""From the losses of a step to gradients, on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
# float16 would lose small gradients; a power of two changes no cosine.
_CONFLICT_SCALE = 1024.0


class Balancer:
    """Does the backward pass of a step as its `Balance` wants it, and keeps account of it.

    Args:
        experiment: its objective names the balance.
        optimizer: of the network; a balance with parameters of its own trains them with one of
            the same class, at the first learning rate of this one.

    Attributes:
        weights: ``(2, T)`` float64, sum and number of the coefficients of each task's loss over
            the epoch so far; the same on all processes, as is the next one.
        conflict: ``(2, T (T - 1) / 2)`` float64, sum and number of the cosines of each two tasks.
    """

    def __init__(self, experiment: Experiment, optimizer: Optimizer) -> None:
        self.fabric, self.objective = experiment.fabric, experiment.objective
        self.config, self.optimizer = experiment.config.objective, optimizer
        tasks, device = len(self.objective.tasks), self.fabric.device
        # Its own parameters are no weights to decay: AdamW would by itself.
        kind: Callable[..., Optimizer] = type(optimizer)
        own = partial(kind, weight_decay=0.0, fused=True)
        self.balance = Balance(self.config.balance, tasks, own, device)
        self.pairs = list(combinations(self.objective.tasks, 2))
        network = experiment.network
        encoder = dict.fromkeys(network.encoder_parameters() if self.pairs else ())
        self.encoder = [parameter for parameter in encoder if parameter.requires_grad]
        self.others = [p for p in network.parameters() if p.requires_grad and p not in encoder]
        self.factors = torch.tensor(list(self.objective.factors.values()), device=device)
        self._forget()

    @property
    def needs_gradients(self) -> bool:
        """Whether the balance combines gradients, for which processes must not average theirs."""
        return self.balance.aggregator is not None

    @property
    def takes_parts(self) -> bool:
        """Whether the gradient of a batch is the sum of those of its parts."""
        return self.balance.aggregator is None and self.balance.scalarizer is None

    def backward(
        self,
        terms: Terms,
        weights: Tensor,
        totals: Tensor,
        step: int,
        finite: Callable[[str, Tensor], None],
    ) -> None:
        """Give every trained parameter its gradient.

        Args:
            terms: the losses of this process's images.
            weights: ``(T,)`` sum of the image weights of each term, over all processes.
            totals: ``(T,)`` sum of the weighted losses of each term, over all processes.
            step: of the epoch, from 0; the conflict between the tasks is measured in the first
                ones, and in all where the balance itself needs their gradients.
            finite: is told ``"loss"`` and its value, and ``"gradient"`` where it is at hand, and
                may raise.
        """
        losses, known = self.objective.losses(terms, weights), weights > 0
        takes_part = known & (self.factors > 0)
        if self.needs_gradients:
            shares, loss = None, losses.sum()
        else:
            rate = self.optimizer.param_groups[0]["lr"]
            shares = self.balance.coefficients(self._means(totals, weights), takes_part, rate)
            if not self.takes_parts:
                self._share(shares)
            loss = (shares * losses).sum()
        # Gradients are averaged over processes; times their number they become the global mean.
        loss = loss * self.fabric.world_size
        finite("loss", loss)
        if self.needs_gradients:
            shares = self._aggregate(losses, takes_part, finite)
        else:
            if step < self.config.conflict_steps and self.encoder and self.pairs:
                self._note_conflict(self._task_gradients(losses * _CONFLICT_SCALE)[0])
            self.fabric.backward(loss)
        if shares is not None:
            self.weights[0] += torch.where(known, shares * self.factors, 0.0)
            self.weights[1] += known

    def after_step(self, recompute: Callable[[], Terms], weights: Tensor) -> None:
        """Show the balance what the step did to the losses of the batch, if it wants to know.

        The second look is in training mode, as the first: the running means of batch
        normalisation see the batch twice.
        """
        if not self.balance.looks_twice:
            return
        with torch.no_grad():
            totals = torch.stack([term.total() for term in recompute().values()])
        takes_part = (weights > 0) & (self.factors > 0)
        self.balance.look_again(self._means(self._sum(totals), weights), takes_part)

    def summary(self) -> dict[str, Any]:
        """Return the mean weight of each task and the mean cosine of each two, for the epoch."""
        if not self.pairs:
            return {}
        return {
            "weights": _means_by_name(self.objective.tasks, self.weights),
            "conflict": _means_by_name(map("-".join, self.pairs), self.conflict),
        }

    def end_epoch(self) -> None:
        """Tell the balance, and forget the sums."""
        self.balance.end_epoch()
        self._forget()

    def _forget(self) -> None:
        tasks, device = len(self.factors), self.fabric.device
        self.weights = torch.zeros(2, tasks, dtype=torch.float64, device=device)
        self.conflict = torch.zeros(2, len(self.pairs), dtype=torch.float64, device=device)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        sums = {"weights": self.weights, "conflict": self.conflict}
        return sums | {"balance": self.balance.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        self.weights = state["weights"].to(self.fabric.device)
        self.conflict = state["conflict"].to(self.fabric.device)
        self.balance.load_state_dict(state["balance"])

    def _means(self, totals: Tensor, weights: Tensor) -> Tensor:
        return self.factors * totals / weights.clamp(min=torch.finfo(weights.dtype).tiny)

    def _sum(self, value: Tensor) -> Tensor:
        total = self.fabric.all_reduce(value, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def _share(self, value: Tensor) -> None:
        """Each process draws other random numbers and rounds its own way: the first one counts."""
        if self.fabric.world_size > 1:
            torch.distributed.broadcast(value, 0)

    def _task_gradients(self, losses: Tensor, others: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Return each task's gradient on the encoder ``(T, P)``, and their sum on the rest."""
        parameters = self.encoder + (self.others if others else [])
        sizes = [parameter.numel() for parameter in self.encoder]
        matrix = torch.zeros(len(losses), sum(sizes), device=losses.device)
        rest = [torch.zeros_like(parameter) for parameter in parameters[len(sizes) :]]
        for task, (row, loss) in enumerate(zip(matrix, losses, strict=True)):
            # Without `others` the graph is still wanted for the step itself.
            keep = not others or task + 1 < len(losses)
            with gradients_by_hand():
                gradients = torch.autograd.grad(
                    loss, parameters, retain_graph=keep, allow_unused=True
                )
            pieces = [*torch.split(row, sizes), *rest]
            for piece, gradient in zip(pieces, gradients, strict=True):
                if gradient is not None:
                    piece += gradient.reshape(piece.shape)
        return self._sum(matrix), rest

    def _aggregate(
        self, losses: Tensor, takes_part: Tensor, finite: Callable[[str, Tensor], None]
    ) -> Tensor | None:
        matrix, rest = self._task_gradients(losses, others=True)
        finite("gradient", matrix)
        self._note_conflict(matrix)
        vector, shares = self.balance.aggregate(matrix, takes_part)
        self._share(vector)
        if shares is not None:
            self._share(shares)
        if self.fabric.world_size > 1 and rest:
            flat = self._sum(torch.cat([gradient.flatten() for gradient in rest]))
            pieces = torch.split(flat, [gradient.numel() for gradient in rest])
            rest = [piece.view_as(like) for piece, like in zip(pieces, rest, strict=True)]
        pieces = torch.split(vector, [parameter.numel() for parameter in self.encoder])
        for parameter, gradient in zip(self.encoder, pieces, strict=True):
            parameter.grad = gradient.view_as(parameter)
        for parameter, gradient in zip(self.others, rest, strict=True):
            parameter.grad = gradient
        return shares

    def _note_conflict(self, matrix: Tensor) -> None:
        found = cosines(matrix)
        self.conflict[0] += found.nan_to_num(0.0)
        self.conflict[1] += found.isfinite()


def _means_by_name(names: Any, sums: Tensor) -> dict[str, float | None]:
    """Return the mean under each name; ``None`` where nothing was counted."""
    means = (sums[0] / sums[1]).tolist()
    return {
        name: None if math.isnan(mean) else mean for name, mean in zip(names, means, strict=True)
    }
