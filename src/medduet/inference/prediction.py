"""A network's prediction for one image."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from medduet.uncertainty.ood import OOD_P


@dataclass(frozen=True)
class Prediction:
    """A network's prediction for one image.

    Attributes:
        label: the likeliest class; of multi-label sets those above 0.5, with commas between, or
            ``""`` if there is none. ``None`` without class head.
        probabilities: of each class, 0 to 1; calibrated if the network was.
        prediction_set: the classes that hold the true one with the chosen coverage, likeliest
            first; ``None`` if the network is not calibrated. Of multi-label sets: those that the
            image may have.
        abstained: whether the confidence is below the one asked for.
        mask: ``(H, W)`` uint8 mask class at the image's own size, 0 is background; ``None`` if the
            network has no mask, or only classes were asked for.
        reconstruction: uint8 ``(S, S)`` or ``(S, S, 3)``, the image as the network reconstructs it.
        heatmap: ``(H, W)`` float32, 0 to 1: evidence for `label` at each place (Grad-CAM);
            ``None`` if it was not asked for.
        image: uint8 ``(H, W)`` or ``(H, W, 3)``, the image as it was read.
        ood_p: p-value of the image being like those of the training: small for another modality,
            colour instead of grey, noise. ``None`` for ensembles and small sets; exported networks
            look at plain statistics alone.
    """

    label: str | None
    probabilities: dict[str, float]
    prediction_set: tuple[str, ...] | None
    abstained: bool
    mask: NDArray[np.uint8] | None
    reconstruction: NDArray[np.uint8] | None
    heatmap: NDArray[np.float32] | None
    image: NDArray[np.uint8]
    ood_p: float | None = None

    def __repr__(self) -> str:
        """Return it with the shapes of the arrays."""
        values = [
            f"{name}={value.shape}" if isinstance(value, np.ndarray) else f"{name}={value!r}"
            for name, value in ((each.name, getattr(self, each.name)) for each in fields(self))
            if value is not None
        ]
        return f"Prediction({', '.join(values)})"

    @property
    def is_ood(self) -> bool:
        """Whether the image is out of distribution; so are 5% of images like the training's."""
        return self.ood_p is not None and self.ood_p <= OOD_P
