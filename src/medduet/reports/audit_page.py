"""The report of an audit: a page with the images side by side, ``audit.json``, a table of pairs."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.data.audit.findings import Audit
from medduet.data.imageset import ImageSet
from medduet.data.pixels import resize_image, resize_mask
from medduet.inference.overlays import overlay_png
from medduet.reports.page import render
from medduet.reports.style import shorten
from medduet.utils.files import write_json, write_text

MAX_PAIRS = 30
MAX_PICTURES = 6
MAX_LISTED = 12
"""Images that are listed under a finding; all of them are in ``audit.json``."""
_SIDE = 192  # pixels of the longer side of a picture
_MAX_NAME = 60  # characters
_OUTLINED = ("masks-without-background", "masks-on-normal-images")
_SHOWN = ("black-images", "constant-images", "saturated-images", *_OUTLINED)
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
    sections: dict[str, list[dict[str, Any]]] = {heading: [] for heading in _SECTIONS.values()}
    for finding, entry in zip(audit.findings, record["findings"], strict=True):
        rows = finding.rows if finding.kind in _SHOWN else finding.rows[:0]
        pictures = _pictures(audit, images, rows, finding.kind in _OUTLINED)
        sections[_SECTIONS[finding.severity]].append({**entry, "pictures": pictures})
    pairs = [
        {
            **pair,
            "pictures": _pictures(audit, images, np.array(rows), pair["masks_differ"]),
            "remarks": [text for column, text in _REMARKS.items() if pair[column]],
        }
        for rows, pair in audit.pairs.head(MAX_PAIRS).iterrows()
    ]
    page = render(
        "audit.html",
        title=f"Audit of {audit.name}",
        command="medduet audit",
        record=record,
        counts=audit.counts(),
        sections=sections,
        pairs=pairs,
        pair_count=len(audit.pairs),
        most=MAX_LISTED,
        shorten=lambda text: shorten(text, _MAX_NAME),
    )
    write_text(out / "index.html", page)
    return out / "index.html"


def _pictures(
    audit: Audit, images: ImageSet, rows: NDArray[np.int64], outlined: bool
) -> list[dict[str, Any]]:
    """Return id, split, label and picture of the first `rows`, the mask outlined if asked for."""
    pool, rows, pictures = images.pool(), rows[:MAX_PICTURES], []
    pixels = np.asarray(pool.images[rows])
    masks = np.asarray(pool.masks[rows]) if outlined and pool.masks is not None else None
    for k, row in enumerate(audit.images.iloc[rows].to_dict("records")):
        mask = None if masks is None else masks[k]
        empty = mask is not None and not mask.any()
        pictures.append({**row, "source": _png(pixels[k], mask), "empty_mask": empty})
    return pictures


def _png(image: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> str:
    """Return an image ``(H, W)`` or ``(H, W, 3)``, with its mask if there is one, as data URI."""
    height, width = image.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    mask = np.zeros((height, width), np.uint8) if mask is None else mask
    picture = overlay_png(resize_image(image, *size), resize_mask(mask, *size))
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
