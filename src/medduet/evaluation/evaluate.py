"""Finished networks on any images: evaluated, and calibrated."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from lightning.fabric import Fabric

from medduet.config import DataConfig, Device, RunConfig
from medduet.data.cache import Progress
from medduet.data.imageset import ImageSet, Split
from medduet.data.sources import open_images
from medduet.data.splits import apply_split, read_split
from medduet.errors import ConfigError
from medduet.models.base import check_takes
from medduet.models.inference import prepare_network
from medduet.runs.bundle import ModelBundle, load_bundle, save_bundle
from medduet.runs.config import DataRecord
from medduet.runs.environment import describe_data, in_classes_of, prepared_as
from medduet.runs.folder import RunFolder, is_run
from medduet.runs.predictions import Predictions
from medduet.training.fabric import launch_fabric
from medduet.training.setup import check_same_images
from medduet.training.validation import predict_split, summarize
from medduet.uncertainty.calibration import Calibration
from medduet.utils.files import write_json
from medduet.utils.hub import bundle_folder
from medduet.utils.locks import result_folder

_LOG = logging.getLogger(__name__)
SplitName = Literal["train", "val", "test", "all"]


def evaluate(
    path: str | Path,
    *,
    data: DataConfig | None = None,
    split: SplitName = "test",
    device: Device = "auto",
    out: Path | None = None,
    progress: Progress = None,
) -> dict[str, Any]:
    """Evaluate the network of a bundle or run on a split of a data set.

    Args:
        path: a bundle, or a finished run, or ``hf://OWNER/NAME``.
        data: the data set; ``None`` for the one that the run was trained on (a run only).
        split: ``"train"``, ``"val"``, ``"test"``, or ``"all"`` of them together.
        device: auto, cpu, cuda or cuda:1.
        out: folder for ``metrics.json`` and the predictions; ``None`` for
            ``PATH/evaluations/DATA-SPLIT``.
        progress: draws the progress of downloads and conversions.

    Returns:
        The metrics with their intervals, as in ``metrics.json`` of a run, with those of the
        calibration of the bundle.

    Raises:
        ConfigError: the data set has other channels or classes than the network.
        MissingFileError: there is no bundle at `path`.
        ModelError: it is damaged.
    """
    check_out(path, out)
    evaluator = Evaluator.open(path, data, device, progress)
    images, config = evaluator.images, evaluator.bundle.config
    name = f"evaluations/{images.name}-{split}"
    folder = RunFolder(result_folder(out) if out else result_folder(evaluator.path, name))
    if split != "train" and evaluator.was_trained_on(split):
        _LOG.warning("%s was trained on images of %s: give --split test", evaluator.path, split)
    predictions = evaluator.predict(evaluator.images.split(split))
    metrics = {
        "split": split,
        "data": describe_data(images),
        split: summarize(predictions, config.calibration, config.network.ordinal),
    }
    if evaluator.fabric.is_global_zero:
        predictions.to_csv(folder.path / "predictions" / f"{split}.csv")
        write_json(folder.metrics_path, metrics)
    evaluator.fabric.barrier()
    return metrics


def check_out(path: str | Path, out: Path | None) -> None:
    """Raise `ConfigError` if results have no folder: those of a network of the hub need one."""
    if str(path).startswith("hf:/") and out is None:
        raise ConfigError("a network on the hub has no folder for results: add --out DIR")


@dataclass(frozen=True)
class Evaluator:
    """A network on a device, and images, in its classes, on which it predicts."""

    path: Path
    bundle: ModelBundle
    fabric: Fabric
    config: RunConfig
    images: ImageSet

    @classmethod
    def open(
        cls, path: str | Path, data: DataConfig | None, device: str, progress: Progress
    ) -> Self:
        """Load a network and open images for it, those of the run if no `data` is given."""
        path = bundle_folder(path)
        bundle = load_bundle(path)
        _, preprocessing = bundle.config.usable(path)
        config, saved = RunConfig(), None
        if is_run(path):
            folder = RunFolder.open(path)
            config, saved = folder.run_config(), folder.split if data is None else None
        data = data or config.data
        if not data.name:
            raise ConfigError(f"{path} is a bundle, which has no data set: add --data NAME")
        if saved is None:
            data = prepared_as(data, preprocessing)
        fabric = launch_fabric(config.train.model_copy(update={"device": device}))
        with fabric.rank_zero_first():
            images = open_images(data, progress=progress, saved_split=saved)
        if saved is None and _same_images(images, bundle):
            if (split_file := path / "split.csv").is_file():
                images = apply_split(images, read_split(split_file, images), {"run": str(path)})
            elif bundle.config.data and images.fingerprint != bundle.config.data.fingerprint:
                hint = "give the run, or its split.csv by --data.split"
                _LOG.warning("%s was trained on images of each part of this split: %s", path, hint)
        check_same_images(fabric, images)
        images = in_classes_of(images, bundle.config.class_names)
        _check_fits(images, bundle, path)
        return cls(path, bundle, fabric, config, images).with_network(bundle)

    def with_network(self, bundle: ModelBundle) -> Self:
        """Bring another network to the device; ModelError if it does not take the images."""
        check_takes(bundle.network, *bundle.network.sides_at_once(self.images.size))
        prepare_network(bundle.network, self.fabric.device, self.images.size)
        return replace(self, bundle=bundle)

    def was_trained_on(self, split: SplitName) -> bool:
        """Return whether the network, or a member of it, was trained on images of the split."""
        folds = self.bundle.config.data and self.bundle.config.data.folds
        trained_on = ("train", "val", "all") if folds else ("train", "all")
        return split in trained_on and _same_images(self.images, self.bundle)

    def predict(self, split: Split, *, thorough: bool = True) -> Predictions:
        """Return the predictions of the network, see `predict_split`."""
        calibration = self.bundle.config.calibration
        return predict_split(
            self.fabric,
            self.bundle.network,
            split,
            self.bundle.layout,
            data=self.images,
            thorough=thorough,
            precision=self.bundle.config.precision,
            temperature=None if calibration is None else calibration.temperature,
        )


def _same_images(images: ImageSet, bundle: ModelBundle) -> bool:
    """Return whether the network was trained on images of this set, however it is split."""
    trained_on = bundle.config.data or DataRecord()
    undivided = trained_on.info.get("undivided", trained_on.fingerprint)
    return bool(images.info.get("undivided", images.fingerprint) == undivided)


def _check_fits(images: ImageSet, bundle: ModelBundle, path: Path) -> None:
    network, masks = bundle.config.network, bundle.layout.mask_classes
    for what, expected, actual in (
        ("spatial dimensions", network.dims, images.dims),
        ("channels", network.in_channels, images.in_channels),
        ("classes", network.num_classes, len(images.class_names)),
        ("mask classes", masks, len(images.mask_names) or masks),
    ):
        if expected and expected != actual:
            names = f" ({', '.join(bundle.config.class_names)})" if what == "classes" else ""
            takes = f"{path} takes {expected} {what}{names}"
            raise ConfigError(f"{takes}, but {images.name} has {actual}")


def calibrate_bundle(
    path: str | Path,
    out: str | Path,
    *,
    data: DataConfig,
    split: SplitName = "all",
    device: Device = "auto",
    progress: Progress = None,
) -> Calibration:
    """Write a bundle with the same weights, calibrated on images like those it will be used on.

    Prediction sets hold what they promise on images like those they were fitted on. Where a network
    is used in another place than it was trained, some hundred labelled images from there suffice.

    Args:
        path: a bundle, or a finished run.
        out: the folder to write.
        data: the images, with labels; none of them should be used to evaluate the result.
        split: which of its splits; ``"all"`` for all of them together.
        device: auto, cpu, cuda or cuda:1.
        progress: draws the progress of downloads and conversions.

    Returns:
        The new calibration.

    Raises:
        ConfigError: `out` exists, the images or the network have no such classes, or the
            network was trained on these images.
        DataError: too few images with a label.
        MedDuetError: see `medduet.evaluate`.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} already exists: give another --out")
    evaluator = Evaluator.open(path, data, device, progress)
    images, bundle = evaluator.images, evaluator.bundle
    if evaluator.was_trained_on(split):
        hint = "" if evaluator.was_trained_on("val") else "--split val, or "
        raise ConfigError(f"{path} was trained on these images: give {hint}other images")
    predictions = evaluator.predict(evaluator.images.split(split), thorough=False)
    if predictions.label is None or predictions.probability is None:
        raise ConfigError(f"{path} has no classes to calibrate, or {images.name} no labels")
    calibration = Calibration.fit(
        predictions.label,
        predictions.probability,
        bundle.config.multi_label,
        bundle.config.network.ordinal,
    )
    metrics = dict(bundle.config.metrics)
    for name in {"val", "test"} & metrics.keys():  # the old calibration no longer holds
        metrics[name] = {k: value for k, value in metrics[name].items() if k != "calibration"}
    source = {"name": images.name, "fingerprint": images.fingerprint, "split": split}
    changes = {"calibration": calibration, "calibration_missing": None, "calibrated_on": source}
    changes["metrics"] = metrics
    if evaluator.fabric.is_global_zero:
        save_bundle(out, bundle.network.cpu(), bundle.config.model_copy(update=changes))
    return calibration
