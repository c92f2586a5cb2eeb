"""The report of an audit: a page with its findings and the images side by side, ``audit.json``."""

from pathlib import Path

import numpy as np
import pandas as pd

from medduet.data.audit.findings import Audit, plural
from medduet.data.imageset import ImageSet
from medduet.reports.image_grid import image_grid, panel_of
from medduet.reports.page import Section, Table, numbers, write_page
from medduet.reports.style import shorten
from medduet.utils.files import write_json

MAX_PAIRS = 30
MAX_PICTURES = 8


def write_audit(audit: Audit, images: ImageSet, out: Path) -> Path:
    """Write ``index.html``, which needs no other file, its tables and figures, and ``audit.json``.

    All pairs of duplicates are in ``tables/duplicates.csv``.
    """
    record, pool = audit.record(), images.pool()
    names = (audit.images["image"] + ": " + audit.images["label"]).str.removesuffix(": ").to_numpy()
    counts = ", ".join(plural(count, severity) for severity, count in audit.counts().items())
    text = f"{counts}. Leaks inflate test scores; check warnings before training."
    sections = [Section("Findings", [text]), Section("Images")]
    for finding in filter(lambda finding: len(finding.rows), audit.findings):
        rows, title = finding.rows[:MAX_PICTURES], finding.message.partition(":")[0]
        shown = f"the first {len(rows)}"
        figure = image_grid([panel_of(images, pool, rows)], names[rows].tolist(), title, shown)
        sections[1].figure(finding.kind, figure, finding.message)
    if findings := record["findings"]:
        values = pd.DataFrame(findings).assign(images=[len(each["images"]) for each in findings])
        title = "Findings, leaks first; audit.json has all images of each"
        shown = values[["severity", "message"]]
        sections[0].tables.append(Table("findings", title, shown, values))
    if len(pairs := audit.pairs.head(MAX_PAIRS)):
        panels = [panel_of(images, pool, np.array(rows)) for rows in zip(*pairs.index, strict=True)]
        headings = ["\n".join(names[list(rows)]) for rows in pairs.index]
        caption = f"{len(pairs)} of {len(audit.pairs):,} pairs, the worst first"
        section = Section("Duplicates and near-duplicates")
        section.figure("duplicates", image_grid(panels, headings, caption, columns=2), caption)
        values = audit.pairs.assign(similarity=numbers(audit.pairs["similarity"], ".4f"))
        values = values.astype(dict.fromkeys(list(values)[-4:], int))
        title = f"{caption}; similarity is the correlation of thumbnails"
        shown = values.head(MAX_PAIRS).astype(str).map(lambda cell: shorten(cell, 60))
        section.tables.append(Table("duplicates", title, shown, values))
        sections.append(section)
    if len(audit.classes):
        shares = audit.classes / pd.Series(record["images"])
        shown = audit.classes.map("{:,}".format) + shares.map(" ({:.1%})".format)
        shown, values = (each.reset_index(names="class") for each in (shown, audit.classes))
        table = Table("classes", "Images of each class", shown, values)
        sections.append(Section("Class distribution", tables=[table]))
    page = write_page(out, f"Audit of {audit.name}", sections, "medduet audit")
    write_json(out / "audit.json", record)
    return page
