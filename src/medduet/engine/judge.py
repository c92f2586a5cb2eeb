"""The last word on a run: its selected epochs, judged thoroughly on val and test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medduet.engine.checkpoint import load_state
from medduet.engine.evaluate import Predictions, summarize
from medduet.engine.experiment import Experiment
from medduet.engine.state import Progress
from medduet.files import write_text

JUDGED = ("val", "test")


def judge(experiment: Experiment, progress: Progress) -> dict[str, Any]:
    """Judge the selected epochs, write their predictions, return the content of ``metrics.json``.

    The network has the weights of the validation-selected epoch afterwards.
    """
    seed = experiment.config.train.seed
    if experiment.config.evaluate.protocol == "honest":
        return {"protocol": "honest", "seed": seed} | _honest(experiment, progress)
    return {
        "protocol": "paper",
        "seed": seed,
        "selection": "test-selected",
        "selected_epoch": progress.best_test.epoch,
        **_epoch(experiment, "best-test", "-test-selected"),
        "validation_selected": _honest(experiment, progress),
    }


def validation_selected(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of ``metrics.json`` on the epoch that validation selected."""
    honest: Mapping[str, Any] = metrics.get("validation_selected", metrics)
    return honest


def _honest(experiment: Experiment, progress: Progress) -> dict[str, Any]:
    return {
        "selection": "validation-selected",
        "selected_epoch": progress.best.epoch,
        **_epoch(experiment, "best", ""),
    }


def _epoch(experiment: Experiment, checkpoint: str, suffix: str) -> dict[str, Any]:
    experiment.network.load_state_dict(load_state(experiment.folder.checkpoint(checkpoint)))
    summaries = {}
    for split in JUDGED:
        predictions = experiment.predict(split, thorough=True)
        summaries[split] = summarize(predictions, experiment.data, experiment.config.evaluate)
        if experiment.fabric.is_global_zero:
            name = f"{split}{suffix}"
            experiment.folder.write_predictions(name, predictions, experiment.data)
            _write_medmnist(experiment, split, suffix, predictions, summaries[split])
    return summaries


def _write_medmnist(
    experiment: Experiment,
    split: str,
    suffix: str,
    predictions: Predictions,
    summary: Mapping[str, Any],
) -> None:
    """Write the result file that `medmnist.Evaluator.parse_and_evaluate` reads."""
    if "probability" not in predictions.values or summary["auc"] is None:
        return
    size = experiment.data.size[0]
    stem = f"{experiment.data.name}{'' if size == 28 else f'_{size}'}_{split}"
    scores = f"[AUC]{summary['auc']:.3f}_[ACC]{summary['accuracy']:.3f}"
    rows = enumerate(predictions.values["probability"].tolist())
    text = "".join(f"{i},{','.join(map(repr, row))}\n" for i, row in rows)
    name = f"{stem}_{scores}@seed{experiment.config.train.seed}{suffix}.csv"
    write_text(experiment.folder.path / "predictions" / "medmnist" / name, text)
