"""How well images are classified, and how far the probabilities can be believed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medduet.metrics.inputs import Booleans, Floats, Integers, check_predictions, one_vs_rest
from medduet.metrics.intervals import CONFIDENCE, bootstrap_mean, bounds, nan_mean, number, wilson
from medduet.metrics.roc import auc, auc_interval, auc_per_class
from medduet.types import UNKNOWN_LABEL

THRESHOLD = 0.5
BINS = 15
"""Bins of the expected calibration error and the reliability diagram."""
_RESAMPLES = 1000


def accuracy(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the share of correct predictions; NaN if no label is known.

    Two columns: the last one > 0.5 predicts class 1. More columns: the largest one. Multi-label:
    each column > 0.5, and the mean over labels of their accuracies.

    Args:
        label: ``(N,)`` int class, or ``(N, K)`` 0 and 1 if `multi_label`; -1 unknown, left out.
        probability: ``(N, K)`` float, one column per class or label.
        multi_label: whether an image may carry several labels.

    Raises:
        DataError: for shapes, labels or probabilities that do not fit together.

    Example:
        >>> accuracy([0, 1, -1], [[0.9, 0.1], [0.7, 0.3], [0.5, 0.5]])
        0.5
    """
    right, labelled = _correct(*check_predictions(label, probability, multi_label))
    with np.errstate(invalid="ignore"):
        return nan_mean(right.sum(axis=0) / labelled.sum(axis=0))


def correct_predictions(
    label: ArrayLike, probability: ArrayLike, multi_label: bool = False
) -> Booleans:
    """Return which predictions are correct, as `accuracy` counts them; False where unknown."""
    return _correct(*check_predictions(label, probability, multi_label))[0]


