"""Where in an image the evidence for its class is."""

import copy
import threading
from typing import cast

import numpy as np
import torch
from monai.visualize import GradCAM
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from medduet.errors import ModelError
from medduet.models.base import DuetNetwork
from medduet.models.ensemble import Ensemble
from medduet.models.inference import DECLARED, Precision, autocast

_PROBE = (128, 192)  # sides whose ratio distinguishes feature maps (N, C, H, W) from other tensors
_MIN_CELLS = 4  # cells on the shorter side of a map that still localises


class Explainer:
    """Grad-CAM of a network's class, of ensembles the mean; threads may share it, and wait.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017; computed by MONAI.
    """

    def __init__(
        self, network: DuetNetwork, size: tuple[int, int], precision: Precision = DECLARED
    ) -> None:
        # Of an ensemble each member is asked about the upright image.
        members = network.members if isinstance(network, Ensemble) else [network]
        self._scores = [_Score(cast(DuetNetwork, member), precision) for member in members]
        self._maps = [
            GradCAM(score, f"network.{_layer(score.network, size)}", postprocessing=_from_0_to_1)
            for score in self._scores
        ]
        self._one_at_a_time = threading.Lock()

    def __call__(self, image: NDArray[np.uint8], classes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the evidence for a class of each image, ``(N, H, W)``, at most 1."""
        device = self._scores[0].network.normalize.mean.device
        pixels = torch.from_numpy(image).to(device).float() / 255
        maps = []
        with self._one_at_a_time, torch.inference_mode(False), torch.enable_grad():
            for score, explain in zip(self._scores, self._maps, strict=True):
                score.classes = torch.from_numpy(classes).to(device)
                heat: Tensor = explain(pixels.clone().requires_grad_(), class_idx=0)
                maps.append(heat.detach().float().cpu())
        values: NDArray[np.float32] = _from_0_to_1(torch.stack(maps).mean(dim=0))[:, 0].numpy()
        return values


class _Score(nn.Module):
    """A copy of a network that gives the score of the class that is asked for, ``(N, 1)``."""

    classes: Tensor

    def __init__(self, network: DuetNetwork, precision: Precision) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.precision = precision

    def forward(self, image: Tensor) -> Tensor:
        with autocast(image.device, self.precision):
            class_logits = self.network.classify(image)
        return class_logits.float().gather(1, self.classes[:, None])


def _from_0_to_1(maps: Tensor) -> Tensor:
    return maps / maps.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)


def _layer(network: DuetNetwork, size: tuple[int, int]) -> str:
    """Return the name of the deepest layer that still has 4 cells on its shorter side."""
    height, width = _PROBE
    maps = [
        name
        for name, shape in _shapes(network, _PROBE)
        if len(shape) == 4 and shape[2] * width == shape[3] * height and shape[2] * 8 <= height
    ]
    if not maps:
        raise ModelError(f"{network.arguments['name']} has no feature maps for Grad-CAM")
    fine = [n for n, shape in _shapes(network, size) if n in maps and min(shape[2:]) >= _MIN_CELLS]
    return (fine or maps)[-1]


def _shapes(network: DuetNetwork, size: tuple[int, int]) -> list[tuple[str, tuple[int, ...]]]:
    """Return the shape of each layer's output for one image, in the order of computation."""
    shapes: list[tuple[str, tuple[int, ...]]] = []
    names = {module: name for name, module in network.named_modules()}

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and names.get(module) and module is not network.normalize:
            shapes.append((names[module], tuple(output.shape)))

    mean, channels = network.normalize.mean, network.normalize.channels
    with register_module_forward_hook(note), torch.inference_mode():
        network.classify(torch.zeros(1, channels, *size, device=mean.device))
    return shapes
