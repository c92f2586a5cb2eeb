"""What is seen of a grid while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from medduet import load_grid
from medduet.cli.display.grid import GridScreen
from medduet.experiments.cells import CellState
from medduet.experiments.config import Cell

DONE = CellState("finished", 6, {"val": {"accuracy": 0.91234, "auc": 0.95}})
FAILED = CellState("failed", 0, {}, "no such file")
RUNNING = CellState("running", 2, {"val": {"dice": 0.5}})


def cells() -> list[Cell]:
    return load_grid("quick").choose(networks=("vovunet_var", "unet_var")).cells(Path("x"))


def states(*first: CellState) -> dict[str, CellState]:
    names = [cell.name for cell in cells()]
    rest = [CellState("waiting")] * (len(names) - len(first))
    return dict(zip(names, [*first, *rest], strict=True))


def test_each_cell_that_ends_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with GridScreen() as screen:
        screen.watch(cells(), states(DONE))
        screen.watch(cells(), states(DONE, RUNNING))
        screen.watch(cells(), states(DONE, FAILED))
        screen.watch(cells(), states(DONE, FAILED, DONE))
    assert capsys.readouterr().err.splitlines() == [
        "12 cells: 1 finished, 11 waiting",
        "✗ phantom-grey-vovunet_var-seed1: no such file",
        "✓ phantom-grey-vovunet_var-seed2: finished, epoch 6, validation acc 0.912  AUC 0.950",
    ]
