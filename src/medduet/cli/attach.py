"""The command that gives a set the masks of the set it was made from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from medduet.cli.parse import parse, quiet_libraries


def attach_masks(words: list[str]) -> int:
    """Give a set the masks of the set it was made from."""

    def arguments(
        target: tyro.conf.Positional[Path],
        source: Annotated[str, tyro.conf.arg(name="from")],
        out: Path,
        cache: Path | None = None,
    ) -> dict[str, Any]:
        """Give a set the masks of the set it was made from, such as BreastMNIST those of BUSI.

        Each image is found in the source by its content; those that are not, or not for certain,
        get no mask and are listed in a table (.csv) beside OUT.

        Args:
            target: The .npz without masks; its images, labels and splits are kept.
            source: The set with masks: an .npz, a folder or a table of images.
            out: The .npz to write.
            cache: Where downloads and unpacked arrays live.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet attach-masks")
    with quiet_libraries():
        from medduet.console import draw_progress
        from medduet.console_attach import show_attached
        from medduet.data.attach import attach_masks
        from medduet.data.sources import open_images

        name, cache = given.pop("source"), given.pop("cache")
        source = open_images(name, progress=draw_progress, cache=cache)
        attached = attach_masks(**given, source=source, progress=draw_progress)
        show_attached(attached)
    sys.stdout.write(f"set: {given['out']}\nimage by image: {given['out'].with_suffix('.csv')}\n")
    return 0
