"""Commands on data sets that are made of several library functions."""

from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from medduet.config import DataConfig
from medduet.data.audit.checks import audit as audit_images
from medduet.data.audit.findings import Audit
from medduet.data.audit.leakage import clean
from medduet.data.cache import Progress
from medduet.data.sources import open_images
from medduet.data.splits import write_split
from medduet.data.summary import data_summary
from medduet.data.zarr_store import write_zarr
from medduet.errors import ConfigError
from medduet.reports.audit_page import write_audit


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


def zarr(
    data: DataConfig,
    out: Path,
    *,
    shard_mb: Annotated[float, Field(gt=0)] = 64.0,
    progress: Progress = None,
) -> Path:
    """Write a data set as a zarr store, to be read from a folder or a server.

    A call that was stopped continues when it is typed again.

    Args:
        data: Which images, and in which split; DATA comes first.
        out: Folder of the store, NAME.zarr.
        shard_mb: Size of the images of a shard in MB.
        progress: draws the progress.
    """
    images = open_images(data, progress=progress)
    return write_zarr(images, out, shard_mb=shard_mb, progress=progress)
