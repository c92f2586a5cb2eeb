"""How sure a measured number is: intervals for a proportion and for a mean."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medduet.errors import DataError

Interval = tuple[float, float]
UNDEFINED: Interval = (float("nan"), float("nan"))
CONFIDENCE = 0.95
Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
DECIMALS = 12
"""Smaller differences are those of rounding: 0.9 - 0.8 and 0.5 - 0.4 must be ties."""
_CHUNK_ELEMENTS = 1_000_000


class PairedTest(NamedTuple):
    """How two networks differ on the same n images, or methods over n seeds; NaN if undefined.

    `effect` is Cohen's d_z, of DeLong's test z, of McNemar's the odds ratio.
    """

    difference: float
    interval: Interval
    p: float
    effect: float
    n: int


def wilson(successes: int, n: int) -> Interval:
    """Return the 95% Wilson score interval of a proportion of `n` trials; NaN for no trial.

    Example:
        >>> low, high = wilson(138, 156)
        >>> f"{low:.4f} {high:.4f}"
        '0.8250 0.9258'
    """
    if n == 0:
        return UNDEFINED
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_mean(
    values: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    strata: NDArray[np.integer[Any]] | None = None,
) -> Interval:
    """Return the 95% percentile bootstrap interval of a (weighted) mean, resampling the rows.

    `values` are ``(N,)`` or ``(N, K)``, one row per image; `weights` have the same shape, 0 where a
    value does not count. With `strata` ``(N,)`` rows are drawn within their stratum. The mean is
    that over columns of their weighted means. Draws as `scipy.stats.bootstrap`, which knows no
    weights. NaN for fewer than two rows; DataError for shapes that differ, or NaN where it counts.
    """
    value = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(value) if weights is None else np.asarray(weights, dtype=np.float64)
    if value.ndim not in (1, 2) or value.shape != weight.shape:
        raise DataError(f"expected (N,) or (N, K) twice, given {value.shape} and {weight.shape}")
    if not np.isfinite(value[weight > 0]).all():
        raise DataError("expected finite values wherever the weight is positive; drop the others")
    n = len(value)
    if n < 2 or resamples < 1:
        return UNDEFINED
    weight = weight.reshape(n, -1)
    total = np.where(weight > 0, value.reshape(n, -1), 0.0) * weight
    strata = np.zeros(n, dtype=np.int64) if strata is None else strata
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    rng, step, means = np.random.default_rng(seed), max(1, _CHUNK_ELEMENTS // n), []
    for start in range(0, resamples, step):
        width = min(step, resamples - start)
        times = np.empty((width, n))  # how often each row occurs in each replicate
        for rows in groups:
            drawn = rng.integers(0, len(rows), (width, len(rows)))
            drawn += len(rows) * np.arange(width)[:, None]
            count = np.bincount(drawn.ravel(), minlength=width * len(rows))
            times[:, rows] = count.reshape(width, -1)
        size = times @ weight
        with np.errstate(invalid="ignore"):  # 0 / 0 in a resample without any weight
            sums = np.nansum(times @ total / size, axis=1)
            means.append(sums / (size > 0).sum(axis=1))
    mean = np.concatenate(means)
    if np.isnan(mean).all():
        return UNDEFINED
    low, high = np.nanpercentile(mean, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def number(value: float) -> float | None:
    """Return a plain float for JSON, ``None`` for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def bounds(interval: Interval) -> list[float] | None:
    """Return ``[low, high]`` for JSON, ``None`` for an undefined interval."""
    return None if np.isnan(interval).any() else list(interval)


def nan_mean(values: ArrayLike) -> float:
    """Return the mean of the values that are not NaN, without a warning if there are none."""
    value = np.asarray(values, dtype=np.float64)
    defined = value[~np.isnan(value)]
    return float(defined.mean()) if defined.size else float("nan")
