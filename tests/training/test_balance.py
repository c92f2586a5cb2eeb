"""The backward pass of each balance: gradients, account, going on, and several processes."""

import copy
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torchjd.aggregation import MGDA
from torchjd.autojac import jac_to_grad, mtl_backward

from medduet import RunConfig, TrainingError
from medduet.config import Balance
from medduet.data.batches import train_batches
from medduet.errors import Interrupted
from medduet.training.experiment import Experiment
from medduet.training.loop import fit, new_state
from medduet.training.step import train_step
from medduet.types import Batch, Outputs

MakeConfig = Callable[..., RunConfig]
MakeExperiment = Callable[..., Experiment]
NAMES = get_args(Balance)[1:]
TWO = {"tasks": ["classify", "segment"]}


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(8, 1, 16, 16, generator=generator)
    mask = (image[:, 0] > 0.7).long()
    return Batch(image, torch.arange(8) % 4, mask, torch.arange(8) < 6, torch.arange(8))


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
    config = make_config(tmp_path, objective=TWO | {"balance": "mgda", "segment_weight": 2.0})
    experiment, batch = make_experiment(config), make_batch()
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
    shares = jac_to_grad(shared, MGDA())
    for found, expected in zip(experiment.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)
    weights = state.balancer.summary()["weights"]
    assert list(weights.values()) == pytest.approx(
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


@pytest.mark.parametrize("name", ["sum", "uncertainty", "dwa", "pcgrad"])
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
