"""The audit: checks of images, masks and classes, and of leakage."""

import re
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from medduet.data.audit.findings import SEVERITIES, Audit, Findings, label_texts, plural
from medduet.data.audit.leakage import find_leaks, find_repetitions, pair_table
from medduet.data.cache import Progress
from medduet.data.duplicates import find_duplicates, grey
from medduet.data.imageset import SPLITS, ImageSet, Split, iterate_chunks
from medduet.types import IGNORED_MASK

_BLACK, _CONSTANT = 8, 1.0  # the brightest grey level of a blank image, or the spread of all
_EQUAL_CHANNELS = 2  # grey levels that channels of a grey image may differ by, as after JPEG
_AT_BORDER = 0.1  # share of the masks
_MAX_MARGIN = 0.10  # half of an interval, above which a class has too few test images
_ALPHA, _MIN_CRAMERS_V = 0.05, 0.1  # small, by Cohen
_NORMAL = re.compile(
    r"^(?!.*\b(ab|not[ _-]|non[ _-]?)normal)"
    r".*\b(normal|healthy|no[ _-]?(finding|lesion|tumou?r)s?|negative)\b",
    re.I,
)


def audit(images: ImageSet, *, cache: Path | None = None, progress: Progress = None) -> Audit:
    """Check whether a data set can be trusted; pixels are read in chunks.

    Args:
        images: the set, in its splits.
        cache: folder of cached searches for duplicates.
        progress: shows the progress of reading.

    Returns:
        The findings: data leakage first (images and groups in several splits), then warnings, such
        as label conflicts, blank images, missing classes; then notes.

    Example:
        >>> import medduet
        >>> audit = medduet.audit(medduet.open_images("phantom", size=32, count=40))
        >>> audit.leaks, [finding.kind for finding in audit.findings]
        ((), ['few-test-images'])
    """
    duplicates = find_duplicates(images, cache, progress)
    findings, pool = Findings(images), images.pool()
    table = pd.DataFrame({"image": pool.ids, "split": np.array(SPLITS)[findings.splits]})
    table["label"] = label_texts(pool.labels, images.class_names)
    pairs, labels = pair_table(pool, table, duplicates), pool.labels
    if not images.multi_label:
        labels = labels[:, None] == np.arange(len(images.class_names))
    members = pd.DataFrame(labels == 1, columns=list(images.class_names))
    classes = members.groupby(table["split"]).sum().loc[list(SPLITS)].T.rename_axis(columns=None)
    find_leaks(findings, duplicates, pool)
    find_repetitions(findings, duplicates, pool)
    differ = pairs.index[pairs["masks_differ"]].to_frame().to_numpy()
    text = f" in {plural(len(differ), 'pair')} of duplicates with different masks"
    findings.of_images("Mask conflicts", "note", np.isin(np.arange(len(pool)), differ), text)
    _check_classes(findings, images, classes)
    statistics = _statistics(pool, len(images.mask_names), progress)
    blank = (statistics["max"] <= _BLACK) | (statistics["std"] < _CONSTANT)
    findings.of_images("Blank images", "warning", blank, ", black or of one grey level")
    if "color" in statistics and (statistics["color"] <= _EQUAL_CHANNELS).all():
        text = "one channel is enough, and three times faster to read: --data.channels 1."
        findings.of_set("Grey stored as RGB", "note", text)
    if pool.masks is not None:
        _check_masks(findings, images, statistics)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Audit(images.name, images.fingerprint, tuple(findings), table, pairs, classes)


