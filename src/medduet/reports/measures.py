"""Metrics of a method on one data set: scores of single images, means over seeds, intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medduet.metrics.intervals import bootstrap_mean, wilson
from medduet.metrics.roc import auc_interval
from medduet.reports.grouping import Group, Runs
from medduet.runs.predictions import Predictions

COMPARED = ("accuracy", "auc", "dice_nonempty", "dice", "mse")
"""Keys of the metrics of a report."""
RESAMPLES = 2000
Floats = NDArray[np.float64]


class Measured(NamedTuple):
    """A metric of the test split: mean and s.d. over seeds, and its 95% interval over n images."""

    metric: str
    dataset: str
    method: str
    mean: float
    sd: float
    low: float
    high: float
    n: int
    seeds: int
    values: list[float]


def measure_all(runs: Runs) -> pd.DataFrame:
    """Return every metric that any group has, as rows of `Measured`."""
    rows = [measure(group, metric) for metric in COMPARED for group in runs.groups]
    return pd.DataFrame([row for row in rows if row], columns=Measured._fields)


def measure(group: Group, metric: str) -> Measured | None:
    """Return a metric of a group on the test split, ``None`` if its runs don't have it.

    Intervals are of the mean over seeds: accuracy Wilson's, AUC DeLong's on the logit scale, others
    a bootstrap over images, drawn within classes, the same images for every seed.
    """
    values = group.values(metric)
    if not values:
        return None
    mean = float(np.mean(values))
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    predictions = group.predictions()
    label = predictions[0].label
    scores, weights = image_scores(predictions, "accuracy" if metric == "auc" else metric)
    rows = weights.reshape(len(weights), -1).any(axis=1)
    n = int(rows.sum())
    if metric == "auc" and label is not None:
        stacked = np.array([each.probability for each in predictions])
        interval = auc_interval(label, stacked, label.ndim == 2)
    elif metric == "accuracy" and weights.ndim == 1:
        interval = wilson(round(mean * n), n)
    else:
        strata = label[rows] if label is not None and label.ndim == 1 else None
        interval = bootstrap_mean(scores[rows], weights[rows], resamples=RESAMPLES, strata=strata)
    place = (metric, group.dataset, group.method)
    return Measured(*place, mean, sd, *interval, n, len(values), values)


def image_scores(predictions: Sequence[Predictions], metric: str) -> tuple[Floats, Floats]:
    """Return the score of each image, mean over seeds, and its weight in the mean over images.

    ``(n,)`` each, or ``(n, K)`` of several labels; not for the AUC. A pair of image and mask class
    counts once, what is not labelled has weight 0.
    """
    first = predictions[0]
    name = {"accuracy": "correct", "mse": "mse"}.get(metric, "dice")
    score: Floats = np.mean([getattr(each, name) for each in predictions], axis=0)
    if metric == "accuracy":
        return score, np.asarray(first.labelled, dtype=float)
    if metric == "mse":
        return score, np.ones(len(score))
    counts = ~np.isnan(score)
    if metric == "dice_nonempty":
        counts &= np.asarray(first.mask_present)
    weights = counts.sum(axis=1).astype(float)
    return np.where(counts, score, 0.0).sum(axis=1) / np.maximum(weights, 1), weights
