"""A trained network with what comes after it, in torch: what is exported, and what predicts."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medduet.errors import ConfigError, ModelError
from medduet.inference.exported import BatchPrediction
from medduet.models.inference import predict_batch, prepare_network
from medduet.runs.bundle import load_bundle
from medduet.utils.devices import find_device


class NetworkGraph(nn.Module):
    """The network of a bundle or run, with normalisation, calibration, softmax and threshold.

    `outputs` are the names of what `forward` returns, see `BatchPrediction`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        classify_only: bool = False,
        probabilities: bool = False,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.path, bundle = path, load_bundle(path)
        self.network, self.config = bundle.network.requires_grad_(False), bundle.config
        layout, self.preprocessing = bundle.config.usable(path)
        self.layout, self.classify_only = bundle.layout, classify_only
        if probabilities and (classify_only or not layout.mask_classes):
            raise ConfigError(f"no masks are predicted by {path}: omit --probabilities")
        if classify_only and not self.config.network.num_classes:
            raise ConfigError(f"{path} has no class head: omit --classify-only")
        heads = {
            "probability": self.config.network.num_classes,
            "mask": layout.mask_classes and not classify_only,
            "reconstruction": layout.image_channels and not classify_only,
            "mask_probability": probabilities and layout.mask_classes,
        }
        self.outputs = [name for name, channels in heads.items() if channels]
        self.eval()
        if device is not None:
            prepare_network(self.network, find_device(device), self.preprocessing.options.sides)

    def heads(self, image: Tensor) -> list[Tensor]:
        """Return `outputs` for uint8 images ``(N, C, H, W)`` on the network's device."""
        predicted = predict_batch(
            self.network,
            image,
            self.layout,
            multi_label=self.config.multi_label,
            temperature=self.config.temperature,
            precision=self.config.precision,
            classify_only=self.classify_only,
        )
        exporting, dense = torch.compiler.is_compiling(), predicted.dense
        if not exporting and dense is not None and not dense.isfinite().all():  # else, empty masks
            raise ModelError(f"{self.path}: masks are not finite: damaged weights")
        mask = None if predicted.mask is None else predicted.mask.to(torch.uint8)
        heads = [predicted.probability, mask, predicted.reconstruction]
        if dense is not None and "mask_probability" in self.outputs:
            heads.append(self.layout.mask_probability(dense))
        return [head for head in heads if head is not None]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Do as `heads`, with probabilities in float32, as exported networks have them."""
        return tuple(
            head.float() if head.is_floating_point() else head for head in self.heads(image)
        )

    def predict(self, image: NDArray[np.uint8]) -> BatchPrediction:
        """Return the predictions for images ``(N, C, H, W)``, with probabilities in float64."""
        with torch.inference_mode():
            heads = self.heads(torch.from_numpy(image).to(self.network.normalize.mean.device))
        arrays = [head.cpu().numpy() for head in heads]
        return BatchPrediction(**dict(zip(self.outputs, arrays, strict=True)))
