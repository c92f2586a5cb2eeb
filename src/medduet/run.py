"""A whole run: data, network, training, judgement, bundle, figures."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

import medduet
from medduet.config import DataConfig, RunConfig
from medduet.data import ProgressFactory
from medduet.data.audit import leak_warning
from medduet.data.imageset import ImageSet
from medduet.data.splits import divided, read_split, write_split
from medduet.deploy.bundle import load_bundle, save_bundle
from medduet.engine.evaluate import predict_split, summarize
from medduet.engine.experiment import Experiment
from medduet.engine.fabric import launch_fabric
from medduet.engine.fit import fit
from medduet.engine.folder import RunFolder, describe_data
from medduet.engine.judge import JUDGED, judge, validation_selected
from medduet.engine.prepare import (
    build_network,
    build_objective,
    check_agreed,
    check_settings,
    dense_layout,
    in_classes_of,
    open_data,
    prepared_as,
)
from medduet.engine.reporter import Reporter
from medduet.engine.samples import write_samples
from medduet.errors import ConfigError
from medduet.files import read_json, write_json
from medduet.models import DuetNetwork, create_model
from medduet.models.base import check_takes
from medduet.models.cost import network_cost
from medduet.models.stages import anatomy
from medduet.report.architecture import architecture_figure
from medduet.report.run import draw_run
from medduet.report.style import save
from medduet.types import DenseLayout


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
        ConfigError: settings that don't fit together or don't fit the data.
        Interrupted: `stop` was set.
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
    reporter = reporter or Reporter()
    if resume is not None:
        folder = RunFolder.open(Path(resume))
        config = folder.config()
        if folder.finished:
            folder.finish()  # what a kill in the middle of its last step has left
            reporter.message(f"{folder.path} is finished already; nothing to do")
            return RunRecord(folder.path, config, read_json(folder.metrics))
    assert config is not None
    fabric = launch_fabric(config.train)
    with fabric.rank_zero_first():
        # A run goes on with the images that it began with, however a split would be made now.
        data = open_data(config.data, progress, folder.split if resume is not None else None)
    check_agreed(fabric, data)
    _check_same(folder if resume is not None else None, data)
    check_settings(config, data)
    layout = dense_layout(config, data)
    # A checkpoint replaces whatever weights training once started from.
    fresh = resume is None or not folder.checkpoint("last").is_file()
    with fabric.rank_zero_first():
        network, weights = build_network(config, data, layout, fresh)
    if resume is None:
        folder = _create_folder(fabric, config, data)
    if fabric.is_global_zero:
        cost = network_cost(network, *data.size)
        if "split" in data.info:
            write_split(folder.split, data)
        folder.write_environment(data, cost, fabric.device, fabric.world_size)
        if (leaks := leak_warning(data, config.data.cache)) is not None:
            reporter.message(leaks)
        if weights is not None:
            reporter.message(weights.summary())
            write_json(folder.path / "weights.json", weights.record())
    objective = build_objective(config, data, layout)
    stop = stop or threading.Event()
    experiment = Experiment(fabric, config, data, network, objective, folder, reporter, stop)
    metrics = judge(experiment, fit(experiment))
    if fabric.is_global_zero:
        save_bundle(folder.bundle, network, _bundle_config(network, data, layout, metrics))
        write_samples(folder.samples, network, data, layout)
        write_json(folder.metrics, metrics)
        draw_run(folder.path)
        folder.finish()
    fabric.barrier()
    return RunRecord(folder.path, config, metrics)


def _check_same(folder: RunFolder | None, data: ImageSet) -> None:
    """Refuse to go on with other images than those that a run began with."""
    path = None if folder is None else folder.path / "environment.json"
    if path is None or not path.is_file():
        return
    if read_json(path)["data"]["fingerprint"] != data.fingerprint:
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
    network: DuetNetwork, data: ImageSet, layout: DenseLayout, metrics: dict[str, Any]
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
        "metrics": {
            "seed": metrics["seed"],
            **{key: honest[key] for key in ("selection", "selected_epoch", *JUDGED)},
        },
        "data": describe_data(data),
        "versions": {"medduet": medduet.__version__, "torch": torch.__version__},
    }


def evaluate(
    path: str | Path,
    *,
    data: DataConfig | None = None,
    split: str = "test",
    device: str = "auto",
    out: Path | None = None,
    progress: ProgressFactory | None = None,
) -> dict[str, Any]:
    """Judge the network of a bundle or run on a split of a data set.

    Args:
        path: a bundle, or a finished run.
        data: the data set; ``None`` for the one that the run was trained on (a run only).
        split: ``"train"``, ``"val"``, ``"test"``, or ``"all"`` of them together.
        device: see `medduet.TrainConfig`.
        out: folder for ``metrics.json`` and the predictions; ``None`` for
            ``PATH/evaluations/DATA-SPLIT``.
        progress: draws the progress of downloads and conversions.

    Returns:
        The metrics with their intervals, as in ``metrics.json`` of a run.

    Raises:
        ConfigError: the data set has other channels or classes than the network.
        MissingFileError: there is no bundle at `path`.
    """
    path = Path(path)
    bundle = load_bundle(path)
    config, saved = RunConfig(), None
    if (path / "config.json").is_file() and path.joinpath("bundle").is_dir():
        folder = RunFolder.open(path)
        config, saved = folder.config(), folder.split if data is None else None
    data = data or config.data
    if not data.name:
        raise ConfigError(f"{path} is a bundle: say on which data to judge it, by --data NAME")
    if saved is None:
        data = prepared_as(data, bundle.config["preprocessing"])
    fabric = launch_fabric(config.train.model_copy(update={"device": device}))
    with fabric.rank_zero_first():
        images = open_data(data, progress, saved)
    own_split = path / "split.csv"
    if saved is None and own_split.is_file() and _same_pool(images, path):
        images = divided(images, read_split(own_split, images), {"run": str(path)})
    check_agreed(fabric, images)
    images = in_classes_of(images, bundle.config["class_names"])
    _check_fits(images, bundle.config, path)
    check_takes(bundle.network, *images.size)
    judged = images.pool() if split == "all" else images.split(split)
    fabric.to_device(bundle.network)
    predictions = predict_split(
        fabric,
        bundle.network,
        judged,
        bundle.layout,
        multi_label=images.multi_label,
        batch_size=config.evaluate.batch_size,
    )
    metrics = {"split": split, "data": describe_data(images)} | {
        split: summarize(predictions, images, config.evaluate)
    }
    if fabric.is_global_zero:
        folder = RunFolder(out or path / "evaluations" / f"{images.name}-{split}")
        folder.write_predictions(split, predictions, images)
        write_json(folder.metrics, metrics)
    fabric.barrier()
    return metrics


def _same_pool(images: ImageSet, path: Path) -> bool:
    """Return whether a run was trained on these images, however they are split now."""
    trained_on = read_json(path / "environment.json")["data"].get("info", {}).get("undivided")
    return bool(images.info.get("undivided", images.fingerprint) == trained_on)


def _check_fits(images: ImageSet, config: Mapping[str, Any], path: Path) -> None:
    network = config["network"]
    if images.in_channels != network["in_channels"]:
        raise ConfigError(
            f"{path} takes {network['in_channels']} channel(s), but {images.name} has "
            f"{images.in_channels}"
        )
    if network["num_classes"] and len(images.class_names) != network["num_classes"]:
        raise ConfigError(
            f"{path} knows {network['num_classes']} classes ({', '.join(config['class_names'])}), "
            f"but {images.name} has {len(images.class_names)}"
        )
    masks = config["layout"]["mask_classes"]
    if masks and images.mask_names and len(images.mask_names) != masks:
        raise ConfigError(
            f"{path} knows {masks} mask classes, but {images.name} has {len(images.mask_names)}"
        )


def draw_model(name: str, path: Path, *, size: int, channels: int, classes: int) -> None:
    """Draw the stages of the network called `name`, with both heads, into a PNG.

    Args:
        name: see `medduet.create_model`.
        path: of the file.
        size: side of the images in pixels.
        channels: of the images, and of the dense output.
        classes: number of classes.
    """
    with torch.device("meta"):
        network = create_model(
            name, in_channels=channels, num_classes=classes, dense_channels=channels
        )
    cost = network_cost(network, size, size)
    facts = (
        f"{cost.parameters:,} parameters, {cost.gmacs:.2f} GMAC; "
        f"without decoder {cost.parameters_alone:,} and {cost.gmacs_alone:.2f}"
    )
    save(architecture_figure(name, facts, anatomy(network, size, size)._asdict()), path)
