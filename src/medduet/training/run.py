"""A whole run: data, network, training, judgement, bundle, figures."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from medduet._version import __version__
from medduet.config import RunConfig
from medduet.data.audit.leakage import leak_warning
from medduet.data.cache import ProgressFactory
from medduet.data.imageset import ImageSet
from medduet.data.sources import open_images
from medduet.data.splits import write_split
from medduet.errors import ConfigError, DownloadError, MedDuetError, StorageError, TrainingError
from medduet.models.base import DuetNetwork
from medduet.models.cost import Cost, network_cost
from medduet.models.weights import WeightsReport
from medduet.reports.run import draw_run
from medduet.runs.bundle import save_bundle
from medduet.runs.environment import describe_data, describe_environment
from medduet.runs.folder import RunFolder, validation_selected
from medduet.training.experiment import Experiment
from medduet.training.fabric import deterministic, launch_fabric
from medduet.training.final import JUDGED, judge
from medduet.training.load import Others
from medduet.training.loop import fit
from medduet.training.memory import is_out_of_memory
from medduet.training.ood import fit_familiarity
from medduet.training.reporter import Reporter
from medduet.training.samples import write_samples
from medduet.training.setup import (
    build_network,
    build_objective,
    check_agreed,
    check_settings,
    dense_layout,
)
from medduet.training.speed import arrange
from medduet.types import DenseLayout
from medduet.uncertainty.calibration import Calibration
from medduet.utils.files import write_json
from medduet.utils.parsing import misread, read_json


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        path: its folder.
        config: its settings.
        metrics: the content of its ``metrics.json``.
    """

    path: Path
    config: RunConfig
    metrics: dict[str, Any]


def train(
    config: RunConfig | None = None,
    *,
    resume: str | Path | None = None,
    reporter: Reporter | None = None,
    progress: ProgressFactory | None = None,
    stop: threading.Event | None = None,
) -> RunRecord:
    """Train, judge and save a network, and leave everything in the run's folder.

    Args:
        config: of a new run.
        resume: instead, the folder of a run to go on with.
        reporter: is told how the run goes on.
        progress: draws the progress of downloads and conversions.
        stop: set it to stop after the current step; the run can be resumed.

    Returns:
        The finished run.

    Raises:
        ConfigError: settings that don't fit together or don't fit the data, or another process
            trains this run.
        Interrupted: `stop` was set.
        StorageError: the disk is full or can't be written; after that the run can be resumed.
        MedDuetError: see its subclasses.

    Example:
        >>> import tempfile, medduet
        >>> config = medduet.load_recipe("demo").model_copy(update={
        ...     "data": medduet.DataConfig(name="phantom", size=16, count=20),
        ...     "model": medduet.ModelConfig(width=2),
        ...     "train": medduet.TrainConfig(epochs=1),
        ...     "out": Path(tempfile.mkdtemp()) / "run"})
        >>> medduet.train(config).metrics["test"]["n"]
        4
    """
    if (config is None) == (resume is None):
        raise ConfigError(
            "expected either the settings of a new run or the folder of one to resume"
        )
    reporter, others = reporter or Reporter(), Others()
    if config is not None and _was_restarted(config):
        resume = config.out
    if resume is not None:
        folder = RunFolder.open(Path(resume))
        config = folder.run_config()
        if folder.finished:
            if folder.checkpoint("last").parent.exists():
                folder.finish()  # what a kill in the middle of its last step has left
            reporter.message(f"{folder.path} is finished already; nothing to do")
            return RunRecord(folder.path, config, read_json(folder.metrics_path))
    assert config is not None
    fabric = launch_fabric(config.train)
    with fabric.rank_zero_first():
        # A run goes on with the images that it began with, however a split would be made now.
        data = open_images(
            config.data,
            progress=progress,
            saved_split=folder.split if resume is not None else None,
        )
    check_agreed(fabric, data)
    _check_same(folder if resume is not None else None, data)
    check_settings(config, data)
    layout = dense_layout(config, data)
    # A checkpoint replaces whatever weights training once started from.
    fresh = resume is None or not folder.checkpoint("last").is_file()
    with fabric.rank_zero_first():
        network, weights = build_network(config, data, layout, fresh)
    chosen = arrange(fabric, network, data.size)
    alone_on_cpu = fabric.world_size == 1 and fabric.device.type == "cpu"
    if alone_on_cpu and (advice := others.advice(torch.get_num_threads())) is not None:
        reporter.message(advice)
    if resume is None:
        folder = _create_folder(fabric, config, data)
    objective = build_objective(config, data, layout)
    stop = stop or threading.Event()
    experiment = Experiment(fabric, config, data, network, objective, folder, reporter, stop)
    with folder.claimed() if fabric.is_global_zero else nullcontext():
        try:
            metrics = _train_claimed(experiment, chosen, weights)
        except (DownloadError, StorageError) as error:
            again = f"{error}; then go on with: medduet train --resume {folder.path}"
            raise type(error)(again) from error
        except MedDuetError:
            raise
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            again = (
                f"out of memory: make room, then go on with: medduet train --resume {folder.path}"
            )
            raise TrainingError(again) from error
    return RunRecord(folder.path, config, metrics)


