"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medduet.errors import ModelError, closest
from medduet.models.base import DuetNetwork
from medduet.models.blocks import Block, double_conv, osa_unit
from medduet.models.unet import UNet, Upsampling


@dataclass(frozen=True)
class ModelSpec:
    """A network that `create_model` can build.

    Attributes:
        build: takes ``in_channels, num_classes, dense_channels`` and options.
        summary: what it is, in one line.
        paper: where it comes from.
    """

    build: Callable[..., DuetNetwork]
    summary: str
    paper: str


def _unet_of(block: Block) -> Callable[..., UNet]:
    def build(
        in_channels: int,
        num_classes: int,
        dense_channels: int,
        *,
        width: int = 64,
        upsampling: Upsampling = "transpose",
    ) -> UNet:
        return UNet(
            in_channels,
            num_classes,
            dense_channels,
            block=block,
            width=width,
            upsampling=upsampling,
        )

    return build


MODELS: dict[str, ModelSpec] = {
    "unet_var": ModelSpec(
        _unet_of(double_conv),
        "U-Net of double convolutions with a class head",
        "U-Net, arXiv:1505.04597; with the class head of VovUnet_Var",
    ),
    "vovunet_var": ModelSpec(
        _unet_of(osa_unit),
        "U-Net of one-shot aggregation units with a class head",
        "Li, Li, Ting: A Study of Multi-Task Learning Using a VoVNet-OSA Block Enhanced U-Net",
    ),
}


def create_model(
    name: str, *, in_channels: int, num_classes: int, dense_channels: int = 0, **options: Any
) -> DuetNetwork:
    """Build the network called `name` with fresh weights.

    Args:
        name: one of `MODELS`, see ``medduet models``.
        in_channels: channels C of the images.
        num_classes: classes K of the class head; 0 for none.
        dense_channels: channels D of the dense head; 0 for none, then the decoder is not built.
        **options: of the network, for U-Nets ``width`` (64) and ``upsampling`` (``"transpose"``
            or ``"bilinear"``).

    Returns:
        A module that takes ``(N, C, H, W)`` images, uint8 or float in [0, 1], and gives
        ``Outputs(class_logits (N, K) or None, dense (N, D, H, W) or None)``.

    Raises:
        ModelError: an unknown name or option, or sizes that don't fit.

    Example:
        >>> network = create_model("vovunet_var", in_channels=3, num_classes=8, dense_channels=3)
        >>> sum(parameter.numel() for parameter in network.parameters())
        35931723
    """
    if name not in MODELS:
        raise ModelError(f"unknown network '{name}': {closest(name, MODELS)}")
    try:
        return MODELS[name].build(in_channels, num_classes, dense_channels, **options)
    except TypeError as error:
        raise ModelError(f"{name}: {error}; its options are width and upsampling") from error
