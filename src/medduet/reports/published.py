"""Accuracies from the literature on the same data sets."""

from importlib import resources

import pandas as pd
import yaml
from statsmodels.stats.proportion import proportion_confint

from medduet.metrics.intervals import CONFIDENCE


def all_published() -> pd.DataFrame:
    """Return every published test accuracy in percent, with its 95% Wilson interval.

    The interval is for the size of the test split: it covers neither the spread between seeds nor
    selection on test. Protocol is how the epoch was selected, notes are caveats of the set.
    """
    text = (resources.files("medduet") / "reports" / "published.yaml").read_text("utf-8")
    content = yaml.safe_load(text)
    table = pd.DataFrame(content["tables"])
    table = table.join(pd.DataFrame(table.pop("accuracy").tolist()))
    about = ["network", "source", "protocol"]
    table = table.melt(about, var_name="dataset", value_name="accuracy").dropna(ignore_index=True)
    table["source"] = table["source"].map(content["sources"])
    table["size"] = content["size"]
    table["splits"] = [list(content["sets"][name].values()) for name in table["dataset"]]
    notes = content["notes"]
    table["notes"] = [notes["all"] + notes.get(name, []) for name in table["dataset"]]
    # Of the share as it is printed: a mean over seeds is no whole number of images.
    n = table["splits"].str[2]
    ends = proportion_confint(table["accuracy"] / 100 * n, n, 1 - CONFIDENCE, method="wilson")
    table["low"], table["high"] = (100 * end for end in ends)
    return table
