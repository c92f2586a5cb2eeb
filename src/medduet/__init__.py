"""MedDuet trains, judges and ships networks that say what a medical image shows and where.

Names are loaded when they are first used, so ``import medduet`` is fast.

Example:
    >>> import medduet, torch
    >>> network = medduet.create_model("vovunet_var", in_channels=1, num_classes=2, width=4)
    >>> network(torch.zeros(5, 1, 28, 28)).class_logits.shape
    torch.Size([5, 2])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medduet.calibration import Calibration
    from medduet.config import (
        DataConfig,
        EvaluateConfig,
        ModelConfig,
        ObjectiveConfig,
        RunConfig,
        TrainConfig,
        load_recipe,
        recipe_names,
    )
    from medduet.data import ImageSet, Split, open_images
    from medduet.data.audit import Audit, audit
    from medduet.deploy.bundle import ModelBundle, load, load_bundle
    from medduet.deploy.exported import ExportedModel, Prediction
    from medduet.deploy.predictor import Answer, Predictor
    from medduet.deploy.push import push
    from medduet.ensembles import EnsembleRecord, ensemble
    from medduet.errors import (
        ConfigError,
        DataError,
        DownloadError,
        Interrupted,
        MedDuetError,
        MissingFileError,
        ModelError,
        StorageError,
        TrainingError,
    )
    from medduet.evaluation import evaluate
    from medduet.exports import ExportRecord, export_bundle
    from medduet.grid.benchmark import GridRecord, benchmark
    from medduet.models import MODELS, DuetNetwork, create_model, load_weights
    from medduet.pareto_search import SearchRecord, search
    from medduet.plans import GridConfig, SearchConfig, load_grid, load_search
    from medduet.predictions import PredictRecord, predict_files
    from medduet.recalibrate import calibrate_bundle
    from medduet.report.compare import Comparison, compare
    from medduet.report.page import write_report
    from medduet.robustness import stress
    from medduet.run import RunRecord, train
    from medduet.types import Batch, DenseLayout, Outputs

__version__ = "0.1.0"

_HOME = {
    "calibration": ("Calibration",),
    "config": (
        "DataConfig",
        "EvaluateConfig",
        "ModelConfig",
        "ObjectiveConfig",
        "RunConfig",
        "TrainConfig",
        "load_recipe",
        "recipe_names",
    ),
    "data": ("ImageSet", "Split", "open_images"),
    "data.audit": ("Audit", "audit"),
    "deploy.bundle": ("ModelBundle", "load", "load_bundle"),
    "deploy.exported": ("ExportedModel", "Prediction"),
    "deploy.predictor": ("Answer", "Predictor"),
    "deploy.push": ("push",),
    "ensembles": ("EnsembleRecord", "ensemble"),
    "errors": (
        "ConfigError",
        "DataError",
        "DownloadError",
        "Interrupted",
        "MedDuetError",
        "MissingFileError",
        "ModelError",
        "StorageError",
        "TrainingError",
    ),
    "evaluation": ("evaluate",),
    "exports": ("ExportRecord", "export_bundle"),
    "grid.benchmark": ("GridRecord", "benchmark"),
    "models": ("MODELS", "DuetNetwork", "create_model", "load_weights"),
    "plans": ("GridConfig", "SearchConfig", "load_grid", "load_search"),
    "predictions": ("PredictRecord", "predict_files"),
    "recalibrate": ("calibrate_bundle",),
    "report.page": ("write_report",),
    "report.compare": ("Comparison", "compare"),
    "robustness": ("stress",),
    "run": ("RunRecord", "train"),
    "pareto_search": ("SearchRecord", "search"),
    "types": ("Batch", "DenseLayout", "Outputs"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "MODELS",
    "Answer",
    "Audit",
    "Batch",
    "Calibration",
    "Comparison",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DenseLayout",
    "DownloadError",
    "DuetNetwork",
    "EnsembleRecord",
    "EvaluateConfig",
    "ExportRecord",
    "ExportedModel",
    "GridConfig",
    "GridRecord",
    "ImageSet",
    "Interrupted",
    "MedDuetError",
    "MissingFileError",
    "ModelBundle",
    "ModelConfig",
    "ModelError",
    "ObjectiveConfig",
    "Outputs",
    "PredictRecord",
    "Prediction",
    "Predictor",
    "RunConfig",
    "RunRecord",
    "SearchConfig",
    "SearchRecord",
    "Split",
    "StorageError",
    "TrainConfig",
    "TrainingError",
    "audit",
    "benchmark",
    "calibrate_bundle",
    "compare",
    "create_model",
    "ensemble",
    "evaluate",
    "export_bundle",
    "load",
    "load_bundle",
    "load_grid",
    "load_recipe",
    "load_search",
    "load_weights",
    "open_images",
    "predict_files",
    "push",
    "recipe_names",
    "search",
    "stress",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'medduet' has no attribute {name!r}")
    return getattr(import_module(f"medduet.{_MODULE_OF[name]}"), name)
