"""How well images are classified: the numbers of `medmnist.Evaluator`, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medduet.errors import DataError
from medduet.metrics.intervals import bootstrap_mean, bounds, mean_of_known, number, wilson
from medduet.metrics.ranking import OneVsRest, auc_interval, mean_auc
from medduet.types import UNKNOWN_LABEL

THRESHOLD = 0.5


class _Truth(NamedTuple):
    """Checked inputs; for single labels only the rows whose class is known."""

    label: NDArray[np.int64]
    probability: NDArray[np.float64]
    multi_label: bool


def accuracy(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the share of right answers, as `medmnist.Evaluator` counts them.

    Two columns: the last one > 0.5 says class 1. More columns: the largest one. Multi-label: each
    column > 0.5, and the mean over labels of the share of right answers.

    Args:
        label: ``(N,)`` int class index, or ``(N, K)`` int of 0 and 1 if `multi_label`; -1 where
            unknown, which is left out (for multi-label sets element by element).
        probability: ``(N, K)`` float, one column per class or label.
        multi_label: whether an image may carry several labels.

    Returns:
        Between 0 and 1; NaN if no label is known.

    Raises:
        DataError: for shapes, labels or probabilities that do not fit together.

    Example:
        >>> accuracy([0, 1, -1], [[0.9, 0.1], [0.7, 0.3], [0.5, 0.5]])
        0.5
    """
    truth = _checked(label, probability, multi_label)
    right = _right(truth)
    if not multi_label:
        return mean_of_known(right)
    known = truth.label != UNKNOWN_LABEL
    return mean_of_known([mean_of_known(right[known[:, k], k]) for k in range(right.shape[1])])


