"""What the command line draws of a grid of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from medduet.cli.display.screen import write
from medduet.metrics.names import METRICS

if TYPE_CHECKING:
    from medduet.experiments.cells import CellState
    from medduet.experiments.config import Cell
    from medduet.experiments.grid import GridRecord

MOST_RUNNING = 12
_SHORT = {key: METRICS[key].short for key in ("accuracy", "auc", "dice", "mse")}
_MARKS = {"finished": "✓", "running": "▶", "failed": "✗", "waiting": "·"}


class GridScreen:
    """Draws where every cell stands; without a terminal it prints a line for each that ends."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._states: dict[str, str] = {}

    def __enter__(self) -> GridScreen:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def watch(self, cells: list[Cell], states: Mapping[str, CellState]) -> None:
        """Draw the cells as they stand now."""
        first = not self._states
        for name, state in states.items():
            before, self._states[name] = self._states.get(name), state.state
            if not first and state.state != before and state.state in ("finished", "failed"):
                self._print(_line(name, state))
        if first:
            counts = Counter(state.state for state in states.values())
            text = ", ".join(f"{count} {state}" for state, count in counts.items())
            self._print(f"{len(cells)} cells: {text}")
        if self.console.is_terminal:
            self._live.update(grid_view(cells, states), refresh=True)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def grid_view(cells: list[Cell], states: Mapping[str, CellState]) -> RenderableType:
    """Return the table of networks and data sets, with a mark per seed, and the running cells."""
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("network")
    for dataset in datasets:
        table.add_column(Text(dataset.rpartition("/")[2].removesuffix(".npz")))
    rows: dict[str, dict[str, str]] = {}
    for cell in cells:
        marks = rows.setdefault(_method(cell), dict.fromkeys(datasets, ""))
        marks[cell.dataset] += _MARKS[states[cell.name].state]
    for method, marks in rows.items():
        table.add_row(Text(method), *marks.values())
    running = [cell for cell in cells if states[cell.name].state == "running"]
    lines = [
        Text(_line(cell.name, states[cell.name], f" of {cell.run.train.epochs}"))
        for cell in running[:MOST_RUNNING]
    ]
    if len(running) > MOST_RUNNING:
        lines.append(Text(f"and {len(running) - MOST_RUNNING} more"))
    return Group(table, *lines)


def _method(cell: Cell) -> str:
    return f"{cell.network} · {cell.variant}" if cell.variant else cell.network


def _line(name: str, state: CellState, epochs: str = "") -> str:
    if state.state == "failed":
        return f"{_MARKS['failed']} {name}: {state.error}"
    metrics = state.row.get("val", {})
    scores = [f"{short} {metrics[key]:.3f}" for key, short in _SHORT.items() if metrics.get(key)]
    validation = f", validation {'  '.join(scores)}" if scores else ""
    return f"{_MARKS[state.state]} {name}: {state.state}, epoch {state.epoch}{epochs}{validation}"


def show_grid(record: GridRecord, arguments: Mapping[str, Any]) -> int:
    """Write the report of a grid, and print how it ended; 1 if a cell failed."""
    from medduet.reports.page import write_report

    failed, finished = record.count("failed"), record.count("finished")
    write(f"{finished} of {len(record.cells)} cells finished: {record.path}")
    if finished:
        write(f"report: {write_report([record.path])}")
    if failed:
        write(
            f"failed: {failed} cells, see {record.path / 'cells'}",
            f"next: medduet benchmark --resume {record.path} --retry-failed",
        )
    return int(failed > 0)
