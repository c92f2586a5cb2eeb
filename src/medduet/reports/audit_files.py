"""The files of an audit: its page, all that it found, and the pairs of duplicates."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medduet.data.audit.findings import Audit
from medduet.data.imageset import ImageSet, Split
from medduet.reports.audit_page import Picture, PicturePair, audit_page
from medduet.utils.files import write_json, write_text

MOST_PAIRS = 30
MOST_PICTURES = 6
_SHOWN = ("black", "blank", "saturated", "marks", "some-grey", "full-masks", "normal-with-mask")
_OUTLINED = ("full-masks", "normal-with-mask")


def write_audit(audit: Audit, images: ImageSet, out: Path) -> Path:
    """Write ``index.html``, ``audit.json`` and ``duplicates.csv`` into a folder.

    Args:
        audit: what was found.
        images: the set that it was found in.
        out: the folder.

    Returns:
        The page.

    Example:
        >>> import tempfile, medduet
        >>> images = medduet.open_images("phantom", size=16, count=20)
        >>> write_audit(medduet.audit(images), images, Path(tempfile.mkdtemp())).name
        'index.html'
    """
    pool, record = images.pool(), audit.record()
    write_json(out / "audit.json", record)
    write_text(out / "duplicates.csv", _table(audit))
    shown = {
        number: _pictures(audit, pool, finding.rows[:MOST_PICTURES], finding.kind in _OUTLINED)
        for number, finding in enumerate(audit.findings)
        if finding.kind in _SHOWN
    }
    page = out / "index.html"
    write_text(page, audit_page(record, _pairs(audit, pool), len(audit.pairs), shown))
    return page


def _table(audit: Audit) -> str:
    """Return the pairs, the worst first, as CSV."""
    table, pairs = io.StringIO(), audit.pairs
    writer = csv.writer(table, lineterminator="\n")
    row = ("image", "split", "label")
    facts = ("across_splits", "labels_differ", "masks_differ")
    heads = [f"{name}_{end}" for end in "ab" for name in row]
    writer.writerow([*heads, "likeness", "exact", *facts])
    flags = np.stack([pairs.exact, pairs.across, pairs.labels_differ, pairs.masks_differ], axis=1)
    for (one, two), likeness, flag in zip(
        pairs.rows.tolist(), pairs.likeness.tolist(), flags.astype(int).tolist(), strict=True
    ):
        cells = [*audit.row(one).values(), *audit.row(two).values()]
        writer.writerow([*cells, f"{likeness:.4f}", *flag])
    return table.getvalue()


def _pairs(audit: Audit, pool: Split) -> list[PicturePair]:
    pairs, chosen = audit.pairs, []
    for number in range(min(len(pairs), MOST_PAIRS)):
        facts = (
            (pairs.across, "in two splits"),
            (pairs.labels_differ, "labels differ"),
            (pairs.masks_differ, "masks differ"),
        )
        remarks = tuple(text for fact, text in facts if fact[number])
        outlined = bool(pairs.masks_differ[number])
        first, second = _pictures(audit, pool, pairs.rows[number], outlined)
        alike, exact = float(pairs.likeness[number]), bool(pairs.exact[number])
        chosen.append(PicturePair(first, second, alike, exact, remarks))
    return chosen


def _pictures(
    audit: Audit, pool: Split, rows: NDArray[np.int64], outlined: bool
) -> Sequence[Picture]:
    images = np.asarray(pool.images[rows])
    masks = np.asarray(pool.masks[rows]) if outlined and pool.masks is not None else None
    return [
        Picture(images[k], **audit.row(place), mask=None if masks is None else masks[k])
        for k, place in enumerate(rows.tolist())
    ]
