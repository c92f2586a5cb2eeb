"""The headline numbers of repeated runs, and how two methods differ on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medduet.metrics.intervals import (
    UNDEFINED,
    Interval,
    bootstrap_mean,
    wilson,
)
from medduet.metrics.names import METRICS
from medduet.metrics.paired import mcnemar, over_images
from medduet.metrics.repeats import OverSeeds, holm, merge_p, over_seeds
from medduet.metrics.roc import auc_interval, delong
from medduet.reports.grouping import RESAMPLES, Group
from medduet.reports.verdict import EVIDENCE

MEASURES = {key: METRICS[key].name for key in ("accuracy", "auc", "dice_nonempty", "dice")}
"""What is compared, and how it is called."""
COMBINED_MCNEMAR = "McNemar, combined over seeds"
COMBINED_DELONG = "DeLong, mean over seeds"
_NAN = float("nan")


@dataclass(frozen=True)
class Measured:
    """A number of the test split over the seeds of a group.

    Attributes:
        values: of each seed.
        mean: over seeds.
        spread: their standard deviation; NaN for one seed.
        interval: 95%, of the mean, over test images; the seeds stay as they are.
        n: images that it is measured on.
    """

    values: tuple[float, ...]
    mean: float
    spread: float
    interval: Interval
    n: int


def measure(group: Group, name: str) -> Measured | None:
    """Return a measure of a group, ``None`` if its runs don't have it.

    The interval of the accuracy is Wilson's at the mean over seeds, that of the AUC DeLong's on the
    logit scale. That of Dice is a percentile bootstrap over images, drawn within classes, of the
    mean over seeds: each resample is the same images for every seed.

    Args:
        group: runs that differ by seed.
        name: ``"accuracy"``, ``"auc"``, ``"dice"`` or ``"dice_nonempty"``.
    """
    if not _has(group, name):
        return None
    values = tuple(float(group.runs[seed].honest["test"][name]) for seed in group.seeds)
    mean = float(np.mean(values))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else _NAN
    interval, n = _INTERVALS[name](group, mean)
    return Measured(values, mean, spread, interval, n)


def _of_accuracy(group: Group, mean: float) -> tuple[Interval, int]:
    known = _known(group)
    if known.ndim == 1:
        n = int(known.sum())
        return wilson(round(mean * n), n), n
    right = _right(group, group.seeds)
    return bootstrap_mean(right, known.astype(float), resamples=RESAMPLES), _count(known)


def _of_auc(group: Group, mean: float) -> tuple[Interval, int]:
    label, probability = _probabilities(group, group.seeds)
    return auc_interval(label, probability, label.ndim == 2), _count(_known(group))


def _probabilities(
    group: Group, seeds: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the labels, and the ``(S, N, K)`` probabilities of each seed."""
    label = group.test[seeds[0]].label
    assert label is not None
    pieces = [p for seed in seeds if (p := group.test[seed].probability) is not None]
    return label, np.stack(pieces)


def _of_dice(group: Group, mean: float, lesion: bool = False) -> tuple[Interval, int]:
    scores, weights = _dice(group, group.seeds, lesion)
    rows = weights > 0
    label = next(iter(group.test.values())).label
    strata = label[rows] if label is not None and label.ndim == 1 else None
    interval = bootstrap_mean(scores[rows], weights[rows], resamples=RESAMPLES, strata=strata)
    return interval, int(rows.sum())


_INTERVALS: dict[str, Callable[[Group, float], tuple[Interval, int]]] = {
    "accuracy": _of_accuracy,
    "auc": _of_auc,
    "dice": _of_dice,
    "dice_nonempty": lambda group, mean: _of_dice(group, mean, lesion=True),
}


def _known(group: Group) -> NDArray[np.bool_]:
    """Return, in the shape of the labels, which are known."""
    known = group.test[group.seeds[0]].known
    assert known is not None
    return known


def _count(known: NDArray[np.bool_]) -> int:
    """Return the number of images of which a label is known."""
    return int(known.reshape(len(known), -1).any(axis=1).sum())


def _right(group: Group, seeds: Sequence[int]) -> NDArray[np.float64]:
    """Return the share of seeds that are right on each image."""
    parts = [part for seed in seeds if (part := group.test[seed].right) is not None]
    share: NDArray[np.float64] = np.mean(parts, axis=0)
    return share