def _check_classes(findings: Findings, images: ImageSet, counts: pd.DataFrame) -> None:
    _add_missing(findings, "class", counts)
    n = counts.loc[counts["test"] > 0, "test"]
    low, high = proportion_confint(n // 2, n, method="wilson")
    margins = 50 * (high - low)[high - low > 2 * _MAX_MARGIN]
    if few := [f"{name} (n = {n[name]}, ±{margin:.1f})" for name, margin in margins.items()]:
        text = f"the 95% interval of a recall of 50% is wider than ±{100 * _MAX_MARGIN:.0f} "
        findings.of_set("Few test images", "note", f"{text}points for {', '.join(few)}.")
    tables = [counts]
    if images.multi_label:  # each class alone, against the images without it
        labelled = {split: (images.split(split).labels >= 0).sum(axis=0) for split in SPLITS}
        rest = pd.DataFrame(labelled, index=counts.index) - counts
        tables = [pd.concat([counts.loc[[name]], rest.loc[[name]]]) for name in counts.index]
    tests = []
    for table, (a, b) in product(tables, combinations(SPLITS, 2)):
        both = table.loc[table[[a, b]].any(axis=1), [a, b]]
        if len(both) < 2 or not both.any().all():
            continue
        shares = both / both.sum()
        # Of the shares, not the counts: the effect must not depend on the sizes of the splits.
        cramers_v = float(np.sqrt(stats.chi2_contingency(shares, correction=False)[0] / 2))
        p_value = float(stats.chi2_contingency(both, correction=False)[1])
        k = 0 if images.multi_label else int((shares[a] - shares[b]).abs().argmax())
        text = f"{both.index[k]} is {shares[a].iloc[k]:.1%} of {a}, {shares[b].iloc[k]:.1%} of {b}"
        tests.append((p_value, cramers_v, text))
    p_values = multipletests([p for p, _, _ in tests], method="holm")[1] if tests else []
    for p, (_, cramers_v, text) in zip(p_values, tests, strict=True):
        if p < _ALPHA and cramers_v >= _MIN_CRAMERS_V:
            text += f" (chi-square test, Cramér's V {cramers_v:.2f}, Holm-corrected p = {p:.2g})."
            findings.of_set("Class distribution shift", "warning", text)


def _add_missing(findings: Findings, what: str, counts: pd.DataFrame) -> None:
    """Add the rows of `counts` without any image in a split (columns)."""
    for name, row in counts.iterrows():
        if empty := [split for split in SPLITS if not row[split]]:
            text = f"{what} {name} has no image in {', '.join(empty)}."
            findings.of_set(f"Missing {what}", "warning", text)


def _statistics(pool: Split, classes: int, progress: Progress) -> pd.DataFrame:
    """Return grey levels of each image, pixels of each mask class, and if any touch the border."""
    tables = []
    for rows, chunk in iterate_chunks(pool.images, progress, "check images"):
        values = grey(chunk).flatten(1).numpy()
        table = pd.DataFrame({"max": values.max(axis=1), "std": values.std(axis=1)})
        if chunk.ndim == 4 and chunk.shape[3] == 3:
            channels = np.ascontiguousarray(np.moveaxis(chunk, 3, 0))  # reduced 20 times faster
            table["color"] = (channels.max(axis=0) - channels.min(axis=0)).max(axis=(1, 2))
        if pool.masks is not None:
            masks = pool.masks[rows]
            for number in range(classes):
                table[number] = (masks == number).reshape(len(masks), -1).sum(axis=1)
            lesion = (masks > 0) & (masks != IGNORED_MASK)
            inner = lesion[(slice(None), *[slice(1, -1)] * (lesion.ndim - 1))]
            axes = tuple(range(1, lesion.ndim))
            table["border"] = lesion.sum(axis=axes) > inner.sum(axis=axes)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _check_masks(findings: Findings, images: ImageSet, table: pd.DataFrame) -> None:
    labels, lesions = images.pool().labels, range(1, len(images.mask_names))
    has_mask = images.pool().known_masks & table[[0, *lesions]].any(axis=1).to_numpy()
    filled = has_mask & table[lesions].any(axis=1).to_numpy()
    full = has_mask & (table[0] == 0).to_numpy()
    normal_classes = [k for k, name in enumerate(images.class_names) if _NORMAL.search(name)]
    if images.multi_label:
        normal = unmasked = (labels[:, normal_classes] == 1).any(axis=1)
    else:
        normal = np.isin(labels, normal_classes)
        # A class without any mask is a normal one, whatever its name.
        unmasked = normal | ((labels >= 0) & ~np.isin(labels, labels[filled]))
    at_border = table["border"].to_numpy() & filled & ~full
    often = at_border.sum() > _AT_BORDER * max(filled.sum(), 1)
    text = f" of class {', '.join(images.class_names[k] for k in normal_classes)}"
    findings.of_images("Empty masks", "note", has_mask & ~filled & ~unmasked)
    findings.of_images("Masks without background", "warning", full)
    findings.of_images("Masks on normal images", "warning", filled & normal, text)
    findings.of_images("Masks at the border", "note", at_border & often)
    findings.of_images("Missing masks", "note", ~has_mask)
    present = (table[lesions] > 0).groupby(np.array(SPLITS)[findings.splits]).sum().T
    _add_missing(findings, "mask class", present.set_axis(images.mask_names[1:]))
