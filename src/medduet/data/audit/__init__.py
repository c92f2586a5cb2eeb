"""Whether a set can be trusted: leaks between splits, wrong labels, and images that look wrong."""

from __future__ import annotations

from pathlib import Path

from medduet.data.audit.classes import class_counts, class_findings, level_findings
from medduet.data.audit.content import look_findings, mask_findings
from medduet.data.audit.findings import (
    SEVERITIES,
    Audit,
    Finding,
    Pairs,
    label_texts,
    split_numbers,
)
from medduet.data.audit.fix import Cleaned, clean
from medduet.data.audit.overlap import duplicate_findings, group_findings, leak_warning, pair_facts
from medduet.data.audit.pixels import count_masks, look
from medduet.data.cache import ProgressFactory
from medduet.data.duplicates import known_duplicates
from medduet.data.imageset import ImageSet

__all__ = [
    "SEVERITIES",
    "Audit",
    "Cleaned",
    "Finding",
    "Pairs",
    "audit",
    "clean",
    "leak_warning",
]


def audit(
    images: ImageSet, *, cache: Path | None = None, progress: ProgressFactory | None = None
) -> Audit:
    """Look for what makes a set untrustworthy; pixels are read in pieces.

    Args:
        images: the set, in its splits.
        cache: where found duplicates are remembered.
        progress: draws the reading.

    Returns:
        The findings, leaks first: images and groups that are in several splits. Then warnings,
        such as duplicates with conflicting labels, black images, missing classes; then notes.

    Example:
        >>> import medduet
        >>> audit = medduet.audit(medduet.open_images("phantom", size=32, count=40))
        >>> audit.leaks, [finding.kind for finding in audit.findings]
        ((), ['few-test'])
    """
    pool = images.pool()
    assert pool.ids is not None  # a pool names all its images
    found = known_duplicates(images, cache, progress)
    pairs = pair_facts(images, pool, found)
    looks = look(pool, progress)
    findings = duplicate_findings(images, pool, found, pairs)
    findings += group_findings(images, pool) + class_findings(images)
    findings += look_findings(images, looks) + level_findings(images, looks.mean, looks.spread)
    if pool.masks is not None:
        masks = count_masks(pool.masks, len(images.mask_names), progress)
        findings += mask_findings(images, pool, masks)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    counts = class_counts(images).T.tolist()
    return Audit(
        name=images.name,
        fingerprint=images.fingerprint,
        findings=tuple(findings),
        pairs=pairs,
        ids=pool.ids,
        splits=split_numbers(images),
        labels=label_texts(pool, images.class_names),
        classes=tuple(
            (name, (a, b, c)) for name, (a, b, c) in zip(images.class_names, counts, strict=True)
        ),
    )
