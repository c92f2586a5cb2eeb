"""What others have published on the same sets, as data."""

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
        set: MedMNIST flag.
        network: as its source calls it, or the name that it has here.
        accuracy: on the test split, in percent.
        protocol: how the epoch was selected, and from how many runs the number comes.
        source: who published it.
        size: side of the images in pixels.
        classes: of the set.
        channels: of the images.
        splits: images in train, val and test.
    """

    set: str
    network: str
    accuracy: float
    protocol: str
    source: str
    size: int
    classes: int
    channels: int
    splits: tuple[int, int, int]

    @property
    def n_test(self) -> int:
        """Images in the test split."""
        return self.splits[2]

    @property
    def interval(self) -> Interval:
        """The 95% Wilson interval in percent that the size of the test split implies.

        It knows nothing of the spread between seeds, nor of selection on the test split.
        """
        # Of the share as it is printed: a mean over seeds is no whole number of images.
        n = self.n_test
        low, high = proportion_confint(self.accuracy / 100 * n, n, 1 - CONFIDENCE, method="wilson")
        return 100 * float(low), 100 * float(high)


def published_for(set_name: str, size: int) -> list[Published]:
    """Return what is published for a set at a size in pixels; nothing if it is not known.

    Example:
        >>> first = published_for("breastmnist", 224)[0]
        >>> first.network, first.accuracy, [round(bound, 2) for bound in first.interval]
        ('vovunet_var', 88.46, [82.5, 92.57])
        >>> published_for("breastmnist", 28)
        []
    """
    return [row for row in all_published() if (row.set, row.size) == (set_name, size)]


@cache
def all_published() -> tuple[Published, ...]:
    """Return every published number, table by table."""
    known = _file()
    rows = []
    for table in known["tables"]:
        for name, accuracy in table["accuracy"].items():
            about = known["sets"][name]
            rows.append(
                Published(
                    name,
                    table["network"],
                    float(accuracy),
                    table["protocol"],
                    known["sources"][table["source"]],
                    known["size"],
                    about["classes"],
                    about["channels"],
                    (about["train"], about["val"], about["test"]),
                )
            )
    return tuple(rows)


def notes_for(set_name: str, size: int) -> list[str]:
    """Return what to know before comparing with the numbers that are published for a set.

    Example:
        >>> notes_for("dermamnist", 224)[-1]
        'Repeat photographs of one lesion lie in several splits (arXiv:2401.14497).'
    """
    if not published_for(set_name, size):
        return []
    notes = _file()["notes"]
    return [note["text"] for note in notes if note["sets"] == "all" or set_name in note["sets"]]


@cache
def _file() -> Any:
    text = (resources.files("medduet") / "reports" / "published.yaml").read_text("utf-8")
    return yaml.safe_load(text)
