"""Finished runs, read from their folders alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medduet.errors import ConfigError, DataError, MissingFileError
from medduet.metrics.classification import correct_predictions
from medduet.types import UNKNOWN_LABEL
from medduet.utils.parsing import csv_rows, misread, read_object, read_objects

Selection = Literal["validation", "test"]
JUDGED = ("val", "test")
_WANTED = "a finished run (a folder with config.json, metrics.json and predictions/)"


@dataclass(frozen=True, eq=False)
class SplitPredictions:
    """What a run answered to each of the N images of a split.

    Attributes:
        index: ``(N,)`` int, place of the image in the split.
        label: ``(N,)`` int class index, ``(N, K)`` of 0 and 1 for multi-label sets, -1 unknown;
            ``None`` without class head.
        probability: ``(N, K)`` float; ``None`` without class head.
        right: in the shape of `label`, bool, as `medduet.metrics.accuracy` counts; False where
            unknown.
        mask_dice: ``(N, M)`` Dice of each foreground class, NaN where an image has no true mask;
            ``None`` if masks were not predicted or no true one is there.
        mask_present: ``(N, M)`` bool, whether the true mask has any pixel of the class.
        mse: ``(N,)`` reconstruction error; ``None`` if images were not rebuilt.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64] | None
    probability: NDArray[np.float64] | None
    right: NDArray[np.bool_] | None
    mask_dice: NDArray[np.float64] | None
    mask_present: NDArray[np.bool_] | None
    mse: NDArray[np.float64] | None

    @property
    def known(self) -> NDArray[np.bool_] | None:
        """In the shape of `label`: whether it is known."""
        if self.label is None:
            return None
        known: NDArray[np.bool_] = self.label != UNKNOWN_LABEL
        return known

    @property
    def dice(self) -> NDArray[np.float64] | None:
        """``(N,)`` mean Dice over the mask classes, NaN where an image has no true mask."""
        return None if self.mask_dice is None else self.mask_dice.mean(axis=1)

    @property
    def lesion(self) -> NDArray[np.bool_] | None:
        """``(N,)`` whether the true mask has any foreground."""
        return None if self.mask_present is None else np.any(self.mask_present, axis=1)


def read_predictions(path: Path) -> SplitPredictions:
    """Read a CSV of ``predictions/``.

    Raises:
        MissingFileError: no such file.
        DataError: it is no such CSV.
    """
    if not path.is_file():
        raise MissingFileError(f"expected predictions at {path}, but there is no such file")
    header, *rows = list(csv_rows(path)) or [[]]
    if "index" not in header or not rows or any(len(row) != len(header) for row in rows):
        raise DataError(f"expected a table with a column index and one line per image in {path}")
    cells = dict(zip(header, zip(*rows, strict=True), strict=True))
    with misread(path), np.errstate(invalid="raise"):  # what is no number is no class either
        return _from_columns(cells)


