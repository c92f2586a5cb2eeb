"""Tests of methods over repeats: seeds, data sets, and Holm's correction."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from medduet.errors import DataError
from medduet.metrics.intervals import CONFIDENCE, UNDEFINED, Interval
from medduet.metrics.paired import DECIMALS, check_pairs

_NAN = float("nan")


class OverSeeds(NamedTuple):
    """How two methods differ over the seeds that both were trained with.

    Attributes:
        difference: mean of a minus b.
        interval: its 95% interval by the paired t test; NaN for fewer than two seeds.
        p: of the paired t test; NaN also if all differences are the same.
        p_wilcoxon: of Wilcoxon's signed-rank test, 2^(1 - n) at least.
        d_z: Cohen's, mean over standard deviation of the differences; NaN where p is.
        n: seeds.
    """

    difference: float
    interval: Interval
    p: float
    p_wilcoxon: float
    d_z: float
    n: int


def over_seeds(a: ArrayLike, b: ArrayLike) -> OverSeeds:
    """Compare two methods by their scores ``(n,)`` with the same seeds in the same order.

    The t test and Wilcoxon's are scipy's. DataError for shapes that differ or NaN.

    Example:
        >>> test = over_seeds([0.80, 0.82, 0.81], [0.78, 0.79, 0.80])
        >>> round(test.difference, 3), test.n, test.p_wilcoxon
        (0.02, 3, 0.25)
    """
    first, second = check_pairs(a, b)
    if first.ndim != 1 or not np.isfinite(first - second).all():
        raise DataError("expected finite scores (n,), one per seed; leave out incomplete seeds")
    differences, n = np.round(first - second, DECIMALS), len(first)
    mean = float(differences.mean())
    p_wilcoxon = _wilcoxon(differences)[0] if n > 1 else _NAN
    if n < 2 or np.ptp(differences) == 0:
        return OverSeeds(mean, UNDEFINED, _NAN, p_wilcoxon, _NAN, n)
    test = stats.ttest_1samp(differences, 0.0)
    bounds = test.confidence_interval(CONFIDENCE)
    d_z = mean / float(differences.std(ddof=1))
    interval = float(bounds.low), float(bounds.high)
    return OverSeeds(mean, interval, float(test.pvalue), p_wilcoxon, d_z, n)


class PairOverSets(NamedTuple):
    """Two methods over all sets.

    Attributes:
        first: column of one method.
        second: column of the other.
        difference: mean over sets of first minus second.
        p: of Wilcoxon's signed-rank test, exact for up to 50 sets without ties or zeros, or for up
            to 13 with.
        p_holm: corrected for all pairs.
        effect: matched-pairs rank-biserial correlation, -1 to 1: the share of the rank sum that
            favours the first minus the share that favours the second; 0 if all sets tie.
    """

    first: int
    second: int
    difference: float
    p: float
    p_holm: float
    effect: float


class OverSets(NamedTuple):
    """Several methods over several data sets, as Demsar 2006 (JMLR 7:1-30) compares them.

    Attributes:
        mean_ranks: one per method; 1 is best, ties share their ranks.
        friedman_p: of Friedman's test; NaN for two methods.
        critical_difference: by which the mean ranks of two methods must differ in Nemenyi's test
            at 5%.
        pairs: every pair of methods.
        smallest_p: the least that any pair's p can be with so few sets, 2^(1 - sets).
        smallest_p_holm: the least that the smallest corrected p can be.
        sets: number of sets.
    """

    mean_ranks: tuple[float, ...]
    friedman_p: float
    critical_difference: float
    pairs: tuple[PairOverSets, ...]
    smallest_p: float
    smallest_p_holm: float
    sets: int


def over_sets(scores: ArrayLike) -> OverSets:
    """Compare methods over data sets: Friedman, Nemenyi, and Wilcoxon for every pair.

    The tests are scipy's, Holm's correction is statsmodels'.

    Args:
        scores: ``(sets, methods)`` float, larger is better, at least one set and two methods.

    Raises:
        DataError: for other shapes or for a score that is missing.

    Example:
        >>> over = over_sets([[0.9, 0.8, 0.7], [0.8, 0.7, 0.6], [0.7, 0.6, 0.5], [0.9, 0.7, 0.8]])
        >>> over.mean_ranks, over.pairs[0].p, over.smallest_p
        ((1.0, 2.25, 2.75), 0.125, 0.125)
    """
    score: NDArray[np.float64] = np.asarray(scores, dtype=np.float64).round(DECIMALS)
    if score.ndim != 2 or len(score) < 1 or score.shape[1] < 2 or not np.isfinite(score).all():
        raise DataError(
            f"expected finite scores (sets, methods >= 2), given {score.shape}; leave out the sets "
            "or methods that are incomplete"
        )
    sets, methods = score.shape
    couples = list(combinations(range(methods), 2))
    tests = [_wilcoxon(np.round(score[:, i] - score[:, j], DECIMALS)) for i, j in couples]
    corrected = holm([p for p, _ in tests])
    q = float(stats.studentized_range.ppf(CONFIDENCE, methods, np.inf)) / np.sqrt(2)
    smallest = 2.0 ** (1 - sets)
    return OverSets(
        mean_ranks=tuple(stats.rankdata(-score, axis=1).mean(axis=0).tolist()),
        friedman_p=_friedman(score),
        critical_difference=float(q * np.sqrt(methods * (methods + 1) / (6 * sets))),
        pairs=tuple(
            PairOverSets(i, j, float((score[:, i] - score[:, j]).mean()), p, p_holm, effect)
            for (i, j), (p, effect), p_holm in zip(couples, tests, corrected, strict=True)
        ),
        smallest_p=smallest,
        smallest_p_holm=min(1.0, smallest * len(couples)),
        sets=sets,
    )


def holm(p_values: ArrayLike) -> list[float]:
    """Return the p values ``(n,)`` after Holm's correction; NaN stays and counts as no test.

    Example:
        >>> holm([0.01, float("nan"), 0.04])
        [0.02, nan, 0.04]
    """
    p = np.array(p_values, dtype=np.float64)
    defined = ~np.isnan(p)
    if defined.any():
        p[defined] = multipletests(p[defined], method="holm")[1]
    return [float(value) for value in p]


def _wilcoxon(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return p and rank-biserial correlation of rounded differences, so that equal ones tie."""
    if not differences.any():
        return 1.0, 0.0
    p = float(stats.wilcoxon(differences).pvalue)
    differences = differences[differences != 0]
    ranks = stats.rankdata(np.abs(differences))
    return p, float((ranks * np.sign(differences)).sum() / ranks.sum())


def _friedman(score: NDArray[np.float64]) -> float:
    if score.shape[1] < 3:
        return _NAN
    return float(stats.friedmanchisquare(*score.T).pvalue) if np.ptp(score, axis=1).any() else 1.0
