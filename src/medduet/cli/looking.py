"""The commands that look at what is there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

import tyro

from medduet.cli.parse import parse, quiet_libraries, starting
from medduet.config import Augment, DataConfig, Device, Modality
from medduet.errors import ConfigError


def evaluate(words: list[str]) -> int:
    """Judge a finished run or bundle."""

    def arguments(
        path: tyro.conf.Positional[Path],
        data: str | None = None,
        split: Literal["train", "val", "test", "all"] = "test",
        size: int | None = None,
        device: Device = "auto",
        cache: Path | None = None,
        mirror: str | None = None,
        out: Path | None = None,
    ) -> dict[str, Any]:
        """Judge a finished run or bundle on a split of a data set.

        Args:
            path: The folder of the run, or of the bundle.
            data: As in training; default: what it was trained on.
            split: Which split to judge; all: every image of the set.
            size: Side of the images in pixels; default: what the network was trained on.
            device: auto, cpu, cuda, cuda:1 or mps.
            cache: Where downloads and unpacked arrays live.
            mirror: Base URL to download MedMNIST files from instead of Zenodo.
            out: Folder for the results; default: PATH/evaluations/DATA-SPLIT.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet evaluate")
    with quiet_libraries():
        with starting():
            from medduet.cli.display.progress import draw_progress
            from medduet.cli.display.results import show_evaluation
            from medduet.evaluation.evaluate import evaluate

        source = {name: given.pop(name) for name in ("size", "cache", "mirror")}
        name = given.pop("data")
        data = None if name is None else DataConfig(name=name, **source)
        lead = int(os.environ.get("RANK", "0")) == 0
        metrics = evaluate(**given, data=data, progress=draw_progress if lead else None)
        if lead:
            show_evaluation(metrics, given["split"])
            name = f"{metrics['data']['name']}-{given['split']}"
            where = given["out"] or given["path"] / "evaluations" / name
            sys.stdout.write(f"written: {where}\n")
    return 0


def stress(words: list[str]) -> int:
    """Judge a finished run or bundle on corrupted images."""

    def arguments(
        path: tyro.conf.Positional[Path],
        data: tyro.conf.Positional[str] = "",
        split: Literal["train", "val", "test", "all"] = "test",
        corruptions: tuple[str, ...] = (),
        modality: Modality = "auto",
        baseline: Path | None = None,
        size: int | None = None,
        device: Device = "auto",
        cache: Path | None = None,
        mirror: str | None = None,
        out: Path | None = None,
    ) -> dict[str, Any]:
        """Judge a finished run or bundle on images corrupted at five severities.

        Args:
            path: The folder of the run, or of the bundle.
            data: As in training; default: what it was trained on.
            split: Which split to judge; all: every image of the set.
            corruptions: Which ones, such as jpeg motion_blur; default: those of the modality.
            modality: What the images show; auto: what the run or a MedMNIST set says.
            baseline: stress.json, or its folder, of a network to compare with.
            size: Side of the images in pixels; default: what the network was trained on.
            device: auto, cpu, cuda, cuda:1 or mps.
            cache: Where downloads and unpacked arrays live.
            mirror: Base URL to download MedMNIST files from instead of Zenodo.
            out: Folder for the results; default: PATH/stress/DATA-SPLIT.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet stress")
    source = {name: given.pop(name) for name in ("size", "cache", "mirror")}
    name = given.pop("data")
    data = DataConfig(name=name, **source) if name else None
    with quiet_libraries():
        from medduet.cli.display.progress import draw_progress
        from medduet.cli.display.stress import show_stress
        from medduet.evaluation.stress import stress

        lead = int(os.environ.get("RANK", "0")) == 0
        record = stress(**given, data=data, progress=draw_progress if lead else None)
        if lead:
            show_stress(record)
            page = (
                given["out"]
                or given["path"] / "stress" / f"{record['data']['name']}-{given['split']}"
            )
            sys.stdout.write(f"look at: {page / 'index.html'}\n")
    return 0


def datasets(words: list[str]) -> int:
    """List the data sets that are known by name."""

    def arguments(cache: Path | None = None) -> Path | None:
        """List the data sets that are known by name.

        Args:
            cache: Where downloads and unpacked arrays live.
        """
        return cache

    cache = parse(arguments, words, "medduet datasets")
    from medduet.cli.display.known import show_datasets

    show_datasets(cache)
    return 0


def models(words: list[str]) -> int:
    """List networks."""

    def arguments(
        patterns: tyro.conf.Positional[tuple[str, ...]] = (),
        size: int = 224,
        channels: int = 3,
        classes: int = 8,
    ) -> dict[str, Any]:
        """List networks with their parameters and cost, papers, and the licence of their weights.

        Args:
            patterns: Names or shell patterns, such as 'timm:*resnet*'; default: those of the paper.
            size: Side of the images for which the cost is counted.
            channels: Channels of the images.
            classes: Number of classes.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet models")
    with quiet_libraries():
        from medduet.cli.display.known import show_models

        show_models(**given)
    return 0


def show(words: list[str]) -> int:
    """Look at images."""

    def arguments(
        name: tyro.conf.Positional[str] = "",
        augment: Augment = "none",
        split: Literal["train", "val", "test"] = "train",
        count: int = 16,
        seed: int = 0,
        out: Path | None = None,
        data: DataConfig = DataConfig(),  # noqa: B008  (it never changes)
    ) -> dict[str, Any]:
        """Draw images with their classes and masks and, if asked, how training changes them.

        Args:
            name: A MedMNIST flag, the path of an .npz, a folder or .csv of images, or phantom.
            augment: Draw three versions beside each image.
            split: Which split to look at.
            count: Number of images; the first of each class in turn.
            seed: Seed of the augmentation.
            out: PNG file to write; default: DATA-show.png.
            data: How to open it.
        """
        return dict(locals())

    given = parse(arguments, words, "medduet show")
    if not given["name"]:
        raise ConfigError("expected a data set: medduet show DATA, such as phantom or FILE.npz")
    config = given.pop("data").model_copy(update={"name": given.pop("name")})
    with quiet_libraries():
        from medduet.cli.display.progress import draw_progress
        from medduet.reports.preview import show_images

        path = show_images(config, given.pop("out"), **given, progress=draw_progress)
    sys.stdout.write(f"look at: {path}\n")
    return 0