def _from_columns(cells: Mapping[str, tuple[str, ...]]) -> SplitPredictions:
    def table(kind: str, names: list[str]) -> NDArray[np.float64]:
        return np.array([[float(x or "nan") for x in cells[kind + name]] for name in names]).T

    def names(kind: str) -> list[str]:
        return [name.removeprefix(kind) for name in cells if name.startswith(kind)]

    label = probability = right = dice = present = None
    if classes := names("probability_"):
        several = "label" not in cells
        label = (table("label_", classes) if several else table("", ["label"])[:, 0]).astype(int)
        probability = table("probability_", classes)
        right = correct_predictions(label, probability, several)
    if "has_mask" in cells and (masks := names("dice_")):
        has_mask = table("", ["has_mask"]) > 0
        dice = np.where(has_mask, table("dice_", masks), np.nan)
        present = (table("truth_pixels_", masks) > 0) & has_mask
    mse = table("", ["mse"])[:, 0] if "mse" in cells else None
    index = np.array(cells["index"], dtype=np.int64)
    return SplitPredictions(index, label, probability, right, dice, present, mse)


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run as it lies in its folder, of this version or an older one.

    Attributes:
        path: the folder.
        config: the settings, as JSON; not checked, so that older ones are readable.
        metrics: the content of ``metrics.json``.
        environment: the content of ``environment.json``; empty if there is none.
    """

    path: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def honest(self) -> Mapping[str, Any]:
        """The part of the metrics on the epoch that validation selected."""
        part: Mapping[str, Any] = self.metrics.get("validation_selected", self.metrics)
        return part

    @property
    def test_selected(self) -> Mapping[str, Any] | None:
        """The part on the epoch with the best test score, if the run was judged so, too."""
        return None if self.honest is self.metrics else self.metrics

    @property
    def data(self) -> Mapping[str, Any]:
        """What the run recorded of its data: name, fingerprint, splits, class names."""
        data: Mapping[str, Any] = self.environment.get("data", {})
        return data

    @property
    def data_name(self) -> str:
        """Name of the data set."""
        return str(self.data.get("name") or Path(str(self.config["data"]["name"])).stem)

    @property
    def model(self) -> str:
        """Name of the network."""
        return str(self.config["model"]["name"])

    @property
    def tasks(self) -> tuple[str, ...]:
        """What was learnt."""
        return tuple(self.config["objective"]["tasks"])

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.metrics.get("seed", self.config["train"]["seed"]))

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The lines of ``epochs.jsonl``; none without the file."""
        path = self.path / "epochs.jsonl"
        return read_objects(path) if path.is_file() else []

    def predictions(
        self, split: str = "test", selection: Selection = "validation"
    ) -> SplitPredictions:
        """Read what the selected epoch answered on a split.

        Args:
            split: ``"val"`` or ``"test"``.
            selection: which split selected the epoch.

        Raises:
            ConfigError: another split, or a selection that the run was not judged with.
            MissingFileError: the file is gone.
            DataError: it can't be read.
        """
        if split not in JUDGED:
            raise ConfigError(f"expected split val or test, given '{split}'")
        if selection == "test" and self.test_selected is None:
            raise ConfigError(
                f"{self.path} has no test-selected epoch; ask for selection validation"
            )
        suffix = "-test-selected" if selection == "test" else ""
        return read_predictions(self.path / "predictions" / f"{split}{suffix}.csv")


def open_run(path: str | Path) -> FinishedRun:
    """Read the finished run in the folder `path`.

    Raises:
        MissingFileError: there is none, or it is not finished.
        DataError: its files can't be read.

    Example:
        >>> open_run("no-such-run")
        Traceback (most recent call last):
        ...
        medduet.errors.MissingFileError: expected a finished run (a folder with config.json, \
metrics.json and predictions/), but no-such-run is not there
    """
    path = Path(path)
    if not path.is_dir():
        there = "is no folder" if path.exists() else "is not there"
        raise MissingFileError(f"expected {_WANTED}, but {path} {there}")
    if not (path / "config.json").is_file():
        raise MissingFileError(
            f"expected {_WANTED}, but {path} has no config.json: give the folder that 'medduet "
            "train' printed"
        )
    if not _finished(path):
        raise MissingFileError(
            f"expected {_WANTED}, but {path} is not finished: medduet train --resume {path}"
        )
    environment = path / "environment.json"
    run = FinishedRun(
        path,
        read_object(path / "config.json"),
        read_object(path / "metrics.json"),
        read_object(environment) if environment.is_file() else {},
    )
    with misread(path):
        _ = run.model, run.tasks, run.seed, run.data_name
    return run


def find_runs(paths: Iterable[str | Path]) -> list[FinishedRun]:
    """Return the finished runs in and under the folders `paths`, each once, by their paths.

    What is not finished is left out.

    Raises:
        MissingFileError: a path is no folder, or there is no finished run at all.
        DataError: the files of a run can't be read.
    """
    given = [Path(path) for path in paths]
    found: dict[Path, Path] = {}
    unfinished: list[Path] = []
    for top in given:
        if not top.is_dir():
            raise MissingFileError(f"expected a folder of runs, but {top} is not there")
        for name, folders, files in os.walk(top):
            folder = Path(name)
            if _finished(folder):
                found.setdefault(folder.resolve(), folder)
                folders.clear()  # nothing in a run is another run
            elif "config.json" in files and "checkpoints" in folders:
                unfinished.append(folder)
                folders.clear()
    if not found:
        where = ", ".join(map(str, given)) or "one folder at least"
        more = f" ({len(unfinished)} not finished, such as {min(unfinished)})" if unfinished else ""
        raise MissingFileError(
            f"expected {_WANTED} under {where}, found none{more}: "
            "medduet train honest --data NAME --out RUN makes one"
        )
    return [open_run(found[resolved]) for resolved in sorted(found)]


def _finished(path: Path) -> bool:
    """Whether the folder is that of a finished run; the last checkpoint goes when it is."""
    files = all((path / name).is_file() for name in ("config.json", "metrics.json"))
    unfinished = (path / "checkpoints" / "last.pt").exists()
    return files and (path / "predictions").is_dir() and not unfinished
