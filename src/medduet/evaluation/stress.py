"""Robustness: a network on images with the corruptions of its modality, at five severities."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medduet import metrics
from medduet.config import DataConfig, Device
from medduet.data.cache import Progress, counted
from medduet.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt_split, corruptions_of
from medduet.data.imageset import ImageSet
from medduet.data.modality import known_modality
from medduet.errors import ConfigError, closest
from medduet.evaluation.evaluate import Evaluator, SplitName, check_out
from medduet.runs.environment import describe_data
from medduet.runs.predictions import Predictions
from medduet.training.validation import mask_summary
from medduet.types import UNKNOWN_LABEL, Modality
from medduet.utils.files import write_json
from medduet.utils.locks import result_folder

MEASURED = ("accuracy", "balanced_error", "dice_nonempty", "ece")


def stress(
    path: str | Path,
    *,
    data: DataConfig | None = None,
    split: SplitName = "test",
    corruptions: Sequence[str] = (),
    modality: Modality = "auto",
    device: Device = "auto",
    out: Path | None = None,
    progress: Progress = None,
) -> dict[str, Any]:
    """Evaluate the network of a bundle or run on corrupted images, as MedMNIST-C does.

    Each image of the split is corrupted in each way at each of five severities, at the size of the
    network's input; the same image always to the same pixels. The result is written to
    ``stress.json``; `medduet.reports.stress.write_stress_page` makes a page of it.

    Args:
        path: a bundle, or a finished run, or ``hf://OWNER/NAME``.
        data: the data set; ``None`` for the one that the run was trained on (a run only).
        split: ``"train"``, ``"val"``, ``"test"``, or ``"all"`` of them together.
        corruptions: their names, see `medduet.data.corruptions`; none for those of the modality.
        modality: what the images show; ``"auto"`` for what the run or a MedMNIST set says.
        device: auto, cpu, cuda or cuda:1.
        out: folder to write; ``None`` for ``PATH/stress/DATA-SPLIT``.
        progress: draws the progress.

    Returns:
        The content of ``stress.json``: ``strengths``, the list that they are of; ``clean``;
        ``corruptions``, by name, with ``severities`` and their ``mean``; ``mean`` over the
        corruptions. Each has accuracy, balanced error (1 - mean recall over classes), expected
        calibration error (calibrated, if the network is) and Dice of images with a lesion, with n.
        ``rise`` is the balanced error less that of clean images.

    Raises:
        ConfigError: unknown corruptions, or nothing to evaluate.
        MissingFileError: there is no bundle at `path`.
        ModelError: the bundle is damaged.
    """
    check_out(path, out)
    evaluator = Evaluator.open(path, data, device, progress)
    images, pool = evaluator.images, evaluator.images.split(split)
    for config in filter(None, (data, evaluator.config.data)):
        modality = config.modality if modality == "auto" else modality
    modality = known_modality(images.info, modality)
    listing, usual = corruptions_of(images, modality)
    names = _check_names(corruptions, images) or usual
    clean = _measure(evaluator.predict(pool, thorough=False))
    if not any(clean.get(name) is not None for name in MEASURED):
        raise ConfigError(f"{path} and {images.name} ({split}) share neither classes nor masks")
    results: dict[str, Any] = {}
    size = int(np.prod(pool.images.shape))
    with counted(progress, "stress", size * len(names) * len(SEVERITIES)) as count:
        for name in names:
            rows = {}
            for severity in SEVERITIES:
                corrupted = corrupt_split(pool, name, severity, listing)
                row = _measure(evaluator.predict(corrupted, thorough=False))
                if "balanced_error" in row:
                    row["rise"] = row["balanced_error"] - clean["balanced_error"]
                rows[str(severity)] = row
                count(size)
            kind, mean = CORRUPTIONS[name].kind, _mean(list(rows.values()))
            results[name] = {"kind": kind, "severities": rows, "mean": mean}
    record: dict[str, Any] = {
        "network": evaluator.bundle.config.network.name,
        "data": describe_data(images),
        "split": split,
        "modality": modality,
        "strengths": listing,
        "clean": clean,
        "corruptions": results,
        "mean": _mean([result["mean"] for result in results.values()]),
    }
    if evaluator.fabric.is_global_zero:
        write_json((out or stress_folder(path, record)) / "stress.json", record)
    evaluator.fabric.barrier()
    return record


def stress_folder(path: str | Path, record: Mapping[str, Any]) -> Path:
    """Return the folder of the results of a bundle or run, unless another one was asked for."""
    return result_folder(Path(path), f"stress/{record['data']['name']}-{record['split']}")


def _check_names(names: Sequence[str], images: ImageSet) -> list[str]:
    possible = [name for name in CORRUPTIONS if images.in_channels == 3 or name != "saturate"]
    for name in set(names) - set(possible):
        which = f"'{name}' for images of {images.in_channels} channel(s)"
        raise ConfigError(f"unknown corruption {which}: {closest(name, possible)}")
    return list(dict.fromkeys(names))


def _measure(predictions: Predictions) -> dict[str, Any]:
    row: dict[str, Any] = {"n": len(predictions)}
    if predictions.has_mask is not None:
        summary = mask_summary(predictions)
        row |= {key: value for key, value in summary.items() if key.startswith("dice_nonempty")}
    label = predictions.label
    # What the bundle predicts: calibrated, if it is.
    p = predictions.probability if predictions.calibrated is None else predictions.calibrated
    if label is not None and p is not None and (label != UNKNOWN_LABEL).any():
        several, names = predictions.multi_label, predictions.class_names
        summary = metrics.classification_metrics(label, p, multi_label=several, class_names=names)
        row |= {key: summary[key] for key in ("n", "accuracy", "accuracy_interval", "auc")}
        row["balanced_error"] = 1 - metrics.balanced_accuracy(label, p, several)
        row["ece"] = metrics.reliability(label, p, several).error
    return row


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = [name for name in (*MEASURED, "rise") if rows[0].get(name) is not None]
    return {name: float(np.mean([row[name] for row in rows])) for name in names}
