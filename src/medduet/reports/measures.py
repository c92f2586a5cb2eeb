"""Metrics of a method on one data set: scores of single images, means over seeds, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medduet.metrics.intervals import Interval, bootstrap_mean, wilson
from medduet.metrics.roc import auc_interval
from medduet.reports.grouping import RESAMPLES, Group
from medduet.runs.predictions import Predictions

COMPARED = ("accuracy", "auc", "dice_nonempty", "dice", "mse")
"""Keys of the metrics of a report."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A metric of the test split over the seeds of a group.

    Attributes:
        values: of each seed.
        mean: over seeds.
        sd: standard deviation over seeds; NaN for one seed.
        interval: 95%, of the mean, over test images; the seeds stay as they are.
        n: images that it is measured on.
    """

    values: tuple[float, ...]
    mean: float
    sd: float
    interval: Interval
    n: int


def has_metric(group: Group, metric: str, split: str = "test") -> bool:
    """Return whether every run of a group has a metric."""
    return all(
        run.validation_selected[split].get(metric) is not None for run in group.runs.values()
    )


def measure(group: Group, metric: str) -> Measured | None:
    """Return a metric of a group on the test split, ``None`` if its runs don't have it.

    The interval of the accuracy is Wilson's at the mean over seeds, that of the AUC DeLong's on the
    logit scale. That of the others is a percentile bootstrap over images, drawn within classes, of
    the mean over seeds: each resample is the same images for every seed.
    """
    if not has_metric(group, metric):
        return None
    values = [float(group.runs[seed].validation_selected["test"][metric]) for seed in group.seeds]
    mean = float(np.mean(values))
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    predictions = group.predictions()
    label = predictions[0].label
    scores, weights = image_scores(predictions, "accuracy" if metric == "auc" else metric)
    n = count_images(weights)
    if metric == "auc":
        assert label is not None
        stacked = np.array([each.probability for each in predictions])
        interval = auc_interval(label, stacked, label.ndim == 2)
    elif metric == "accuracy" and weights.ndim == 1:
        interval = wilson(round(mean * n), n)
    else:
        rows = weights.reshape(len(weights), -1).any(axis=1)
        strata = label[rows] if label is not None and label.ndim == 1 else None
        interval = bootstrap_mean(scores[rows], weights[rows], resamples=RESAMPLES, strata=strata)
    return Measured(tuple(values), mean, sd, interval, n)


def image_scores(predictions: Sequence[Predictions], metric: str) -> tuple[Floats, Floats]:
    """Return the score of each image, mean over seeds, and its weight in the mean over images.

    ``(n,)`` each; the accuracy of several labels has ``(n, K)``. As in ``metrics.json``, a pair of
    image and mask class counts once; what is not labelled has weight 0. All metrics but the AUC.
    """
    first = predictions[0]
    if metric == "accuracy":
        assert first.labelled is not None
        correct = [each.correct for each in predictions if each.correct is not None]
        return np.mean(correct, axis=0), first.labelled.astype(float)
    if metric == "mse":
        errors = [each.mse for each in predictions if each.mse is not None]
        return np.mean(errors, axis=0), np.ones(len(errors[0]))
    assert first.mask_present is not None
    dice = np.mean([each.dice for each in predictions if each.dice is not None], axis=0)
    counts = ~np.isnan(dice)
    if metric == "dice_nonempty":
        counts &= first.mask_present
    weights = counts.sum(axis=1).astype(float)
    return np.where(counts, dice, 0.0).sum(axis=1) / np.maximum(weights, 1), weights


def count_images(weights: Floats) -> int:
    """Return how many images have any weight."""
    return int(weights.reshape(len(weights), -1).any(axis=1).sum())
