"""The last word on a run: its selected epochs, judged thoroughly on val and test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medduet.errors import DataError
from medduet.runs.predictions import Predictions
from medduet.training.checkpoint import load_state
from medduet.training.experiment import Experiment
from medduet.training.state import Progress
from medduet.training.validation import summarize
from medduet.uncertainty.calibration import Calibration
from medduet.utils.files import write_text

JUDGED = ("val", "test")


def judge(experiment: Experiment, progress: Progress) -> tuple[dict[str, Any], Calibration | None]:
    """Judge the selected epochs, and write their predictions.

    Returns:
        The content of ``metrics.json``, and the calibration of the validation-selected epoch, whose
        weights the network has afterwards; ``None`` where the validation split does not allow one,
        for the reason in ``calibration_missing``.
    """
    about = {"protocol": experiment.config.evaluate.protocol, "seed": experiment.config.train.seed}
    if about["protocol"] == "honest":
        honest, calibration = _epoch(experiment, "best", "")
        return about | _honest(progress) | honest, calibration
    selected = {"selection": "test-selected", "selected_epoch": progress.best_test.epoch}
    on_test, _ = _epoch(experiment, "best-test", "-test-selected")
    honest, calibration = _epoch(experiment, "best", "")
    both = on_test | {"validation_selected": _honest(progress) | honest}
    return about | selected | both, calibration


def _honest(progress: Progress) -> dict[str, Any]:
    return {"selection": "validation-selected", "selected_epoch": progress.best.epoch}


def _epoch(
    experiment: Experiment, checkpoint: str, suffix: str
) -> tuple[dict[str, Any], Calibration | None]:
    experiment.network.load_state_dict(load_state(experiment.folder.checkpoint(checkpoint)))
    part: dict[str, Any] = {}
    calibration = None
    for split in JUDGED:
        predictions = experiment.predict(split, thorough=True)
        part[split] = summarize(predictions, experiment.config.evaluate, calibration)
        if split == "val":
            calibration, missing = _calibration(predictions)
        if experiment.fabric.is_global_zero:
            name = f"{split}{suffix}"
            experiment.folder.write_predictions(name, predictions)
            _write_medmnist(experiment, split, suffix, predictions, part[split])
    return part | ({"calibration_missing": missing} if missing else {}), calibration


def _calibration(predictions: Predictions) -> tuple[Calibration | None, str | None]:
    """Return the calibration that fits the validation split, or why there is none."""
    label, probability = predictions.label, predictions.probability
    if label is None or probability is None:
        return None, "the network has no class head"
    try:
        return Calibration.fit(label, probability, predictions.multi_label), None
    except DataError as error:
        return None, str(error)


def _write_medmnist(
    experiment: Experiment,
    split: str,
    suffix: str,
    predictions: Predictions,
    summary: Mapping[str, Any],
) -> None:
    """Write the result file that `medmnist.Evaluator.parse_and_evaluate` reads."""
    if predictions.probability is None or summary["auc"] is None:
        return
    size = experiment.data.size[0]
    stem = f"{experiment.data.name}{'' if size == 28 else f'_{size}'}_{split}"
    scores = f"[AUC]{summary['auc']:.3f}_[ACC]{summary['accuracy']:.3f}"
    rows = enumerate(predictions.probability.tolist())
    text = "".join(f"{i},{','.join(map(repr, row))}\n" for i, row in rows)
    name = f"{stem}_{scores}@seed{experiment.config.train.seed}{suffix}.csv"
    write_text(experiment.folder.path / "predictions" / "medmnist" / name, text)
