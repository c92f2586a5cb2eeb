"""The folder of a run: everything that it did, in files that any program can read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from medduet.config import RunConfig, parse_config
from medduet.errors import ConfigError, MissingFileError
from medduet.runs.predictions import Predictions
from medduet.utils.files import finite, sweep, write_json, write_text
from medduet.utils.locks import exclusive, holder
from medduet.utils.parsing import misread, read_object, read_objects

Selection = Literal["validation", "test"]
_EXPECTED = "a finished run (a folder with config.json, metrics.json and predictions/)"


class RunFolder:
    """The files of one run, in a folder that need not exist yet.

    ::

        RUN/
        ├── config.json         the resolved settings
        ├── environment.json    versions, machine, cost of the network, fingerprint of the data
        ├── split.csv           which image is in which split, unless the set is in its own
        ├── weights.json        which tensors a file gave, if training started from one
        ├── epochs.jsonl        one line per epoch
        ├── metrics.json        metrics of the selected epoch on val and test, with intervals
        ├── predictions/        one CSV per split, one line per image
        ├── samples.npz         some test images with truth and prediction, for the figures
        ├── figures/            PNG
        ├── bundle/             the network with what is needed to use it
        ├── not-finite/         batches whose loss or gradient was not, if there were any
        └── checkpoints/        only until the run is finished

    What is read is read once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.json"
        self.samples = path / "samples.npz"
        self.split = path / "split.csv"
        self.bundle = path / "bundle"

    @classmethod
    def create(cls, path: Path | None, name: str, config: RunConfig) -> RunFolder:
        """Make a new run folder and write the settings into it.

        Without `path` it is ``runs/NAME``, with a number behind it if that is taken. ConfigError
        if `path` holds a run already, or is a file.
        """
        path = path or numbered_folder(Path("runs") / name)
        if path.is_file():
            raise ConfigError(f"expected a folder for the run, but {path} is a file: change --out")
        if (path / "config.json").exists():
            raise ConfigError(
                f"{path} holds a run already: go on with it by 'medduet train --resume {path}', "
                "or give another --out"
            )
        folder = cls(path)
        write_json(path / "config.json", config.model_dump(mode="json"))
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder; MissingFileError if there is no run in it."""
        if not (path / "config.json").is_file():
            raise MissingFileError(
                f"expected a run folder, but {path} has no config.json: give the folder that "
                "'medduet train' printed"
            )
        return cls(path)

    # Writing --------------------------------------------------------------------------------------

    def checkpoint(self, name: str) -> Path:
        """Return the path of the checkpoint called `name` (last, best, best-test)."""
        return self.path / "checkpoints" / f"{name}.pt"

    @property
    def finished(self) -> bool:
        """Whether everything is done; a run that is not can be resumed."""
        return self.metrics_path.is_file() and not self.checkpoint("last").exists()

    def finish(self) -> None:
        """Remove the checkpoints, the last one first: from then on the run is finished."""
        self.checkpoint("last").unlink(missing_ok=True)
        sweep(self.path)
        # With whatever a kill in the middle of writing one has left there.
        shutil.rmtree(self.checkpoint("last").parent, ignore_errors=True)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the only process that trains this run, and remove what killed ones have left.

        Raises:
            ConfigError: another process trains it; it is named.
        """
        lock = self.path / "checkpoints" / "lock"
        with exclusive(lock) as alone:
            if not alone:
                raise ConfigError(
                    f"{self.path} is being trained by {holder(lock)}: wait for it, or stop it and "
                    f"go on by 'medduet train --resume {self.path}'"
                )
            sweep(self.path)
            yield

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Write ``environment.json``, see `medduet.runs.environment.describe_environment`."""
        write_json(self.path / "environment.json", environment)

    def write_epochs(self, history: list[dict[str, Any]]) -> None:
        """Write one JSON line per epoch."""
        lines = (json.dumps(finite(row)) + "\n" for row in history)
        write_text(self.path / "epochs.jsonl", "".join(lines))

    def write_predictions(self, name: str, predictions: Predictions) -> None:
        """Write ``predictions/NAME.csv``, see `Predictions.to_csv`."""
        predictions.to_csv(self.path / "predictions" / f"{name}.csv")

    # Reading --------------------------------------------------------------------------------------

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The content of ``config.json``, unchecked: it may be of another version."""
        return read_object(self.path / "config.json")

    def run_config(self) -> RunConfig:
        """Return the settings of the run; ConfigError if they are those of another version."""
        return parse_config(self.config, str(self.path / "config.json"))

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """The content of ``metrics.json``."""
        return read_object(self.metrics_path)

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """The content of ``environment.json``; empty if there is none."""
        path = self.path / "environment.json"
        return read_object(path) if path.is_file() else {}

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The lines of ``epochs.jsonl``; none without the file."""
        path = self.path / "epochs.jsonl"
        return read_objects(path) if path.is_file() else []

    @property
    def validation_selected(self) -> Mapping[str, Any]:
        """The metrics of the epoch that validation selected."""
        return validation_selected(self.metrics)

    @property
    def test_selected(self) -> Mapping[str, Any] | None:
        """The metrics of the epoch with the best test score, if the protocol asked for them."""
        return self.metrics if "validation_selected" in self.metrics else None

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
    def model_name(self) -> str:
        """Name of the network."""
        return str(self.config["model"]["name"])

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that were trained."""
        return tuple(self.config["objective"]["tasks"])

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.metrics.get("seed", self.config["train"]["seed"]))

    def predictions(self, split: str = "test", selection: Selection = "validation") -> Predictions:
        """Read the predictions of the selected epoch for a split.

        Args:
            split: ``"val"`` or ``"test"``.
            selection: which split selected the epoch.

        Raises:
            ConfigError: another split, or a selection that the run does not have.
            MissingFileError: the file is gone.
            DataError: it can't be read.
        """
        if split not in ("val", "test"):
            raise ConfigError(f"expected split val or test, given '{split}'")
        if selection == "test" and self.test_selected is None:
            raise ConfigError(
                f"{self.path} has no test-selected epoch; ask for selection validation"
            )
        suffix = "-test-selected" if selection == "test" else ""
        return Predictions.from_csv(self.path / "predictions" / f"{split}{suffix}.csv")


