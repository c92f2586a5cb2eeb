"""A trained network with what comes after it, in torch: what is exported, and what predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medduet.errors import ConfigError
from medduet.inference.exported import BatchPrediction
from medduet.models.inference import NetworkPrediction, predict_batch, prepare_network
from medduet.runs.bundle import ModelBundle, load_bundle
from medduet.utils.devices import find_device


class NetworkGraph(nn.Module):
    """A network with normalisation, calibration, softmax and threshold.

    Args:
        bundle: the network and its record; its parameters get no gradient any more.
        path: of the bundle, for errors.
        classify_only: whether no decoder is run.

    Attributes:
        network: the network.
        config: its record.
        outputs: names of what `forward` returns, see `BatchPrediction`.

    Raises:
        ConfigError: `classify_only`, and the network has no class head.
        ModelError: the bundle does not say what its outputs mean.
    """

    def __init__(
        self, bundle: ModelBundle, path: str | Path, *, classify_only: bool = False
    ) -> None:
        super().__init__()
        self.network, self.config = bundle.network.requires_grad_(False), bundle.config
        layout, self.preprocessing = bundle.config.usable(path)
        self.layout, self.classify_only = bundle.layout, classify_only
        has_classes = bool(bundle.config.network.num_classes)
        if classify_only and not has_classes:
            raise ConfigError(
                "--classify-only was given, but the network has no class head: leave it out"
            )
        self.outputs = ["probability"] if has_classes else []
        if not classify_only:
            self.outputs += ["mask"] if layout.mask_classes else []
            self.outputs += ["reconstruction"] if layout.image_channels else []
        self.eval()

    def compute(self, image: Tensor) -> NetworkPrediction:
        """Return the predictions for images ``(N, C, H, W)`` on the network's device."""
        return predict_batch(
            self.network,
            image,
            self.layout,
            multi_label=self.config.multi_label,
            temperature=self.config.temperature,
            precision=self.config.precision,
            classify_only=self.classify_only,
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return `outputs` for uint8 images ``(N, C, H, W)``, as an exported network does."""
        predicted = self.compute(image)
        heads = []
        if predicted.probability is not None:
            heads.append(predicted.probability.float())
        if predicted.mask is not None:
            heads.append(predicted.mask.to(torch.uint8))
        if predicted.reconstruction is not None:
            heads.append(predicted.reconstruction)
        return tuple(heads)

    def predict(self, image: NDArray[np.uint8]) -> BatchPrediction:
        """Return the predictions for images ``(N, C, H, W)``."""
        with torch.inference_mode():
            predicted = self.compute(torch.from_numpy(image).to(self.network.normalize.mean.device))
        probability, mask, reconstruction = predicted[2:]
        return BatchPrediction(
            None if probability is None else probability.cpu().numpy(),
            None if mask is None else mask.to(torch.uint8).cpu().numpy(),
            None if reconstruction is None else reconstruction.float().cpu().numpy(),
        )


def open_graph(
    path: str | Path, *, classify_only: bool = False, device: str = "cpu"
) -> NetworkGraph:
    """Return the network of a bundle or run, ready to predict on a device.

    Raises:
        ConfigError: there is no such device, or `classify_only`, and there is no class head.
        MissingFileError: there is no network.
        ModelError: it is damaged, or does not say what its outputs mean.
    """
    place = find_device(device)
    graph = NetworkGraph(load_bundle(path), path, classify_only=classify_only)
    height, width = graph.preprocessing.size
    prepare_network(graph.network, place, (height, width))
    return graph
