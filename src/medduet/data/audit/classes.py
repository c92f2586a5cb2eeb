"""Whether the splits hold the same mix of classes, and enough of each."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from medduet.data.audit.findings import Finding, listed, split_numbers
from medduet.data.imageset import SPLITS, ImageSet
from medduet.metrics.intervals import wilson

WIDEST = 0.10
"""Half of an interval, above which a class has too few test images."""
LEAST_EFFECT = 0.1
"""Cramér's V below which a shift doesn't matter; Cohen calls 0.1 small."""
SIGNIFICANT = 0.05


def class_counts(images: ImageSet) -> NDArray[np.int64]:
    """Return how many images of each class each split has, ``(3, K)``.

    Example:
        >>> import medduet
        >>> class_counts(medduet.open_images("phantom", size=16, count=40)).tolist()
        [[7, 7, 7, 7], [1, 1, 1, 1], [2, 2, 2, 2]]
    """
    counts = np.zeros((len(SPLITS), len(images.class_names)), dtype=np.int64)
    for number, name in enumerate(SPLITS):
        labels = images.split(name).labels
        if images.multi_label:
            counts[number] = (labels == 1).sum(axis=0)
        elif images.class_names:
            counts[number] = np.bincount(labels[labels >= 0], minlength=counts.shape[1])
    return counts


def class_findings(images: ImageSet) -> list[Finding]:
    """Return classes that are missing, few, or more frequent in one split than in another."""
    if not images.class_names:
        return []
    counts = class_counts(images)
    found = [*_missing(images, counts), *_few(images, counts[-1])]
    shifts = [
        shift
        for name, table in _tables(images, counts)
        for shift in _shifts(name, table, images.class_names)
    ]
    if not shifts:
        return found
    corrected = multipletests([p for p, _, _ in shifts], alpha=SIGNIFICANT, method="holm")[1]
    for p, (_, effect, text) in zip(corrected, shifts, strict=True):
        if p < SIGNIFICANT and effect >= LEAST_EFFECT:
            shown = "< 0.001" if p < 0.001 else f"= {p:.3f}"
            text = f"{text} (chi-square, Holm p {shown}, Cramér's V {effect:.2f})."
            found.append(Finding("prevalence", "warning", text))
    return found


def _missing(images: ImageSet, counts: NDArray[np.int64]) -> list[Finding]:
    found = []
    for name, column in zip(images.class_names, counts.T, strict=True):
        lacking = [split for split, count in zip(SPLITS, column, strict=True) if not count]
        if lacking:
            where = "the whole set" if len(lacking) == len(SPLITS) else listed(lacking)
            text = f"Class {name} has no image in {where}."
            found.append(Finding("class-missing", "warning", text))
    return found


def _few(images: ImageSet, test: NDArray[np.int64]) -> list[Finding]:
    few = []
    for name, count in zip(images.class_names, test.tolist(), strict=True):
        if not count:
            continue
        low, high = wilson(count // 2, count)
        if (high - low) / 2 > WIDEST:
            few.append(f"{name} {count} (±{50 * (high - low):.1f})")
    if not few:
        return []
    text = "Few test images of a class, so that a recall of a half has an interval wider than "
    text += f"±{100 * WIDEST:.0f} points: {listed(few)}."
    return [Finding("few-test", "note", text)]


def _tables(images: ImageSet, counts: NDArray[np.int64]) -> list[tuple[str, NDArray[np.int64]]]:
    """Return the tables to compare splits by, ``(3, K)``: one, or with and without each class."""
    if not images.multi_label:
        return [("", counts)]
    known = np.array([(images.split(name).labels >= 0).sum(axis=0) for name in SPLITS])
    pairs = zip(images.class_names, counts.T, known.T, strict=True)
    return [(name, np.stack([count, total - count], axis=1)) for name, count, total in pairs]


def _shifts(
    name: str, table: NDArray[np.int64], names: tuple[str, ...]
) -> list[tuple[float, float, str]]:
    """Return p, effect and words of the difference between each two rows of a table."""
    shifts = []
    for a, b in combinations(range(len(SPLITS)), 2):
        two = table[[a, b]]
        if (two.sum(axis=1) == 0).any() or (two.sum(axis=0) > 0).sum() < 2:
            continue
        two = two[:, two.any(axis=0)]
        shares = two / two.sum(axis=1, keepdims=True)
        # Of the shares, not the counts: it must not depend on how large the splits are.
        effect = float(np.sqrt((np.diff(shares, axis=0) ** 2 / shares.sum(axis=0)).sum() / 2))
        p = float(stats.chi2_contingency(two, correction=False).pvalue)
        present = np.flatnonzero(table[[a, b]].any(axis=0))
        k = 0 if name else int(np.abs(shares[0] - shares[1]).argmax())
        text = f"Classes are mixed otherwise in {SPLITS[b]} than in {SPLITS[a]}: "
        text += f"{name or names[present[k]]} is {shares[0, k]:.1%} of {SPLITS[a]}, "
        text += f"{shares[1, k]:.1%} of {SPLITS[b]}"
        shifts.append((p, effect, text))
    return shifts


def level_findings(
    images: ImageSet, mean: NDArray[np.float64], spread: NDArray[np.float64]
) -> list[Finding]:
    """Return splits that are brighter or of other contrast; both arguments are ``(N,)``."""
    splits, tests = split_numbers(images), []
    for kind, values in (("brightness", mean), ("contrast", spread)):
        for a, b in combinations(range(len(SPLITS)), 2):
            one, two = values[splits == a], values[splits == b]
            pooled = np.sqrt((one.var() + two.var()) / 2)
            if min(len(one), len(two)) < 2 or pooled == 0:
                continue
            difference = float((two.mean() - one.mean()) / pooled)
            p = float(stats.ttest_ind(one, two, equal_var=False).pvalue)
            text = f"The {kind} of {SPLITS[b]} is not that of {SPLITS[a]}: on average "
            text += f"{two.mean():.0f} and {one.mean():.0f} grey levels, "
            text += f"{abs(difference):.1f} standard deviations apart."
            tests.append((p, abs(difference), kind, text))
    if not tests:
        return []
    corrected = multipletests([test[0] for test in tests], alpha=SIGNIFICANT, method="holm")[1]
    return [
        Finding(kind, "note", text)
        for p, (_, apart, kind, text) in zip(corrected, tests, strict=True)
        if p < SIGNIFICANT and apart > 0.5
    ]
