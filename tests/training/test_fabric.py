"""Devices and precision: what is not there is refused, and nothing is printed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medduet import ConfigError, TrainConfig
from medduet.training.fabric import launch_fabric


def test_nothing_is_printed() -> None:
    # In a process of its own: pytest's handlers would keep Lightning from adding its own.
    program = (
        "import logging, medduet\n"
        "from medduet.training.fabric import launch_fabric\n"
        "fabric = launch_fabric(medduet.TrainConfig(precision='bf16-mixed', device='cpu'))\n"
        "assert fabric.world_size == 1 and fabric.device.type == 'cpu'\n"
        "assert logging.root.manager.disable == logging.NOTSET, 'not given back'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_float16_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="bf16-mixed or 32-true"):
        launch_fabric(TrainConfig(device="cpu", precision="16-mixed"))
