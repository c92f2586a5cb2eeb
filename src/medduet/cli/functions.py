"""Commands that are made of several library functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro
from pydantic import Field

from medduet.cli.screen import write, write_table
from medduet.config import DataConfig
from medduet.data.attach import Attached
from medduet.data.attach import attach_masks as attach
from medduet.data.audit.checks import audit as audit_images
from medduet.data.audit.findings import Audit
from medduet.data.audit.leakage import clean
from medduet.data.cache import ProgressFactory, cache_folder
from medduet.data.medmnist import cached_sizes, medmnist_sets
from medduet.data.sources import open_images
from medduet.data.splits import write_split
from medduet.data.zarr_store import write_zarr
from medduet.errors import ConfigError, ModelError
from medduet.models.cost import model_cost
from medduet.models.registry import find_model, model_names
from medduet.reports.audit_page import write_audit

MOST_COSTS = 40  # networks; each is built to count, which takes up to a second


class AuditRecord(NamedTuple):
    """An audit, its page, and what a cleaned split changes."""

    audit: Audit
    page: Path
    changes: list[str] | None


def audit(
    data: DataConfig,
    *,
    out: Path | None = None,
    strict: bool = False,
    fix: Path | None = None,
    fix_by: Literal["drop", "regroup"] = "drop",
    progress: ProgressFactory | None = None,
) -> AuditRecord:
    """Check a data set for leaks between splits, label errors and odd images.

    Args:
        data: Which images; DATA comes first.
        out: Folder for index.html, audit.json and duplicates.csv; default: audits/NAME.
        strict: Exit with code 1 if there is a leak.
        fix: Write a split without leaks to this .csv, for --data.split.
        fix_by: drop: leave images out of train and val, test stays; regroup: move groups.
        progress: draws the progress.
    """
    if fix is not None and fix.suffix != ".csv":
        raise ConfigError(f"expected --fix FILE.csv, given {fix}")
    images = open_images(data, progress=progress)
    findings = audit_images(images, cache=data.cache, progress=progress)
    page = write_audit(findings, images, out or Path("audits") / images.name)
    if fix is None:
        return AuditRecord(findings, page, None)
    cleaned = clean(images, fix_by, cache=data.cache, progress=progress)
    write_split(fix, cleaned.images)
    return AuditRecord(findings, page, list(cleaned.changes))


def attach_masks(
    target: Path, out: Path, *, data: DataConfig, progress: ProgressFactory | None = None
) -> Attached:
    """Add the masks of the data set that another one was made from: BUSI's to BreastMNIST.

    Images are matched by their content. Those without a certain match get no mask, and are listed
    in a table (.csv) beside OUT.

    Args:
        target: The .npz without masks; its images, labels and splits are kept.
        out: The .npz to write.
        data: The data set with masks.
        progress: draws the progress.
    """
    # Stretched, as MedMNIST's were; no split is needed, so no duplicates are searched.
    data = data.model_copy(update={"fit": "stretch", "group_by": "none"})
    source = open_images(data, progress=progress)
    return attach(target, source, out, cache=data.cache, progress=progress)


def zarr(
    data: DataConfig,
    out: Path,
    *,
    shard_mb: Annotated[float, Field(gt=0)] = 64.0,
    progress: ProgressFactory | None = None,
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


def datasets(cache: Path | None = None) -> None:
    """List the data sets available by name.

    Args:
        cache: Folder of downloads and unpacked arrays.
    """
    rows = [("phantom", "", "", "generated", "4", "1 or 3")]
    for flag, info in medmnist_sets().items():
        multi = "*" if info.task.startswith("multi-label") else ""
        cached = ", ".join(map(str, cached_sizes(flag, cache))) or "no"
        counts = "/".join(map(str, info.samples)), f"{len(info.class_names)}{multi}"
        rows.append((flag, info.licence, cached, *counts, str(info.in_channels)))
    right = ["train/val/test", "classes", "channels"]
    write_table("data sets for --data", ["name", "licence", "cached"], right, rows)
    write(
        "Sizes: MedMNIST at 28, 64, 128 and 224 pixels, others resized; phantom at any. "
        "* multi-label.",
        "Or a folder of images with a sub-folder for each class, a .csv of paths and labels, or an "
        ".npz in the layout of MedMNIST (with {split}_masks, if there are masks) or MedSegBench.",
        f"Cache: {cache_folder(cache)}",
    )


def models(
    patterns: tyro.conf.Positional[tuple[str, ...]] = (),
    *,
    size: Annotated[int, Field(ge=1)] = 224,
    channels: Annotated[int, Field(ge=1)] = 3,
    classes: Annotated[int, Field(ge=1)] = 8,
) -> None:
    """List networks with their parameters and cost, papers, and the licence of their weights.

    Args:
        patterns: Names or shell patterns, such as 'timm:*resnet*'; default: those of the paper.
        size: Side of the images for which the cost is counted.
        channels: Channels of the images.
        classes: Number of classes.
    """
    names = model_names(patterns)
    if len(names) > MOST_COSTS:
        write(*names, f"{len(names)} networks; costs are shown for up to {MOST_COSTS}")
        return
    rows = []
    for name in names:
        try:
            cost = model_cost(name, channels, classes, channels, size)
        except ModelError:
            if len(names) == 1:
                raise
            rows.append([name, "not at this size"])
        else:
            counts = [f"{count:,}" for count in (cost.parameters, cost.parameters_alone)]
            rows.append([name, *counts, f"{cost.gmacs:.2f}", f"{cost.gmacs_alone:.2f}"])
    title = f"networks for --model, at {channels} x {size} x {size} and {classes} classes"
    right = ["parameters", "without decoder", "GMAC", "without decoder"]
    write_table(title, ["name"], right, rows)
    for name in names:
        spec = find_model(name)
        weights = f" Pretrained weights: {spec.licence}." if spec.licence else ""
        write(f"{name}: {spec.summary}. {spec.paper}.{weights}")
    if not patterns:
        write(
            "More: all of timm, and every decoder and encoder of segmentation-models-pytorch: "
            "medduet models 'timm:*resnet*', medduet models 'smp:unet/*'"
        )
