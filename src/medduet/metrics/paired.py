"""Paired tests: of two networks on the same images, and of methods over seeds or data sets."""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as _mcnemar
from statsmodels.stats.multitest import multipletests

from medduet.errors import DataError
from medduet.metrics.inputs import Floats
from medduet.metrics.intervals import CONFIDENCE, DECIMALS, UNDEFINED, PairedTest, Z, bootstrap_mean

EXACT_BELOW = 25
"""McNemar's test is exact for fewer images than this on which only one network is right."""
_NAN = float("nan")


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> PairedTest:
    """Test whether two networks are right ``(n,)`` bool on equally many of the same images.

    The test is statsmodels', exact if one alone is right on fewer images than `EXACT_BELOW`, else
    chi-squared with continuity correction; the odds ratio that of these images. The interval is
    that of Bonett and Price, doi:10.3102/1076998611411915.

    Example:
        >>> test = mcnemar([True] * 9 + [False], [True] * 3 + [False] * 6 + [True])
        >>> test.difference, round(test.p, 3), test.effect
        (0.5, 0.125, 6.0)
    """
    first, second = (scores > 0 for scores in _check_pairs(right_a, right_b))
    b, c, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    table = [[int((first & second).sum()), b], [c, int((~first & ~second).sum())]]
    exact = b + c < EXACT_BELOW or b == c  # the correction is not for 0
    p = float(_mcnemar(table, exact=exact, correction=True).pvalue)
    odds = b / c if c else (float("inf") if b else _NAN)
    share_b, share_c = (b + 1) / (n + 2), (c + 1) / (n + 2)
    centre = share_b - share_c
    half = Z * float(np.sqrt((share_b + share_c - centre**2) / (n + 2)))
    interval = (max(centre - half, -1.0), min(centre + half, 1.0))
    return PairedTest((b - c) / n, interval, p, odds, n)


def over_images(
    a: ArrayLike,
    b: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    resamples: int = 9999,
    seed: int = 0,
) -> PairedTest:
    """Compare two scores ``(n,)`` or ``(n, K)`` of the same images, such as Dice.

    If the networks are equally good, either could have had either score of an image: the
    permutation test (scipy's) flips the signs of whole images' differences, all 2^n ways if these
    are no more than `resamples`. `weights` are as for `bootstrap_mean`, which gives the interval.
    """
    first, second = _check_pairs(a, b)
    weight = np.ones_like(first) if weights is None else np.asarray(weights, dtype=np.float64)
    difference, weight = (array.reshape(len(first), -1) for array in (first - second, weight))
    rows, columns = weight.any(axis=1), weight.any(axis=0)  # images and columns that count
    weight, n = weight[rows][:, columns], int(rows.sum())
    difference = np.where(weight > 0, np.round(difference[rows][:, columns], DECIMALS), 0.0)
    if not n:
        return PairedTest(_NAN, UNDEFINED, _NAN, _NAN, 0)
    interval = bootstrap_mean(difference, weight, resamples=resamples, seed=seed)
    # What each image adds to the mean over columns of their weighted means, times n.
    share = n * (difference * weight / weight.sum(axis=0)).mean(axis=1)
    p = 1.0
    if share.any():
        p = stats.permutation_test(
            (share,),
            np.mean,
            permutation_type="samples",
            n_resamples=resamples,
            batch=max(1, 1_000_000 // n),
            rng=np.random.default_rng(seed),
        ).pvalue
    return PairedTest(float(share.mean()), interval, float(p), _effect(share), n)


def over_seeds(a: ArrayLike, b: ArrayLike) -> PairedTest:
    """Compare two methods by their scores ``(n,)`` with the same seeds in the same order.

    By the paired t test, whose `p` is NaN if the differences have no spread.
    """
    first, second = _check_pairs(a, b)
    differences, n = np.round(first - second, DECIMALS), len(first)
    mean = float(differences.mean())
    if n < 2 or np.ptp(differences) == 0:
        return PairedTest(mean, UNDEFINED, _NAN, _NAN, n)
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    interval = float(low), float(high)
    return PairedTest(mean, interval, float(test.pvalue), _effect(differences), n)


class OverSets(NamedTuple):
    """Several methods over several data sets, as Demsar 2006 (JMLR 7:1-30) compares them.

    Of ranks 1 is best; pairs are those of `itertools.combinations`, with the rank-biserial effect.
    """

    mean_ranks: tuple[float, ...]
    friedman_p: float
    pairs: tuple[PairedTest, ...]
    sets: int


def over_sets(scores: ArrayLike) -> OverSets:
    """Compare methods over data sets: Friedman, and Wilcoxon for every pair.

    The tests are scipy's. Takes finite scores ``(sets, methods)``, at least ``(1, 2)``; larger is
    better.
    """
    score: Floats = np.asarray(scores, dtype=np.float64).round(DECIMALS)
    sets, methods = score.shape
    friedman_p = _NAN
    if methods > 2:
        differ = np.ptp(score, axis=1).any()
        friedman_p = float(stats.friedmanchisquare(*score.T).pvalue) if differ else 1.0
    pairs = [_wilcoxon(np.round(a - b, DECIMALS)) for a, b in combinations(score.T, 2)]
    return OverSets(
        mean_ranks=tuple(stats.rankdata(-score, axis=1).mean(axis=0).tolist()),
        friedman_p=friedman_p,
        pairs=tuple(pairs),
        sets=sets,
    )


def holm(p_values: ArrayLike) -> list[float]:
    """Return the p values ``(n,)`` after Holm's correction; NaN stays and counts as no test."""
    p = np.array(p_values, dtype=np.float64)
    defined = ~np.isnan(p)
    if defined.any():
        p[defined] = multipletests(p[defined], method="holm")[1]
    return [float(value) for value in p]


def _check_pairs(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim not in (1, 2) or not len(first):
        raise DataError(f"expected (n,) or (n, K) twice, given {first.shape} and {second.shape}")
    return first, second


def _effect(differences: Floats) -> float:
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return float(differences.mean()) / spread if spread else _NAN


def _wilcoxon(differences: Floats) -> PairedTest:
    """Test rounded differences, so that equal ones tie; the effect is rank-biserial."""
    mean, n = float(differences.mean()), len(differences)
    if not differences.any():
        return PairedTest(mean, UNDEFINED, 1.0, 0.0, n)
    p = float(stats.wilcoxon(differences).pvalue)
    differences = differences[differences != 0]
    ranks = stats.rankdata(np.abs(differences))
    effect = float((ranks * np.sign(differences)).sum() / ranks.sum())
    return PairedTest(mean, UNDEFINED, p, effect, n)
