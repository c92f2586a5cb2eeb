"""Where in an image the evidence for its class is."""

from __future__ import annotations

import copy
import threading
from functools import partial
from typing import cast

import numpy as np
import torch
from monai.visualize import GradCAM
from numpy.typing import NDArray
from torch import Tensor, nn

from medduet.errors import ModelError
from medduet.models.base import DuetNetwork
from medduet.models.ensemble import Ensemble
from medduet.models.inference import DECLARED, Precision, autocast

_PROBE = (128, 192)  # sides by whose ratio a feature map (N, C, H, W) is told from other tensors
_FEWEST = 4  # cells on the shorter side of a map that says where


class Explainer:
    """Grad-CAM of a network's class; several threads may use one, and wait for each other.

    The map is that of the deepest layer that still has 4 cells on its shorter side, as images of
    28 pixels have a single one at the end of the encoder. Of an ensemble it is the mean over the
    members.

    Args:
        network: is copied, so that the hooks on it disturb nobody.
        size: height and width in pixels of the images it was trained on.
        precision: what it computes in, see `medduet.models.inference.predict_batch`.

    Raises:
        ModelError: the network has no feature maps, as some transformers don't.

    Source: Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via gradient-based
    localization", ICCV 2017; computed by MONAI.

    Example:
        >>> from medduet import create_model
        >>> network = create_model("vovunet_var", in_channels=1, num_classes=2, width=2).eval()
        >>> explainer = Explainer(network, (32, 32))
        >>> explainer.layer
        'down.2'
        >>> explainer(np.zeros((3, 1, 32, 32), np.uint8), np.array([0, 1, 0])).shape
        (3, 32, 32)
    """

    def __init__(
        self, network: DuetNetwork, size: tuple[int, int], precision: Precision = DECLARED
    ) -> None:
        # Of an ensemble each member is asked about the upright image.
        members = network.members if isinstance(network, Ensemble) else [network]
        self._members = [_Member(member, size, precision) for member in members]
        self.layer = self._members[0].layer
        self._one_at_a_time = threading.Lock()

    def __call__(self, image: NDArray[np.uint8], classes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the evidence for a class at each place, float32 ``(N, H, W)``.

        The highest of each image is 1, unless there is none.

        Args:
            image: ``(N, C, H, W)`` uint8.
            classes: ``(N,)``, the class of each image.
        """
        with self._one_at_a_time, torch.inference_mode(False), torch.enable_grad():
            maps = [member.explain(image, classes) for member in self._members]
        values: NDArray[np.float32] = _from_0_to_1(torch.stack(maps).mean(dim=0))[:, 0].numpy()
        return values


class _Member:
    """One network with its hooks."""

    def __init__(self, network: nn.Module, size: tuple[int, int], precision: Precision) -> None:
        copied = cast(DuetNetwork, copy.deepcopy(network).requires_grad_(False))
        self.layer = _layer(copied, size)
        self._scores = _Scores(copied, precision)
        self._explain = GradCAM(self._scores, f"network.{self.layer}", postprocessing=_from_0_to_1)

    def explain(self, image: NDArray[np.uint8], classes: NDArray[np.int64]) -> Tensor:
        """Return maps ``(N, 1, H, W)`` of float32, on the CPU."""
        device = self._scores.network.normalize.mean.device
        pixels = (torch.from_numpy(image).to(device).float() / 255).requires_grad_()
        self._scores.classes = torch.from_numpy(classes).to(device)
        maps: Tensor = self._explain(pixels, class_idx=0)
        return maps.detach().float().cpu()


class _Scores(nn.Module):
    """The score of the class that is asked for, ``(N, 1)``."""

    classes: Tensor

    def __init__(self, network: DuetNetwork, precision: Precision) -> None:
        super().__init__()
        self.network, self.precision = network, precision

    def forward(self, image: Tensor) -> Tensor:
        with autocast(image.device, self.precision):
            class_logits = self.network.classify(image)
        return class_logits.float().gather(1, self.classes[:, None])


def _from_0_to_1(maps: Tensor) -> Tensor:
    return maps / maps.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)


def _layer(network: DuetNetwork, size: tuple[int, int]) -> str:
    """Return the name of the layer to look at."""
    height, width = _PROBE
    maps = [
        name
        for name, shape in _shapes(network, _PROBE)
        if len(shape) == 4 and shape[2] * width == shape[3] * height and shape[2] * 8 <= height
    ]
    if not maps:
        raise ModelError(
            f"{network.arguments['name']} has no feature maps that Grad-CAM could show: leave "
            "explaining out"
        )
    fine = [n for n, shape in _shapes(network, size) if n in maps and min(shape[2:]) >= _FEWEST]
    return (fine or maps)[-1]


def _shapes(network: DuetNetwork, size: tuple[int, int]) -> list[tuple[str, tuple[int, ...]]]:
    """Return what the layers give for one image, in the order in which they are done."""
    shapes: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes.append((name, tuple(output.shape)))

    hooks = [
        module.register_forward_hook(partial(note, name))
        for name, module in network.named_modules()
        if name and module is not network.normalize
    ]
    try:
        with torch.inference_mode():
            mean = network.normalize.mean
            channels = network.normalize.channels
            network.classify(torch.zeros(1, channels, *size, device=mean.device))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes
