"""Judging finished networks on any images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.fabric import Fabric

from medduet.config import DataConfig, Device, RunConfig
from medduet.data.cache import ProgressFactory
from medduet.data.imageset import ImageSet, Split
from medduet.data.sources import open_images
from medduet.data.splits import divided, read_split
from medduet.errors import ConfigError
from medduet.models.base import check_takes
from medduet.runs.bundle import ModelBundle, load_bundle
from medduet.runs.environment import describe_data
from medduet.runs.folder import RunFolder, is_run
from medduet.runs.images import in_classes_of, prepared_as
from medduet.runs.predictions import Predictions
from medduet.training.fabric import configure_network, launch_fabric
from medduet.training.setup import check_same_images
from medduet.training.validation import predict_split, summarize
from medduet.uncertainty.calibration import Calibration
from medduet.utils.files import write_json
from medduet.utils.hub import bundle_folder, is_on_hub
from medduet.utils.parsing import misread, read_json


def evaluate(
    path: str | Path,
    *,
    data: DataConfig | None = None,
    split: Literal["train", "val", "test", "all"] = "test",
    device: Device = "auto",
    out: Path | None = None,
    progress: ProgressFactory | None = None,
) -> dict[str, Any]:
    """Judge the network of a bundle or run on a split of a data set.

    Args:
        path: a bundle, or a finished run, or ``hf://OWNER/NAME``.
        data: the data set; ``None`` for the one that the run was trained on (a run only).
        split: ``"train"``, ``"val"``, ``"test"``, or ``"all"`` of them together.
        device: see `medduet.TrainConfig`.
        out: folder for ``metrics.json`` and the predictions; ``None`` for
            ``PATH/evaluations/DATA-SPLIT``.
        progress: draws the progress of downloads and conversions.

    Returns:
        The metrics with their intervals, as in ``metrics.json`` of a run, with what the calibration
        of the bundle gives.

    Raises:
        ConfigError: the data set has other channels or classes than the network.
        MissingFileError: there is no bundle at `path`.
        ModelError: it is damaged.
    """
    if is_on_hub(path) and out is None:
        raise ConfigError("expected a folder for what a network of the hub says: add --out DIR")
    path = bundle_folder(path)
    bundle = load_bundle(path)
    calibration = Calibration.of_bundle(bundle.config)
    judged = judge_bundles(
        [bundle], path, data=data, splits=[split], device=device, progress=progress
    )
    images, predictions = judged.images, judged.predictions[split][0]
    metrics = {"split": split, "data": describe_data(images)} | {
        split: summarize(predictions, judged.config.evaluate, calibration)
    }
    if judged.fabric.is_global_zero:
        folder = RunFolder(out or path / "evaluations" / f"{images.name}-{split}")
        folder.write_predictions(split, predictions)
        write_json(folder.metrics_path, metrics)
    judged.fabric.barrier()
    return metrics


@dataclass(frozen=True)
class Judged:
    """What networks said of the same images.

    Attributes:
        fabric: on what it was computed.
        config: the settings of the run, or the defaults.
        images: the set, with the networks' classes.
        predictions: of each network in turn, by the name of the split.
    """

    fabric: Fabric
    config: RunConfig
    images: ImageSet
    predictions: dict[str, list[Predictions]]

    def prepare(self, bundle: ModelBundle) -> None:
        """Bring a network to the device; ModelError if it does not take the images."""
        check_takes(bundle.network, *self.images.size)
        self.fabric.to_device(bundle.network)
        configure_network(self.fabric, bundle.network, self.images.size)

    def said(self, bundle: ModelBundle, split: Split, *, thorough: bool = True) -> Predictions:
        """Return what a network that is prepared says of a split, see `predict_split`."""
        return predict_split(
            self.fabric,
            bundle.network,
            split,
            bundle.layout,
            data=self.images,
            batch_size=self.config.evaluate.batch_size,
            thorough=thorough,
        )


def judge_bundles(
    bundles: Sequence[ModelBundle],
    path: Path,
    *,
    data: DataConfig | None,
    splits: Sequence[str],
    device: Device,
    progress: ProgressFactory | None,
) -> Judged:
    """Let networks for the same images judge the same splits, see `evaluate`.

    Args:
        bundles: the networks.
        path: where the first one is; if it is a run, its settings, data and split are taken.
        data: other images.
        splits: what to judge, ``"all"`` for all splits together.
        device: see `medduet.TrainConfig`.
        progress: draws the progress of downloads and conversions.

    Raises:
        ConfigError: the data set has other channels or classes than the networks.
    """
    judged = open_for(bundles[0], path, data=data, device=device, progress=progress)
    for bundle in bundles:
        judged.prepare(bundle)
        for split in splits:
            images = judged.images.pool() if split == "all" else judged.images.split(split)
            judged.predictions.setdefault(split, []).append(judged.said(bundle, images))
    return judged


def open_for(
    bundle: ModelBundle,
    path: Path,
    *,
    data: DataConfig | None,
    device: Device,
    progress: ProgressFactory | None,
) -> Judged:
    """Open images for a network to judge, see `judge_bundles`; nothing is predicted yet."""
    about = bundle.config
    config, saved = RunConfig(), None
    if is_run(path):
        folder = RunFolder.open(path)
        config, saved = folder.run_config(), folder.split if data is None else None
    data = data or config.data
    if not data.name:
        raise ConfigError(f"{path} is a bundle: say on which data to judge it, by --data NAME")
    if saved is None:
        data = prepared_as(data, about["preprocessing"])
    fabric = launch_fabric(config.train.model_copy(update={"device": device}))
    with fabric.rank_zero_first():
        images = open_images(data, progress=progress, saved_split=saved)
    own_split = path / "split.csv"
    if saved is None and own_split.is_file() and _same_pool(images, path):
        images = divided(images, read_split(own_split, images), {"run": str(path)})
    check_same_images(fabric, images)
    images = in_classes_of(images, about["class_names"])
    _check_fits(images, about, path)
    return Judged(fabric, config, images, {})


def _same_pool(images: ImageSet, path: Path) -> bool:
    """Return whether a run was trained on these images, however they are split now."""
    with misread(path / "environment.json"):
        trained_on = read_json(path / "environment.json")["data"].get("info", {}).get("undivided")
    return bool(images.info.get("undivided", images.fingerprint) == trained_on)


def _check_fits(images: ImageSet, config: Mapping[str, Any], path: Path) -> None:
    network = config["network"]
    if images.in_channels != network["in_channels"]:
        raise ConfigError(
            f"{path} takes {network['in_channels']} channel(s), but {images.name} has "
            f"{images.in_channels}: convert the images first"
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
