"""How well masks are drawn and images rebuilt, image by image."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from medduet.errors import DataError
from medduet.types import IGNORED_MASK

_SSIM_RADIUS, _RANGE = 5, 2.0


def dice_per_class(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Return the Dice score of every image and foreground class, ``2 |P and T| / (|P| + |T|)``.

    NaN where both are empty; if only one of them is, 0. Masks are ``(N, H, W)``, or of volumes
    ``(N, D, H, W)``, integer classes, 0 is background; scores are ``(N, num_classes - 1)`` float64.
    Pixels that are 255 in the truth are ignored.

    Raises:
        DataError: for masks that are not integer, differ in shape or hold other values.

    Example:
        >>> truth = torch.tensor([[[0, 1], [1, 1]]])
        >>> dice_per_class(torch.tensor([[[0, 0], [0, 1]]]), truth, num_classes=2)
        tensor([[0.5000]], dtype=torch.float64)
    """
    shared, both = _overlap(predicted, truth, num_classes)
    return 2 * shared / both


def iou_per_class(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Return the intersection over union, ``|P and T| / |P or T|``; else as `dice_per_class`."""
    shared, both = _overlap(predicted, truth, num_classes)
    return shared / (both - shared)


def surface_distances(
    predicted: Tensor, truth: Tensor, num_classes: int, spacing: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return ``hd95`` and ``assd`` (MONAI) of masks as `dice_per_class` takes them.

    These are the 95% Hausdorff and the average symmetric distance of their outlines in pixels, with
    a `spacing` of slices, rows and columns in mm; NaN where either mask is empty.
    """
    from monai import metrics  # slow to import, and few need it

    predicted, truth = counted_masks(predicted, truth, num_classes)
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


def counted_masks(predicted: Tensor, truth: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return both masks with background where the truth is ignored; raise as `dice_per_class`."""
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


def _overlap(predicted: Tensor, truth: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return ``(N, M)`` float64 pixel counts of ``P and T`` and of ``P`` plus ``T``."""
    predicted, truth = counted_masks(predicted, truth, num_classes)
    n, m = len(truth), num_classes
    image = torch.arange(n, device=truth.device).reshape(-1, *[1] * (truth.ndim - 1))
    cell = (image * m + truth.long()) * m + predicted.long()  # one-hot masks are 12 times slower
    table = torch.bincount(cell.flatten(), minlength=n * m * m).reshape(n, m, m).cpu().double()
    shared = table.diagonal(dim1=1, dim2=2)
    return shared[:, 1:], (table.sum(dim=1) + table.sum(dim=2))[:, 1:]


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
