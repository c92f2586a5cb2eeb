"""How well images are classified, averaged as `medmnist.Evaluator` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medduet.errors import DataError
from medduet.metrics.inputs import Booleans, Floats, Integers, check_predictions, one_vs_rest
from medduet.metrics.intervals import CONFIDENCE, bootstrap_mean, bounds, nan_mean, number, wilson
from medduet.metrics.roc import auc, auc_interval, auc_per_class
from medduet.types import UNKNOWN_LABEL

THRESHOLD = 0.5


def accuracy(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the share of correct predictions.

    Two columns: the last one > 0.5 predicts class 1. More columns: the largest one. Multi-label:
    each column > 0.5, and the mean over labels of their accuracies. NaN if no label is known.

    Args:
        label: ``(N,)`` int class index, or ``(N, K)`` int of 0 and 1 if `multi_label`; -1 where
            unknown, which is left out (for multi-label sets element by element).
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
    """Return which predictions are correct, as `accuracy` counts them; False where unknown.

    ``(N,)``, or ``(N, K)`` for multi-label sets. Args and Raises as for `accuracy`.

    Example:
        >>> correct_predictions([0, 1, -1], [[0.9, 0.1], [0.7, 0.3], [0.5, 0.5]]).tolist()
        [True, False, False]
    """
    return _correct(*check_predictions(label, probability, multi_label))[0]


def balanced_accuracy(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the mean recall over the classes that occur; Args and Raises as for `accuracy`.

    Multi-label: the mean over labels of the mean of recall and specificity.

    Example:
        >>> balanced_accuracy([0, 0, 0, 1], [[0.9, 0.1]] * 4)
        0.5
    """
    scores = _per_class(*check_predictions(label, probability, multi_label))
    if not multi_label:
        return nan_mean(scores["recall"])
    pairs = zip(scores["recall"], scores["specificity"], strict=True)
    return nan_mean([nan_mean(pair) for pair in pairs])


def macro_f1(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the mean F1 over the classes or labels that occur in truth or prediction.

    Args and Raises as for `accuracy`.

    Example:
        >>> macro_f1([0, 0, 1, 1], [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
        1.0
    """
    return nan_mean(_per_class(*check_predictions(label, probability, multi_label))["f1"])


def confusion_matrix(label: ArrayLike, probability: ArrayLike) -> Integers:
    """Return the ``(K, K)`` counts of true class (row) against predicted class (column).

    Args and Raises as for `accuracy`, single-label only.

    Example:
        >>> confusion_matrix([0, 1, 1], [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]).tolist()
        [[1, 0], [1, 1]]
    """
    truth, score = check_predictions(label, probability, multi_label=False)
    classes, labelled = score.shape[1], truth != UNKNOWN_LABEL
    cells = truth[labelled] * classes + _predicted(score[labelled], multi_label=False)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def classification_metrics(
    label: ArrayLike,
    probability: ArrayLike,
    *,
    multi_label: bool,
    class_names: Sequence[str],
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return every classification metric of one split with 95% intervals, ready for JSON.

    The accuracy interval is Wilson's; multi-label accuracy is no proportion of independent
    trials, so there it is a percentile bootstrap over images. That of the AUC is DeLong's on the
    logit scale, see `medduet.metrics.roc.auc_interval`.

    Takes what `accuracy` takes, K distinct `class_names` (else DataError), the number of
    `bootstrap` replicates (0 leaves their intervals ``None``) and its `seed`. ``n`` are the images
    with a known label; what is undefined is ``None``: precision of a class never predicted, recall
    of one that never occurs.

    Example:
        >>> probability = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]
        >>> metrics = classification_metrics(
        ...     [0, 1, 1, 0], probability, multi_label=False, class_names=["benign", "malignant"])
        >>> metrics["n"], metrics["accuracy"], metrics["auc"], metrics["confusion_matrix"]
        (4, 0.5, 0.75, [[1, 1], [1, 1]])
    """
    data = label, probability, multi_label
    truth, score = check_predictions(*data)
    if len(class_names) != score.shape[1] or len(set(class_names)) != score.shape[1]:
        raise DataError(
            f"expected {score.shape[1]} distinct class_names, one per column of probability, "
            f"given {list(class_names)}"
        )
    right, labelled = _correct(truth, score)
    if multi_label:
        images = labelled.any(axis=1)
        interval = bootstrap_mean(right[images], labelled[images], resamples=bootstrap, seed=seed)
    else:
        images = labelled
        interval = wilson(int(right.sum()), int(labelled.sum()))
    area = auc(*data)
    per_class = {**_per_class(truth, score), "auc": np.array(auc_per_class(*data))}
    support = per_class.pop("support")
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
        "macro_f1": number(macro_f1(*data)),
        "per_class": {
            str(name): {key: number(values[k]) for key, values in per_class.items()}
            | {"support": int(support[k])}
            for k, name in enumerate(class_names)
        },
    }
    if not multi_label:
        metrics["confusion_matrix"] = confusion_matrix(label, probability).tolist()
    return metrics


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
