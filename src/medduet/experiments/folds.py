"""The preset ``best``: an ensemble over folds of train and val, as one run."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from medduet.config import RunConfig
from medduet.data.modality import allowed, known_modality
from medduet.evaluation.ensemble import combine
from medduet.models.inference import prepare_network
from medduet.runs.bundle import load_bundle
from medduet.runs.folder import MEMBERS, RunFolder
from medduet.runs.predictions import Predictions
from medduet.training.experiment import Experiment
from medduet.training.final import evaluate_network
from medduet.uncertainty.calibration import Calibration

FOLDS = 5
"""Members of the ensemble, each with another fifth of train and val as its val."""


def train_folds(
    experiment: Experiment, train_member: Callable[[RunConfig], object]
) -> tuple[Experiment, dict[str, Any], Calibration | None]:
    """Train a network on each fold, and return what evaluates their mean, as one network.

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
        train_member(_member(config, run, fold))
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


def _member(config: RunConfig, run: RunFolder, fold: int) -> RunConfig:
    data = {"folds": FOLDS, "fold": fold, "keep_test": True}
    train = {"preset": "balanced", "seed": config.train.seed * FOLDS + fold, "time_budget": None}
    changes: dict[str, Any] = {
        "data": config.data.model_copy(update=data),
        "train": config.train.model_copy(update=train),
        "out": run.path,
    }
    return config.model_copy(update=changes)
