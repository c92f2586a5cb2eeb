"""The progress that a run reports."""

from collections.abc import Callable, Mapping
from typing import Any


class Reporter:
    """Gets the progress of a run; this one is silent, that of the command line draws it."""

    def begin_epoch(self, epoch: int, epochs: int, steps: int) -> None:
        """Epoch `epoch` of `epochs` starts, with so many steps."""

    def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
        """A step is done, of so many images over all processes.

        `losses` gives the mean loss of each task over the epoch so far; on a GPU a call waits.
        """

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is done and saved; `row` is its line in ``epochs.jsonl``."""

    def message(self, text: str) -> None:
        """Show one line to the user."""
