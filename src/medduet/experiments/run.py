"""A whole run: data, network, training, evaluation, bundle, figures."""

import os
import re
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from medduet._version import __version__
from medduet.config import RunConfig
from medduet.data.audit.leakage import leak_warning
from medduet.data.cache import Progress
from medduet.data.imageset import ImageSet
from medduet.data.modality import allowed, known_modality
from medduet.data.sources import open_images
from medduet.data.splits import write_split
from medduet.data.summary import data_summary
from medduet.errors import DownloadError, MedDuetError, StorageError, TrainingError
from medduet.evaluation.ensemble import combine
from medduet.experiments.config import differing, require_one
from medduet.experiments.plan import FOLDS, Decision, is_open, plan
from medduet.models.base import network_cost
from medduet.models.inference import prepare_network
from medduet.models.weights import WeightsReport
from medduet.reports.figures import draw_run
from medduet.runs.bundle import load_bundle, save_bundle
from medduet.runs.environment import describe_data, describe_environment
from medduet.runs.folder import MEMBERS, RunFolder
from medduet.runs.predictions import Predictions
from medduet.training.experiment import Experiment
from medduet.training.fabric import launch_fabric
from medduet.training.final import (
    EVALUATED,
    evaluate_network,
    evaluate_selected,
    fit_ood_detector,
    write_samples,
)
from medduet.training.loop import fit
from medduet.training.reporter import Reporter
from medduet.training.setup import (
    build_network,
    build_objective,
    check_same_images,
    check_settings,
    dense_layout,
    encoder_rate,
)
from medduet.uncertainty.calibration import Calibration
from medduet.utils.devices import is_out_of_memory
from medduet.utils.files import write_json
from medduet.utils.parsing import misread, read_json


@dataclass(frozen=True)
class RunRecord:
    """A finished run: its folder, its settings, and the content of its ``metrics.json``."""

    path: Path
    config: RunConfig
    metrics: dict[str, Any]


