"""A step against a plain loop, what is unknown or not finite, and going on within an epoch."""

import copy
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from medduet import RunConfig, TrainingError
from medduet.data.batches import train_batches
from medduet.errors import Interrupted
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
        objective.loss(terms, weights).backward()
        optimizer.step()
    for found, expected in zip(experiment.network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(found, expected)


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
