"""Looking seldom finds the same as looking at each step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch.utils._python_dispatch import TorchDispatchMode

import medduet
from medduet import RunConfig, TrainingError
from medduet.training import loop as fit_module
from medduet.training import stopping as watch_module
from medduet.training.state import Progress
from medduet.training.stopping import Watch
from medduet.types import Batch

MakeConfig = Callable[..., RunConfig]
GOOD, BAD = torch.tensor(1.0), torch.tensor([0.0, float("nan")])


def batch(first: int) -> Batch:
    indices = torch.arange(first, first + 2)
    return Batch(torch.zeros(2, 1, 4, 4), indices, None, indices > 0, indices)


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def test_the_first_step_that_was_not_finite_is_named(fabric: Fabric) -> None:
    watch = Watch(fabric, threading.Event(), every=4)
    wishes = torch.zeros(())
    for step in range(3):
        value = BAD if step else GOOD
        watch.finite("loss", GOOD, Progress(3, step), batch(10 * step))
        watch.finite("gradient", value, Progress(3, step), batch(10 * step))
        assert not watch.after_step(wishes)
    watch.finite("loss", BAD, Progress(3, 3), batch(30))
    with pytest.raises(TrainingError, match=r"the gradient .* epoch 3, step 2, .* \[10, 11\]"):
        watch.after_step(wishes)
    watch.look()  # it is told once


def test_a_cpu_looks_at_once(fabric: Fabric) -> None:
    watch = Watch(fabric, threading.Event())
    watch.finite("loss", GOOD, Progress(), batch(0))
    with pytest.raises(TrainingError, match=r"the loss .* step 1"):
        watch.finite("loss", BAD, Progress(), batch(0))


def test_a_wish_to_stop_is_seen_at_once_by_a_single_process(fabric: Fabric) -> None:
    stop = threading.Event()
    watch = Watch(fabric, stop, every=4)
    assert watch.wish() == 0
    assert not watch.after_step(torch.zeros(()))
    stop.set()
    assert watch.wish() == 1
    assert watch.after_step(torch.zeros(()))


def test_all_processes_stop_at_the_same_step() -> None:
    # However short the epochs are: what counts are the steps since the start.
    fabric: Any = SimpleNamespace(device=torch.device("cuda"), world_size=2)
    asked, other = threading.Event(), threading.Event()
    watches = [Watch(fabric, stop, every=4) for stop in (asked, other)]
    stopped: list[list[bool]] = []
    for step in range(8):
        if step == 1:
            asked.set()
        wishes = torch.tensor(sum(watch.wish() for watch in watches))
        stopped.append([watch.after_step(wishes) for watch in watches])
    assert stopped == 3 * [[False, False]] + [[True, True]] + 3 * [[False, False]] + [[True, True]]


class Waits(TorchDispatchMode):
    """Notes the operations for whose result Python would wait on a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = func.overloadpacket.__name__
        boolean = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if boolean or name.startswith(self.NAMES):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("balance", ["sum", "uncertainty", "dwa"])
def test_a_step_waits_for_nothing(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, balance: str
) -> None:
    plain, step, waited = Watch.__init__, fit_module.train_step, list[list[str]]()

    def seldom(self: Watch, fabric: Fabric, stop: threading.Event, every: int = 3) -> None:
        plain(self, fabric, stop, every)

    def watched(*arguments: Any) -> bool:
        with Waits() as waits:
            must_stop = step(*arguments)
        waited.append(waits.found)
        return must_stop

    monkeypatch.setattr(watch_module.Watch, "__init__", seldom)
    monkeypatch.setattr(fit_module, "train_step", watched)
    config = make_config(
        tmp_path / "run",
        train={"epochs": 1, "clip": 1.0, "augment": "strong"},
        objective={"balance": balance, "class_weights": "balanced"},
    )
    medduet.train(config)
    assert len(waited) == 4
    assert waited[1] == waited[3] == []
    with Waits() as waits:  # a test that finds nothing finds something here
        bool(torch.ones(2).isfinite().all())
        torch.ones(2)[torch.tensor([True, False])]
    assert waits.found == ["_local_scalar_dense", "index"]


def test_nothing_is_saved_after_a_step_that_was_not_finite(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU: looked at after 3 of 4 steps, and at the end of the epoch.
    plain = Watch.__init__

    def seldom(self: Watch, fabric: Fabric, stop: threading.Event, every: int = 3) -> None:
        plain(self, fabric, stop, every)

    monkeypatch.setattr(watch_module.Watch, "__init__", seldom)
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match="epoch 1, step 2"):
        medduet.train(make_config(run, train={"learning_rate": 1e30}))
    assert not (run / "checkpoints" / "last.safetensors").exists()
    assert medduet.train(make_config(tmp_path / "good")).metrics["test"]["n"] == 8
