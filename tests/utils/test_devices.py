"""Device, precision and memory of a process."""

from __future__ import annotations

import pytest
import torch

from medduet import ConfigError, TrainConfig
from medduet.utils import devices


@pytest.mark.parametrize("text", ["gpu", "cpu:3", "cuda:x", ""])
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda, cuda:N or mps"):
        devices.find_device(text)
    with pytest.raises(ValueError, match=r"auto\|cpu\|cuda"):
        TrainConfig(device=text)


def test_a_device_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.find_device("auto") == torch.device("cuda")
    assert devices.find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="cuda:2: torch finds no such device here, and 2 GPUs"):
        devices.find_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda:1: torch finds no such device here"):
        devices.find_device("cuda:1")