def auc(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    r"""Return the area under the ROC curve, as `medmnist.Evaluator` averages it.

    .. math:: \mathrm{AUC} = P(s^+ > s^-) + \tfrac12 P(s^+ = s^-)

    Two columns: of the last one. More columns: the mean over classes, each against the rest.
    Multi-label: the mean over labels of which anything is known.

    Args:
        label: as for `accuracy`.
        probability: as for `accuracy`.
        multi_label: as for `accuracy`.

    Returns:
        Between 0 and 1; NaN if some class or label has no positive or no negative image.

    Raises:
        DataError: as `accuracy`.

    Example:
        >>> auc([0, 1, 1], [[0.9, 0.1], [0.8, 0.2], [0.9, 0.1]])
        0.75
    """
    truth = _checked(label, probability, multi_label)
    return float(mean_auc(_scored(truth)))


def balanced_accuracy(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the mean over the classes that occur of the recall (multi-label: mean over labels).

    Args, Returns and Raises as for `accuracy`.

    Example:
        >>> balanced_accuracy([0, 0, 0, 1], [[0.9, 0.1]] * 4)
        0.5
    """
    return _class_summary(_checked(label, probability, multi_label))[0]


def macro_f1(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    r"""Return the mean F1 over the classes that occur in truth or prediction.

    .. math:: F_1 = \frac{2\,TP}{2\,TP + FP + FN}

    Multi-label: the mean over labels of the F1 of having the label. A class that is never right
    counts 0. Args, Returns and Raises as for `accuracy`.

    Example:
        >>> macro_f1([0, 0, 1, 1], [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
        1.0
    """
    return _class_summary(_checked(label, probability, multi_label))[1]


def confusion_matrix(label: ArrayLike, probability: ArrayLike) -> NDArray[np.int64]:
    """Return the ``(K, K)`` int64 counts of true class (row) against predicted class (column).

    Args and Raises as for `accuracy`, single-label only.

    Example:
        >>> confusion_matrix([0, 1, 1], [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]).tolist()
        [[1, 0], [1, 1]]
    """
    truth = _checked(label, probability, multi_label=False)
    k = truth.probability.shape[1]
    cells = truth.label * k + _predicted(truth)
    return np.bincount(cells, minlength=k * k).reshape(k, k).astype(np.int64)


def classification_metrics(
    label: ArrayLike,
    probability: ArrayLike,
    *,
    multi_label: bool,
    class_names: Sequence[str],
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Return every classification number of one split, ready for JSON.

    The accuracy interval is Wilson's; multi-label accuracy is no proportion of independent
    trials, so there it is a percentile bootstrap over images. The AUC interval is a percentile
    bootstrap within each class; for multi-label sets over images, leaving out replicates in which
    a label has no positive or no negative image.

    Args:
        label: as for `accuracy`.
        probability: as for `accuracy`.
        multi_label: as for `accuracy`.
        class_names: K distinct names.
        bootstrap: number of bootstrap replicates; 0 leaves the bootstrap intervals ``None``.
        seed: of the bootstrap.
        confidence: coverage of the intervals.

    Returns:
        ``n`` (images with a known label), ``accuracy``, ``accuracy_interval``,
        ``accuracy_interval_method``, ``auc``, ``auc_interval``, ``auc_interval_method``,
        ``confidence``, ``balanced_accuracy``, ``macro_f1``, ``per_class`` (``precision``,
        ``recall``, ``specificity``, ``f1``, ``auc``, ``support`` by name) and, for single labels,
        ``confusion_matrix`` (rows are the truth). What is undefined is ``None``: precision of a
        class never predicted, recall of one that never occurs, F1 of one that does neither.

    Raises:
        DataError: as `accuracy`, or if `class_names` does not fit the columns.

    Example:
        >>> probability = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]
        >>> metrics = classification_metrics(
        ...     [0, 1, 1, 0], probability, multi_label=False, class_names=["benign", "malignant"])
        >>> metrics["n"], metrics["accuracy"], metrics["auc"], metrics["confusion_matrix"]
        (4, 0.5, 0.75, [[1, 1], [1, 1]])
    """
    truth = _checked(label, probability, multi_label)
    if len(class_names) != truth.probability.shape[1] or len(set(class_names)) != len(class_names):
        raise DataError(
            f"expected {truth.probability.shape[1]} distinct class_names, one per column of "
            f"probability, given {list(class_names)}"
        )
    known = truth.label != UNKNOWN_LABEL
    right = _right(truth)
    if multi_label:
        rows = known.any(axis=1)
        n = int(rows.sum())
        interval = bootstrap_mean(
            right[rows], known[rows], resamples=bootstrap, seed=seed, confidence=confidence
        )
    else:
        n = len(right)
        interval = wilson(int(right.sum()), n, confidence)
    strata = None if multi_label else truth.label
    area = auc_interval(_scored(truth), len(right), strata, bootstrap, seed, confidence)
    balanced, f1, per_class = _class_summary(truth)
    names = [str(name) for name in class_names]
    metrics: dict[str, Any] = {
        "n": n,
        "confidence": confidence,
        "accuracy": number(accuracy(label, probability, multi_label)),
        "accuracy_interval": bounds(interval),
        "accuracy_interval_method": "bootstrap over images" if multi_label else "wilson",
        "auc": number(auc(label, probability, multi_label)),
        "auc_interval": bounds(area),
        "auc_interval_method": f"bootstrap {'over images' if multi_label else 'within classes'}",
        "balanced_accuracy": number(balanced),
        "macro_f1": number(f1),
        "per_class": dict(zip(names, per_class, strict=True)),
    }
    if not multi_label:
        metrics["confusion_matrix"] = confusion_matrix(label, probability).tolist()
    return metrics


def _checked(label: ArrayLike, probability: ArrayLike, multi_label: bool) -> _Truth:
    score = np.asarray(probability, dtype=np.float64)
    truth = np.asarray(label)
    least = 1 if multi_label else 2
    if score.ndim != 2 or score.shape[1] < least:
        raise DataError(f"expected probability (N, K) with K >= {least}, given {score.shape}")
    wanted = score.shape if multi_label else score.shape[:1]
    if truth.shape != wanted:
        raise DataError(
            f"expected label {wanted} for probability {score.shape} and multi_label={multi_label}, "
            f"given {truth.shape}"
        )
    if truth.size and not np.issubdtype(truth.dtype, np.integer):
        raise DataError(f"expected integer labels, given {truth.dtype}")
    largest = 1 if multi_label else score.shape[1] - 1
    if truth.size and not (truth.min() >= UNKNOWN_LABEL and truth.max() <= largest):
        raise DataError(
            f"expected labels 0 to {largest}, or {UNKNOWN_LABEL} for unknown, "
            f"given {truth.min()} to {truth.max()}"
        )
    if not np.isfinite(score).all():
        raise DataError("expected finite probabilities, given NaN or infinity")
    truth = truth.astype(np.int64)
    if not multi_label:
        known = truth != UNKNOWN_LABEL
        truth, score = truth[known], score[known]
    return _Truth(truth, score, multi_label)


def _predicted(truth: _Truth) -> NDArray[np.int64]:
    """Return the predicted class ``(N,)``, or for multi-label sets 0 and 1 ``(N, K)``."""
    likely: NDArray[np.bool_] = truth.probability > THRESHOLD
    if truth.multi_label:
        return likely.astype(np.int64)
    if truth.probability.shape[1] == 2:
        return likely[:, -1].astype(np.int64)
    likeliest: NDArray[np.int64] = truth.probability.argmax(axis=1)
    return likeliest


def _right(truth: _Truth) -> NDArray[np.float64]:
    right: NDArray[np.bool_] = _predicted(truth) == truth.label
    return right.astype(np.float64)


def _questions(truth: _Truth) -> list[OneVsRest]:
    """Return one question per column of the probabilities."""
    questions = []
    for k, score in enumerate(truth.probability.T):
        column = truth.label[:, k] if truth.multi_label else truth.label
        has = column == (1 if truth.multi_label else k)
        lacks = ~has & (column != UNKNOWN_LABEL)
        questions.append(OneVsRest(np.flatnonzero(has), np.flatnonzero(lacks), score))
    return questions


def _scored(truth: _Truth) -> list[OneVsRest]:
    """Return the questions whose mean is the AUC of the set."""
    questions = _questions(truth)
    if truth.multi_label:
        return [one for one in questions if one.positive.size + one.negative.size]
    return questions[1:] if len(questions) == 2 else questions


def _class_summary(truth: _Truth) -> tuple[float, float, list[dict[str, Any]]]:
    """Return the balanced accuracy, the macro F1 and one report per class or label."""
    predicted = _predicted(truth)
    balanced, f1, report = [], [], []
    for k, one in enumerate(_questions(truth)):
        said = predicted[:, k] == 1 if truth.multi_label else predicted == k
        hits, alarms = int(said[one.positive].sum()), int(said[one.negative].sum())
        support, others = len(one.positive), len(one.negative)
        recall, specificity = _ratio(hits, support), _ratio(others - alarms, others)
        balanced.append(mean_of_known([recall, specificity]) if truth.multi_label else recall)
        f1.append(_ratio(2 * hits, support + hits + alarms))
        row = {
            "precision": number(_ratio(hits, hits + alarms)),
            "recall": number(recall),
            "specificity": number(specificity),
            "f1": number(f1[-1]),
            "auc": number(mean_auc([one])),
            "support": support,
        }
        report.append(row)
    return mean_of_known(balanced), mean_of_known(f1), report


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
