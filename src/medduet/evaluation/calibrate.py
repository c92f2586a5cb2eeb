"""A bundle whose probabilities are calibrated on other images than those of its training."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from medduet.config import DataConfig, Device
from medduet.data.cache import ProgressFactory
from medduet.errors import ConfigError
from medduet.evaluation.evaluate import evaluate
from medduet.runs.bundle import load_bundle, save_bundle
from medduet.runs.predictions import Predictions
from medduet.uncertainty.calibration import Calibration


def calibrate_bundle(
    path: str | Path,
    out: str | Path,
    *,
    data: DataConfig,
    split: Literal["train", "val", "test", "all"] = "all",
    device: Device = "auto",
    progress: ProgressFactory | None = None,
) -> Calibration:
    """Write a bundle with the same weights, calibrated on images like those it will be used on.

    What sets promise holds for images like those they were fitted on. Where a network is used in
    another place than it was trained, some hundred labelled images from there put that right.

    Args:
        path: a bundle, or a finished run.
        out: the folder to write.
        data: the images, with labels; none of them should be used to judge the result.
        split: which of its splits; ``"all"`` for all of them together.
        device: see `medduet.TrainConfig`.
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
    bundle = load_bundle(path)
    with tempfile.TemporaryDirectory() as folder:
        judged = evaluate(
            path, data=data, split=split, device=device, out=Path(folder), progress=progress
        )
        said = Predictions.from_csv(Path(folder) / "predictions" / f"{split}.csv")
    trained_on = bundle.config.get("data") or {}
    if split in ("train", "all") and _same_images(judged["data"], trained_on):
        raise ConfigError(
            f"{path} was trained on these images, and is surer of them than of others: give "
            "--split val, or images that it has not seen"
        )
    if said.label is None or said.probability is None:
        raise ConfigError(f"{path} has no class head, so there is nothing to calibrate")
    multi_label = bool(bundle.config["multi_label"])
    calibration = Calibration.fit(said.label, said.probability, multi_label)
    source = {key: judged["data"][key] for key in ("name", "fingerprint")} | {"split": split}
    about = {
        "calibration": calibration.model_dump(mode="json"),
        "calibration_missing": None,
        "calibrated_on": source,
        "metrics": _without_calibration(bundle.config.get("metrics")),
    }
    file = ("format", "version", "weights_sha256", "network")  # what is written anew
    kept = {key: value for key, value in bundle.config.items() if key not in file}
    save_bundle(out, bundle.network, kept | about)
    return calibration


def _same_images(these: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Return whether two descriptions are of the same images, however they are split."""
    one, other = (
        {each.get("fingerprint"), (each.get("info") or {}).get("undivided")} - {None}
        for each in (these, others)
    )
    return bool(one & other)


def _without_calibration(metrics: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the metrics of a bundle less what they say of its old calibration."""
    if metrics is None:
        return None
    return {
        key: {name: each for name, each in value.items() if name != "calibration"}
        if isinstance(value, Mapping)
        else value
        for key, value in metrics.items()
    }
