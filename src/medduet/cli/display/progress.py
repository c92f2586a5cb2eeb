"""How far training, grids and other long work are, on the screen."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Never

from tqdm import tqdm

from medduet.metrics.names import METRICS
from medduet.training.reporter import Reporter

if TYPE_CHECKING:
    from medduet.experiments.cells import CellState

REFRESH = 0.5  # seconds between two readings of the losses, each of which waits for a GPU


def draw_progress(description: str, total: int, **options: Any) -> tqdm[Never]:
    """Draw a bar of what is done, on a terminal: the `Progress` of the command line."""
    defaults = {"unit_scale": True, "leave": False, "disable": None}
    return tqdm(desc=description, total=total or None, **defaults | options)


class ConsoleReporter(Reporter):
    """Draws a progress bar for training and one line per epoch, if it is `enabled`."""

    _bar: tqdm[Never] | None = None

    def __init__(self, enabled: bool = True) -> None:
        self._enabled, self._epochs, self._read = enabled, 0, 0.0

    def begin_epoch(self, epoch: int, epochs: int, steps: int) -> None:
        """Make room for the steps of the epochs that are left."""
        if self._bar is None and self._enabled:
            self._bar = draw_progress("", (epochs - epoch + 1) * steps, unit="step")
        if self._bar is not None:
            self._bar.set_description(f"epoch {epoch}/{epochs}")
        self._epochs = epochs

    def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
        """Advance the bar; read the losses twice a second at most."""
        if self._bar is not None and not self._bar.disable:
            self._bar.update()
            if time.monotonic() - self._read > REFRESH:
                self._read = time.monotonic()
                self._bar.set_postfix(losses())

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        """Print the line of the epoch."""
        parts = [f"loss {row['train']['loss']:.3f}"]
        parts += [f"{split} {_scores(row[split])}" for split in ("val", "test") if split in row]
        self.message(
            f"epoch {row['epoch']:>3}/{self._epochs}  {'  |  '.join(parts)}  |  "
            f"{row['seconds']:.1f} s, {row['images_per_second']:,.0f} images/s"
        )
        if self._bar is not None and row["epoch"] == self._epochs:
            self._bar.set_description("evaluating")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def message(self, text: str) -> None:
        """Print the line."""
        if self._enabled:
            tqdm.write(text, file=sys.stderr)


class GridScreen:
    """Prints a line for each cell that ends."""

    _ended: set[str] | None = None

    def watch(self, states: Mapping[str, CellState]) -> None:
        """Show what has changed."""
        ended = {name for name, each in states.items() if each.state in ("finished", "failed")}
        if self._ended is None:
            counts = Counter(state.state for state in states.values())
            text = ", ".join(f"{count} {state}" for state, count in counts.items())
            sys.stderr.write(f"{len(states)} cells: {text}\n")
        for name in sorted(ended - (ended if self._ended is None else self._ended)):
            sys.stderr.write(f"{_cell_line(name, states[name])}\n")
        self._ended = ended


def _cell_line(name: str, state: CellState) -> str:
    if state.state == "failed":
        return f"✗ {name}: {state.error}"
    scores = _scores(state.epochs[-1].get("val", {}))
    return f"✓ {name}: finished, epoch {len(state.epochs)}, validation {scores}"


def _scores(metrics: Mapping[str, float]) -> str:
    """Return the main metrics of an epoch, such as ``acc 0.912  Dice 0.801``."""
    keys = [key for key in ("accuracy", "auc", "dice") if metrics.get(key) is not None] or ["mse"]
    return "  ".join(f"{METRICS[key].short} {metrics[key]:.3f}" for key in keys if key in metrics)
