"""The folder of a run: everything that it did, in files that any program can read."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any, Self

from medduet.config import RunConfig, validate
from medduet.errors import ConfigError, MissingFileError
from medduet.runs.predictions import Predictions
from medduet.utils.files import finite, sweep, write_json, write_text
from medduet.utils.locks import exclusive, holder, result_folder
from medduet.utils.parsing import misread, parse_json, read_bytes, read_json

_EXPECTED = "a finished run (a folder with config.json, metrics.json and predictions/)"
MEMBERS = "folds"
"""Folder, in that of an ensemble over folds, of the runs of its members."""


class RunFolder:
    """The files of one run, in a folder that need not exist yet; each is read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.json"
        self.samples = path / "samples.npz"
        self.split = path / "split.csv"
        self.bundle = path / "bundle"
        self._predictions: dict[str, Predictions] = {}

    @classmethod
    def create(cls, path: Path | None, name: str, config: RunConfig) -> Self:
        """Make a new run folder, ``runs/NAME`` without `path`, and write the settings into it."""
        path = path or numbered_folder(Path("runs") / name)
        if path.is_file():
            raise ConfigError(f"expected a folder for the run, but {path} is a file: change --out")
        if (path / "config.json").exists():
            raise ConfigError(f"{path} holds a run already: medduet train --resume {path}")
        check_empty(path)
        folder = cls(path)
        write_json(path / "config.json", config.model_dump(mode="json"))
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing run folder; MissingFileError if there is no run in it."""
        if not (path / "config.json").is_file():
            raise MissingFileError(f"expected a run folder, but '{path}' has no config.json")
        return cls(path)

    def checkpoint(self, name: str) -> Path:
        """Return the path of the checkpoint called `name` (last, best, best-test)."""
        return self.path / "checkpoints" / f"{name}.pt"

    @property
    def finished(self) -> bool:
        """Whether everything is done; a run that is not can be resumed."""
        written = (self.path / "config.json", self.path / "predictions", self.metrics_path)
        return all(path.exists() for path in written) and not self.checkpoint("last").exists()

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """What `auto` decided: settings by their path, values and reasons."""
        return list(self.environment.get("training", {}).get("decisions", ()))

    @property
    def resume_command(self) -> str:
        """What continues the run, or the ensemble that it is a member of."""
        above = self.path.parent.parent
        is_member = self.path.parent.name == MEMBERS and (above / "config.json").is_file()
        return f"medduet train --resume {above if is_member else self.path}"

    def finish(self) -> None:
        """Remove the checkpoints, the last one first: from then on the run is finished."""
        self.checkpoint("last").unlink(missing_ok=True)
        sweep(self.path)
        # The folder too, where a kill may have left a checkpoint half written.
        shutil.rmtree(self.checkpoint("last").parent, ignore_errors=True)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the only process that trains this run, and remove what killed ones have left."""
        lock = result_folder(self.path) / "checkpoints" / "lock"
        with exclusive(lock) as alone:
            if not alone:
                raise ConfigError(f"{self.path} is being trained by {holder(lock)}: wait for it")
            sweep(self.path)
            yield

    def write_epochs(self, history: list[dict[str, Any]]) -> None:
        """Write one JSON line per epoch."""
        lines = (json.dumps(finite(row)) + "\n" for row in history)
        write_text(self.path / "epochs.jsonl", "".join(lines))

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The content of ``config.json``, unchecked: it may be of another version."""
        return read_json(self.path / "config.json")

    def run_config(self) -> RunConfig:
        """Return the settings of the run; ConfigError if they are those of another version."""
        return validate(RunConfig, self.config, str(self.path / "config.json"), saved=True)

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """The content of ``metrics.json``."""
        return read_json(self.metrics_path)

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """The content of ``environment.json``; empty if there is none."""
        path = self.path / "environment.json"
        return read_json(path) if path.is_file() else {}

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The lines of ``epochs.jsonl``, or those of all members; none without the file."""
        path = self.path / "epochs.jsonl"
        if (members := self.path / MEMBERS).is_dir():
            return [row for folder in sorted(members.iterdir()) for row in RunFolder(folder).epochs]
        with misread(path):
            lines = read_bytes(path).decode().splitlines() if path.is_file() else []
            return [row | {} for row in parse_json(f"[{','.join(lines)}]")]

    @property
    def validation_selected(self) -> Mapping[str, Any]:
        """The metrics of the epoch that validation selected."""
        part: Mapping[str, Any] = self.metrics.get("validation_selected", self.metrics)
        return part

    @property
    def test_selected(self) -> Mapping[str, Any] | None:
        """The metrics of the epoch with the best test score, if the protocol asked for them."""
        return self.metrics if "validation_selected" in self.metrics else None

    @property
    def data(self) -> Mapping[str, Any]:
        """What the run recorded of its data: name, fingerprint, splits, class names."""
        return dict(self.environment.get("data", {}))

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

    def predictions(self, split: str = "test") -> Predictions:
        """Return ``predictions/SPLIT.csv``: ``"val"``, ``"test"``, or their ``-test-selected``."""
        if split not in self._predictions:
            path = self.path / "predictions" / f"{split}.csv"
            self._predictions[split] = Predictions.from_csv(path)
        return self._predictions[split]


def check_empty(path: Path) -> None:
    """Raise a ConfigError if a folder of results would be mixed with other files."""
    if path.is_dir() and any(not inside.name.startswith(".") for inside in path.iterdir()):
        raise ConfigError(f"{path} has other files in it: give another --out")


def is_run(path: Path) -> bool:
    """Return whether `path` is the folder of a finished run."""
    return path.joinpath("config.json").is_file() and path.joinpath("bundle").is_dir()


def numbered_folder(path: Path) -> Path:
    """Return `path`, with a number behind it if that is taken."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(folder for folder in chain([path], numbered) if not folder.exists())


def open_run(path: str | Path) -> RunFolder:
    """Return the finished run in the folder `path`."""
    run = RunFolder(Path(path))
    if not run.finished:
        is_begun = (run.path / "config.json").is_file()
        reason = f"is not finished: medduet train --resume {path}" if is_begun else "is none"
        raise MissingFileError(f"expected {_EXPECTED}, but {path} {reason}")
    with misread(run.path):
        _ = run.metrics, run.model_name, run.tasks, run.seed, run.data_name
    return run


def find_runs(paths: Sequence[str | Path]) -> list[RunFolder]:
    """Return the finished runs in and under the folders `paths`, each once, by their paths."""
    finished: dict[Path, Path] = {}
    for top in map(Path, paths):
        if not top.is_dir():
            raise MissingFileError(f"expected a folder of runs, but {top} is not there")
        for folder in (file.parent for file in top.rglob("config.json")):
            is_member = folder.parent.name == MEMBERS and folder.parent != top
            if RunFolder(folder).finished and not is_member:
                finished.setdefault(folder.resolve(), folder)
    if not finished:
        places = ", ".join(map(str, paths)) or "folders that are named"
        raise MissingFileError(f"expected {_EXPECTED} in {places}: medduet train --resume RUN")
    return [open_run(finished[resolved]) for resolved in sorted(finished)]
