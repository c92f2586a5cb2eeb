"""Accuracies from the literature on the same data sets."""

from functools import cache
from importlib import resources

import pandas as pd
import yaml
from statsmodels.stats.proportion import proportion_confint

from medduet.metrics.intervals import CONFIDENCE


@cache
def all_published() -> pd.DataFrame:
    """Return every published test accuracy in percent, with its 95% Wilson interval.

    The interval is for the size of the test split: it covers neither the spread between seeds nor
    selection on test. Protocol is how the epoch was selected, notes are caveats of the set.
    """
    text = (resources.files("medduet") / "reports" / "published.yaml").read_text("utf-8")
    content = yaml.safe_load(text)
    notes = {
        dataset: [
            note["text"]
            for note in content["notes"]
            if note["sets"] == "all" or dataset in note["sets"]
        ]
        for dataset in content["sets"]
    }
    table = pd.DataFrame(
        {
            "dataset": dataset,
            "network": part["network"],
            "accuracy": float(accuracy),
            "protocol": part["protocol"],
            "source": content["sources"][part["source"]],
            "size": content["size"],
            "splits": list(content["sets"][dataset].values()),
            "notes": notes[dataset],
        }
        for part in content["tables"]
        for dataset, accuracy in part["accuracy"].items()
    )
    # Of the share as it is printed: a mean over seeds is no whole number of images.
    n = table["splits"].str[2]
    ends = proportion_confint(table["accuracy"] / 100 * n, n, 1 - CONFIDENCE, method="wilson")
    table["low"], table["high"] = (100 * end for end in ends)
    parts = [table["source"].str.split(",").str[0], table["protocol"].str.split(r",| \(").str[0]]
    table["label"] = table["network"].str.cat(parts, sep=", ")
    return table
