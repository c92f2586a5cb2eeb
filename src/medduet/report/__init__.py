"""Figures of a run, drawn from plain data."""

from medduet.report.figures import confusion, learning_curves, roc
from medduet.report.sheet import prediction_sheet
from medduet.report.style import save

__all__ = ["confusion", "learning_curves", "prediction_sheet", "roc", "save"]
