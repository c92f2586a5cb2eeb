"""How well masks are drawn and images rebuilt, image by image."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from medduet.errors import DataError
from medduet.metrics.inputs import Booleans, Floats
from medduet.metrics.intervals import CONFIDENCE, bootstrap_mean, bounds, nan_mean, number, wilson
from medduet.types import IGNORED_MASK

_SSIM_RADIUS, _RANGE = 5, 2.0
PSNR_CAP = 100.0
"""The PSNR in dB at which a perfect image, whose own is infinite, enters a mean."""


def overlap_scores(predicted: Tensor, truth: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Return Dice, IoU and pixels of every image and foreground class.

    ``dice`` is ``2 |P and T| / (|P| + |T|)``, ``iou`` ``|P and T| / |P or T|``: NaN where both are
    empty; if only one of them is, 0. Masks are ``(N, H, W)``, or of volumes ``(N, D, H, W)``,
    integer classes, 0 is background; scores, ``truth_pixels`` and ``predicted_pixels`` are
    ``(N, num_classes - 1)`` float64. Pixels that are 255 in the truth are ignored.

    Raises:
        DataError: for masks that are not integer, differ in shape or hold other values.

    Example:
        >>> truth = torch.tensor([[[0, 1], [1, 1]]])
        >>> overlap_scores(torch.tensor([[[0, 0], [0, 1]]]), truth, num_classes=2)["dice"]
        tensor([[0.5000]], dtype=torch.float64)
    """
    predicted, truth = _counted(predicted, truth, num_classes)
    n, m = len(truth), num_classes
    image = torch.arange(n, device=truth.device).reshape(-1, *[1] * (truth.ndim - 1))
    cell = (image * m + truth.long()) * m + predicted.long()  # one-hot masks are 12 times slower
    table = torch.bincount(cell.flatten(), minlength=n * m * m).reshape(n, m, m).cpu().double()
    shared, true, drawn = table.diagonal(dim1=1, dim2=2), table.sum(dim=2), table.sum(dim=1)
    scores = {
        "dice": 2 * shared / (true + drawn),
        "iou": shared / (true + drawn - shared),
        "truth_pixels": true,
        "predicted_pixels": drawn,
    }
    return {name: values[:, 1:] for name, values in scores.items()}


def surface_distances(
    predicted: Tensor, truth: Tensor, num_classes: int, spacing: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return ``hd95`` and ``assd`` (MONAI) of masks as `overlap_scores` takes them.

    These are the 95% Hausdorff and the average symmetric distance of their outlines in pixels, with
    a `spacing` of slices, rows and columns in mm; NaN where either mask is empty.
    """
    from monai import metrics  # slow to import, and few need it

    predicted, truth = _counted(predicted, truth, num_classes)
    classes = torch.arange(1, num_classes).reshape(1, -1, *[1] * (truth.ndim - 1))
    guess, real = (mask.detach().cpu()[:, None] == classes for mask in (predicted, truth))
    defined = guess.flatten(2).any(dim=2) & real.flatten(2).any(dim=2)
    measures: dict[str, Callable[..., Tensor]] = {
        "hd95": partial(metrics.compute_hausdorff_distance, percentile=95),
        "assd": partial(metrics.compute_average_surface_distance, symmetric=True),
    }
    distances = {}
    for name, measure in measures.items():
        distances[name] = torch.full(defined.shape, float("nan"), dtype=torch.float64)
        if defined.any():
            outlines = guess[defined][:, None], real[defined][:, None]
            with warnings.catch_warnings():
                # MONAI 1.6 warns of its own deprecated argument.
                warnings.simplefilter("ignore", FutureWarning)
                found = measure(*outlines, include_background=True, spacing=spacing)
            distances[name][defined] = found[:, 0].double()
    return distances


def reconstruction_errors(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return how far each rebuilt image is from its target, both ``(N, C, ...)``, -1 to 1.

    SSIM (MONAI's, doi:10.1109/TIP.2003.819861) has a Gaussian window of 11 pixels, or the largest
    that fits, where it lies within the image; of volumes it is the mean over the slices.

    Returns:
        ``mse``, ``psnr`` in dB (infinite for a perfect image) and ``ssim`` (NaN if a side is below
        3 pixels), each ``(N,)`` float32 on the CPU.

    Example:
        >>> target = torch.zeros(1, 1, 16, 16)
        >>> round(reconstruction_errors(target + 0.2, target)["psnr"].item(), 2)
        20.0
    """
    _check_shapes(predicted, target, "(N, C, H, W)", "(N, C, D, H, W)")
    guess, real = predicted.detach().float(), target.detach().float()
    mse = (guess - real).square().flatten(1).mean(dim=1)
    psnr = 10 * torch.log10(_RANGE**2 / mse)
    ssim = _ssim(guess + 1, real + 1)
    return {"mse": mse.cpu(), "psnr": psnr.cpu(), "ssim": ssim.cpu()}


def _check_shapes(predicted: Tensor, truth: Tensor, *shapes: str) -> None:
    if predicted.shape != truth.shape or all(predicted.ndim != len(x.split()) for x in shapes):
        given = f"{tuple(predicted.shape)} and {tuple(truth.shape)}"
        shape = " or ".join(shapes)
        raise DataError(f"expected predicted and true of one shape {shape}, given {given}")


def _counted(predicted: Tensor, truth: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return both masks with background where the truth is ignored; raise as `overlap_scores`."""
    _check_shapes(predicted, truth, "(N, H, W)", "(N, D, H, W)")
    ignored = (truth.long() == IGNORED_MASK) & (num_classes <= IGNORED_MASK)
    masks = predicted.masked_fill(ignored, 0), truth.masked_fill(ignored, 0)
    for mask in masks:
        if mask.is_floating_point() or mask.dtype == torch.bool:
            raise DataError(f"expected integer classes, given {mask.dtype}; type logits.argmax(1)")
        if mask.numel() and not (mask.min() >= 0 and mask.max() < num_classes):
            given = f"{int(mask.min())} to {int(mask.max())}"
            raise DataError(f"expected mask classes from 0 to {num_classes - 1}, given {given}")
    return masks


def _ssim(predicted: Tensor, target: Tensor) -> Tensor:
    if predicted.ndim == 5:
        slices = (x.movedim(2, 1).flatten(0, 1) for x in (predicted, target))
        return _ssim(*slices).reshape(len(predicted), -1).mean(dim=1)
    from monai.metrics.regression import compute_ssim_and_cs  # slow to import

    radius = min(_SSIM_RADIUS, (min(predicted.shape[-2:]) - 1) // 2)
    if radius < 1 or not len(predicted):
        return torch.full((len(predicted),), float("nan"))
    window, sigma = [2 * radius + 1] * 2, 1.5 if radius == _SSIM_RADIUS else radius / 3.5
    maps, _ = compute_ssim_and_cs(predicted, target, 2, window, [sigma] * 2, _RANGE)
    mean: Tensor = maps.mean(dim=(1, 2, 3))
    return mean


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