def train(
    config: RunConfig | None = None,
    *,
    resume: str | Path | None = None,
    reporter: Reporter | None = None,
    progress: Progress = None,
    stop: threading.Event | None = None,
) -> RunRecord:
    """Train, evaluate and save a network, and leave everything in the run's folder.

    Args:
        config: of a new run.
        resume: instead, the folder of a run to go on with.
        reporter: gets the progress of the run.
        progress: draws the progress of downloads and conversions.
        stop: set it to stop after the current step; the run can be resumed.

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
    require_one(config, resume, "run")
    reporter = reporter or Reporter()
    if config is not None and _was_restarted(config):
        resume = config.out
    folder = None if resume is None else RunFolder.open(Path(resume))
    if folder is not None:
        config = folder.run_config()
        if folder.finished:
            folder.finish()  # what a kill in the middle of its last step has left is removed
            reporter.message(f"{folder.path} is finished already; nothing to do")
            return RunRecord(folder.path, config, read_json(folder.metrics_path))
    assert config is not None
    fabric = launch_fabric(config.train)
    # A run goes on with the images that it began with, however a split would be made now.
    saved_split = folder.split if folder else None
    with fabric.rank_zero_first():
        data = open_images(config.data, progress=progress, saved_split=saved_split)
    check_same_images(fabric, data, folder)
    decisions: list[Decision] = []
    if folder is not None:
        with misread(folder.path):
            decisions = [Decision(**each) for each in folder.decisions]
    if is_open(config):
        opened = config.data
        config, decisions = fabric.broadcast(plan(config, data, fabric))
        if config.data != opened:  # in another size now
            with fabric.rank_zero_first():
                data = open_images(config.data, progress=progress)
    check_settings(config, data)
    layout = dense_layout(config, data)
    # A checkpoint replaces whatever weights training once started from; members have their own.
    begun = (folder.checkpoint("last"), folder.path / MEMBERS) if folder else ()
    fresh = not any(path.exists() for path in begun)
    with fabric.rank_zero_first():
        network, weights = build_network(config, data, layout, fresh)
    precision = str(fabric.strategy.precision.precision)
    memory_format = prepare_network(network, fabric.device, data.size, precision)
    choices: dict[str, Any] = {"precision": precision, "memory_format": memory_format}
    choices["decisions"] = [decision._asdict() for decision in decisions]
    folder = folder or _create_folder(fabric, config, data)
    objective = build_objective(config, data, layout)
    stop = stop or threading.Event()
    experiment = Experiment(fabric, config, data, network, objective, folder, reporter, stop)
    with folder.claimed() if fabric.is_global_zero else nullcontext():
        try:
            metrics = _run(experiment, choices, weights)
        except (DownloadError, StorageError) as error:
            raise type(error)(f"{error}; then go on with: {folder.resume_command}") from error
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MedDuetError) or not is_out_of_memory(error):
                raise
            raise TrainingError(f"out of memory; go on with: {folder.resume_command}") from error
    return RunRecord(folder.path, config, metrics)


def _run(
    experiment: Experiment, choices: Mapping[str, Any], weights: WeightsReport | None
) -> dict[str, Any]:
    """Train, evaluate and save in a folder that no other process writes to; return the metrics."""
    fabric, folder = experiment.fabric, experiment.folder
    if fabric.is_global_zero:
        _begin(experiment, choices, weights)
    if experiment.config.train.preset == "best":
        experiment, metrics, calibration = _train_folds(experiment)
    else:
        metrics, calibration = evaluate_selected(experiment, fit(experiment))
    if fabric.is_global_zero:
        config = _bundle_config(experiment, metrics, calibration)
        save_bundle(folder.bundle, experiment.network, config)
        write_samples(folder, experiment.network, experiment.data, experiment.objective.layout)
        write_json(folder.metrics_path, metrics)
        draw_run(folder.path)
        folder.finish()
    fabric.barrier()
    return metrics


def _begin(
    experiment: Experiment, choices: Mapping[str, Any], weights: WeightsReport | None
) -> None:
    """Write what the run begins with, and report it."""
    config, data, folder = experiment.config, experiment.data, experiment.folder
    cost = network_cost(experiment.network, *experiment.network.sides_at_once(data.size))
    if "split" in data.info:
        write_split(folder.split, data)
    environment = describe_environment(data, cost, experiment.fabric, choices)
    write_json(folder.path / "environment.json", environment)
    report = experiment.reporter.message
    for line in data_summary(data) * (not config.data.keep_test):  # a member's are the ensemble's
        report(line)
    for decision in choices["decisions"]:
        report(str(Decision(**decision)))
    report(
        f"{config.model.name}, {cost.parameters:,} parameters, {choices['precision']} on "
        f"{experiment.fabric.device}; writing {folder.path}"
    )
    if (size := config.train.batch_size) > (count := len(data.train)):
        report(
            f"a batch of {size} holds all {count} training images, so an epoch is one step: a "
            "smaller --batch-size makes more"
        )
    if (leaks := leak_warning(data, config.data.cache)) is not None:
        report(leaks)
    if (rate := encoder_rate(config)) is not None:
        report(f"learning rate of the encoder: {rate:g} (the rest: {config.train.learning_rate:g})")
    if weights is not None:
        report(weights.summary())
        write_json(folder.path / "weights.json", asdict(weights))


def _was_restarted(config: RunConfig) -> bool:
    """Return whether torchrun starts this again after a process of the run has died."""
    if config.out is None or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) < 1:
        return False
    saved = config.out / "config.json"
    return saved.is_file() and not differing(read_json(saved), config)


def _create_folder(fabric: Fabric, config: RunConfig, data: ImageSet) -> RunFolder:
    model = re.sub(r"[^\w.-]+", "-", config.model.name)
    name = f"{data.name}-{model}-seed{config.train.seed}"
    path = ""
    if fabric.is_global_zero:
        path = str(RunFolder.create(config.out, name, config).path)
    return RunFolder(Path(fabric.broadcast(path)))


def _bundle_config(
    experiment: Experiment, metrics: dict[str, Any], calibration: Calibration | None
) -> dict[str, Any]:
    """The bundle always holds the epoch that validation selected, and its numbers."""
    data, network, layout = experiment.data, experiment.network, experiment.objective.layout
    honest = metrics.get("validation_selected", metrics)
    detector = fit_ood_detector(experiment)
    return {
        "class_names": list(data.class_names),
        "mask_names": list(data.mask_names) if layout.mask_classes else [],
        "multi_label": data.multi_label,
        "layout": layout._asdict(),
        "preprocessing": {
            "size": list(data.size),
            "patch": network.patch and list(network.patch),
            "spacing": data.info.get("spacing"),
            "channels": data.in_channels,
            "resize": "antialiased bilinear",
            "fit": data.info.get("fit", "stretch"),
            "window": data.info.get("window"),
            "input": "uint8, or float in [0, 1]; the network subtracts mean and divides by std",
            "mean": network.normalize.mean.flatten().tolist(),
            "std": network.normalize.std.flatten().tolist(),
        },
        "calibration": None if calibration is None else calibration.model_dump(mode="json"),
        "calibration_missing": honest.get("calibration_missing"),
        "metrics": {
            "seed": metrics["seed"],
            **{key: honest[key] for key in ("selection", "selected_epoch", *EVALUATED)},
        },
        "data": describe_data(data)
        | {"folds": FOLDS if experiment.config.train.preset == "best" else None},
        "versions": {"medduet": __version__, "torch": torch.__version__},
        "ood": None if detector is None else detector.model_dump(mode="json"),
    }


def _train_folds(
    experiment: Experiment,
) -> tuple[Experiment, dict[str, Any], Calibration | None]:
    """Train a network on each fold of train and val, and return what evaluates their mean.

    Of val are the predictions for the images of train and val by the one member that has not seen
    each; on them the ensemble is calibrated. Members that are finished are not trained again.

    Returns:
        The experiment with the ensemble, the metrics as in ``metrics.json``, and the calibration;
        ``None`` for the reason in ``calibration_missing``.
    """
    config, data = experiment.config, experiment.data
    runs = [RunFolder(experiment.folder.path / MEMBERS / f"fold{fold}") for fold in range(FOLDS)]
    for fold, run in enumerate(runs):
        experiment.reporter.message(f"fold {fold + 1} of {FOLDS}: {run.path}")
        _train_member(experiment, run, fold)
    modality = known_modality(data.info, config.data.modality)
    mirror = allowed(modality, [*data.class_names, *data.mask_names]).mirror
    bundle = combine([load_bundle(run.path) for run in runs], "flip" if mirror else "none")
    prepare_network(bundle.network, experiment.fabric.device, data.size)
    experiment = replace(experiment, network=bundle.network)
    held_out = Predictions.concatenate([run.predictions("val") for run in runs])
    metrics, calibration = evaluate_network(experiment, "", held_out)
    chosen = {name: bundle.config.metrics[name] for name in ("selection", "selected_epoch")}
    about = {"protocol": config.evaluate.protocol, "seed": config.train.seed}
    return experiment, about | chosen | metrics, calibration


def _train_member(experiment: Experiment, run: RunFolder, fold: int) -> None:
    begun = experiment.fabric.broadcast((run.path / "config.json").is_file())  # as rank 0 sees it
    reporter, stop = experiment.reporter, experiment.stop
    if begun:
        train(resume=run.path, reporter=reporter, stop=stop)
        return
    config = experiment.config
    of_data: dict[str, Any] = {"folds": FOLDS, "fold": fold, "keep_test": True}
    if config.data.folds is not None and not config.data.keep_test:  # test images stay test
        of_data["split"] = str(experiment.folder.split.absolute())
    of_train = {"preset": "balanced", "seed": config.train.seed * FOLDS + fold, "time_budget": None}
    changes: dict[str, Any] = {
        "data": config.data.model_copy(update=of_data),
        "train": config.train.model_copy(update=of_train),
        "out": run.path,
    }
    train(config.model_copy(update=changes), reporter=reporter, stop=stop)
