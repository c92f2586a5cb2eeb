"""Each rule against numbers by hand or TorchJD's own; the backward pass; and going on."""

import copy
import importlib.util
import math
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torchjd import aggregation
from torchjd.autojac import jac_to_grad, mtl_backward

from medduet import RunConfig, TrainingError
from medduet.data.batches import train_batches
from medduet.errors import Interrupted
from medduet.training.balance import AGGREGATORS, Balance
from medduet.training.experiment import Experiment
from medduet.training.loop import fit, new_state
from medduet.training.step import train_step
from medduet.types import Balance as Names
from medduet.types import Batch, Outputs

MakeConfig = Callable[..., RunConfig]
MakeExperiment = Callable[..., Experiment]
NAMES = get_args(Names)[1:]
TWO = {"tasks": ["classify", "segment"]}


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(8, 1, 16, 16, generator=generator)
    mask = (image[:, 0] > 0.7).long()
    return Batch(image, torch.arange(8) % 4, mask, torch.arange(8) < 6, torch.arange(8))


# Rules ----------------------------------------------------------------------------------------

BOTH = torch.tensor([True, True])
FIRST = torch.tensor([True, False])
CONFLICT = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])


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


def test_pcgrad_and_upgrad() -> None:
    # Each row less its part against the other one: (1/2, 1/2) and (0, 1).
    vector, weights = Balance("pcgrad", 2).aggregate(CONFLICT, BOTH)
    assert vector.tolist() == [0.5, 1.5]
    assert weights.tolist() == [2.0, 1.5]
    vector, weights = Balance("upgrad", 2).aggregate(CONFLICT, BOTH)
    # TorchJD regularises by 1e-4.
    torch.testing.assert_close(vector, torch.tensor([0.25, 0.75]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.75]), rtol=1e-3, atol=1e-4)


TORCHJD: dict[str, Any] = {"pcgrad": aggregation.PCGrad}
if importlib.util.find_spec("quadprog"):
    TORCHJD["upgrad"] = aggregation.UPGrad


@pytest.mark.parametrize("name", TORCHJD)
def test_aggregators_are_torchjds(name: str) -> None:
    matrix = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        expected = TORCHJD[name]()(matrix)
        torch.manual_seed(2)
        vector, weights = Balance(name, 3).aggregate(matrix, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(vector, expected)
    torch.testing.assert_close(weights @ matrix, vector)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_unknown_rows_are_left_out(name: str) -> None:
    zero = torch.zeros(1, 2)
    vector, weights = Balance(name, 3).aggregate(
        torch.cat([CONFLICT[:1], zero, CONFLICT[1:]]), torch.tensor([True, False, True])
    )
    expected, shares = Balance(name, 2).aggregate(CONFLICT, BOTH)
    assert torch.equal(vector, expected)
    assert weights.tolist() == [shares[0].item(), 0.0, shares[1].item()]
    alone, share = Balance(name, 2).aggregate(CONFLICT, FIRST)
    assert alone.tolist() == [1.0, 0.0]
    assert share.tolist() == [1.0, 0.0]


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


def test_aggregation_is_torchjds(
    make_config: MakeConfig, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    config = make_config(tmp_path, objective=TWO | {"balance": "pcgrad", "segment_weight": 2.0})
    experiment, batch = make_experiment(config), make_batch()
    batch = batch._replace(mask=1 - batch.mask)  # of which the gradients are in conflict
    network, objective = copy.deepcopy(experiment.network), experiment.objective
    state = new_state(experiment)
    state.optimizer.step = state.optimizer.zero_grad = lambda: None
    train_step(experiment, state, batch)

    features = network.features(network.normalize(batch.image)).relu()
    outputs = Outputs(network.class_head(features.mean(dim=(2, 3))), network.dense_head(features))
    terms = objective(outputs, batch, network.normalize(batch.image))
    losses = objective.losses(terms, torch.stack([t.weight.sum() for t in terms.values()]))
    heads = [list(network.class_head.parameters()), list(network.dense_head.parameters())]
    shared = list(network.features.parameters())
    mtl_backward(
        list(losses), features=features, tasks_params=heads, shared_params=shared, retain_graph=True
    )
    shares = jac_to_grad(shared, aggregation.PCGrad())
    for found, expected in zip(experiment.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)
    summary = state.balancer.summary()
    assert summary["conflict"]["classify-segment"] < -0.05
    assert list(summary["weights"].values()) == pytest.approx(
        [float(shares[0]), 2 * float(shares[1])], rel=1e-4
    )


def test_unknown_masks_count_nowhere(
    make_config: MakeConfig, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    batch = make_batch()
    batch = batch._replace(has_mask=torch.zeros(8, dtype=torch.bool))
    for name in NAMES:
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
    experiment = make_experiment(make_config(tmp_path, objective={"balance": "upgrad"}))
    experiment.network.features.bias.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match=r"gradient is not finite in epoch 1, step 1.*\[0, 1"):
        train_step(experiment, new_state(experiment), make_batch())


# Runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "uncertainty", "pcgrad"])
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
    if name not in ("sum", "pcgrad"):
        assert rows[-1]["weights"] != rows[0]["weights"]
