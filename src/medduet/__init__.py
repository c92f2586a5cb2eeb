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
    from medduet.deploy import ModelBundle, load, load_bundle
    from medduet.errors import (
        ConfigError,
        DataError,
        DownloadError,
        Interrupted,
        MedDuetError,
        MissingFileError,
        ModelError,
        TrainingError,
    )
    from medduet.grid.benchmark import GridRecord, benchmark
    from medduet.models import MODELS, DuetNetwork, create_model, load_weights
    from medduet.pareto_search import SearchRecord, search
    from medduet.plans import GridConfig, SearchConfig, load_grid, load_search
    from medduet.report.compare import Comparison, compare
    from medduet.report.page import write_report
    from medduet.run import RunRecord, evaluate, train
    from medduet.types import Batch, DenseLayout, Outputs

__version__ = "0.1.0.dev0"

_HOME = {
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
    "deploy": ("ModelBundle", "load", "load_bundle"),
    "errors": (
        "ConfigError",
        "DataError",
        "DownloadError",
        "Interrupted",
        "MedDuetError",
        "MissingFileError",
        "ModelError",
        "TrainingError",
    ),
    "grid.benchmark": ("GridRecord", "benchmark"),
    "models": ("MODELS", "DuetNetwork", "create_model", "load_weights"),
    "plans": ("GridConfig", "SearchConfig", "load_grid", "load_search"),
    "report.page": ("write_report",),
    "report.compare": ("Comparison", "compare"),
    "run": ("RunRecord", "evaluate", "train"),
    "pareto_search": ("SearchRecord", "search"),
    "types": ("Batch", "DenseLayout", "Outputs"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "MODELS",
    "Audit",
    "Batch",
    "Comparison",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DenseLayout",
    "DownloadError",
    "DuetNetwork",
    "EvaluateConfig",
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
    "RunConfig",
    "RunRecord",
    "SearchConfig",
    "SearchRecord",
    "Split",
    "TrainConfig",
    "TrainingError",
    "audit",
    "benchmark",
    "compare",
    "create_model",
    "evaluate",
    "load",
    "load_bundle",
    "load_grid",
    "load_recipe",
    "load_search",
    "load_weights",
    "open_images",
    "recipe_names",
    "search",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'medduet' has no attribute {name!r}")
    return getattr(import_module(f"medduet.{_MODULE_OF[name]}"), name)
