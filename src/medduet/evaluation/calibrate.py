"""A bundle whose probabilities are calibrated on other images than those of its training."""

from pathlib import Path

from medduet.config import DataConfig, Device
from medduet.data.cache import Progress
from medduet.errors import ConfigError
from medduet.evaluation.evaluate import Evaluator, SplitName
from medduet.runs.bundle import save_bundle
from medduet.runs.config import DataRecord
from medduet.uncertainty.calibration import Calibration


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
        device: auto, cpu, cuda, cuda:1 or mps.
        progress: draws the progress of downloads and conversions.

    Returns:
        The new calibration.

    Raises:
        ConfigError: `out` is there already, the images or the network have no such classes, or the
            network was trained on these images.
        DataError: too few images with a label.
        MedDuetError: see `medduet.evaluate`.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} is there already: give another --out")
    evaluator = Evaluator.open(path, data, device, progress)
    images, bundle = evaluator.images, evaluator.bundle
    trained_on = bundle.config.data or DataRecord()
    # The same images, however they are split.
    undivided = {images.fingerprint, images.info.get("undivided")} - {None}
    is_same = bool(undivided & {trained_on.fingerprint, trained_on.info.get("undivided")})
    if split in ("train", "all") and is_same:
        raise ConfigError(
            f"{path} was trained on these images, and is more confident on them than on others: "
            "give --split val, or other images"
        )
    predictions = evaluator.predict(evaluator.split(split), thorough=False)
    if predictions.label is None or predictions.probability is None:
        raise ConfigError(f"{path} has no classes to calibrate, or {images.name} no labels")
    calibration = Calibration.fit(
        predictions.label, predictions.probability, bundle.config.multi_label
    )
    metrics = dict(bundle.config.metrics)
    for name in {"val", "test"} & metrics.keys():  # what they say of the old calibration
        metrics[name] = {key: each for key, each in metrics[name].items() if key != "calibration"}
    source = {"name": images.name, "fingerprint": images.fingerprint, "split": split}
    changes = {"calibration": calibration, "calibration_missing": None, "calibrated_on": source}
    changes["metrics"] = metrics
    if evaluator.fabric.is_global_zero:
        save_bundle(out, bundle.network.cpu(), bundle.config.model_copy(update=changes))
    return calibration
