"""The commands about data sets themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from medduet.cli.parse import parse, quiet_libraries, starting
from medduet.config import DataConfig
from medduet.errors import ConfigError

LEAKS_FOUND = 1


def audit(words: list[str]) -> int:
    """Look whether a data set can be trusted."""

    def arguments(
        data: DataConfig = DataConfig(),  # noqa: B008  (frozen)
        out: Path | None = None,
        strict: bool = False,
        fix: Path | None = None,
        fix_by: Literal["drop", "regroup"] = "drop",
    ) -> dict[str, Any]:
        """Look for leaks between splits, wrong labels and images that look wrong: audit DATA.

        Args:
            data: Which images; DATA comes first.
            out: Folder for index.html, audit.json and duplicates.csv; default: audits/NAME.
            strict: Exit with code 1 if there is a leak.
            fix: Write a split without leaks to this .csv, for --data.split.
            fix_by: drop: leave images out of train and val, test stays; regroup: move groups.
        """
        return dict(locals())

    if not words or words[0].startswith("-"):
        if not {"-h", "--help"} & set(words):
            raise ConfigError(
                "expected a data set after 'audit': medduet audit FILE.npz, or a folder, or a name "
                "of 'medduet datasets'"
            )
    else:
        words = ["--data.name", *words]
    given = parse(arguments, words, "medduet audit DATA")
    if given["fix"] is not None and given["fix"].suffix != ".csv":
        raise ConfigError(f"expected --fix FILE.csv, given {given['fix']}")
    with quiet_libraries():
        return _audit(**given)


def _audit(data: DataConfig, out: Path | None, strict: bool, fix: Path | None, fix_by: Any) -> int:
    with starting():
        from medduet.cli.display.progress import draw_progress
        from medduet.reports.audit_page import write_audit
    from medduet.cli.display.audit import show_audit
    from medduet.data.audit.checks import audit
    from medduet.data.audit.clean import clean
    from medduet.data.sources import open_images
    from medduet.data.splits import write_split

    images = open_images(data, progress=draw_progress)
    found = audit(images, cache=data.cache, progress=draw_progress)
    page = write_audit(found, images, out or Path("audits") / images.name)
    show_audit(found, page)
    if fix is not None:
        cleaned = clean(images, fix_by, cache=data.cache, progress=draw_progress)
        write_split(fix, cleaned.images)
        what = "; ".join(cleaned.changes) or "nothing to clean"
        sys.stdout.write(f"{what}\nnext: --data {data.name} --data.split {fix}\n")
    return LEAKS_FOUND if strict and found.leaks else 0


def write_zarr(words: list[str]) -> int:
    """Write a set as a zarr store."""

    def arguments(
        out: Path,
        data: DataConfig = DataConfig(),  # noqa: B008  (frozen)
        shard_mb: float = 64.0,
        shuffle_seed: int = 0,
    ) -> dict[str, Any]:
        """Write a set as a zarr store, for a folder or a server: zarr DATA --out SET.zarr.

        A call that was stopped continues where it was when it is typed again.

        Args:
            out: Folder of the store, NAME.zarr.
            data: Which images, and in which split; DATA comes first.
            shard_mb: Size of the images of a shard in MB.
            shuffle_seed: Seed by which images of train are dealt to shards.
        """
        return dict(locals())

    if words and not words[0].startswith("-"):
        words = ["--data.name", *words]
    elif not {"-h", "--help"} & set(words):
        raise ConfigError(
            "expected a data set after 'zarr': medduet zarr FILE.npz --out SET.zarr, or a folder, "
            "or a name of 'medduet datasets'"
        )
    options = parse(arguments, words, "medduet zarr DATA")
    with quiet_libraries():
        from medduet.cli.display.progress import draw_progress
        from medduet.data.sources import open_images
        from medduet.data.zarr_writer import write_zarr

        images = open_images(options["data"], progress=draw_progress)
        out, size, seed = (options[name] for name in ("out", "shard_mb", "shuffle_seed"))
        write_zarr(images, out, shard_mb=size, seed=seed, progress=draw_progress)
    sys.stdout.write(f"set: {out}\nnext: medduet train --data {out}\n")
    return 0


def attach_masks(words: list[str]) -> int:
    """Give a set the masks of the set it was made from."""

    def arguments(
        target: tyro.conf.Positional[Path],
        source: Annotated[str, tyro.conf.arg(name="from")],
        out: Path,
        masks: Path | None = None,
        skip_broken: bool = False,
        cache: Path | None = None,
    ) -> dict[str, Any]:
        """Give a set the masks of the set it was made from, such as BreastMNIST those of BUSI.

        Each image is found in the source by its content; those that are not, or not for certain,
        get no mask and are listed in a table (.csv) beside OUT.

        Args:
            target: The .npz without masks; its images, labels and splits are kept.
            source: The set with masks: an .npz, a folder or a table of images.
            out: The .npz to write.
            masks: Folder of the source's masks, if it is a folder of images and they lie apart.
            skip_broken: Leave image files out that can't be read.
            cache: Where downloads and unpacked arrays live.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet attach-masks")
    with quiet_libraries():
        from medduet.cli.display.attach import show_attached
        from medduet.cli.display.progress import draw_progress
        from medduet.data.attach import attach_masks
        from medduet.data.sources import open_images

        # Stretched, as MedMNIST's were; no split is asked for, so no duplicates are looked for.
        own = {name: given.pop(name) for name in ("masks", "skip_broken", "cache")}
        own |= {"fit": "stretch", "group_by": "none"}
        source = open_images(given.pop("source"), progress=draw_progress, **own)
        attached = attach_masks(**given, source=source, cache=own["cache"], progress=draw_progress)
        show_attached(attached)
    sys.stdout.write(f"set: {given['out']}\nimage by image: {given['out'].with_suffix('.csv')}\n")
    return 0
