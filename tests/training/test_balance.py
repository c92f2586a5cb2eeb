"""Learnt weights against numbers by hand; the backward pass; and going on."""

import copy
import math
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from medduet import RunConfig, TrainingError
from medduet.data.batches import train_batches
from medduet.errors import Interrupted
from medduet.training.balance import Balance
from medduet.training.experiment import Experiment
from medduet.training.loop import fit, new_state
from medduet.training.step import train_step
from medduet.types import Balance as Names
from medduet.types import Batch

MakeConfig = Callable[..., RunConfig]
MakeExperiment = Callable[..., Experiment]
TWO = {"tasks": ["classify", "segment"]}


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(8, 1, 16, 16, generator=generator)
    mask = (image[:, 0] > 0.7).long()
    return Batch(image, torch.arange(8) % 4, mask, torch.arange(8) < 6, torch.arange(8))


# Rules ----------------------------------------------------------------------------------------

BOTH = torch.tensor([True, True])
FIRST = torch.tensor([True, False])


def coefficients(balance: Balance, *losses: float, known: Tensor = BOTH) -> list[float]:
    return balance.coefficients(torch.tensor(losses), known, 0.1).tolist()


@pytest.mark.parametrize("name", get_args(Names))
def test_one_task_is_always_the_sum(name: str) -> None:
    balance = Balance(name, 1)
    assert balance.is_sum
    assert balance.coefficients(torch.tensor([3.0]), BOTH[:1], 0.1).tolist() == [1.0]


def test_uncertainty() -> None:
    balance = Balance("uncertainty", 2, partial(torch.optim.SGD, lr=9.0))
    expected, losses = [0.0, 0.0], [2.0, 0.5]
    for _ in range(3):
        # s = sum of exp(-v) L / 2 + v / 2, and v takes a step of the rate that is given.
        shares = [0.5 * math.exp(-v) for v in expected]
        assert coefficients(balance, *losses) == pytest.approx(shares)
        pairs = zip(shares, losses, expected, strict=True)
        expected = [v - 0.1 * (0.5 - share * loss) for share, loss, v in pairs]


def test_an_unknown_task_enters_with_its_last_loss() -> None:
    known, unknown = Balance("uncertainty", 2), Balance("uncertainty", 2)
    for balance, losses, mask in ((known, (2.0, 3.0), BOTH), (unknown, (2.0, 0.0), FIRST)):
        coefficients(balance, 1.0, 3.0)
        assert coefficients(balance, *losses, known=mask)
    assert coefficients(known, 2.0, 3.0) == coefficients(unknown, 2.0, 3.0)


# One step ---------------------------------------------------------------------------------------


def test_the_sum_is_what_a_plain_loop_does(
    make_config: MakeConfig, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    experiment = make_experiment(make_config(tmp_path))
    plain, objective, batch = copy.deepcopy(experiment.network), experiment.objective, make_batch()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, fused=True)
    state = new_state(experiment)
    for _ in range(3):
        train_step(experiment, state, batch)
        state.progress.step += 1
        terms = objective(plain(batch.image), batch, plain.normalize(batch.image))
        weights = torch.stack([term.weight.sum() for term in terms.values()])
        optimizer.zero_grad()
        objective.losses(terms, weights).sum().backward()
        optimizer.step()
    for found, expected in zip(experiment.network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert state.balancer.summary()["weights"] == dict.fromkeys(objective.tasks, 1.0)


def test_the_gradients_are_those_of_the_weighted_sum_and_their_angle_is_measured(
    make_config: MakeConfig, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    config = make_config(tmp_path, objective=TWO | {"balance": "uncertainty", "segment_weight": 2})
    experiment, batch = make_experiment(config), make_batch()
    batch = batch._replace(mask=1 - batch.mask)  # of which the gradients are in conflict
    network, objective = copy.deepcopy(experiment.network), experiment.objective
    state = new_state(experiment)
    state.optimizer.step = state.optimizer.zero_grad = lambda: None
    train_step(experiment, state, batch)

    terms = objective(network(batch.image), batch, network.normalize(batch.image))
    losses = objective.losses(terms, torch.stack([t.weight.sum() for t in terms.values()]))
    shared = list(network.features.parameters())
    gradients = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    first, second = (torch.cat([part.flatten() for part in parts]) for parts in gradients)
    (0.5 * losses.sum()).backward()  # exp(-s) / 2 for s = 0, at the first step
    for found, expected in zip(experiment.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)
    cosine = cosine_similarity(first, second, dim=0).item()
    assert cosine < -0.05
    assert state.balancer.summary() == {
        "weights": {"classify": 0.5, "segment": 1.0},
        "conflict": {"classify-segment": pytest.approx(cosine, rel=1e-4)},
    }


def test_unknown_masks_count_nowhere(
    make_config: MakeConfig, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    batch = make_batch()
    batch = batch._replace(has_mask=torch.zeros(8, dtype=torch.bool))
    for name in get_args(Names):
        experiment = make_experiment(make_config(tmp_path, objective=TWO | {"balance": name}))
        state = new_state(experiment)
        train_step(experiment, state, batch)
        summary = state.balancer.summary()
        assert summary["conflict"] == {"classify-segment": None}
        assert summary["weights"]["segment"] is None
        assert all(value.isfinite().all() for value in experiment.network.parameters())


def test_a_gradient_that_is_not_finite_names_the_images(
    make_config: MakeConfig, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    experiment = make_experiment(make_config(tmp_path, train={"grad_clip": 1.0}))
    experiment.network.features.bias.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match=r"gradient is not finite in epoch 1, step 1.*\[0, 1"):
        train_step(experiment, new_state(experiment), make_batch())


# Runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", get_args(Names))
def test_going_on_in_the_middle_of_an_epoch(
    make_config: MakeConfig,
    make_experiment: MakeExperiment,
    epochs: Callable[[Path], Any],
    tmp_path: Path,
    name: str,
) -> None:
    changes = {"objective": {"balance": name}, "train": {"epochs": 4, "augment": "flip"}}
    whole, parts = (make_config(tmp_path / x, **changes) for x in ("whole", "parts"))
    expected = make_experiment(whole)
    fit(expected)
    steps = len(train_batches(len(expected.data.train), 8, seed=0, epoch=1))
    for steps_more in (1, steps, steps + 1):  # in the first, the second and the third epoch
        stop, seen = threading.Event(), iter(range(1, steps_more))
        found = make_experiment(parts, stop=stop)
        found.reporter.step = lambda *_, seen=seen, stop=stop: next(seen, None) or stop.set()
        with pytest.raises(Interrupted):
            fit(found)
    found = make_experiment(parts)
    fit(found)
    for left, right in zip(found.network.parameters(), expected.network.parameters(), strict=True):
        assert torch.equal(left, right)
    rows = epochs(parts.out)
    assert rows == epochs(whole.out)
    assert len(rows) == 4
    if name == "uncertainty":
        assert rows[-1]["weights"] != rows[0]["weights"]
