"""Losses per task and how they become one."""

from medduet.objectives.balance import Balance, cosines
from medduet.objectives.losses import (
    PerImage,
    classification_loss,
    reconstruction_loss,
    segmentation_loss,
)
from medduet.objectives.objective import Objective, balanced_weights

__all__ = [
    "Balance",
    "Objective",
    "PerImage",
    "balanced_weights",
    "classification_loss",
    "cosines",
    "reconstruction_loss",
    "segmentation_loss",
]
