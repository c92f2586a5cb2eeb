"""The AUC's interval and DeLong's test, by brute force, by hand and against the bootstrap."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from medduet.errors import DataError
from medduet.metrics.roc import auc, auc_interval, delong

Floats = NDArray[np.float64]


@pytest.mark.parametrize(("k", "seeds"), [(2, 1), (4, 1), (3, 4)])
def test_the_interval_is_that_of_the_bootstrap(k: int, seeds: int) -> None:
    """Of the mean over seeds, drawn within classes: both agree to a few thousandths."""
    label, first, _ = draw(2, 400, k)
    noise = np.random.default_rng(1).dirichlet(np.ones(k), (seeds, 400))
    stack = 0.8 * first + 0.2 * noise
    rng, replicates = np.random.default_rng(0), []
    groups = [np.flatnonzero(label == c) for c in range(k)]
    for _ in range(500):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        replicates.append(np.mean([auc(label[rows], p[rows]) for p in stack]))
    found = auc_interval(label, stack if seeds > 1 else stack[0])
    assert found == pytest.approx(np.percentile(replicates, [2.5, 97.5]), abs=0.008)


def test_the_interval_of_a_perfect_auc() -> None:
    label = np.repeat([0, 1, 2], [40, 9, 30])
    low, high = auc_interval(label, np.eye(3)[label])
    assert (low, high) == (pytest.approx(0.025 ** (1 / 9)), 1.0)
    # Scores whose true AUC is the lower end separate all images at most 2.5% of the time.
    shift = np.sqrt(2) * stats.norm.ppf(low)
    rng = np.random.default_rng(5)
    lowest = (rng.normal(size=(20000, 9)) + shift).min(axis=1)
    assert (lowest > rng.normal(size=(20000, 40)).max(axis=1)).mean() <= 0.025


# DeLong's test ----------------------------------------------------------------------------------


def brute_influence(has: NDArray[np.bool_], score: Floats) -> Floats:
    """The structural components of DeLong, by comparing every pair, over their n."""
    wins = (score[has][:, None] > score[~has]) + 0.5 * (score[has][:, None] == score[~has])
    out = np.zeros(len(has))
    out[has] = wins.mean(axis=1) / has.sum()
    out[~has] = wins.mean(axis=0) / (~has).sum()
    return out


def draw(seed: int, n: int, k: int, shift: float = 1.0) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Labels of k classes, and two equally good, correlated, tied predictions of them."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(n) % k)
    shared = rng.normal(size=(n, k)) + shift * np.eye(k)[label]
    pair = [np.exp(shared + rng.normal(size=(n, k))) for _ in range(2)]
    first, second = ((p / p.sum(axis=1, keepdims=True)).round(3) for p in pair)
    return label, first, second


@pytest.mark.parametrize("k", [3, 5])
def test_delong_of_several_classes_by_brute_force(k: int) -> None:
    label, first, second = draw(7, 83, k)
    test = delong(label, first, second)
    influence = np.mean(
        [
            brute_influence(label == c, first[:, c]) - brute_influence(label == c, second[:, c])
            for c in range(k)
        ],
        axis=0,
    )
    variance = sum((label == c).sum() * influence[label == c].var(ddof=1) for c in range(k))
    assert test.difference / test.effect == pytest.approx(math.sqrt(variance))
    areas = [roc_auc_score(label == c, second[:, c]) for c in range(k)]
    assert test.difference == pytest.approx(auc(label, first) - np.mean(areas))


def test_delong_of_several_labels_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    label = (rng.random((300, 3)) < [0.5, 0.3, 0.4]).astype(np.int64)
    shared = rng.normal(size=label.shape) + label
    first, second = (stats.norm.cdf(shared + rng.normal(size=label.shape)) for _ in range(2))
    label[:20, 1] = -1
    label[290] = -1
    test = delong(label, first, second)
    assert test.n == 299
    replicates = []
    for _ in range(400):
        rows = rng.integers(0, 300, 300)
        areas = [auc(label[rows], score[rows], multi_label=True) for score in (first, second)]
        replicates.append(areas[0] - areas[1])
    assert test.difference / test.effect == pytest.approx(np.std(replicates), rel=0.1)


def test_delong_of_equals_and_of_too_little() -> None:
    label, first, second = draw(0, 40, 2)
    same = delong(label, first, first)
    assert (same.p, same.interval, same.difference) == (1.0, (0.0, 0.0), 0.0)
    assert math.isnan(same.effect)
    one = delong([0, 0, 0, 1], first[:4], second[:4])
    assert math.isnan(one.p)
    assert not math.isnan(one.difference)
    none = delong([0, 0, 0, 0], first[:4], second[:4])
    assert math.isnan(none.difference)
    unknown = label.copy()
    unknown[:5] = -1
    assert delong(unknown, first, second) == delong(label[5:], first[5:], second[5:])
    with pytest.raises(DataError):
        delong(label, first, second[:-1])
