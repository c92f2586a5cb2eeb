"""Intervals equal those of scipy; those of the paper: tests/reports/test_report.py."""

import numpy as np
import pytest
from scipy import stats

from medduet.errors import DataError
from medduet.metrics.intervals import bootstrap_mean, wilson


@pytest.mark.parametrize("n", [2, 37, 500])
def test_bootstrap_equals_scipy(n: int) -> None:
    values = np.random.default_rng(n).beta(5, 1, n)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    found = bootstrap_mean(values, resamples=1000, seed=3)
    assert found == pytest.approx(tuple(expected), abs=1e-12)


def test_bootstrap_of_columns_with_gaps_equals_a_loop() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.random((25, 3)), rng.integers(0, 3, (25, 3)).astype(float)
    weights[:, 2] = 0
    values[weights == 0] = np.nan
    draws = np.random.default_rng(5).integers(0, 25, (200, 25))
    means = []
    for rows in draws:
        columns = [
            np.average(np.nan_to_num(values[rows, k]), weights=weights[rows, k]) for k in (0, 1)
        ]
        means.append(np.mean(columns))
    found = bootstrap_mean(values, weights, resamples=200, seed=5)
    assert found == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-12)


def test_too_little_to_say_and_what_is_refused() -> None:
    assert np.isnan(wilson(0, 0)).all()
    assert wilson(0, 3)[0] == 0
    for values, resamples in (([], 9), ([0.5], 9), ([0.1, 0.2], 0)):
        assert np.isnan(bootstrap_mean(values, resamples=resamples)).all()
    assert bootstrap_mean([0.5] * 9) == (0.5, 0.5)
    with pytest.raises(DataError, match="finite"):
        bootstrap_mean([0.1, np.nan])
    with pytest.raises(DataError, match=r"\(N,\) or \(N, K\)"):
        bootstrap_mean([0.1, 0.2], [1.0])
