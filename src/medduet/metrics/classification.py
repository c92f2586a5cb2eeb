"""How well images are classified: the numbers of `medmnist.Evaluator`, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medduet.errors import DataError
from medduet.metrics.intervals import (
    CONFIDENCE,
    UNDEFINED,
    Interval,
    bootstrap_mean,
    bounds,
    mean_of_known,
    number,
    percentile_interval,
    resample_counts,
    wilson,
)
from medduet.types import UNKNOWN_LABEL

THRESHOLD = 0.5


def accuracy(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the share of right answers, as `medmnist.Evaluator` counts them.

    Two columns: the last one > 0.5 says class 1. More columns: the largest one. Multi-label: each
    column > 0.5, and the mean over labels of the share of right answers. NaN if no label is known.

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
    answers = _answers(label, probability, multi_label)
    right = answers.said == answers.has
    if not multi_label:
        return mean_of_known(right.all(axis=1))
    return mean_of_known(_ratio((right & answers.known).sum(axis=0), answers.known.sum(axis=0)))


def right_answers(
    label: ArrayLike, probability: ArrayLike, multi_label: bool = False
) -> NDArray[np.bool_]:
    """Return which answers are right, as `accuracy` counts them; False where unknown.

    ``(N,)``, or ``(N, K)`` for multi-label sets. Args and Raises as for `accuracy`.

    Example:
        >>> right_answers([0, 1, -1], [[0.9, 0.1], [0.7, 0.3], [0.5, 0.5]]).tolist()
        [True, False, False]
    """
    answers = _answers(label, probability, multi_label)
    right: NDArray[np.bool_] = (answers.said == answers.has) & answers.known
    if multi_label:
        return right
    everywhere = np.zeros(np.shape(label), dtype=np.bool_)
    everywhere[np.asarray(label) != UNKNOWN_LABEL] = right.all(axis=1)
    return everywhere


def auc(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the area under the ROC curve, as `medmnist.Evaluator` averages it.

    The chance that a positive image scores higher than a negative one; ties count half. Two
    columns: of the last one. More columns: the mean over classes, each against the rest.
    Multi-label: the mean over labels of which anything is known. NaN if one of these has no
    positive or no negative image. Args and Raises as for `accuracy`.

    Example:
        >>> auc([0, 1, 1], [[0.9, 0.1], [0.8, 0.2], [0.9, 0.1]])
        0.75
    """
    return float(_mean_auc(_answers(label, probability, multi_label))[0])


