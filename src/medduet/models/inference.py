"""From images to predictions: what evaluation, prediction, calibration and export all compute."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from medduet.models.base import DuetNetwork
from medduet.types import DenseLayout
from medduet.utils.devices import keep_freed_memory

Precision = Literal["float32", "bfloat16"]
DECLARED: Precision = "float32"
"""The precision in which bundles are evaluated, calibrated and used by default."""
_LARGE = 64
"""Side in pixels from which a CPU computes faster if the channels of a pixel lie side by side."""


class NetworkPrediction(NamedTuple):
    """What a network predicts for N images; ``None`` where it has no such head."""

    class_logits: Tensor | None
    dense: Tensor | None
    probability: Tensor | None
    mask: Tensor | None
    reconstruction: Tensor | None


def predict_batch(
    network: DuetNetwork,
    image: Tensor,
    layout: DenseLayout,
    *,
    multi_label: bool,
    temperature: float = 1.0,
    precision: Precision = DECLARED,
    classify_only: bool = False,
) -> NetworkPrediction:
    """Return the predictions of a network in evaluation mode for ``(N, C, H, W)`` images.

    `temperature` is that of the calibration; `classify_only` leaves the decoder out.
    """
    dense = mask = reconstruction = probability = None
    with autocast(image.device, precision):
        if classify_only:
            class_logits: Tensor | None = network.classify(image)
        else:
            class_logits, dense = network(image)
    if class_logits is not None:
        class_logits = class_logits.float()
        probability = class_probability(class_logits, multi_label, temperature)
    if dense is not None:
        dense = dense.float()
        mask = layout.mask(dense) if layout.mask_classes else None
        if layout.image_channels:
            reconstruction = network.normalize.invert(layout.image(dense))
    return NetworkPrediction(class_logits, dense, probability, mask, reconstruction)


def class_probability(class_logits: Tensor, multi_label: bool, temperature: float = 1.0) -> Tensor:
    """Return probabilities ``(N, K)``; in float32 confident ones would be tied at 1."""
    scores = class_logits.double() / temperature
    return scores.sigmoid() if multi_label else scores.softmax(dim=1)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which a network computes in `precision`."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def prepare_network(
    network: DuetNetwork, device: torch.device, size: tuple[int, ...], precision: str = "32-true"
) -> str:
    """Bring a network to a device, in evaluation mode, and return the memory format chosen.

    For images of `size`, such as (height, width); `precision` is called as Lightning calls it.
    """
    network.to(device).eval()
    last = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    faster = {"cuda": precision != "32-true", "cpu": max(size) >= _LARGE}
    is_last = faster.get(device.type, False)  # docs/performance.md has why
    network.normalize.memory_format = last if is_last else torch.contiguous_format
    if device.type == "cpu":
        keep_freed_memory()
    return "channels_last" if is_last else "contiguous"
