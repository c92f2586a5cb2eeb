"""Accuracies from the literature on the same data sets."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
import yaml
from statsmodels.stats.proportion import proportion_confint

from medduet.metrics.intervals import CONFIDENCE


@cache
def all_published() -> pd.DataFrame:
    """Return every published test accuracy, table by table.

    The columns are dataset (MedMNIST flag), network, accuracy (percent), low and high (its 95%
    Wilson interval for the size of the test split, which covers neither the spread between seeds
    nor selection on test), protocol (how the epoch was selected), source, size (pixels), splits
    (images in train, val and test) and label (network, authors and protocol in short).
    """
    content = _file()
    table = pd.DataFrame(
        {
            "dataset": dataset,
            "network": part["network"],
            "accuracy": float(accuracy),
            "protocol": part["protocol"],
            "source": content["sources"][part["source"]],
            "size": content["size"],
            "splits": tuple(content["sets"][dataset].values()),
        }
        for part in content["tables"]
        for dataset, accuracy in part["accuracy"].items()
    )
    # Of the share as it is printed: a mean over seeds is no whole number of images.
    n = table["splits"].str[2]
    ends = proportion_confint(table["accuracy"] / 100 * n, n, 1 - CONFIDENCE, method="wilson")
    table["low"], table["high"] = (100 * end for end in ends)
    authors = table["source"].str.partition(",")[0]
    selection = table["protocol"].str.partition(" (")[0].str.partition(",")[0]
    table["label"] = table["network"] + ", " + authors + ", " + selection
    return table


def published_for(dataset: str, size: int) -> pd.DataFrame:
    """Return what is published for a data set at a size in pixels.

    Example:
        >>> published_for("breastmnist", 224)[["network", "accuracy"]].iloc[0].tolist()
        ['vovunet_var', 88.46]
        >>> len(published_for("breastmnist", 28))
        0
    """
    table = all_published()
    return table[(table["dataset"] == dataset) & (table["size"] == size)]


def notes_for(dataset: str) -> list[str]:
    """Return the caveats of the published numbers of a data set.

    Example:
        >>> notes_for("dermamnist")[-1]
        'Repeat photographs of one lesion lie in several splits (arXiv:2401.14497).'
    """
    notes = _file()["notes"]
    return [note["text"] for note in notes if note["sets"] == "all" or dataset in note["sets"]]


@cache
def _file() -> Any:
    text = (resources.files("medduet") / "reports" / "published.yaml").read_text("utf-8")
    return yaml.safe_load(text)
