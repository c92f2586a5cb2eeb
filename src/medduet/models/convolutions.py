"""Convolutions whose gradients oneDNN gets wrong, or computes slowly, in bfloat16 on a CPU."""

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn


class _Convolution(nn.modules.conv._ConvNd):
    """Trains in float32 where bfloat16 is wrong or slow on a CPU (torch 2.14, avx512_bf16).

    For volumes with a side smaller than the kernel, such as 2 slices and a kernel of 3, the
    gradient is uninitialised memory. For depthwise convolutions it takes up to a hundred times as
    long as in float32 there, and also with a stride or a kernel larger than 3.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map, in the dtype of `x`."""
        small = any(side < k for side, k in zip(x.shape[2:], self.kernel_size, strict=True))
        slow = self.groups > 1 and (max(self.stride) > 1 or max(self.kernel_size) > 3)
        if x.device.type != "cpu" or not (self.training and (small or slow)):
            return super().forward(x)  # type: ignore[no-any-return]
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)  # type: ignore[no-any-return]


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
