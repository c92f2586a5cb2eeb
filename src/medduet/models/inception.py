"""DENSE-INception U-Net and its parts; only the fusing convolutions have no norm.

What the paper leaves open stands in docs/models.md.
"""

from functools import partial

import torch
from timm.layers import ConvNormAct
from torch import Tensor, nn

from medduet.errors import ModelError
from medduet.models.blocks import Block
from medduet.models.unet import UNet, Upsampling, upsample


def _quarters(channels: int) -> tuple[int, int, int]:
    """Divide `channels` into two quarters and a half, at least one each."""
    quarter = max(1, channels // 4)
    return quarter, quarter, max(1, channels - 2 * quarter)


class Branches(nn.ModuleList):
    """Several paths from one map, concatenated."""

    def __init__(self, *paths: nn.Module) -> None:
        super().__init__(paths)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps of all branches one behind the other."""
        return torch.cat([branch(x) for branch in self], dim=1)


def _path(channels: int, *layers: tuple[int, int], stride: int = 1) -> nn.Module:
    """Return convolutions of ``(out_channels, kernel)``; the last one has the stride."""
    path: list[nn.Module] = []
    for number, (out_channels, kernel) in enumerate(layers, start=1):
        step = stride if number == len(layers) else 1
        path.append(ConvNormAct(channels, out_channels, kernel, stride=step))
        channels = out_channels
    return nn.Sequential(*path) if len(path) > 1 else path[0]


class InceptionRes(nn.Module):
    """The branches 1x1; 1x1, 3x3; 1x1, 3x3, 3x3, fused by a 1x1 and added to the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        first, second, third = _quarters(out_channels)
        self.branches = Branches(
            _path(in_channels, (first, 1)),
            _path(in_channels, (second, 1), (second, 3)),
            _path(in_channels, (second, 1), (third, 3), (third, 3)),
        )
        self.fuse = nn.Conv2d(first + second + third, out_channels, kernel_size=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the new map."""
        y: Tensor = self.fuse(self.branches(x)) + self.shortcut(x)
        return y.relu()


class InceptionLayer(nn.Module):
    """Appends the branches 1x1, 3x3, and 1x3 with 3x1 of a 1x1 convolution to the input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        first, third, second = _quarters(growth)
        inner = 2 * growth
        self.bottleneck = ConvNormAct(in_channels, inner, 1)
        one, three = _path(inner, (first, 1)), _path(inner, (second, 3))
        row = ConvNormAct(inner, third, (1, 3), padding=(0, 1))
        column = ConvNormAct(third, third, (3, 1), padding=(1, 0))
        self.branches = Branches(one, three, nn.Sequential(row, column))
        self.out_channels = in_channels + first + second + third

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with the new channels behind it."""
        return torch.cat([x, self.branches(self.bottleneck(x))], dim=1)


class DenseInception(nn.Sequential):
    """`layers` Inception layers, each of which reads all before it, then a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, growth: int) -> None:
        parts: list[nn.Module] = []
        for _ in range(layers):
            layer = InceptionLayer(in_channels, growth)
            in_channels = layer.out_channels
            parts.append(layer)
        super().__init__(*parts, ConvNormAct(in_channels, out_channels, 1))


def inception_pool(channels: int) -> nn.Module:
    """Halve height and width in three branches that together keep the channels."""
    first, third, second = _quarters(channels)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return Branches(
        nn.Sequential(pool, ConvNormAct(channels, second, 1)),
        _path(channels, (first, 3), stride=2),
        _path(channels, (third, 1), (third, 3), (third, 3), stride=2),
    )


def inception_upsample(in_channels: int, out_channels: int, upsampling: Upsampling) -> nn.Module:
    """Double height and width: half transposed convolution, half bilinear (or all of it)."""
    if upsampling == "bilinear" or out_channels == 1:
        return upsample(in_channels, out_channels, upsampling)
    half = out_channels // 2
    transposed = upsample(in_channels, half, "transpose")
    return Branches(transposed, upsample(in_channels, out_channels - half, "bilinear"))


def dense_inception_unet(
    *sizes: int, width: int = 64, upsampling: Upsampling = "transpose"
) -> UNet:
    """Build DENSE-INception U-Net, doi:10.1016/j.cmpb.2020.105395, after its overall figure."""
    if width < 4:
        raise ModelError(f"dense_inception_unet needs a width of at least 4, but got {width}")
    growth = max(4, width // 2)
    outer: Block = partial(DenseInception, layers=12, growth=growth)
    middle: Block = partial(DenseInception, layers=24, growth=growth)
    return UNet(
        *sizes,
        block=(*[InceptionRes] * 3, outer, middle),
        stem=InceptionRes,
        width=width,
        upsampling=upsampling,
        pool=inception_pool,
        enlarge=inception_upsample,
    )
