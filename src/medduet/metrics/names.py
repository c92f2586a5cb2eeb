"""The one table of metrics: key, names and digits, wherever they appear."""

import math
from typing import NamedTuple


class Metric(NamedTuple):
    """A metric of a split: its key in ``metrics.json`` and its name for tables and reports."""

    key: str
    name: str
    short: str  # for progress lines and narrow columns
    digits: int = 4

    def format(self, value: float | None) -> str:
        """Return the value with its digits; a dash if it is undefined."""
        return "–" if value is None or math.isnan(value) else f"{value:.{self.digits}f}"


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("accuracy", "accuracy", "acc"),
        Metric("auc", "AUC", "AUC"),
        Metric("balanced_accuracy", "balanced accuracy", "bal. acc"),
        Metric("balanced_error", "balanced error", "bal. error"),
        Metric("macro_f1", "macro F1", "F1"),
        Metric("quadratic_kappa", "quadratic kappa", "kappa"),
        Metric("grade_error", "mean absolute error of the grade", "MAE"),
        Metric("ece", "expected calibration error", "ECE"),
        Metric("dice", "Dice", "Dice"),
        Metric("dice_nonempty", "Dice, non-empty masks", "Dice⁺"),
        Metric("false_positive_rate", "false-positive images", "FP"),
        Metric("iou", "IoU", "IoU"),
        Metric("hd95", "HD95 (pixels or mm)", "HD95", digits=2),
        Metric("assd", "surface distance (pixels or mm)", "ASSD", digits=2),
        Metric("mse", "MSE", "MSE", digits=5),
        Metric("psnr", "PSNR (dB)", "PSNR", digits=2),
        Metric("ssim", "SSIM", "SSIM"),
    )
}
"""Every metric by its key. `dice` leaves out pairs of image and class that are in neither mask,
`dice_nonempty` all whose true mask is empty; `false_positive_rate` is the share of the images with
an empty true mask in which something is drawn."""