def balanced_accuracy(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the mean recall over the classes that occur; multi-label, with specificity."""
    scores = _per_class(*check_predictions(label, probability, multi_label))
    if not multi_label:
        return nan_mean(scores["recall"])
    pairs = zip(scores["recall"], scores["specificity"], strict=True)
    return nan_mean([nan_mean(pair) for pair in pairs])


def classification_metrics(
    label: ArrayLike,
    probability: ArrayLike,
    *,
    multi_label: bool,
    class_names: Sequence[str],
    ordinal: bool = False,
) -> dict[str, Any]:
    """Return every classification metric of one split with 95% intervals, ready for JSON.

    `ordinal` classes, which are grades, also get Cohen's kappa with quadratic weights and the mean
    absolute error, in grades.

    The accuracy interval is Wilson's; multi-label accuracy is no proportion of independent trials,
    so there it is a bootstrap over images. That of the AUC is DeLong's on the logit scale. What is
    undefined is ``None``, such as the precision of a class never predicted.
    """
    data = label, probability, multi_label
    truth, score = check_predictions(*data)
    right, labelled = _correct(truth, score)
    if multi_label:
        images = labelled.any(axis=1)
        interval = bootstrap_mean(right[images], labelled[images])
    else:
        images = labelled
        interval = wilson(int(right.sum()), int(labelled.sum()))
    area, areas, rows = auc(*data), auc_per_class(*data), _per_class(truth, score)
    metrics: dict[str, Any] = {
        "n": int(images.sum()),
        "confidence": CONFIDENCE,
        "accuracy": number(accuracy(*data)),
        "accuracy_interval": bounds(interval),
        "accuracy_interval_method": "bootstrap over images" if multi_label else "Wilson",
        "auc": number(area),
        "auc_interval": bounds(auc_interval(*data)),
        "auc_interval_method": "exact, all separated" if area == 1 else "DeLong, logit",
        "balanced_accuracy": number(balanced_accuracy(*data)),
        "macro_f1": number(nan_mean(rows["f1"])),  # of the classes in truth or prediction
        "per_class": {
            str(name): {key: number(values[k]) for key, values in rows.items()}
            | {"support": int(rows["support"][k]), "auc": number(areas[k])}
            for name, k in zip(class_names, range(score.shape[1]), strict=True)
        },
    }
    if not multi_label:  # true class (row) against predicted class (column)
        classes = score.shape[1]
        cells = truth[labelled] * classes + _predicted(score[labelled], multi_label=False)
        matrix = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
        metrics["confusion_matrix"] = matrix.tolist()
        if ordinal:
            metrics |= _grade_metrics(matrix)
    return metrics


def _grade_metrics(matrix: Integers) -> dict[str, Any]:
    """Return kappa and mean absolute error of a confusion matrix, with bootstrap intervals."""
    grades = np.arange(len(matrix))
    distance = np.abs(grades[:, None] - grades)
    squared = distance**2
    n, cells = int(matrix.sum()), matrix.ravel()
    drawn = np.random.default_rng(0).multinomial(n, cells / max(n, 1), _RESAMPLES)
    tables = np.concatenate([cells[None], drawn]).reshape(-1, *matrix.shape)
    with np.errstate(invalid="ignore"):
        error = (tables * distance).sum(axis=(1, 2)) / n
        chance = tables.sum(axis=2)[:, :, None] * tables.sum(axis=1)[:, None, :] / n
        kappa = 1 - (tables * squared).sum(axis=(1, 2)) / (chance * squared).sum(axis=(1, 2))
    metrics: dict[str, Any] = {}
    for name, values in (("quadratic_kappa", kappa), ("grade_error", error)):
        interval = np.nanpercentile(values[1:], [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
        metrics |= {name: number(values[0]), f"{name}_interval": bounds(tuple(interval))}
    return metrics


class Reliability(NamedTuple):
    """B bins of equal width: n ``(B,)``, mean confidence and share that is true, NaN if empty."""

    n: Integers
    confidence: Floats
    frequency: Floats

    @property
    def error(self) -> float:
        """The expected calibration error: the mean gap of the bins, weighted by n; NaN if empty."""
        gap = np.nan_to_num(np.abs(self.confidence - self.frequency))
        return float(np.average(gap, weights=self.n)) if self.n.any() else float("nan")


def reliability(
    label: ArrayLike, probability: ArrayLike, multi_label: bool = False, bins: int = BINS
) -> Reliability:
    """Return how often predictions are true, by their confidence; takes what `accuracy` takes.

    Single-label sets: of the most probable class of each image ("top label"), as Guo et al. (2017,
    arXiv:1706.04599). Multi-label sets: of every label of every image, its own probability.
    """
    truth, p = check_predictions(label, probability, multi_label, in_unit_range=True)
    labelled = truth != UNKNOWN_LABEL
    p, truth = p[labelled], truth[labelled]
    p, true = (p, truth == 1) if multi_label else (p.max(axis=1), p.argmax(axis=1) == truth)
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    n = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=weights, minlength=bins) for weights in (p, true)]
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        return Reliability(n, sums[0] / n, sums[1] / n)


def _predicted(score: Floats, multi_label: bool) -> Integers:
    """Return the predictions in the shape of the labels."""
    if multi_label:
        return (score > THRESHOLD).astype(np.int64)
    return (score[:, 1] > THRESHOLD).astype(np.int64) if score.shape[1] == 2 else score.argmax(1)


def _correct(truth: Integers, score: Floats) -> tuple[Booleans, Booleans]:
    """Return, in the shape of the labels, which predictions are correct and which are known."""
    return _predicted(score, truth.ndim == 2) == truth, truth != UNKNOWN_LABEL


def _per_class(truth: Integers, score: Floats) -> dict[str, Floats]:
    """Return precision, recall, specificity, F1 and support ``(K,)``; NaN where undefined."""
    has, labelled = one_vs_rest(truth, score.shape[1])
    called, _ = one_vs_rest(_predicted(score, truth.ndim == 2), score.shape[1])
    both, positive = (has & called).sum(axis=0), has.sum(axis=0)
    predicted, n = (called & labelled).sum(axis=0), labelled.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return {
            "precision": both / predicted,
            "recall": both / positive,
            "specificity": (n - positive - predicted + both) / (n - positive),
            "f1": 2 * both / (positive + predicted),
            "support": positive.astype(np.float64),
        }