def auc_replicates(
    label: ArrayLike,
    probability: ArrayLike,
    multi_label: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the ``(resamples,)`` AUC of bootstrap replicates, drawn within classes.

    Multi-label sets are drawn over all images. The same labels and `seed` give the same replicates
    for any probabilities, so that those of two networks can be subtracted. Args and Raises as for
    `accuracy`.

    Example:
        >>> auc_replicates([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], resamples=3).tolist()
        [1.0, 1.0, 1.0]
    """
    return np.concatenate(
        _auc_replicates(_answers(label, probability, multi_label), resamples, seed)
    )


def auc_interval(
    replicates: Sequence[NDArray[np.float64]],
    label: ArrayLike,
    probability: ArrayLike,
    multi_label: bool = False,
) -> Interval:
    """Return the 95% interval of an AUC from its bootstrap replicates.

    A network that separates the images perfectly does so in every resample, though the next image
    may be wrong. There the interval is that of chance: with m images of a class (or outside of it,
    if these are fewer), each beside another of the others, an AUC of a would separate all of them
    with a probability of a^m at most, so it ends at ``0.025 ** (1 / m)``, of the class with the
    fewest. Args and Raises as for `accuracy`.

    Example:
        >>> label, probability = [0] * 26 + [1] * 34, [[0.9, 0.1]] * 26 + [[0.1, 0.9]] * 34
        >>> low, high = auc_interval([auc_replicates(label, probability)], label, probability)
        >>> f"{low:.3f} {high:.3f}"
        '0.868 1.000'
    """
    return _interval_of(replicates, _answers(label, probability, multi_label))


def balanced_accuracy(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the mean recall over the classes that occur; Args and Raises as for `accuracy`.

    Multi-label: the mean over labels of the mean of recall and specificity.

    Example:
        >>> balanced_accuracy([0, 0, 0, 1], [[0.9, 0.1]] * 4)
        0.5
    """
    rates = _rates(_answers(label, probability, multi_label))
    recalls = [rates["recall"], rates["specificity"]] if multi_label else [rates["recall"]]
    return mean_of_known([mean_of_known(both) for both in np.transpose(recalls)])


def macro_f1(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the mean F1 over the classes or labels that occur in truth or prediction.

    F1 is 2 TP / (2 TP + FP + FN); Args and Raises as for `accuracy`.

    Example:
        >>> macro_f1([0, 0, 1, 1], [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
        1.0
    """
    return mean_of_known(_rates(_answers(label, probability, multi_label))["f1"])


def confusion_matrix(label: ArrayLike, probability: ArrayLike) -> NDArray[np.int64]:
    """Return the ``(K, K)`` int64 counts of true class (row) against predicted class (column).

    Args and Raises as for `accuracy`, single-label only.

    Example:
        >>> confusion_matrix([0, 1, 1], [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]).tolist()
        [[1, 0], [1, 1]]
    """
    answers = _answers(label, probability, multi_label=False)
    return answers.has.T.astype(np.int64) @ answers.said


def classification_metrics(
    label: ArrayLike,
    probability: ArrayLike,
    *,
    multi_label: bool,
    class_names: Sequence[str],
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return every classification number of one split with 95% intervals, ready for JSON.

    The accuracy interval is Wilson's; multi-label accuracy is no proportion of independent
    trials, so there it is a percentile bootstrap over images. So is that of the AUC, drawn within
    each class; for multi-label sets over images, without the replicates whose AUC is undefined;
    for an AUC of 1 see `auc_interval`.

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
    answers = _answers(label, probability, multi_label)
    size = answers.score.shape[1]
    if len(class_names) != size or len(set(class_names)) != size:
        raise DataError(
            f"expected {size} distinct class_names, one per column of probability, "
            f"given {list(class_names)}"
        )
    rows = answers.known.any(axis=1)
    right, n = answers.said == answers.has, int(rows.sum())
    if multi_label:
        interval = bootstrap_mean(right[rows], answers.known[rows], resamples=bootstrap, seed=seed)
    else:
        interval = wilson(int(right.all(axis=1).sum()), n)
    area = auc(label, probability, multi_label)
    resampled = f"bootstrap {'over images' if multi_label else 'within classes'}"
    metrics: dict[str, Any] = {
        "n": n,
        "confidence": CONFIDENCE,
        "accuracy": number(accuracy(label, probability, multi_label)),
        "accuracy_interval": bounds(interval),
        "accuracy_interval_method": "bootstrap over images" if multi_label else "wilson",
        "auc": number(area),
        "auc_interval": bounds(_auc_interval(answers, bootstrap, seed)),
        "auc_interval_method": "exact, all separated" if area == 1 else resampled,
        "balanced_accuracy": number(balanced_accuracy(label, probability, multi_label)),
        "macro_f1": number(macro_f1(label, probability, multi_label)),
        "per_class": {},
    }
    rates = _rates(answers) | {"auc": _areas(answers)[:, 0]}
    for k, name in enumerate(class_names):
        row: dict[str, Any] = {key: number(values[k]) for key, values in rates.items()}
        metrics["per_class"][str(name)] = row | {"support": int(answers.has[:, k].sum())}
    if not multi_label:
        metrics["confusion_matrix"] = confusion_matrix(label, probability).tolist()
    return metrics


class _Answers(NamedTuple):
    """The checked input as ``(N, K)`` questions: has the image this class or label?"""

    score: NDArray[np.float64]
    known: NDArray[np.bool_]
    has: NDArray[np.bool_]
    said: NDArray[np.bool_]
    multi_label: bool

    @property
    def lacks(self) -> NDArray[np.bool_]:
        """Whether the image is known not to have it."""
        return self.known & ~self.has


def _answers(label: ArrayLike, probability: ArrayLike, multi_label: bool) -> _Answers:
    score, truth = np.asarray(probability, dtype=np.float64), np.asarray(label)
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
    if truth.size and not UNKNOWN_LABEL <= truth.min() <= truth.max() <= largest:
        raise DataError(
            f"expected labels 0 to {largest}, or {UNKNOWN_LABEL} for unknown, "
            f"given {truth.min()} to {truth.max()}"
        )
    if not np.isfinite(score).all():
        raise DataError("expected finite probabilities, given NaN or infinity")
    known = truth != UNKNOWN_LABEL
    if multi_label:
        return _Answers(score, known, truth == 1, score > THRESHOLD, True)
    score, classes = score[known], np.arange(score.shape[1])
    predicted = score[:, 1] > THRESHOLD if len(classes) == 2 else score.argmax(axis=1)
    has, said = truth[known, None] == classes, predicted[:, None] == classes
    return _Answers(score, np.ones_like(has), has, said, False)


def _rates(answers: _Answers) -> dict[str, NDArray[np.float64]]:
    """Return each ``(K,)``; scikit-learn's refuse no images and know no unknown elements."""
    hits, support = (answers.said & answers.has).sum(axis=0), answers.has.sum(axis=0)
    called, lacking = (answers.said & answers.known).sum(axis=0), answers.lacks.sum(axis=0)
    return {
        "precision": _ratio(hits, called),
        "recall": _ratio(hits, support),
        "specificity": _ratio(lacking - called + hits, lacking),
        "f1": _ratio(2 * hits, support + called),
    }


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # 0 / 0 where undefined
        return part / whole


def _mean_auc(answers: _Answers, counts: NDArray[np.int32] | None = None) -> NDArray[np.float64]:
    """Return the ``(R,)`` AUC of the set if row i occurs ``counts[i, r]`` times in replicate r."""
    mean: NDArray[np.float64] = _areas(answers, counts, _columns(answers)).mean(axis=0)
    return mean


def _columns(answers: _Answers) -> NDArray[np.bool_]:
    """Return which classes or labels the AUC of the set is the mean of."""
    known, size = answers.known, answers.score.shape[1]
    if answers.multi_label:
        asked = np.asarray(known.any(axis=0))
        return asked if asked.any() else ~asked  # if nothing is known, all columns are NaN
    several: NDArray[np.bool_] = np.arange(size) >= (size == 2)
    return several


def _areas(
    answers: _Answers, counts: NDArray[np.int32] | None = None, columns: Any = slice(None)
) -> NDArray[np.float64]:
    """Return ``(K, R)``, the AUC of each column if row i occurs ``counts[i, r]`` times in each r.

    Counts, for each positive, the negatives below it twice and the tied ones once: exact. NaN
    without positives or negatives. A library's, called for each resample, is slow.
    """
    counts = np.ones((len(answers.score), 1), dtype=np.int32) if counts is None else counts
    parts = [part.T[columns] for part in (answers.score, answers.has, answers.lacks)]
    areas = np.full((len(parts[0]), counts.shape[1]), np.nan)
    for column, positive, negative, area in zip(*parts, areas, strict=True):
        order = np.flatnonzero(negative)
        order = order[np.argsort(column[order])]
        below = np.zeros((len(order) + 1, counts.shape[1]), dtype=np.int32)
        np.cumsum(counts[order], axis=0, out=below[1:])
        first = np.searchsorted(column[order], column[positive], side="left")
        last = np.searchsorted(column[order], column[positive], side="right")
        weight = counts[positive].astype(np.int64)
        wins = ((below[first] + below[last]) * weight).sum(axis=0)
        pairs = 2 * weight.sum(axis=0) * below[-1]
        np.divide(wins, pairs, out=area, where=pairs > 0)
    return areas


def _auc_interval(answers: _Answers, resamples: int, seed: int) -> Interval:
    if resamples < 1 or np.isnan(_mean_auc(answers)):
        return UNDEFINED
    return _interval_of(_auc_replicates(answers, resamples, seed), answers)


def _interval_of(replicates: Sequence[NDArray[np.float64]], answers: _Answers) -> Interval:
    if any((each < 1).any() for each in replicates):
        return percentile_interval(list(replicates))
    asked = _columns(answers)
    fewest = np.minimum(answers.has.sum(axis=0), answers.lacks.sum(axis=0))[asked].min()
    return float(((1 - CONFIDENCE) / 2) ** (1 / fewest)), 1.0


def _auc_replicates(answers: _Answers, resamples: int, seed: int) -> list[NDArray[np.float64]]:
    strata = None if answers.multi_label else answers.has.argmax(axis=1)
    chunks = resample_counts(len(answers.score), resamples, seed, strata)
    return [_mean_auc(answers, counts) for counts in chunks]
