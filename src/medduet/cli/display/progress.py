"""How far training, grids and other long work are, on the screen."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Never

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from tqdm import tqdm

from medduet.metrics.names import METRICS
from medduet.training.reporter import Reporter

if TYPE_CHECKING:
    from medduet.experiments.cells import CellState

REFRESH = 0.5  # seconds between two readings of the losses, each of which waits for a GPU


class ConsoleReporter(Reporter):
    """Draws a progress bar for training and one line per epoch.

    Args:
        enabled: whether to draw at all; only the first of several processes does.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not enabled)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._epoch = self._epochs = self._images = 0
        self._started = self._read = 0.0

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def begin_epoch(self, epoch: int, epochs: int, steps: int) -> None:
        """Make room for the steps of the epochs that are left."""
        if self._task is None:
            self.progress.start()
            total = (epochs - epoch + 1) * steps
            self._task = self.progress.add_task("training", total=total, note="")
        self._epoch, self._epochs = epoch, epochs
        self._images, self._started = 0, time.perf_counter()

    def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
        """Advance the bar; read the losses twice a second at most."""
        if self._task is None:
            return
        now = time.perf_counter()
        self._images += images
        self.progress.advance(self._task)
        if now - self._read > REFRESH:
            self._read = now
            rate = self._images / max(now - self._started, 1e-9)
            terms = "  ".join(f"{task} {loss:.3f}" for task, loss in losses().items())
            self.progress.update(
                self._task,
                description=f"epoch {self._epoch}/{self._epochs}",
                note=f"{rate:,.0f} images/s  {terms}",
            )

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        """Print the line of the epoch."""
        parts = [f"loss {row['train']['loss']:.3f}"]
        parts += [f"{split} {_scores(row[split])}" for split in ("val", "test") if split in row]
        self.message(
            f"epoch {row['epoch']:>3}/{self._epochs}  {'  |  '.join(parts)}  |  "
            f"{row['seconds']:.1f} s, {row['images_per_second']:,.0f} images/s"
        )
        if self._task is not None and row["epoch"] == self._epochs:
            self.progress.update(self._task, description="evaluating", note="")

    def message(self, text: str) -> None:
        """Print the line."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


class GridScreen:
    """Prints a line for each cell that ends, above a bar with the counts of all."""

    def __init__(self) -> None:
        self._bar: tqdm[Never] | None = None
        self._ended = set[str]()

    def __enter__(self) -> GridScreen:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def watch(self, states: Mapping[str, CellState]) -> None:
        """Show the cells as they are now."""
        counts = Counter(state.state for state in states.values())
        text = ", ".join(f"{count} {state}" for state, count in counts.items())
        ended = {name for name, each in states.items() if each.state in ("finished", "failed")}
        if self._bar is None:
            tqdm.write(f"{len(states)} cells: {text}", file=sys.stderr)
            self._bar = tqdm(total=len(states), unit="cell", leave=False, disable=None)
            self._ended = ended
        for name in sorted(ended - self._ended):
            tqdm.write(_cell_line(name, states[name]), file=sys.stderr)
        self._ended = ended
        self._bar.set_description(text, refresh=False)
        self._bar.update(len(ended) - self._bar.n)


def _cell_line(name: str, state: CellState) -> str:
    if state.state == "failed":
        return f"✗ {name}: {state.error}"
    scores = _scores(state.epochs[-1].get("val", {}))
    return f"✓ {name}: finished, epoch {len(state.epochs)}, validation {scores}"


def _scores(metrics: Mapping[str, float]) -> str:
    """Return the main metrics of an epoch, such as ``acc 0.912  Dice 0.801``."""
    keys = [key for key in ("accuracy", "auc", "dice") if metrics.get(key) is not None] or ["mse"]
    return "  ".join(f"{METRICS[key].short} {metrics[key]:.3f}" for key in keys if key in metrics)


def draw_progress(description: str, total: int) -> tqdm[Never]:
    """Draw a bar of what is done: the `ProgressFactory` of the command line."""
    # None: only on a terminal.
    return tqdm(desc=description, total=total or None, unit_scale=True, leave=False, disable=None)
