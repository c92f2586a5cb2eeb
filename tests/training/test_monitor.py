"""Losses that are not finite, and requests to stop: a GPU is asked seldom, and finds the same."""

import threading
import weakref
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
from medduet.training import loop
from medduet.training.state import StepMonitor

MakeConfig = Callable[..., RunConfig]
GOOD, BAD = torch.tensor(1.0), torch.tensor([0.0, float("nan")])


def indices(first: int) -> torch.Tensor:
    return torch.arange(first, first + 2)


def test_the_first_step_that_was_not_finite_is_named() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    monitor, none = StepMonitor(fabric, threading.Event()), torch.zeros(())
    monitor.interval = 4
    for step in range(1, 4):
        monitor.note("loss", GOOD, 3, step, indices(10 * step))
        monitor.note("gradient", GOOD if step == 1 else BAD, 3, step, indices(10 * step))
        assert not monitor.must_stop(none)
    monitor.note("loss", BAD, 3, 4, indices(40))
    with pytest.raises(TrainingError, match=r"the gradient .* epoch 3, step 2, .* \[20, 21\]"):
        monitor.must_stop(none)
    monitor.check()  # it is reported once
    with pytest.raises(TrainingError, match=r"the loss .* step 1"):  # a CPU checks at once
        StepMonitor(fabric, threading.Event()).note("loss", BAD, 1, 1, indices(0))


def test_all_processes_stop_at_the_same_step() -> None:
    # However short the epochs are: what counts are the steps since the start.
    fabric: Any = SimpleNamespace(device=torch.device("cuda"), world_size=2)
    events = [threading.Event(), threading.Event()]
    monitors = [StepMonitor(fabric, stop) for stop in events]
    for monitor in monitors:
        monitor.interval = 4
    stopped: list[list[bool]] = []
    for step in range(8):
        if step == 1:
            events[0].set()
        requests = torch.tensor(sum(stop.is_set() for stop in events))
        stopped.append([monitor.must_stop(requests) for monitor in monitors])
    assert stopped == 3 * [[False, False]] + [[True, True]] + 3 * [[False, False]] + [[True, True]]


def check_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: check after 3 of 4 steps, and at the end of the epoch."""
    plain = StepMonitor.__init__

    def seldom(self: StepMonitor, *arguments: Any) -> None:
        plain(self, *arguments)
        self.interval = 3

    monkeypatch.setattr(StepMonitor, "__init__", seldom)


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


@pytest.mark.parametrize("balance", ["sum", "uncertainty"])
def test_a_step_waits_for_nothing(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, balance: str
) -> None:
    step, waited, images = loop.train_step, list[list[str]](), list[weakref.ref[torch.Tensor]]()

    def watched(*arguments: Any) -> bool:
        assert [image() for image in images] == [None] * len(images), "images are kept"
        images.append(weakref.ref(arguments[2].image))
        with Waits() as waits:
            must_stop = step(*arguments)
        waited.append(waits.found)
        return must_stop

    check_seldom(monkeypatch)
    monkeypatch.setattr(loop, "train_step", watched)
    config = make_config(
        tmp_path / "run",
        train={"epochs": 1, "grad_clip": 1.0, "augment": "strong"},
        objective={"balance": balance, "class_weights": "balanced"},
    )
    medduet.train(config)
    assert len(waited) == 4
    assert waited[1] == waited[3] == []
    with Waits() as waits:  # a test that finds nothing finds something here
        bool(torch.ones(2).isfinite().all())
        torch.ones(2)[torch.tensor([True, False])]
    assert waits.found == ["_local_scalar_dense", "index"]


@pytest.mark.parametrize(
    ("batch_size", "match"),
    [
        (
            8,
            r"the loss is not finite in epoch 1, step 2, .*\]: lower --lr, which is 1e\+30, or set",
        ),
        (28, r"outputs for val are not finite after epoch 1: lower --lr, which is 1e\+30$"),
    ],
)
def test_nothing_is_saved_after_a_step_that_was_not_finite(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    match: str,
) -> None:
    check_seldom(monkeypatch)
    run = tmp_path / "run"
    clip = None if batch_size == 8 else 1.0  # of 28 images there is one step
    train = {"learning_rate": 1e30, "batch_size": batch_size, "grad_clip": clip}
    with pytest.raises(TrainingError, match=match) as told:
        medduet.train(make_config(run, train=train))
    assert "\n" not in str(told.value)
    assert not (run / "checkpoints" / "last.pt").exists()
