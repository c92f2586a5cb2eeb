"""The audit: checks of images, masks and classes, and of leakage."""

from __future__ import annotations

import re
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from medduet.data.audit.findings import (
    SEVERITIES,
    Audit,
    Finding,
    Severity,
    label_texts,
    of_images,
    of_set,
    split_numbers,
)
from medduet.data.audit.leakage import (
    conflict_findings,
    leak_findings,
    mask_conflicts,
    pair_table,
)
from medduet.data.cache import ProgressFactory, counted
from medduet.data.chunks import iterate_chunks
from medduet.data.duplicates import find_duplicates
from medduet.data.imageset import SPLITS, Images, ImageSet
from medduet.data.thumbnails import grey

_BLACK = 8  # grey level that no pixel of a black image exceeds
_CONSTANT = 1.0  # grey levels of standard deviation
_WHITE, _WHITE_SHARE = 254, 0.5
_EQUAL_CHANNELS = 2  # grey levels that channels of a grey image may differ by, as after JPEG
_AT_BORDER = 0.1  # share of the masks
_MAX_MARGIN = 0.10  # half of an interval, above which a class has too few test images
_ALPHA = 0.05
_MIN_CRAMERS_V = 0.1  # small, by Cohen
_MIN_COHENS_D = 0.5  # medium, by Cohen
_NORMAL = re.compile(r"\b(normal|healthy|no[ _-]?(finding|lesion|tumou?r)s?|negative)\b", re.I)
_NOT_NORMAL = re.compile(r"\b(ab|not[ _-]|non[ _-]?)normal", re.I)
_SPLIT_PAIRS = tuple(combinations(SPLITS, 2))


def audit(
    images: ImageSet, *, cache: Path | None = None, progress: ProgressFactory | None = None
) -> Audit:
    """Check whether a data set can be trusted; pixels are read in chunks.

    Args:
        images: the set, in its splits.
        cache: folder of cached searches for duplicates.
        progress: shows the progress of reading.

    Returns:
        The findings: data leakage first (images and groups in several splits), then warnings, such
        as label conflicts, black images, missing classes; then notes.

    Example:
        >>> import medduet
        >>> audit = medduet.audit(medduet.open_images("phantom", size=32, count=40))
        >>> audit.leaks, [finding.kind for finding in audit.findings]
        ((), ['few-test-images'])
    """
    duplicates = find_duplicates(images, cache, progress)
    pool, splits = images.pool(), np.array(SPLITS)[split_numbers(images)]
    labels = label_texts(pool.labels, images.class_names)
    table = pd.DataFrame({"image": pool.ids, "split": splits, "label": labels})
    masks_differ = mask_conflicts(pool, duplicates)
    findings = [
        *leak_findings(images, duplicates),
        *conflict_findings(images, duplicates, masks_differ),
        *class_findings(images),
        *pixel_findings(images, progress),
        *mask_findings(images, progress),
    ]
    return Audit(
        name=images.name,
        fingerprint=images.fingerprint,
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        images=table,
        pairs=pair_table(images, table, duplicates, masks_differ),
        classes=class_counts(images),
    )


def class_counts(images: ImageSet) -> pd.DataFrame:
    """Return the number of images of each class (rows) in each split (columns).

    Example:
        >>> import medduet
        >>> class_counts(medduet.open_images("phantom", size=16, count=40)).loc["ring"].tolist()
        [7, 1, 2]
    """
    counts = {}
    for name in SPLITS:
        labels = images.split(name).labels
        if not images.multi_label:
            labels = labels[:, None] == np.arange(len(images.class_names))
        counts[name] = (labels == 1).sum(axis=0)
    return pd.DataFrame(counts, index=list(images.class_names))


