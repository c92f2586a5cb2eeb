"""How well images are classified: scikit-learn's numbers, as `medmnist.Evaluator` averages them.

scikit-learn is imported where it is used: nothing else in a training step needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medduet.errors import DataError
from medduet.metrics.inputs import Floats, Integers, check_predictions
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
    right, labelled = _correct(label, probability, multi_label)
    columns = zip(right.T, labelled.T, strict=True) if multi_label else [(right, labelled)]
    return nan_mean([nan_mean(column[known]) for column, known in columns])


def correct_predictions(
    label: ArrayLike, probability: ArrayLike, multi_label: bool = False
) -> NDArray[np.bool_]:
    """Return which predictions are correct, as `accuracy` counts them; False where unknown.

    ``(N,)``, or ``(N, K)`` for multi-label sets. Args and Raises as for `accuracy`.

    Example:
        >>> correct_predictions([0, 1, -1], [[0.9, 0.1], [0.7, 0.3], [0.5, 0.5]]).tolist()
        [True, False, False]
    """
    return _correct(label, probability, multi_label)[0]


def balanced_accuracy(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the mean recall over the classes that occur; Args and Raises as for `accuracy`.

    Multi-label: the mean over labels of the mean of recall and specificity.

    Example:
        >>> balanced_accuracy([0, 0, 0, 1], [[0.9, 0.1]] * 4)
        0.5
    """
    rows = _per_class(*check_predictions(label, probability, multi_label))
    keys = ("recall", "specificity") if multi_label else ("recall",)
    return nan_mean([nan_mean([row[key] for key in keys]) for row in rows])


def macro_f1(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the mean F1 over the classes or labels that occur in truth or prediction.

    Args and Raises as for `accuracy`.

    Example:
        >>> macro_f1([0, 0, 1, 1], [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
        1.0
    """
    rows = _per_class(*check_predictions(label, probability, multi_label))
    return nan_mean([row["f1"] for row in rows])


def confusion_matrix(label: ArrayLike, probability: ArrayLike) -> NDArray[np.int64]:
    """Return the ``(K, K)`` int64 counts of true class (row) against predicted class (column).

    Args and Raises as for `accuracy`, single-label only.

    Example:
        >>> confusion_matrix([0, 1, 1], [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]).tolist()
        [[1, 0], [1, 1]]
    """
    from sklearn import metrics

    truth, score = check_predictions(label, probability, multi_label=False)
    labelled = truth != UNKNOWN_LABEL
    if not labelled.any():  # scikit-learn refuses no images
        return np.zeros((score.shape[1],) * 2, np.int64)
    predicted = predicted_labels(score[labelled])
    matrix: NDArray[np.int64] = metrics.confusion_matrix(
        truth[labelled], predicted, labels=range(score.shape[1])
    )
    return matrix


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
    right, labelled = _correct(label, probability, multi_label)
    rows = _per_class(*check_predictions(label, probability, multi_label))
    if len(class_names) != len(rows) or len(set(class_names)) != len(rows):
        raise DataError(
            f"expected {len(rows)} distinct class_names, one per column of probability, "
            f"given {list(class_names)}"
        )
    if multi_label:
        images = labelled.any(axis=1)
        n = int(images.sum())
        interval = bootstrap_mean(right[images], labelled[images], resamples=bootstrap, seed=seed)
    else:
        n = int(labelled.sum())
        interval = wilson(int(right.sum()), n)
    area = auc(label, probability, multi_label)
    areas = auc_per_class(label, probability, multi_label)
    metrics: dict[str, Any] = {
        "n": n,
        "confidence": CONFIDENCE,
        "accuracy": number(accuracy(label, probability, multi_label)),
        "accuracy_interval": bounds(interval),
        "accuracy_interval_method": "bootstrap over images" if multi_label else "Wilson",
        "auc": number(area),
        "auc_interval": bounds(auc_interval(label, probability, multi_label)),
        "auc_interval_method": "exact, all separated" if area == 1 else "DeLong, logit",
        "balanced_accuracy": number(balanced_accuracy(label, probability, multi_label)),
        "macro_f1": number(macro_f1(label, probability, multi_label)),
        "per_class": {
            str(name): {key: number(value) for key, value in row.items()}
            | {"auc": number(area_of_class), "support": int(row["support"])}
            for name, row, area_of_class in zip(class_names, rows, areas, strict=True)
        },
    }
    if not multi_label:
        metrics["confusion_matrix"] = confusion_matrix(label, probability).tolist()
    return metrics


def predicted_labels(score: Floats) -> Integers:
    """Return the predicted class ``(N,)`` of single-label probabilities ``(N, K)``."""
    if score.shape[1] == 2:
        return (score[:, 1] > THRESHOLD).astype(np.int64)
    largest: Integers = score.argmax(axis=1).astype(np.int64)
    return largest


def _correct(
    label: ArrayLike, probability: ArrayLike, multi_label: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return, in the shape of the labels, which predictions are correct and which are known."""
    truth, score = check_predictions(label, probability, multi_label)
    predicted = (score > THRESHOLD).astype(np.int64) if multi_label else predicted_labels(score)
    return predicted == truth, truth != UNKNOWN_LABEL


def _per_class(truth: Integers, score: Floats) -> list[dict[str, float]]:
    """Return precision, recall, specificity, F1 and support of each class; NaN where undefined."""
    from sklearn.metrics import precision_recall_fscore_support, recall_score

    predicted = predicted_labels(score) if truth.ndim == 1 else (score > THRESHOLD)
    rows = []
    for k in range(score.shape[1]):
        if truth.ndim == 2:
            labelled = truth[:, k] != UNKNOWN_LABEL
            has, called = truth[labelled, k] == 1, predicted[labelled, k] == 1
        else:
            labelled = truth != UNKNOWN_LABEL
            has, called = truth[labelled] == k, predicted[labelled] == k
        precision = recall = f1 = specificity = float("nan")
        if len(has):
            precision, recall, f1, _ = precision_recall_fscore_support(
                has, called, average="binary", zero_division=np.nan
            )
            specificity = recall_score(~has, ~called, zero_division=np.nan)
        rows.append(
            {
                "precision": precision,
                "recall": recall,
                "specificity": specificity,
                "f1": f1,
                "support": float(has.sum()),
            }
        )
    return rows
