"""What the command line draws of a grid of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

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
        self._told: dict[str, str] = {}

    def __enter__(self) -> GridScreen:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def watch(self, cells: list[Cell], states: Mapping[str, CellState]) -> None:
        """Draw the cells as they stand now."""
        first = not self._told
        for name, state in states.items():
            before, self._told[name] = self._told.get(name), state.state
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
    known = state.row.get("val", {})
    parts = [f"{short} {known[key]:.3f}" for key, short in _SHORT.items() if known.get(key)]
    scores = f", validation {'  '.join(parts)}" if parts else ""
    return f"{_MARKS[state.state]} {name}: {state.state}, epoch {state.epoch}{epochs}{scores}"


def show_grid(record: GridRecord, page: Path | None) -> None:
    """Print how a grid ended, and where everything is."""
    failed = [name for name, state in record.states.items() if state.state == "failed"]
    finished = record.count("finished")
    lines = [f"{finished} of {len(record.cells)} cells finished: {record.path}"]
    if page is not None:
        lines.append(f"look at: {page}")
    if failed:
        lines.append(
            f"{len(failed)} failed; their errors and output are in {record.path / 'cells'}; try "
            f"again: medduet benchmark --resume {record.path} --retry-failed"
        )
    for line in lines:
        Console().print(line, highlight=False, soft_wrap=True, markup=False)
