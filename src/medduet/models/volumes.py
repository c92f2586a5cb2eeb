"""Networks for volumes: each layer of a network for images becomes its counterpart in 3D, in place.

A kernel of ``h x w`` becomes one of ``h x h x w``, so that pairs such as 1x3 and 3x1 still cover a
cube; strides and padding likewise. Kernels are drawn anew with the variance of those that the
network began with, divided by ``h`` for what they sum up more. All else is that of the network for
images: layers, their order, names and channels.

Where slices are thick, the first levels of a U-Net neither pool nor convolve over them, as in
nnU-Net (doi:10.1038/s41592-020-01008-z), so that its deeper maps are of about cubic voxels.
"""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any, cast

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from timm.layers import BatchNormAct2d
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool, FastAdaptiveMaxPool
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from medduet.errors import ModelError
from medduet.models.base import DuetNetwork, Normalize, trace
from medduet.models.convolutions import Conv3d
from medduet.models.unet import Sharpen, UNet

_TRIAL = (64, 80, 96)  # three sides that differ, so that no two of them can be mistaken
_SIZES = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")
_FLAT = {"padding": 0, "output_padding": 0}  # along axes that are left alone; other sizes are 1


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
_COUNTERPARTS[nn.Conv2d] = Conv3d


def turn_into_3d(network: DuetNetwork, flat_levels: Sequence[int] = (0, 0, 0)) -> None:
    """Let `network`, built for images, take volumes ``(N, C, D, H, W)`` instead.

    Args:
        network: is changed in place.
        flat_levels: how many first levels of a U-Net leave each axis alone.

    Raises:
        ModelError: it has layers without a counterpart, such as those of transformers.

    Example:
        >>> from medduet import create_model
        >>> network = create_model("unet_var", in_channels=1, num_classes=2, width=2, dims=3)
        >>> network.eval()(torch.zeros(1, 1, 16, 20, 24)).class_logits.shape
        torch.Size([1, 2])
    """
    level_of: dict[nn.Module, int] = {}
    if isinstance(network, UNet):
        for level in range(max(flat_levels)):
            for part in network.level(level):
                level_of |= dict.fromkeys(part.modules(), level)
    for module in network.modules():
        _turn(module, [level_of.get(module, max(flat_levels)) < count for count in flat_levels])
    try:
        with torch.no_grad(), _NoPlanes():
            trace(network, 2, *_TRIAL)
    except Exception as error:  # what libraries raise for five axes has no common base class
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"{network.arguments['name']} can't be made for volumes ({reason}): expected a network "
            "of convolutions, such as vovunet_var, unet_var, timm:resnet18 or smp:unet/resnet18"
        ) from error


def _turn(module: nn.Module, flat: Sequence[bool]) -> None:
    """Make one layer three-dimensional, but along `flat` axes; whoever holds it still does."""
    module.__class__ = _COUNTERPARTS.get(type(module), type(module))
    for name in _SIZES if type(module) in _COUNTERPARTS.values() else ():
        size = getattr(module, name, None)
        size = (size, size) if isinstance(size, int) and any(flat) else size
        if isinstance(size, tuple):
            sizes = zip((size[0], *size), flat, strict=True)
            setattr(
                module, name, tuple(_FLAT.get(name, 1) if left else side for side, left in sizes)
            )
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        plane, more = module.weight, prod(module.kernel_size) / module.weight[0, 0].numel()
        spread = plane.detach().square().mean().sqrt() / sqrt(more)
        kernel = torch.randn(*plane.shape[:2], *module.kernel_size, device=plane.device)
        module.weight = nn.Parameter(spread * kernel, requires_grad=plane.requires_grad)
    elif isinstance(module, nn.Upsample):
        module.mode, scale = module.mode.replace("bi", "tri"), cast(float, module.scale_factor)
        module.scale_factor = tuple(1.0 if left else scale for left in flat)
    elif isinstance(module, Sharpen):
        module.kernel, part = torch.zeros(1, 1, 3, 3, 3), (slice(0, 3), slice(1, 2))
        module.kernel[0, 0][tuple(part[left] for left in flat)] = -1.0
        module.kernel[0, 0, 1, 1, 1] -= module.kernel.sum()
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
