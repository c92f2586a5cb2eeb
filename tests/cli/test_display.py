"""What is seen of a grid while it runs."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from medduet import load_grid
from medduet.cli.display.grid import GridScreen, grid_view
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


def test_the_table_has_a_mark_for_every_seed() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(grid_view(cells(), states(DONE, FAILED, RUNNING)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "phantom-grey" in text
    assert "phantom-rgb" in text
    assert text.count("✓") == 1
    assert "✓✗▶" in text
    assert text.count("···") == 3
    assert "▶ phantom-grey-vovunet_var-seed2: running, epoch 2 of 6, validation Dice 0.500" in text


def test_without_a_terminal_each_end_is_a_line() -> None:
    console = Console(file=io.StringIO(), width=200)
    with GridScreen(console) as screen:
        screen.watch(cells(), states(DONE))
        screen.watch(cells(), states(DONE, RUNNING))
        screen.watch(cells(), states(DONE, FAILED))
        screen.watch(cells(), states(DONE, FAILED, DONE))
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "12 cells: 1 finished, 11 waiting",
        "✗ phantom-grey-vovunet_var-seed1: no such file",
        "✓ phantom-grey-vovunet_var-seed2: finished, epoch 6, validation acc 0.912  AUC 0.950",
    ]


def test_a_terminal_shows_the_table_and_leaves_it() -> None:
    console = Console(file=io.StringIO(), width=120, height=40, force_terminal=True)
    with GridScreen(console) as screen:
        screen.watch(cells(), states(RUNNING))
        screen.watch(cells(), states(DONE, RUNNING))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "▶" in text
    assert "✓▶·" in text
