"""Small grids, and the processes that work on them."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medduet import GridConfig
from medduet.config import validate


def small_grid(out: Path, **values: Any) -> GridConfig:
    """Return a grid of two cells of a second each, besides the start of their processes."""
    run = {
        "data": {"name": "phantom", "size": 16, "count": 40},
        "model": {"width": 2},
        "objective": {"tasks": ["classify", "segment"]},
        "train": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3},
    }
    return validate(GridConfig, {"run": run, "seeds": [0, 1], "out": out} | values, "a test")


def results(out: Path) -> dict[str, str]:
    """Return what every finished run of a grid has measured and predicted, to the last digit."""
    return {
        run.name: (run / "metrics.json").read_text() + (run / "predictions/test.csv").read_text()
        for run in sorted((out / "runs").iterdir())
        if (run / "metrics.json").is_file()
    }


def starts(out: Path) -> dict[str, int]:
    """Return how often training of each cell began or went on."""
    return {log.stem: log.read_text().count(", process ") for log in (out / "cells").glob("*.log")}


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until something is true; fail if it never is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def cells_of(out: Path) -> list[int]:
    """Return the processes that train cells of the grid in `out`, as the cells' logs name them."""
    logs = "".join(log.read_text() for log in (out / "cells").glob("*.log"))
    found = {int(number) for number in re.findall(r", process (\d+): ", logs)}
    return [process for process in found if Path(f"/proc/{process}").exists()]


@pytest.fixture(scope="session")
def grids() -> SimpleNamespace:
    """The helpers above: tests can't import them from here."""
    return SimpleNamespace(
        small=small_grid,
        results=results,
        starts=starts,
        wait_until=wait_until,
        cells_of=cells_of,
    )


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small grid of four cells that ran in one go; look, don't touch."""
    from medduet import benchmark

    out = tmp_path_factory.mktemp("grid") / "whole"
    record = benchmark(small_grid(out, networks=["vovunet_var", "unet_var"]))
    assert record.count("finished") == 4
    return out
