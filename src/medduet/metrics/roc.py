"""Area under the ROC curve: its interval, and DeLong's test between two networks."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import expit, logit

from medduet.metrics.inputs import Booleans, Floats, Integers, check_predictions, one_vs_rest
from medduet.metrics.intervals import CONFIDENCE, DECIMALS, UNDEFINED, Interval, PairedTest, Z
from medduet.types import UNKNOWN_LABEL

_NAN = float("nan")


def auc_per_class(
    label: ArrayLike, probability: ArrayLike, multi_label: bool = False
) -> list[float]:
    """Return the AUC of each class against the rest, or of each label; NaN where undefined."""
    truth, score = check_predictions(label, probability, multi_label)
    has, labelled = one_vs_rest(truth, score.shape[1])
    columns = zip(has.T, labelled.T, score.T, strict=True)
    return [_area(positive[rows], column[rows]) for positive, rows, column in columns]


def auc(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> float:
    """Return the area under the ROC curve (scikit-learn's), averaged as `medmnist.Evaluator` does.

    Two columns: of the last one. More columns: the mean over classes, each against the rest.
    Multi-label: the mean over labels that any image has an annotation of. NaN if one of these has
    no positive or no negative image.
    """
    areas = auc_per_class(label, probability, multi_label)
    columns = _averaged(np.asarray(label), len(areas))
    return float(np.mean([areas[k] for k in columns])) if columns else _NAN


def auc_interval(label: ArrayLike, probability: ArrayLike, multi_label: bool = False) -> Interval:
    """Return the 95% interval of an AUC, over images: DeLong's variance on the logit scale.

    Of the mean over S seeds for ``(S, N, K)`` probabilities; NaN if a class has one image only.
    A perfect AUC has no variance, but of m images of a class (or outside of it), an AUC of a would
    separate all with a probability of a^m at most, so the interval ends at ``0.025 ** (1 / m)``.
    """
    truth, seeds = _check_seeds(label, probability, multi_label)
    area, influence = _mean_influence(truth, seeds)
    if np.isnan(area):
        return UNDEFINED
    if area in (0.0, 1.0):
        has, labelled = one_vs_rest(truth, seeds.shape[2])
        counts = np.stack([has.sum(axis=0), (labelled & ~has).sum(axis=0)])
        fewest = counts[:, _averaged(truth, seeds.shape[2])].min()
        bound = float(((1 - CONFIDENCE) / 2) ** (1 / fewest))
        return (bound, 1.0) if area else (0.0, 1 - bound)
    half = Z * _standard_error(truth, influence) / (area * (1 - area))
    low, high = expit(logit(area) + np.array([-half, half]))
    return float(low), float(high)


def delong(label: ArrayLike, probability_a: ArrayLike, probability_b: ArrayLike) -> PairedTest:
    """Test whether two networks have the same AUC on the same images.

    Takes labels as `accuracy` does, and of each network ``(N, K)`` probabilities, or ``(S, N, K)``
    of S seeds, whose AUC and structural components are averaged: the test stays one over images.

    For two classes it is the test of DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595.
    For more, each image enters by the mean of its structural components over classes (each against
    the rest), and the variance is the sum over true classes of n times the variance of these within
    the class. For multi-label sets it is n times their variance over all images.

    Example:
        >>> good, poor = [[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], [[0.5, 0.5]] * 3
        >>> delong([0, 0, 1], good, poor).difference
        0.5
    """
    multi_label = np.ndim(label) == 2
    truth, seeds_a = _check_seeds(label, probability_a, multi_label)
    _, seeds_b = _check_seeds(label, probability_b, multi_label)
    area_a, influence_a = _mean_influence(truth, seeds_a)
    area_b, influence_b = _mean_influence(truth, seeds_b)
    difference = area_a - area_b
    error = _NAN if np.isnan(difference) else _standard_error(truth, influence_a - influence_b)
    if round(error, DECIMALS) == 0:
        error, z, p = 0.0, _NAN, float(round(difference, DECIMALS) == 0)
    else:
        z = difference / error
        p = float(2 * stats.norm.sf(abs(z)))
    interval = difference - Z * error, difference + Z * error
    return PairedTest(difference, interval, p, z, len(truth))


def _check_seeds(
    label: ArrayLike, probability: ArrayLike, multi_label: bool
) -> tuple[Integers, Floats]:
    """Return labels and ``(S, N, K)`` probabilities of the images with any known label."""
    seeds = np.asarray(probability, dtype=np.float64)
    seeds = seeds if seeds.ndim == 3 else seeds[None]
    for score in seeds:
        truth, _ = check_predictions(label, score, multi_label)
    _, labelled = one_vs_rest(truth, seeds.shape[2])
    rows = labelled.any(axis=1)
    return truth[rows], seeds[:, rows]


def _averaged(truth: Integers, num_classes: int) -> list[int]:
    """Return the classes that the AUC of a set is the mean of."""
    if truth.ndim == 2:
        return [k for k in range(num_classes) if (truth[:, k] != UNKNOWN_LABEL).any()]
    return [1] if num_classes == 2 else list(range(num_classes))


def _area(has: Booleans, score: Floats) -> float:
    from sklearn.metrics import roc_auc_score  # slow to import, and no training step needs it

    return float(roc_auc_score(has, score)) if 0 < has.sum() < len(has) else _NAN


def _mean_influence(truth: Integers, seeds: Floats) -> tuple[float, Floats]:
    """Return the mean AUC over seeds, and the ``(N,)`` by which each image moves it (midranks)."""
    has, labelled = one_vs_rest(truth, seeds.shape[2])
    areas, total = [], np.zeros(len(truth))
    for score in seeds:
        for k in _averaged(truth, seeds.shape[2]):
            rows, inside = np.flatnonzero(labelled[:, k]), has[labelled[:, k], k]
            column = score[rows, k]
            areas.append(_area(inside, column))
            if np.isnan(areas[-1]):
                continue
            ranks = stats.rankdata(column)
            for side, others, sign in ((inside, ~inside, 1), (~inside, inside, -1)):
                wins = sign * (ranks[side] - stats.rankdata(column[side])) / others.sum()
                total[rows[side]] += (wins - wins.mean()) / side.sum()
    if not areas:
        return _NAN, total
    return float(np.mean(areas)), total / len(areas)


def _standard_error(truth: Integers, influence: Floats) -> float:
    """Return the standard error of a sum of influences; NaN if a class has one image only."""
    strata = [influence]
    if truth.ndim == 1:
        strata = [influence[truth == k] for k in np.unique(truth)]
    if min(map(len, strata)) < 2:
        return _NAN
    return float(np.sqrt(sum(len(stratum) * stratum.var(ddof=1) for stratum in strata)))
