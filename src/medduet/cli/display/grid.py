"""The progress of a grid, on the screen."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Never

from tqdm import tqdm

from medduet.cli.display.screen import write
from medduet.metrics.names import METRICS

if TYPE_CHECKING:
    from medduet.experiments.cells import CellState
    from medduet.experiments.config import Cell
    from medduet.experiments.grid import GridRecord

_MARKS = {"finished": "✓", "failed": "✗"}
_METRICS = ("accuracy", "auc", "dice", "mse")


class GridScreen:
    """Prints a line for each cell that ends, above a bar with the counts of all."""

    def __init__(self) -> None:
        self._bar: tqdm[Never] | None = None
        self._states: dict[str, str] = {}

    def __enter__(self) -> GridScreen:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def watch(self, cells: list[Cell], states: Mapping[str, CellState]) -> None:
        """Show the cells as they are now."""
        counts = Counter(state.state for state in states.values())
        text = ", ".join(f"{count} {state}" for state, count in counts.items())
        if self._bar is None:
            tqdm.write(f"{len(cells)} cells: {text}", file=sys.stderr)
            self._bar = tqdm(total=len(cells), unit="cell", leave=False, disable=None)
        else:
            for name, state in states.items():
                if state.state in _MARKS and state.state != self._states[name]:
                    tqdm.write(_line(name, state), file=sys.stderr)
        self._states = {name: state.state for name, state in states.items()}
        self._bar.set_description(text, refresh=False)
        self._bar.update(counts["finished"] + counts["failed"] - self._bar.n)


def _line(name: str, state: CellState) -> str:
    mark = _MARKS[state.state]
    if state.state == "failed":
        return f"{mark} {name}: {state.error}"
    metrics = state.row.get("val", {})
    numbers = [f"{METRICS[key].short} {metrics[key]:.3f}" for key in _METRICS if metrics.get(key)]
    return f"{mark} {name}: finished, epoch {state.epoch}, validation {'  '.join(numbers)}"


def show_grid(record: GridRecord, arguments: Mapping[str, Any]) -> int:
    """Write the report of a grid, and print how it ended; 1 if a cell failed."""
    from medduet.reports.report import write_report

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
