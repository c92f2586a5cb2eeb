"""The folder of a run: everything that it did, in files that need no program of ours to read."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import medduet
from medduet.config import RunConfig, parse_config
from medduet.data.imageset import SPLITS, ImageSet
from medduet.engine.evaluate import Predictions
from medduet.errors import ConfigError, MissingFileError
from medduet.files import finite, read_json, write_json, write_text

_LIBRARIES = ("torch", "lightning", "timm", "monai", "torchmetrics", "medmnist", "numpy", "scipy")


class RunFolder:
    """The files of one run.

    ::

        RUN/
        ├── config.json         the resolved settings
        ├── environment.json    versions, machine, fingerprint and sizes of the data
        ├── epochs.jsonl        one line per epoch
        ├── metrics.json        what the selected epoch does on val and test, with intervals
        ├── predictions/        one CSV per split, one line per image
        ├── samples.npz         some test images with truth and prediction, for the figures
        ├── figures/            PNG
        ├── bundle/             the network with what is needed to use it
        └── checkpoints/        only until the run is finished

    Args:
        path: of the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path | None, name: str, config: RunConfig) -> RunFolder:
        """Make a new run folder and write the settings into it.

        Args:
            path: the folder, or ``None`` for ``runs/NAME``, with a number behind it if taken.
            name: for the default folder.
            config: of the run.

        Raises:
            ConfigError: the folder holds a run already, or is a file.
        """
        if path is None:
            path, number = Path("runs") / name, 1
            while path.exists():
                number += 1
                path = Path("runs") / f"{name}-{number}"
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
        """Open an existing run folder.

        Raises:
            MissingFileError: there is no run in it.
        """
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
    def bundle(self) -> Path:
        """The folder of the bundle."""
        return self.path / "bundle"

    @property
    def metrics(self) -> Path:
        """The file with the metrics of the selected epoch."""
        return self.path / "metrics.json"

    @property
    def samples(self) -> Path:
        """The file with some test images, their truth and what the network said."""
        return self.path / "samples.npz"

    @property
    def finished(self) -> bool:
        """Whether everything is done; a run that is not can be resumed."""
        return self.metrics.is_file() and not self.checkpoint("last").exists()

    def finish(self) -> None:
        """Remove the checkpoints, the last one first: from then on the run is finished."""
        self.checkpoint("last").unlink(missing_ok=True)
        # With whatever a kill in the middle of writing one has left there.
        shutil.rmtree(self.checkpoint("last").parent, ignore_errors=True)

    def write_environment(self, data: ImageSet, device: torch.device, world_size: int) -> None:
        """Record what the run ran on, and on which data."""
        write_json(
            self.path / "environment.json",
            {
                "medduet": medduet.__version__,
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
                    "processes": world_size,
                },
                "data": describe_data(data),
            },
        )

    def write_epochs(self, history: list[dict[str, Any]]) -> None:
        """Write one JSON line per epoch."""
        write_text(
            self.path / "epochs.jsonl", "".join(json.dumps(finite(row)) + "\n" for row in history)
        )

    def read_epochs(self) -> list[dict[str, Any]]:
        """Read the lines of all epochs so far."""
        path = self.path / "epochs.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    def write_predictions(self, name: str, predictions: Predictions, data: ImageSet) -> Path:
        """Write one line per image: truth, probabilities and per-image metrics.

        Columns: ``index``; ``label`` (or ``label_CLASS`` for multi-label sets); ``predicted``;
        ``probability_CLASS``; for each mask class ``dice_NAME``, ``iou_NAME``, ``hd95_NAME`` (in
        pixels, empty where undefined), ``truth_pixels_NAME``, ``predicted_pixels_NAME``; ``mse``,
        ``psnr``, ``ssim``.
        """
        columns: dict[str, list[Any]] = {"index": list(range(len(predictions.label)))}
        values = predictions.values
        if "probability" in values:
            probability = values["probability"]
            if data.multi_label:
                for k, name_of_class in enumerate(data.class_names):
                    columns[f"label_{name_of_class}"] = predictions.label[:, k].tolist()
            else:
                columns["label"] = predictions.label.tolist()
                columns["predicted"] = probability.argmax(axis=1).tolist()
            for k, name_of_class in enumerate(data.class_names):
                columns[f"probability_{name_of_class}"] = probability[:, k].tolist()
        if predictions.has_mask.any() and "dice" in values:
            columns["has_mask"] = predictions.has_mask.astype(int).tolist()
        for metric in ("dice", "iou", "hd95", "truth_pixels", "predicted_pixels"):
            for k, mask_name in enumerate(data.mask_names[1:] if metric in values else ()):
                columns[f"{metric}_{mask_name}"] = _cells(values[metric][:, k])
        for metric in ("mse", "psnr", "ssim"):
            if metric in values:
                columns[metric] = _cells(values[metric])
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        path = self.path / "predictions" / f"{name}.csv"
        write_text(path, text.getvalue())
        return path


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


def _cells(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float | str]:
    return ["" if np.isnan(value) else value for value in values.tolist()]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
