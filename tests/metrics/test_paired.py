"""Tests of differences, against scipy, statsmodels, scikit-learn and cases done by hand."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from medduet.errors import DataError
from medduet.metrics.paired import holm, mcnemar, over_images, over_seeds, over_sets

Floats = NDArray[np.float64]


def answers(both: int, b: int, c: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    counts = (both, b, c, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False] * 2, counts)


@pytest.mark.parametrize("counts", [(50, 6, 1, 9), (50, 20, 4, 9), (50, 20, 5, 9), (5, 9, 40, 1)])
def test_mcnemar_is_statsmodels(counts: tuple[int, int, int, int]) -> None:
    test = mcnemar(*answers(*counts))
    both, b, c, neither = counts
    known = statsmodels_mcnemar([[both, b], [c, neither]], exact=b + c < 25, correction=True)
    assert test.p == known.pvalue
    assert test.n == sum(counts)
    assert test.effect == b / c
    assert test.difference == pytest.approx((b - c) / sum(counts))


def test_mcnemar_s_interval_by_hand() -> None:
    # n = 98: shares (11 + 1) / 100 and (2 + 1) / 100; 0.09 +- 1.96 sqrt((0.15 - 0.0081) / 100).
    half = 1.959964 * math.sqrt(0.001419)
    interval = mcnemar(*answers(60, 11, 2, 25)).interval
    assert interval == pytest.approx((0.09 - half, 0.09 + half), abs=1e-7)


def test_mcnemar_of_equals() -> None:
    # As many images either way are no evidence, whatever statsmodels' correction makes of them.
    assert mcnemar(*answers(50, 13, 13, 9)).p == mcnemar(*answers(50, 3, 3, 9)).p == 1
    test = mcnemar(*answers(5, 0, 0, 5))
    assert (test.p, test.difference) == (1.0, 0.0)
    assert math.isnan(test.effect)
    assert test.interval[0] < 0 < test.interval[1]
    assert mcnemar(*answers(0, 3, 0, 0)).effect == math.inf
    assert mcnemar(*answers(0, 3, 0, 0)).interval[1] <= 1
    for first, second in (
        ([True], [True, False]),
        (none := np.zeros(0, bool), none),
    ):
        with pytest.raises(DataError):
            mcnemar(first, second)


# Scores of images ---------------------------------------------------------------------------------


def test_over_images_is_scipy_s_test() -> None:
    rng = np.random.default_rng(0)
    b = rng.random(12)
    a = b + rng.normal(0.05, 0.1, 12)
    test = over_images(a, b)
    known = stats.permutation_test(
        (a - b,), lambda d, axis: d.mean(axis=axis), permutation_type="samples", n_resamples=9999
    )
    assert test.p == pytest.approx(known.pvalue)  # all 4096 of them
    assert test.difference == pytest.approx(np.mean(a - b))
    assert test.effect == pytest.approx(np.mean(a - b) / np.std(a - b, ddof=1))
    bootstrap = stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    assert test.interval == pytest.approx(tuple(bootstrap))
    back = over_images(b, a)
    assert (back.difference, back.p) == pytest.approx((-test.difference, test.p))


def test_over_images_weighs() -> None:
    a, b = np.array([[0.9, 0.1], [0.7, np.nan], [0.4, 0.5], [0, 0]]), np.full((4, 2), 0.5)
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [1.0, 2.0], [0, 0]])
    test = over_images(a, b, weights)
    first, second = (0.4 + 2 * 0.2 - 0.1) / 4, -0.4 / 3
    assert test.difference == pytest.approx((first + second) / 2)
    assert test.n == 3
    # A column that counts nothing is no column.
    wide = over_images(a, b, weights * [0, 1])
    narrow = over_images(a[:, 1], b[:, 1], weights[:, 1])
    assert wide == narrow
    assert narrow.difference == pytest.approx(second)
    assert over_images(b, b).p == 1
    assert math.isnan(over_images(b, b, np.zeros((4, 2))).difference)
    with pytest.raises(DataError, match="finite"):
        over_images(a, b)


# Repeats ------------------------------------------------------------------------------------------


def test_over_seeds_is_scipy_s() -> None:
    a, b = np.array([0.80, 0.84, 0.79, 0.86, 0.81]), np.array([0.78, 0.79, 0.80, 0.80, 0.78])
    test = over_seeds(a, b)
    known = stats.ttest_rel(a, b)
    assert test.p == pytest.approx(known.pvalue)
    assert test.interval == pytest.approx(tuple(known.confidence_interval()))
    assert test.effect == pytest.approx(known.statistic / math.sqrt(5))
    one = over_seeds([0.8], [0.7])
    assert one.difference == pytest.approx(0.1)
    assert all(math.isnan(x) for x in (one.p, one.effect, *one.interval))
    assert math.isnan(over_seeds([0.9, 0.5], [0.8, 0.4]).p)  # equal but for rounding
    with pytest.raises(DataError):
        over_seeds([], [])


SCORES = np.array(
    [
        [0.90, 0.70, 0.95, 0.80, 0.6],
        [0.85, 0.72, 0.91, 0.75, 0.5],
        [0.80, 0.60, 0.91, 0.71, 0.4],
    ]
).T


def test_over_sets_is_scipy_s_and_statsmodels() -> None:
    test = over_sets(SCORES)
    assert test.mean_ranks == pytest.approx([(1 + 2 + 1 + 1 + 1) / 5, 1.9, 2.9])
    known = stats.friedmanchisquare(*SCORES.T)
    assert test.friedman_p == pytest.approx(known.pvalue)
    pairs = [(0, 1), (0, 2), (1, 2)]
    p = [stats.wilcoxon((SCORES[:, i] - SCORES[:, j]).round(12)).pvalue for i, j in pairs]
    assert [pair.p for pair in test.pairs] == pytest.approx(p)
    assert [pair.difference for pair in test.pairs] == pytest.approx(
        [(SCORES[:, i] - SCORES[:, j]).mean() for i, j in pairs]
    )
    assert test.pairs[0].p == pytest.approx(0.125)  # one of five against: 2 * 2 / 32
    # Ranks of 0.05, -0.02, 0.04, 0.05, 0.10: 3.5, 1, 2, 3.5, 5.
    assert test.pairs[0].effect == pytest.approx((14 - 1) / 15)
    assert test.pairs[1].effect == 1
    assert test.sets == 5


def test_over_sets_of_equals_and_of_too_little() -> None:
    same = over_sets(np.full((4, 3), 0.5))
    assert same.mean_ranks == (2, 2, 2)
    assert (same.friedman_p, same.pairs[0].p, same.pairs[0].effect) == (1, 1, 0)
    assert math.isnan(over_sets(SCORES[:, :2]).friedman_p)
    assert over_sets([[0.3 - 0.1, 0.2], [0.5, 0.4]]).mean_ranks == (1.25, 1.75)  # 0.2 is 0.3 - 0.1


def test_holm() -> None:
    p = [0.04, 0.01, 0.03, 0.2]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([math.nan, 0.01, 0.04])[1:] == pytest.approx([0.02, 0.04])
    assert holm([]) == []
