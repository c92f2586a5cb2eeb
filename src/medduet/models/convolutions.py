"""Convolutions whose gradients oneDNN gets wrong, or computes slowly, in bfloat16 on a CPU."""

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn


class _Convolution(nn.modules.conv._ConvNd):
    """Is computed in float32 where bfloat16 would go wrong in training (torch 2.14, avx512_bf16).

    Where a side is smaller than the kernel, as of 2 slices with kernels of 3, the gradient of
    volumes is memory of something else. That of depthwise convolutions takes up to a hundred times
    as long as in float32 there, and with a stride or a kernel larger than 3.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, of the type of `x`."""
        small = any(side < k for side, k in zip(x.shape[2:], self.kernel_size, strict=True))
        slow = self.groups > 1 and (max(self.stride) > 1 or max(self.kernel_size) > 3)
        if x.device.type != "cpu" or not (self.training and (small or slow)):
            plain: Tensor = super().forward(x)
            return plain
        with torch.autocast("cpu", enabled=False):
            exact: Tensor = super().forward(x.float())
        return exact.to(x.dtype)


class Conv3d(_Convolution, nn.Conv3d):
    """A convolution of volumes."""


class DepthwiseConv2d(_Convolution, nn.Conv2d):
    """A convolution of each channel, or group of channels, by itself."""


class DepthwiseConv2dSame(_Convolution, Conv2dSame):  # type: ignore[misc]
    """The same with padding as in TensorFlow."""


def guard_depthwise(network: nn.Module) -> None:
    """Replace the depthwise convolutions of a network for images, in place."""
    guarded = {nn.Conv2d: DepthwiseConv2d, Conv2dSame: DepthwiseConv2dSame}
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.__class__ = guarded.get(type(module), type(module))
