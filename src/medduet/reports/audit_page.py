"""An audit and its report: a page with findings and images side by side, ``audit.json``."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medduet.config import DataConfig
from medduet.data.audit.checks import audit as audit_images
from medduet.data.audit.findings import Audit, plural
from medduet.data.audit.leakage import clean
from medduet.data.cache import Progress
from medduet.data.imageset import ImageSet
from medduet.data.sources import open_images
from medduet.data.splits import write_split
from medduet.data.summary import data_summary
from medduet.errors import ConfigError
from medduet.reports.image_grid import image_grid, panel_of
from medduet.reports.page import Section, Table, numbers, write_page
from medduet.reports.style import shorten
from medduet.utils.files import write_json

MAX_PAIRS = 30
MAX_PICTURES = 8


class AuditRecord(NamedTuple):
    """An audit, its page, what was understood of the data, and what a cleaned split changes."""

    audit: Audit
    summary: list[str]
    page: Path
    changes: str | None


def audit(
    data: DataConfig,
    *,
    out: Path | None = None,
    strict: bool = False,
    fix: Path | None = None,
    progress: Progress = None,
) -> AuditRecord:
    """Check a data set for leaks between splits, label errors and odd images.

    Args:
        data: Which images; DATA comes first.
        out: Folder for index.html, its tables and figures, and audit.json; default: audits/NAME.
        strict: Exit with code 1 if there is a leak.
        fix: Write a split without leaks to this .csv, for --data.split; test stays as it is.
        progress: draws the progress.
    """
    if fix is not None and fix.suffix != ".csv":
        raise ConfigError(f"expected --fix FILE.csv, given {fix}")
    images = open_images(data, progress=progress)
    findings = audit_images(images, cache=data.cache, progress=progress)
    page = write_audit(findings, images, out or Path("audits") / images.name)
    if fix is None:
        return AuditRecord(findings, data_summary(images), page, None)
    cleaned, changes = clean(images, cache=data.cache, progress=progress)
    write_split(fix, cleaned)
    return AuditRecord(findings, data_summary(images), page, changes)


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
