"""Pure functions from truth and prediction to numbers, with intervals."""

from medduet.metrics.calibrated import (
    Reliability,
    calibration_summary,
    expected_calibration_error,
    reliability,
)
from medduet.metrics.classification import (
    accuracy,
    auc,
    balanced_accuracy,
    classification_metrics,
    confusion_matrix,
    macro_f1,
    right_answers,
)
from medduet.metrics.dense import (
    dice_per_class,
    hd95_per_class,
    iou_per_class,
    reconstruction_errors,
)
from medduet.metrics.intervals import bootstrap_mean, wilson
from medduet.metrics.summaries import PSNR_CAP, reconstruction_summary, segmentation_summary

__all__ = [
    "PSNR_CAP",
    "Reliability",
    "accuracy",
    "auc",
    "balanced_accuracy",
    "bootstrap_mean",
    "calibration_summary",
    "classification_metrics",
    "confusion_matrix",
    "dice_per_class",
    "expected_calibration_error",
    "hd95_per_class",
    "iou_per_class",
    "macro_f1",
    "reconstruction_errors",
    "reconstruction_summary",
    "reliability",
    "right_answers",
    "segmentation_summary",
    "wilson",
]