def class_findings(images: ImageSet) -> list[Finding]:
    """Return classes that a split lacks, has few of, or has in another proportion."""
    counts, findings, few = class_counts(images), [], []
    for name, row in counts.iterrows():
        if lacking := [split for split in SPLITS if not row[split]]:
            text = f"class {name} has no image in {', '.join(lacking)}."
            findings.append(of_set("Missing class", "warning", text))
        if n := int(row["test"]):
            interval = stats.binomtest(n // 2, n).proportion_ci(method="wilson")
            margin = (interval.high - interval.low) / 2
            if margin > _MAX_MARGIN:
                few.append(f"{name} (n = {n}, ±{100 * margin:.1f})")
    if few:
        text = f"the 95% interval of a recall of 50% is wider than ±{100 * _MAX_MARGIN:.0f} "
        findings.append(of_set("Few test images", "note", f"{text}points for {', '.join(few)}."))
    return findings + _class_shifts(images, counts)


def _class_shifts(images: ImageSet, counts: pd.DataFrame) -> list[Finding]:
    """Return differences of the class distribution; of multi-label sets, of each class alone."""
    tables = [counts]
    if images.multi_label:
        labelled = [(images.split(split).labels >= 0).sum(axis=0) for split in SPLITS]
        rest = pd.DataFrame(dict(zip(SPLITS, labelled, strict=True)), index=counts.index) - counts
        tables = [pd.concat([counts.loc[[name]], rest.loc[[name]]]) for name in counts.index]
    tests = []
    for table, (a, b) in product(tables, _SPLIT_PAIRS):
        both = table.loc[table[[a, b]].any(axis=1), [a, b]]
        if len(both) < 2 or not both.any().all():
            continue
        shares = both / both.sum()
        # Of the shares, not the counts: the effect must not depend on the sizes of the splits.
        cramers_v = float(np.sqrt(stats.chi2_contingency(shares, correction=False)[0] / 2))
        p_value = float(stats.chi2_contingency(both, correction=False)[1])
        k = 0 if images.multi_label else int((shares[a] - shares[b]).abs().argmax())
        text = f"{both.index[k]} is {shares[a].iloc[k]:.1%} of {a}, {shares[b].iloc[k]:.1%} of {b}"
        tests.append((p_value, cramers_v, f"{text} (chi-square test, Cramér's V {cramers_v:.2f}"))
    return _shifts("Class distribution shift", "warning", tests, _MIN_CRAMERS_V)


def _shifts(
    title: str, severity: Severity, tests: list[tuple[float, float, str]], min_effect: float
) -> list[Finding]:
    """Return those of `tests` (p, effect, text) that are significant and large, Holm-corrected."""
    p_values = multipletests([p for p, _, _ in tests], method="holm")[1] if tests else []
    return [
        of_set(title, severity, f"{text}, Holm-corrected p = {p:.2g}).")
        for p, (_, effect, text) in zip(p_values, tests, strict=True)
        if p < _ALPHA and effect >= min_effect
    ]


def pixel_findings(images: ImageSet, progress: ProgressFactory | None = None) -> list[Finding]:
    """Return images that show nothing, grey stored as RGB, and splits of other brightness."""
    splits, pixels = split_numbers(images), _pixel_statistics(images.pool().images, progress)
    black = pixels["max"] <= _BLACK
    constant = (pixels["std"] < _CONSTANT) & ~black
    saturated = (pixels["white"] > _WHITE_SHARE) & ~constant
    white = ", white over more than half of the area"
    findings = [
        *of_images("Black images", "warning", black, splits),
        *of_images("Constant images", "warning", constant, splits, " of one grey level"),
        *of_images("Saturated images", "note", saturated, splits, white),
    ]
    if images.in_channels > 1 and (pixels["color"] <= _EQUAL_CHANNELS).all():
        text = "one channel is enough, and three times faster to read: --data.channels 1."
        findings.append(of_set("Grey stored as RGB", "note", text))
    for title, column in (("Brightness shift", "mean"), ("Contrast shift", "std")):
        tests = []
        for a, b in combinations(range(len(SPLITS)), 2):
            one, two = pixels[column][splits == a], pixels[column][splits == b]
            pooled = np.sqrt((one.var(ddof=0) + two.var(ddof=0)) / 2)
            if min(len(one), len(two)) < 2 or pooled == 0:
                continue
            cohens_d = float(abs(two.mean() - one.mean()) / pooled)
            p_value = float(stats.ttest_ind(one, two, equal_var=False).pvalue)
            text = f"{one.mean():.0f} grey levels in {SPLITS[a]}, {two.mean():.0f} in {SPLITS[b]} "
            tests.append((p_value, cohens_d, f"{text}(Welch's t-test, Cohen's d {cohens_d:.1f}"))
        findings += _shifts(title, "note", tests, _MIN_COHENS_D)
    return findings


def _pixel_statistics(images: Images, progress: ProgressFactory | None) -> pd.DataFrame:
    """Return mean, std, max, share of white and largest difference of channels of each image."""
    tables = []
    with counted(progress, "check images", int(np.prod(images.shape))) as advance:
        for _, chunk in iterate_chunks(images):
            values = grey(chunk).flatten(1).numpy()
            table = pd.DataFrame({"mean": values.mean(axis=1), "std": values.std(axis=1)})
            table["max"], table["white"] = values.max(axis=1), (values >= _WHITE).mean(axis=1)
            if chunk.ndim == 4:
                channels = np.ascontiguousarray(np.moveaxis(chunk, 3, 0))  # reduced 20 times faster
                difference = channels.max(axis=0) - channels.min(axis=0)
                table["color"] = difference.max(axis=(1, 2))
            tables.append(table)
            advance(chunk.nbytes)
    return pd.concat(tables, ignore_index=True)


def is_normal(name: str) -> bool:
    """Return whether a class is that of images without a finding.

    Example:
        >>> [is_normal(name) for name in ("normal", "No finding", "abnormal", "benign")]
        [True, True, False, False]
    """
    return bool(_NORMAL.search(name)) and not _NOT_NORMAL.search(name)


def mask_findings(images: ImageSet, progress: ProgressFactory | None = None) -> list[Finding]:
    """Return masks that are empty, full, at odds with the class, at the border, or missing."""
    pool, splits = images.pool(), split_numbers(images)
    if pool.masks is None:
        return []
    pixels, border = _mask_statistics(pool.masks, len(images.mask_names), progress)
    known = pool.known_masks
    filled, full = known & (pixels[:, 1:].sum(axis=1) > 0), known & (pixels[:, 0] == 0)
    normal_classes = [k for k, name in enumerate(images.class_names) if is_normal(name)]
    if images.multi_label:
        normal = unmasked = (pool.labels[:, normal_classes] == 1).any(axis=1)
    else:
        normal = np.isin(pool.labels, normal_classes)
        # A class without any mask is a normal one, whatever its name.
        unmasked = normal | ((pool.labels >= 0) & ~np.isin(pool.labels, pool.labels[filled]))
    at_border = border & filled & ~full
    share = at_border.sum() / max(filled.sum(), 1)
    text = f" of class {', '.join(images.class_names[k] for k in normal_classes)}"
    findings = [
        *of_images("Empty masks", "note", known & ~filled & ~unmasked, splits),
        *of_images("Masks without background", "warning", full, splits),
        *of_images("Masks on normal images", "warning", filled & normal, splits, text),
        *of_images("Masks at the border", "note", at_border & (share > _AT_BORDER), splits),
        *of_images("Missing masks", "note", ~known, splits),
    ]
    for number, name in enumerate(images.mask_names[1:], start=1):
        present = set(splits[pixels[:, number] > 0].tolist())
        if lacking := [split for k, split in enumerate(SPLITS) if k not in present]:
            text = f"mask class {name} does not occur in {', '.join(lacking)}."
            findings.append(of_set("Missing mask class", "warning", text))
    return findings


def _mask_statistics(
    masks: Images, classes: int, progress: ProgressFactory | None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the pixels of each mask class, ``(N, M)``, and whether any touch the border."""
    pixels, border = np.empty((len(masks), classes), np.int64), np.empty(len(masks), bool)
    with counted(progress, "check masks", int(np.prod(masks.shape))) as advance:
        for rows, chunk in iterate_chunks(masks):
            for number in range(classes):
                pixels[rows, number] = (chunk == number).sum(axis=(1, 2))
            edges = chunk[:, [0, -1]].any(axis=(1, 2)), chunk[:, :, [0, -1]].any(axis=(1, 2))
            border[rows] = edges[0] | edges[1]
            advance(chunk.nbytes)
    return pixels, border