def _train_claimed(
    experiment: Experiment, chosen: Mapping[str, Any], weights: WeightsReport | None
) -> dict[str, Any]:
    """Train, judge and save in a folder that no other process writes to; return the metrics."""
    fabric, config, data = experiment.fabric, experiment.config, experiment.data
    network, folder, reporter = experiment.network, experiment.folder, experiment.reporter
    if fabric.is_global_zero:
        cost = network_cost(network, *data.size)
        if "split" in data.info:
            write_split(folder.split, data)
        folder.write_environment(describe_environment(data, cost, fabric, chosen))
        reporter.message(_what_begins(experiment, cost, chosen))
        if (size := config.train.batch_size) > (train := len(data.split("train"))):
            reporter.message(
                f"a batch of {size} holds all {train} training images, so an epoch is one step: "
                "a smaller --batch-size makes more"
            )
        if (leaks := leak_warning(data, config.data.cache)) is not None:
            reporter.message(leaks)
        if weights is not None:
            reporter.message(weights.summary())
            write_json(folder.path / "weights.json", weights.record())
    with deterministic(fabric, config.train.deterministic):
        metrics, calibration = judge(experiment, fit(experiment))
        familiar = fit_familiarity(experiment) if fabric.is_global_zero else None
    layout = experiment.objective.layout
    if fabric.is_global_zero:
        about = _bundle_config(network, data, layout, metrics, calibration)
        about["familiarity"] = None if familiar is None else familiar.to_json()
        save_bundle(folder.bundle, network, about)
        write_samples(folder.samples, network, data, layout)
        write_json(folder.metrics_path, metrics)
        draw_run(folder.path)
        folder.finish()
    fabric.barrier()
    return metrics


def _what_begins(experiment: Experiment, cost: Cost, chosen: Mapping[str, Any]) -> str:
    """Say in one line what is trained, on what, and where it is written."""
    data, name = experiment.data, experiment.config.model.name
    numbers = [f"{len(data.split(split)):,} {split}" for split in ("train", "val", "test")]
    return (
        f"{data.name}, {', '.join(numbers)}; {name}, {cost.parameters:,} parameters, "
        f"{chosen['precision']} on {experiment.fabric.device}; writing {experiment.folder.path}"
    )


def _was_restarted(config: RunConfig) -> bool:
    """Return whether torchrun starts this again after a process of the run has died."""
    if config.out is None or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) < 1:
        return False
    return (config.out / "config.json").is_file() and RunFolder(config.out).run_config() == config


def _check_same(folder: RunFolder | None, data: ImageSet) -> None:
    """Refuse to go on with other images than those that a run began with."""
    path = None if folder is None else folder.path / "environment.json"
    if path is None or not path.is_file():
        return
    with misread(path):
        fingerprint = read_json(path)["data"]["fingerprint"]
    if fingerprint != data.fingerprint:
        raise ConfigError(
            f"{path.parent} began with other images than {data.name} has now: put them back as "
            "they were, or start a new run"
        )


def _create_folder(fabric: Fabric, config: RunConfig, data: ImageSet) -> RunFolder:
    model = re.sub(r"[^\w.-]+", "-", config.model.name)
    name = f"{data.name}-{model}-seed{config.train.seed}"
    folder = None
    if fabric.is_global_zero:
        folder = RunFolder.create(config.out, name, config)
    path = fabric.broadcast(str(folder.path) if folder else "")
    return RunFolder(Path(path))


def _bundle_config(
    network: DuetNetwork,
    data: ImageSet,
    layout: DenseLayout,
    metrics: dict[str, Any],
    calibration: Calibration | None,
) -> dict[str, Any]:
    """The bundle always holds the epoch that validation selected, and its numbers."""
    honest = validation_selected(metrics)
    return {
        "class_names": list(data.class_names),
        "mask_names": list(data.mask_names) if layout.mask_classes else [],
        "multi_label": data.multi_label,
        "layout": layout._asdict(),
        "preprocessing": {
            "size": list(data.size),
            "channels": data.in_channels,
            "resize": "antialiased bilinear",
            "fit": data.info.get("fit", "stretch"),
            "window": data.info.get("window"),
            "input": "uint8, or float in [0, 1]; the network subtracts mean and divides by std",
            "mean": network.normalize.mean.flatten().tolist(),
            "std": network.normalize.std.flatten().tolist(),
        },
        "calibration": None if calibration is None else calibration.to_json(),
        "calibration_missing": honest.get("calibration_missing"),
        "metrics": {
            "seed": metrics["seed"],
            **{key: honest[key] for key in ("selection", "selected_epoch", *JUDGED)},
        },
        "data": describe_data(data),
        "versions": {"medduet": __version__, "torch": torch.__version__},
    }
