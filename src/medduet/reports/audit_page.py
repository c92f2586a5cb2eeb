"""The report of an audit: a page with the images side by side, ``audit.json``, a table of pairs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medduet.data.audit.findings import Audit
from medduet.data.imageset import ImageSet
from medduet.reports.page import render
from medduet.reports.style import shorten
from medduet.utils.files import write_json, write_text
from medduet.utils.palette import mask_color

MAX_PAIRS = 30
MAX_PICTURES = 6
MAX_LISTED = 12
"""Images that are listed under a finding; all of them are in ``audit.json``."""
_SIDE = 192  # pixels of the longer side of a picture
_MAX_NAME = 60  # characters
_OUTLINED = ("masks-without-background", "masks-on-normal-images")
_SHOWN = (
    "black-images",
    "constant-images",
    "saturated-images",
    *_OUTLINED,
)
_SECTIONS = {"leak": "Data leakage", "warning": "Warnings", "note": "Notes"}
_REMARKS = {
    "across_splits": "data leakage",
    "labels_differ": "label conflict",
    "masks_differ": "mask conflict",
}


def write_audit(audit: Audit, images: ImageSet, out: Path) -> Path:
    """Write ``index.html``, ``audit.json`` and ``duplicates.csv`` into a folder.

    The page needs no other file and no network.

    Args:
        audit: the result of `medduet.audit`.
        images: the set that was audited.
        out: the folder.

    Returns:
        The path of the page.

    Example:
        >>> import tempfile, medduet
        >>> images = medduet.open_images("phantom", size=16, count=20)
        >>> write_audit(medduet.audit(images), images, Path(tempfile.mkdtemp())).name
        'index.html'
    """
    record = audit.record()
    write_json(out / "audit.json", record)
    flags = dict.fromkeys(["exact", *_REMARKS], int)
    table = audit.pairs.astype(flags).to_csv(index=False, float_format="%.4f", lineterminator="\n")
    write_text(out / "duplicates.csv", table)
    findings = []
    for finding, entry in zip(audit.findings, record["findings"], strict=True):
        rows = finding.rows if finding.kind in _SHOWN else finding.rows[:0]
        findings.append(
            entry | {"pictures": _pictures(audit, images, rows, finding.kind in _OUTLINED)}
        )
    sections = {
        heading: [finding for finding in findings if finding["severity"] == severity]
        for severity, heading in _SECTIONS.items()
    }
    page = render(
        "audit.html",
        record=record,
        counts=audit.counts(),
        sections=sections,
        pairs=_shown_pairs(audit, images),
        pair_count=len(audit.pairs),
        most=MAX_LISTED,
        shorten=lambda text: shorten(text, _MAX_NAME),
    )
    write_text(out / "index.html", page)
    return out / "index.html"


def _shown_pairs(audit: Audit, images: ImageSet) -> list[dict[str, Any]]:
    shown = []
    for rows, pair in audit.pairs.head(MAX_PAIRS).iterrows():
        pictures = _pictures(audit, images, np.array(rows), pair["masks_differ"])
        remarks = [text for column, text in _REMARKS.items() if pair[column]]
        shown.append({**pair, "pictures": pictures, "remarks": remarks})
    return shown


def _pictures(
    audit: Audit, images: ImageSet, rows: NDArray[np.int64], outlined: bool
) -> list[dict[str, Any]]:
    """Return id, split, label and picture of the first `rows`, the mask outlined if asked for."""
    pool, rows = images.pool(), rows[:MAX_PICTURES]
    pixels, masks = np.asarray(pool.images[rows]), [None] * len(rows)
    if outlined and pool.masks is not None:
        masks = list(np.asarray(pool.masks[rows]))
    return [
        {**row, "source": _png(image, mask), "mask": None if mask is None else bool(mask.any())}
        for row, image, mask in zip(
            audit.images.iloc[rows].to_dict("records"), pixels, masks, strict=True
        )
    ]


def _png(image: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> str:
    """Return an image ``(H, W)`` or ``(H, W, 3)`` as data URI."""
    height, width = image.shape[:2]
    scale = _SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    picture = Image.fromarray(np.ascontiguousarray(image)).resize(size, smooth)
    if mask is not None:
        resized = Image.fromarray((mask > 0).astype(np.uint8)).resize(
            size, Image.Resampling.NEAREST
        )
        inside = np.asarray(resized) > 0
        colored = np.array(picture.convert("RGB"))
        colored[inside & ~ndimage.binary_erosion(inside, iterations=2)] = mask_color(1)
        picture = Image.fromarray(colored)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
