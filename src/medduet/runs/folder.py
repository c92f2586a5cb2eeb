"""The folder of a run: everything that it did, in files that need no program of ours to read."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from medduet._version import __version__
from medduet.config import RunConfig, parse_config
from medduet.data.imageset import SPLITS, ImageSet
from medduet.errors import ConfigError, MissingFileError
from medduet.models.cost import Cost
from medduet.runs.predictions import Predictions
from medduet.utils.files import finite, sweep, write_json, write_text
from medduet.utils.locks import exclusive, holder
from medduet.utils.parsing import read_json, read_objects

_LIBRARIES = ("torch", "lightning", "timm", "monai", "torchmetrics", "medmnist", "numpy", "scipy")


class RunFolder:
    """The files of one run, in a folder that need not exist yet.

    ::

        RUN/
        ├── config.json         the resolved settings
        ├── environment.json    versions, machine, cost of the network, fingerprint of the data
        ├── split.csv           which image is in which split, unless the set is in its own
        ├── weights.json        which tensors a file gave, if training started from one
        ├── epochs.jsonl        one line per epoch
        ├── metrics.json        what the selected epoch does on val and test, with intervals
        ├── predictions/        one CSV per split, one line per image
        ├── samples.npz         some test images with truth and prediction, for the figures
        ├── figures/            PNG
        ├── bundle/             the network with what is needed to use it
        ├── not-finite/         batches whose loss or gradient was not, if there were any
        └── checkpoints/        only until the run is finished
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.json"
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

    def config(self) -> RunConfig:
        """Read the settings of the run."""
        return parse_config(read_json(self.path / "config.json"), str(self.path / "config.json"))

    def checkpoint(self, name: str) -> Path:
        """Return the path of the checkpoint called `name` (last, best, best-test)."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    @property
    def finished(self) -> bool:
        """Whether everything is done; a run that is not can be resumed."""
        return self.metrics.is_file() and not self.checkpoint("last").exists()

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

    def write_environment(
        self, data: ImageSet, cost: Cost, fabric: Fabric, training: Mapping[str, Any]
    ) -> None:
        """Record what the run ran on, on which data, and what its network costs.

        `training` is what was chosen where the settings say auto.
        """
        device = fabric.device
        write_json(
            self.path / "environment.json",
            {
                "medduet": __version__,
                "python": platform.python_version(),
                "libraries": {name: metadata.version(name) for name in _LIBRARIES}
                | {"torch": torch.__version__},
                "machine": {
                    "system": platform.platform(),
                    "processor": _processor(),
                    "cores": os.cpu_count(),
                    "threads": torch.get_num_threads(),
                    "device": str(device),
                    "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
                    "processes": fabric.world_size,
                },
                "training": dict(training),
                "network": cost._asdict(),
                "data": describe_data(data),
            },
        )

    def write_epochs(self, history: list[dict[str, Any]]) -> None:
        """Write one JSON line per epoch."""
        lines = (json.dumps(finite(row)) + "\n" for row in history)
        write_text(self.path / "epochs.jsonl", "".join(lines))

    def read_epochs(self) -> list[dict[str, Any]]:
        """Read the lines of all epochs so far."""
        return read_objects(self.path / "epochs.jsonl")

    def write_predictions(self, name: str, predictions: Predictions) -> None:
        """Write ``predictions/NAME.csv``, see `Predictions.to_csv`."""
        predictions.to_csv(self.path / "predictions" / f"{name}.csv")


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


def describe_data(data: ImageSet) -> dict[str, Any]:
    """Return what a run or a bundle records of its data, ready for JSON."""
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "splits": {name: len(data.split(name)) for name in SPLITS},
        "size": list(data.size),
        "channels": data.in_channels,
        "class_names": list(data.class_names),
        "mask_names": list(data.mask_names),
        "multi_label": data.multi_label,
        "info": dict(data.info),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8", errors="replace") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.*)", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor()
