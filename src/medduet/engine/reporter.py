"""What a run tells of itself while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Reporter:
    """Is told how a run goes on; this one stays silent. The command line has one that draws."""

    def begin(self, epochs: int, steps: int) -> None:
        """Training starts: so many epochs of so many steps."""

    def step(self, epoch: int, images: int, losses: Callable[[], dict[str, float]]) -> None:
        """A step over `images` images is done.

        Args:
            epoch: number of the epoch.
            images: over all processes.
            losses: gives the mean loss of each task so far; on a GPU a call waits for it.
        """

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done and saved; `row` is its line in ``epochs.jsonl``."""

    def judging(self, split: str, images: int) -> None:
        """The selected epoch is judged on `split`; so many more images are done."""

    def message(self, text: str) -> None:
        """Something that the user should know, in one line."""
