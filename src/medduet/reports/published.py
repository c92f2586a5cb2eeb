"""Accuracies from the literature on the same data sets."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import yaml
from statsmodels.stats.proportion import proportion_confint

from medduet.metrics.intervals import CONFIDENCE, Interval


class Published(NamedTuple):
    """One published test accuracy.

    Attributes:
        dataset: MedMNIST flag.
        network: as its source calls it, or the name that it has here.
        accuracy: on the test split, in percent.
        protocol: how the epoch was selected, and from how many runs the number comes.
        source: who published it.
        size: side of the images in pixels.
        splits: images in train, val and test.
    """

    dataset: str
    network: str
    accuracy: float
    protocol: str
    source: str
    size: int
    splits: tuple[int, int, int]

    @property
    def label(self) -> str:
        """Network, authors and how the epoch was selected, in short."""
        authors, selection = self.source.partition(",")[0], self.protocol.partition(" (")[0]
        return ", ".join((self.network, authors, selection.partition(",")[0]))

    @property
    def interval(self) -> Interval:
        """The 95% Wilson interval in percent for the size of the test split.

        It covers neither the spread between seeds nor selection on the test split.
        """
        # Of the share as it is printed: a mean over seeds is no whole number of images.
        n = self.splits[2]
        low, high = proportion_confint(self.accuracy / 100 * n, n, 1 - CONFIDENCE, method="wilson")
        return 100 * float(low), 100 * float(high)


def published_for(dataset: str, size: int) -> list[Published]:
    """Return what is published for a data set at a size in pixels.

    Example:
        >>> first = published_for("breastmnist", 224)[0]
        >>> first.network, first.accuracy, [round(bound, 2) for bound in first.interval]
        ('vovunet_var', 88.46, [82.5, 92.57])
        >>> published_for("breastmnist", 28)
        []
    """
    return [row for row in all_published() if (row.dataset, row.size) == (dataset, size)]


@cache
def all_published() -> tuple[Published, ...]:
    """Return every published number, table by table."""
    content = _file()
    return tuple(
        Published(
            dataset,
            table["network"],
            float(accuracy),
            table["protocol"],
            content["sources"][table["source"]],
            content["size"],
            tuple(content["sets"][dataset].values()),
        )
        for table in content["tables"]
        for dataset, accuracy in table["accuracy"].items()
    )


def notes_for(dataset: str, size: int) -> list[str]:
    """Return the caveats of the published numbers of a data set.

    Example:
        >>> notes_for("dermamnist", 224)[-1]
        'Repeat photographs of one lesion lie in several splits (arXiv:2401.14497).'
    """
    if not published_for(dataset, size):
        return []
    notes = _file()["notes"]
    return [note["text"] for note in notes if note["sets"] == "all" or dataset in note["sets"]]


@cache
def _file() -> Any:
    text = (resources.files("medduet") / "reports" / "published.yaml").read_text("utf-8")
    return yaml.safe_load(text)
