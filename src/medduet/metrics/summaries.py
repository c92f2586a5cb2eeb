"""What the per-image scores of masks and rebuilt images say of a split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medduet.metrics.inputs import Booleans, Floats
from medduet.metrics.intervals import CONFIDENCE, bootstrap_mean, bounds, nan_mean, number, wilson

PSNR_CAP = 100.0
"""The PSNR in dB at which a perfect image, whose own is infinite, enters a mean."""


def segmentation_summary(
    scores: Mapping[str, ArrayLike], truth_nonempty: ArrayLike, mask_names: Sequence[str]
) -> dict[str, Any]:
    """Return what the per-image mask scores say of a split with 95% intervals, ready for JSON.

    Takes ``(N, M)`` scores by name, ``hd95`` and ``assd`` if measured, whether each true mask has
    any pixel, and M names. Scores are means over the images of a class, then over classes: ``dice``
    and ``iou`` of those whose truth or prediction has the class, ``dice_nonempty`` of those whose
    truth has it, ``hd95`` and ``assd`` of those where both have it. Images without any foreground
    in which some is predicted are the false positives. What is undefined is ``None``.
    """
    lesion = np.asarray(truth_nonempty, dtype=bool)
    unknown, names = np.full(lesion.shape, np.nan), ("dice", "iou", "hd95", "assd")
    measured: Floats = np.array([scores.get(name, unknown) for name in names], dtype=np.float64)
    empty = ~lesion.any(axis=1)
    false = int((~np.isnan(measured[0][empty])).any(axis=1).sum())
    interval = wilson(false, int(empty.sum()))
    return {
        "n": len(lesion),
        "confidence": CONFIDENCE,
        **_mask_scores(measured, lesion),
        "empty_truth_n": int(empty.sum()),
        "false_positives": false,
        "false_positive_rate": false / int(empty.sum()) if empty.any() else None,
        "false_positive_rate_interval": bounds(interval),
        "per_mask": {
            str(name): _mask_scores(measured[:, :, [k]], lesion[:, [k]])
            for k, name in enumerate(mask_names)
        },
    }


def reconstruction_summary(errors: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Return the means of `reconstruction_errors` for JSON, each PSNR capped at `PSNR_CAP`."""
    psnr = np.minimum(np.asarray(errors["psnr"], dtype=np.float64), PSNR_CAP)
    values = {"mse": errors["mse"], "psnr": psnr, "ssim": errors["ssim"]}
    return {"n": len(psnr)} | {name: number(nan_mean(of)) for name, of in values.items()}


def mean_over_classes(scores: ArrayLike) -> float:
    """Return the mean over the images of each class, then over classes, of (N, M) with NaN."""
    return nan_mean([nan_mean(column) for column in np.asarray(scores, dtype=np.float64).T])


def _mask_scores(scores: Floats, lesion: Booleans) -> dict[str, Any]:
    dice, iou, hd95, assd = scores
    summary: dict[str, Any] = {}
    for name, counts in (("dice", ~np.isnan(dice)), ("dice_nonempty", lesion)):
        rows = counts.any(axis=1)
        interval = bootstrap_mean(dice[rows], counts[rows])
        mean = mean_over_classes(np.where(counts, dice, np.nan))
        summary |= {name: number(mean), f"{name}_interval": bounds(interval)}
    return summary | {
        "dice_nonempty_n": int(lesion.sum()),
        "iou": number(mean_over_classes(iou)),
        "hd95": number(mean_over_classes(hd95)),
        "assd": number(mean_over_classes(assd)),
        "hd95_n": int((~np.isnan(hd95)).sum()),
    }
