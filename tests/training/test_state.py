"""Checkpoints hold everything, are never half written, and run no code."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medduet import MissingFileError, TrainingError
from medduet.training.state import (
    Best,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.linspace(-1, 1, 12).reshape(4, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_an_optimizer_goes_on_as_if_nothing_had_been(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = kind(network.parameters(), lr=0.1, weight_decay=0.01, betas=(0.8, 0.99))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    for _ in range(3):
        step(network, optimizer)
        scheduler.step()
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(path, state | {"scheduler": scheduler.state_dict(), "score": -math.inf})
    loaded = load_checkpoint(path)
    assert loaded["score"] == -math.inf
    copy = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    other = kind(copy.parameters(), lr=0.7)
    again = torch.optim.lr_scheduler.CosineAnnealingLR(other, T_max=9)
    copy.load_state_dict(loaded["network"])
    other.load_state_dict(loaded["optimizer"])
    again.load_state_dict(loaded["scheduler"])
    for _ in range(2):
        step(network, optimizer)
        scheduler.step()
        step(copy, other)
        again.step()
    assert all(map(torch.equal, network.parameters(), copy.parameters()))
    assert again.get_last_lr() == scheduler.get_last_lr()


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("witness",)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "pickle", "code"])
def test_damaged_files(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"a": torch.ones(100)})
    whole = path.read_bytes()
    contents = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "garbage": b"\x80\x02K\x01." * 9,
        "pickle": pickle.dumps(Malicious(), protocol=2),
    }
    if damage == "code":
        torch.save({"a": Malicious()}, path)
    else:
        path.write_bytes(contents[damage])
    with pytest.raises(TrainingError, match=r"state\.pt is damaged, or no checkpoint of MedDuet"):
        load_checkpoint(path)
    assert not (tmp_path / "witness").exists()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="none"):
        load_checkpoint(tmp_path / "none")


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        save_checkpoint(path, {"epoch": 2, "a": torch.ones(5), "b": lambda: None})
    assert load_checkpoint(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_generators_of_several_processes_go_back_to_where_they_were() -> None:
    device, states, drawn = torch.device("cpu"), [], []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            torch.rand(3)
            states.append(random_state(device)["cpu"])
            drawn.append(torch.rand(4))
        rows = torch.stack(states)
        for row, expected in zip(rows, drawn, strict=True):
            set_random_state({"cpu": row}, device)
            assert torch.equal(torch.rand(4), expected)


def test_the_first_of_the_best_epochs_is_kept() -> None:
    best = Best()
    scores = [0.25, 0.75, 0.5, 0.75, 0.9]
    taken = [best.update(epoch, score) for epoch, score in enumerate(scores, start=1)]
    assert taken == [True, True, False, False, True]
    assert (best.epoch, best.score) == (5, 0.9)


def test_some_epoch_is_always_kept() -> None:
    best = Best()
    assert best.update(1, math.nan)
    assert best.update(2, math.nan), "where there is no score, the last epoch counts"
    assert best.update(3, 0.5)
    assert not best.update(4, math.nan)
    assert (best.epoch, best.score) == (3, 0.5)