def _dice(
    group: Group, seeds: Sequence[int], lesion: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ``(n,)`` Dice of each image, mean over seeds, and its weight.

    As in ``metrics.json``, every pair of image and mask class counts once.
    """
    parts = [part for seed in seeds if (part := group.test[seed].mask_dice) is not None]
    present = group.test[seeds[0]].mask_present
    assert present is not None
    scores = np.mean(parts, axis=0)
    counts = ~np.isnan(scores) & (present if lesion else True)
    weight = counts.sum(axis=1).astype(float)
    return np.where(counts, scores, 0.0).sum(axis=1) / np.maximum(weight, 1), weight


class Difference(NamedTuple):
    """How a method differs from the reference on one measure of one data set.

    Attributes:
        measure: see `MEASURES`.
        dataset: where.
        method: that is compared.
        reference: with which.
        difference: reference minus method, mean over the seeds that both have.
        interval: 95%, over images: that of the test for McNemar and DeLong of one seed, else a
            bootstrap of that mean; NaN where no image tells the methods apart.
        test: name of the test over images.
        p: of it; for several seeds twice the median of the tests of each (`merge_p`), or that of
            the mean over seeds.
        p_holm: corrected for all methods that are compared on this measure and data set.
        seeds: the same differences, seed by seed.
        p_seeds_holm: of the paired t test over seeds, corrected likewise; NaN for one seed.
        same_way: whether the difference has the same sign in every seed.
        n: images.
    """

    measure: str
    dataset: str
    method: str
    reference: str
    difference: float
    interval: Interval
    test: str
    p: float
    p_holm: float
    seeds: OverSeeds
    p_seeds_holm: float
    same_way: bool
    n: int

    @property
    def evidence(self) -> str:
        """What tells the methods apart: ``"images"``, ``"seeds"``, ``"both"`` or ``"none"``."""
        images, seeds = self.p_holm < EVIDENCE, self.p_seeds_holm < EVIDENCE
        return "both" if images and seeds else "images" if images else "seeds" if seeds else "none"

    @property
    def found(self) -> bool:
        """Whether the test over images finds evidence and every seed points the same way.

        A few seeds can't reach a small p over seeds after correction, however clear they are.
        """
        return self.p_holm < EVIDENCE and self.same_way


def differences(groups: Sequence[Group]) -> list[Difference]:
    """Compare, on each measure, the first group that has it with every other one that has it.

    Accuracy is tested by McNemar, AUC by DeLong, Dice by sign-flip permutation. The tests need the
    same images in the same order: a method without a seed in common is left out.
    """
    found: list[Difference] = []
    for name in MEASURES:
        having = [group for group in groups if _has(group, name)]
        rows = [
            row for other in having[1:] if (row := _difference(name, having[0], other)) is not None
        ]
        if rows:
            images = holm([row.p for row in rows])
            seeds = holm([row.seeds.p for row in rows])
            found += [
                row._replace(p_holm=p, p_seeds_holm=q)
                for row, p, q in zip(rows, images, seeds, strict=True)
            ]
    return found


def _has(group: Group, name: str) -> bool:
    return all(run.honest["test"].get(name) is not None for run in group.runs.values())


def _difference(name: str, reference: Group, other: Group) -> Difference | None:
    seeds = [seed for seed in reference.seeds if seed in other.runs]
    if not seeds:
        return None
    first, second = (
        np.array([group.runs[seed].honest["test"][name] for seed in seeds], dtype=float)
        for group in (reference, other)
    )
    difference = float(np.mean(first - second))
    if name == "auc":
        test, p, interval = _auc_test(reference, other, seeds)
        n = _count(_known(reference))
    else:
        test, p, interval, n = _image_test(name, reference, other, seeds)
    return Difference(
        name,
        reference.dataset,
        other.method,
        reference.method,
        difference,
        interval,
        test,
        p,
        _NAN,
        over_seeds(first, second),
        _NAN,
        bool((np.sign(first - second) == np.sign(difference)).all()),
        n,
    )


def _auc_test(reference: Group, other: Group, seeds: Sequence[int]) -> tuple[str, float, Interval]:
    label, first = _probabilities(reference, seeds)
    test = delong(label, first, _probabilities(other, seeds)[1])
    return "DeLong" if len(seeds) == 1 else COMBINED_DELONG, test.p, test.interval


def _image_test(
    name: str, reference: Group, other: Group, seeds: Sequence[int]
) -> tuple[str, float, Interval, int]:
    if name != "accuracy":
        (a, weights), (b, _) = (
            _dice(group, seeds, lesion=name == "dice_nonempty") for group in (reference, other)
        )
        over = over_images(a, b, weights, resamples=RESAMPLES)
        return "permutation", over.p, over.interval, over.n
    known, a, b = _known(reference), _right(reference, seeds), _right(other, seeds)
    if known.ndim == 2:
        over = over_images(a, b, known.astype(float), resamples=RESAMPLES)
        return "permutation", over.p, over.interval, over.n
    tests = []
    for seed in seeds:
        right = [
            part for group in (reference, other) if (part := group.test[seed].right) is not None
        ]
        tests.append(mcnemar(right[0][known], right[1][known]))
    if len(tests) == 1:
        return "McNemar", tests[0].p, tests[0].interval, int(known.sum())
    apart = (a - b)[known]
    # Where no image tells them apart a bootstrap has no width, which is not what is known.
    interval = bootstrap_mean(apart, resamples=RESAMPLES) if apart.any() else UNDEFINED
    return COMBINED_MCNEMAR, merge_p([test.p for test in tests]), interval, int(known.sum())


class SelectionGap(NamedTuple):
    """What selecting the epoch on the test split adds to the accuracy of a group.

    Attributes:
        honest: accuracy of the validation-selected epochs, mean over seeds.
        test_selected: of the test-selected ones.
        gaps: test-selected minus validation-selected, of each seed.
    """

    honest: float
    test_selected: float
    gaps: tuple[float, ...]


def selection_gap(group: Group) -> SelectionGap | None:
    """Return the gap of a group; ``None`` unless its runs follow the paper's protocol."""
    pairs = []
    for run in group.runs.values():
        chosen = run.test_selected
        if chosen is None or chosen["test"].get("accuracy") is None:
            return None
        pairs.append((run.honest["test"]["accuracy"], chosen["test"]["accuracy"]))
    honest, chosen_mean = (float(math.fsum(side) / len(pairs)) for side in zip(*pairs, strict=True))
    return SelectionGap(honest, chosen_mean, tuple(b - a for a, b in pairs))
