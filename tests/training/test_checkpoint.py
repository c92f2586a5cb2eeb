"""Checkpoints give back what was saved, and are never half written or pickled."""

from __future__ import annotations

import math
import pickletools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from medduet import MissingFileError, TrainingError
from medduet.training.checkpoint import load_state, random_state, save_state, set_random_state


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right) and left.dtype == right.dtype and left.shape == right.shape
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.linspace(-1, 1, 12).reshape(4, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_an_optimizer_goes_on_as_if_nothing_had_been(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = kind(network.parameters(), lr=0.1, weight_decay=0.01, betas=(0.8, 0.99))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    for _ in range(3):
        step(network, optimizer)
        scheduler.step()
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    save_state(path, state | {"scheduler": scheduler.state_dict()})
    loaded = load_state(path)
    assert list(loaded["optimizer"]["state"]) == [0, 1, 2, 3]
    assert same(loaded["optimizer"], optimizer.state_dict())
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


def test_every_kind_of_value_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    base = torch.arange(6.0)
    state = {
        3: "an int key",
        "3": "a str key",
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "long": torch.tensor(7),
        "bytes": torch.get_rng_state(),
        "bfloat": torch.ones(2, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "base": base,
        "view": base[2:4],
        "turned": base.reshape(2, 3).T,
        "nested": {"a": [1, {"tensor": base}, None], "dict": {}, "list": []},
        "plain": [True, 1.5, -math.inf, "text"],
    }
    save_state(path, state)
    assert same(load_state(path), state)
    save_state(path, {"pair": (1, torch.ones(1)), "nan": math.nan})
    loaded = load_state(path)
    assert same(loaded["pair"], [1, torch.ones(1)])
    assert math.isnan(loaded["nan"])


def test_what_is_saved_is_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    tensor = torch.zeros(3)
    save_state(path, {"a": tensor})
    loaded = load_state(path)["a"]
    loaded += 1
    assert load_state(path)["a"].sum() == 0
    assert tensor.sum() == 0


def test_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.ones(2), "b": {1: "x"}})
    with safe_open(path, framework="pt") as file:
        assert len(list(file.keys())) == 1
    with pytest.raises(ValueError, match="opcode"):
        list(pickletools.genops(path.read_bytes()))


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "other"])
def test_damaged_files(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.ones(100)})
    whole = path.read_bytes()
    if damage == "other":
        from safetensors.torch import save_file

        save_file({"a": torch.ones(2)}, path)
    else:
        parts = {"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"\x80\x04K\x01." * 9}
        path.write_bytes(parts[damage])
    with pytest.raises(TrainingError, match=r"state\.safetensors is not a MedDuet checkpoint"):
        load_state(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="none"):
        load_state(tmp_path / "none")


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"epoch": 1})
    with pytest.raises(TypeError):
        save_state(path, {"epoch": 2, "a": torch.ones(5), "b": object()})
    sparse = torch.eye(3).to_sparse()  # nothing that safetensors can write
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        save_state(path, {"epoch": 2, "a": sparse})
    assert load_state(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_generators_come_back(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        state = random_state(torch.device("cpu"))
        save_state(tmp_path / "state", state)
        expected = torch.rand(3)
        set_random_state(load_state(tmp_path / "state"), torch.device("cpu"))
        assert torch.equal(torch.rand(3), expected)


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
