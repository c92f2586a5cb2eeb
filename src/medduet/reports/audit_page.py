"""The report of an audit: a page with the images side by side, ``audit.json``, a table of pairs."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medduet.data.audit.findings import Audit
from medduet.data.imageset import ImageSet
from medduet.data.pixels import resize_image, resize_mask, three_planes
from medduet.inference.overlays import overlay_png
from medduet.reports.page import render
from medduet.reports.style import shorten
from medduet.types import IGNORED_MASK
from medduet.utils.files import write_json, write_text
from medduet.utils.parsing import csv_text

MAX_PAIRS = 30
MAX_PICTURES = 6
MAX_LISTED = 12
"""Images that are listed under a finding; all of them are in ``audit.json``."""
_SIDE = 192  # pixels of the longer side of a picture
_MAX_NAME = 60  # characters
_OUTLINED = ("masks-without-background", "masks-on-normal-images")
_SHOWN = ("blank-images", *_OUTLINED)


def write_audit(audit: Audit, images: ImageSet, out: Path) -> Path:
    """Write ``index.html``, which needs no other file, ``audit.json`` and ``duplicates.csv``."""
    record = audit.record()
    write_json(out / "audit.json", record)
    flags = dict.fromkeys(["exact", "across_splits", "labels_differ", "masks_differ"], int)
    table = csv_text(audit.pairs.astype(flags), float_format="%.4f")
    write_text(out / "duplicates.csv", table)
    findings, pairs = [], []
    for finding, entry in zip(audit.findings, record["findings"], strict=True):
        rows = finding.rows[: MAX_PICTURES if finding.kind in _SHOWN else 0]
        pictures = _pictures(audit, images, rows, finding.kind in _OUTLINED)
        findings.append(entry | {"pictures": pictures})
    for pair_rows, pair in audit.pairs.head(MAX_PAIRS).iterrows():
        pictures = _pictures(audit, images, np.array(pair_rows), pair["masks_differ"])
        pairs.append(pair.to_dict() | {"pictures": pictures})
    page = render(
        "audit.html",
        title=f"Audit of {audit.name}",
        command="medduet audit",
        record=record,
        counts=audit.counts(),
        findings=findings,
        pairs=pairs,
        pair_count=len(audit.pairs),
        max_listed=MAX_LISTED,
        shorten=lambda text: shorten(text, _MAX_NAME),
    )
    write_text(out / "index.html", page)
    return out / "index.html"


def _pictures(
    audit: Audit, images: ImageSet, rows: NDArray[np.int64], outlined: bool
) -> list[dict[str, Any]]:
    pool, pictures = images.pool(), []
    pixels, masks = pool.images[rows], np.zeros((len(rows), *images.size), np.uint8)
    if outlined and pool.masks is not None:
        masks = pool.masks[rows]
        masks[masks == IGNORED_MASK] = 0
    if images.dims == 3:
        pixels, masks = three_planes(masks, pixels, masks)
    scale = _SIDE / max(masks.shape[1:])
    height, width = (max(1, round(side * scale)) for side in masks.shape[1:])
    for row, image, mask in zip(
        audit.images.iloc[rows].to_dict("records"), pixels, masks, strict=True
    ):
        png = overlay_png(resize_image(image, height, width), resize_mask(mask, height, width))
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        pictures.append({**row, "source": source, "empty_mask": outlined and not mask.any()})
    return pictures