def validation_selected(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of ``metrics.json`` on the epoch that validation selected."""
    part: Mapping[str, Any] = metrics.get("validation_selected", metrics)
    return part


def is_run(path: Path) -> bool:
    """Return whether `path` is the folder of a finished run."""
    return path.joinpath("config.json").is_file() and path.joinpath("bundle").is_dir()


def numbered_folder(path: Path) -> Path:
    """Return `path`, with a number behind it if that is taken."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def open_run(path: str | Path) -> RunFolder:
    """Return the finished run in the folder `path`.

    Raises:
        MissingFileError: there is none, or it is not finished.
        DataError: its files can't be read.

    Example:
        >>> open_run("no-such-run")
        Traceback (most recent call last):
        ...
        medduet.errors.MissingFileError: expected a finished run (a folder with config.json, \
metrics.json and predictions/), but there is no folder no-such-run
    """
    path = Path(path)
    if not path.is_dir():
        raise MissingFileError(f"expected {_EXPECTED}, but there is no folder {path}")
    if not (path / "config.json").is_file():
        raise MissingFileError(
            f"expected {_EXPECTED}, but {path} has no config.json: give the folder that 'medduet "
            "train' printed"
        )
    if not _is_finished(path):
        raise MissingFileError(
            f"expected {_EXPECTED}, but {path} is not finished: medduet train --resume {path}"
        )
    run = RunFolder(path)
    with misread(path):
        _ = run.metrics, run.model_name, run.tasks, run.seed, run.data_name
    return run


def find_runs(paths: Iterable[str | Path]) -> list[RunFolder]:
    """Return the finished runs in and under the folders `paths`, each once, by their paths.

    What is not finished is left out.

    Raises:
        MissingFileError: a path is no folder, or there is no finished run at all.
        DataError: the files of a run can't be read.
    """
    tops = [Path(path) for path in paths]
    finished: dict[Path, Path] = {}
    unfinished: list[Path] = []
    for top in tops:
        if not top.is_dir():
            raise MissingFileError(f"expected a folder of runs, but {top} is not there")
        for name, folders, files in os.walk(top):
            folder = Path(name)
            if _is_finished(folder):
                finished.setdefault(folder.resolve(), folder)
                folders.clear()  # nothing in a run is another run
            elif "config.json" in files and "checkpoints" in folders:
                unfinished.append(folder)
                folders.clear()
    if not finished:
        where = ", ".join(map(str, tops)) or "one folder at least"
        more = f" ({len(unfinished)} not finished, such as {min(unfinished)})" if unfinished else ""
        raise MissingFileError(
            f"expected {_EXPECTED} under {where}, but there is none{more}: "
            "medduet train honest --data NAME --out RUN makes one"
        )
    return [open_run(finished[resolved]) for resolved in sorted(finished)]


def _is_finished(path: Path) -> bool:
    """Whether the folder is that of a finished run; the last checkpoint goes when it is."""
    run = RunFolder(path)
    return (path / "config.json").is_file() and run.finished and (path / "predictions").is_dir()
