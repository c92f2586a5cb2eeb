"""What the per-image scores of masks and rebuilt images say of a split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medduet.errors import DataError
from medduet.metrics.inputs import Booleans, Floats
from medduet.metrics.intervals import CONFIDENCE, bootstrap_mean, bounds, nan_mean, number

PSNR_CAP = 100.0
"""The PSNR in dB at which a perfect image, whose own is infinite, enters a mean."""


def segmentation_summary(
    dice: ArrayLike,
    iou: ArrayLike,
    hd95: ArrayLike | None,
    truth_nonempty: ArrayLike,
    mask_names: Sequence[str],
    *,
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Return what the per-image mask scores say of a split with 95% intervals, ready for JSON.

    Takes ``(N, M)`` scores (`hd95` or ``None``), whether each true mask has any pixel, and M names.
    ``dice_nonempty`` and ``hd95`` are means over pairs of image and class with a non-empty truth
    (and prediction), of which there are ``..._n``; ``empty_correct`` is the share of the images
    without any foreground that are predicted so. What is undefined is ``None``.
    """
    lesion = np.asarray(truth_nonempty, dtype=bool)
    distance = np.full(lesion.shape, np.nan) if hd95 is None else hd95
    measured = [np.asarray(values, dtype=np.float64) for values in (dice, iou, distance)]
    shapes = {lesion.shape, *(values.shape for values in measured)}
    if shapes != {(len(lesion), len(set(mask_names)))} or not mask_names:
        raise DataError(
            "expected dice, iou, hd95 and truth_nonempty (N, M) with one distinct name per column, "
            f"given {sorted(shapes)} and {list(mask_names)}"
        )
    scores, empty = np.stack(measured), ~lesion.any(axis=1)
    return {
        "n": len(lesion),
        "confidence": CONFIDENCE,
        **_mask_scores(scores, lesion, bootstrap),
        "empty_truth_n": int(empty.sum()),
        "empty_correct": number(nan_mean((scores[0][empty] == 1).all(axis=1))),
        "per_mask": {
            str(name): _mask_scores(scores[:, :, [k]], lesion[:, [k]], bootstrap)
            for k, name in enumerate(mask_names)
        },
    }


def reconstruction_summary(errors: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Return the means of `reconstruction_errors` for JSON, each PSNR capped at `PSNR_CAP`."""
    psnr = np.minimum(np.asarray(errors["psnr"], dtype=np.float64), PSNR_CAP)
    values = {"mse": errors["mse"], "psnr": psnr, "ssim": errors["ssim"]}
    return {"n": len(psnr)} | {name: number(nan_mean(of)) for name, of in values.items()}


def _mask_scores(scores: Floats, lesion: Booleans, bootstrap: int) -> dict[str, Any]:
    dice, iou, hd95 = scores
    has = lesion.any(axis=1)
    pairs = lesion[has].sum(axis=1)
    each, each_lesion = dice.mean(axis=1), (dice * lesion)[has].sum(axis=1) / pairs
    interval = bootstrap_mean(each, resamples=bootstrap)
    lesion_interval = bootstrap_mean(each_lesion, pairs, resamples=bootstrap)
    return {
        "dice": number(nan_mean(dice)),
        "dice_interval": bounds(interval),
        "dice_nonempty": number(nan_mean(dice[lesion])),
        "dice_nonempty_interval": bounds(lesion_interval),
        "dice_nonempty_n": int(lesion.sum()),
        "iou": number(nan_mean(iou)),
        "hd95": number(nan_mean(hd95)),
        "hd95_n": int((~np.isnan(hd95)).sum()),
    }
