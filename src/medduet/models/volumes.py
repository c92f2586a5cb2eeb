"""Networks for volumes: each layer of a network for images becomes its counterpart in 3D, in place.

A kernel of ``h x w`` becomes one of ``h x h x w``, so that pairs such as 1x3 and 3x1 still cover a
cube; strides and padding likewise. Kernels are drawn anew with the variance of those that the
network began with, divided by ``h`` for what they sum up more. All else is that of the network for
images: layers, their order, names and channels.
"""

from math import sqrt
from typing import Any

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from timm.layers import BatchNormAct2d
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool, FastAdaptiveMaxPool
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from medduet.errors import ModelError
from medduet.models.base import DuetNetwork, Normalize, trace
from medduet.models.unet import Sharpen

_TRIAL = (64, 80, 96)  # three sides that differ, so that no two of them can be mistaken
_SIZES = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")


class BatchNormAct3d(BatchNormAct2d):  # type: ignore[misc]
    """timm's batch normalisation with activation, which asks for four axes."""

    _check_input_dim = nn.BatchNorm3d._check_input_dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map after dropout and activation."""
        y: Tensor = self.act(self.drop(nn.BatchNorm3d.forward(self, x)))
        return y


class UnetDecoder3d(UnetDecoder):  # type: ignore[misc]
    """segmentation-models-pytorch's decoder, which unpacks height and width."""

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the finest map, of maps from the image (which is no skip) to the deepest."""
        x: Tensor = self.center(features[-1])
        skips = [*features[-2:0:-1], None]
        for block, skip, finer in zip(self.blocks, skips, features[-2::-1], strict=True):
            x = F.interpolate(x, size=finer.shape[2:], mode=block.interpolation_mode)
            if skip is not None:
                x = block.attention1(torch.cat([x, skip], dim=1))
            x = block.attention2(block.conv2(block.conv1(x)))
        return x


_COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {  # with the same attributes
    BatchNormAct2d: BatchNormAct3d,
    UnetDecoder: UnetDecoder3d,
}
_LAYERS = "Conv ConvTranspose BatchNorm Dropout MaxPool AvgPool AdaptiveMaxPool AdaptiveAvgPool"
for _layer in _LAYERS.split():
    _COUNTERPARTS[getattr(nn, f"{_layer}2d")] = getattr(nn, f"{_layer}3d")


def turn_into_3d(network: DuetNetwork) -> None:
    """Let `network`, built for images, take volumes ``(N, C, D, H, W)`` instead.

    Raises:
        ModelError: it has layers without a counterpart, such as those of transformers.

    Example:
        >>> from medduet import create_model
        >>> network = create_model("unet_var", in_channels=1, num_classes=2, width=2, dims=3)
        >>> network.eval()(torch.zeros(1, 1, 16, 20, 24)).class_logits.shape
        torch.Size([1, 2])
    """
    for module in network.modules():
        _turn(module)
    try:
        with torch.no_grad(), _NoPlanes():
            trace(network, 2, *_TRIAL)
    except Exception as error:  # what libraries raise for five axes has no common base class
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"{network.arguments['name']} can't be made for volumes ({reason}): expected a network "
            "of convolutions, such as vovunet_var, unet_var, timm:resnet18 or smp:unet/resnet18"
        ) from error


def _turn(module: nn.Module) -> None:
    """Make one layer three-dimensional; whoever holds it still does."""
    module.__class__ = _COUNTERPARTS.get(type(module), type(module))
    for name in _SIZES if type(module) in _COUNTERPARTS.values() else ():
        if isinstance(size := getattr(module, name, None), tuple):
            setattr(module, name, (size[0], *size))
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        flat = module.weight
        spread = flat.detach().square().mean().sqrt() / sqrt(flat.shape[2])
        kernel = spread * torch.randn(*flat.shape[:3], *flat.shape[2:], device=flat.device)
        module.weight = nn.Parameter(kernel, requires_grad=flat.requires_grad)
    elif isinstance(module, nn.Upsample) and module.mode == "bilinear":
        module.mode = "trilinear"
    elif isinstance(module, Sharpen):
        module.kernel = torch.full((1, 1, 3, 3, 3), -1.0)
        module.kernel[0, 0, 1, 1, 1] = 26.0
    elif isinstance(module, Normalize):
        module.dims, module.mean, module.std = 3, module.mean[..., None], module.std[..., None]
    elif isinstance(module, FastAdaptiveAvgPool | FastAdaptiveMaxPool):
        module.dim = (2, 3, 4)


class _NoPlanes(TorchFunctionMode):
    """Refuses means and the like over two of three sides: they would run, and be wrong."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].ndim == 5:
            for axes in (*args[1:], options.get("dim")):
                if str(axes).strip("()[]") in ("2, 3", "-2, -1"):
                    raise ModelError(f"{func.__name__} over height and width alone")
        return func(*args, **options)
