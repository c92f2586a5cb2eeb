"""DENSE-INception U-Net and its parts, after the figures of its paper.

Each convolution but the fusing ones has batch normalisation and ReLU. The widths of the branches
are ours.
"""

from functools import partial

import torch
from timm.layers import BatchNormAct2d, ConvNormAct
from torch import Tensor, nn

from medduet.errors import ModelError
from medduet.models.blocks import Block
from medduet.models.unet import UNet, Upsampling, upsample

Layer = tuple[int, int | tuple[int, int]]
"""Channels and kernel of a convolution."""


class Branches(nn.ModuleList):
    """Several paths from one map, concatenated."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps of all branches one behind the other."""
        return torch.cat([branch(x) for branch in self], dim=1)


def _path(channels: int, *layers: Layer, stride: int = 1) -> nn.Module:
    """Return convolutions one behind the other; the last one has the stride."""
    path: list[nn.Module] = []
    for number, (out_channels, kernel) in enumerate(layers, start=1):
        rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        step, padding = stride if number == len(layers) else 1, (rows // 2, columns // 2)
        path.append(ConvNormAct(channels, out_channels, (rows, columns), step, padding))
        channels = out_channels
    return nn.Sequential(*path) if len(path) > 1 else path[0]


def _enlarged(path: nn.Module, channels: int) -> nn.Module:
    """Return `path` and a transposed 3x3 convolution that doubles height and width."""
    layer = nn.ConvTranspose2d(channels, channels, 3, 2, 1, output_padding=1, bias=False)
    return nn.Sequential(path, layer, BatchNormAct2d(channels))


class InceptionRes(nn.Module):
    """Branches, fused by a 1x1 convolution and added to the input, then ReLU.

    They are 1x1; 1x1, 3x3; 1x1, 3x3, 3x3. In Dense-Inception blocks (`asymmetric`) they are 1x1;
    max pooling, 1x1; 1x1, 1x3, 3x1.
    """

    def __init__(self, in_channels: int, out_channels: int, asymmetric: bool = False) -> None:
        super().__init__()
        quarter = max(1, out_channels // 4)
        half = max(1, out_channels - 2 * quarter)
        if asymmetric:
            pool = nn.MaxPool2d(3, stride=1, padding=1)
            middle: nn.Module = nn.Sequential(pool, _path(in_channels, (quarter, 1)))
            last = _path(in_channels, (quarter, 1), (half, (1, 3)), (half, (3, 1)))
        else:
            middle = _path(in_channels, (quarter, 1), (quarter, 3))
            last = _path(in_channels, (quarter, 1), (half, 3), (half, 3))
        self.branches = Branches([_path(in_channels, (quarter, 1)), middle, last])
        self.fuse = nn.Conv2d(2 * quarter + half, out_channels, kernel_size=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the new map."""
        y: Tensor = self.fuse(self.branches(x)) + self.shortcut(x)
        return y.relu()


class DenseInception(nn.Module):
    """Inception-Res units of `growth` channels, each behind a 1x1 bottleneck of all before it."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, growth: int) -> None:
        super().__init__()
        self.units, self.bottlenecks = nn.ModuleList(), nn.ModuleList()
        for number in range(1, layers + 1):
            self.units.append(InceptionRes(in_channels, growth, asymmetric=True))
            in_channels = growth if number < layers else out_channels
            self.bottlenecks.append(ConvNormAct(number * growth, in_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the new map."""
        maps: list[Tensor] = []
        for unit, bottleneck in zip(self.units, self.bottlenecks, strict=True):
            maps.append(unit(x))
            x = bottleneck(torch.cat(maps, dim=1))
        return x


def inception_pool(channels: int) -> nn.Module:
    """Halve height and width (rounded up) in three branches, and fuse them."""
    half = channels // 2
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    two = _path(channels, (half, 1), (half, 3), stride=2)
    three = _path(channels, (half, 1), (half, 3), (half, 3), stride=2)
    fuse = nn.Conv2d(channels + 2 * half, channels, kernel_size=1)
    return nn.Sequential(Branches([pool, two, three]), fuse)


def inception_upsample(in_channels: int, out_channels: int, upsampling: Upsampling) -> nn.Module:
    """Double height and width in three branches, and fuse them; or bilinear, as `upsample`.

    Its transposed convolutions of stride 1 are convolutions here, which compute the same.
    """
    if upsampling == "bilinear":
        return upsample(in_channels, out_channels, upsampling)
    half = max(1, out_channels // 2)
    one = _enlarged(_path(in_channels, (half, 1)), half)
    two = _enlarged(_path(in_channels, (half, 1), (half, 3)), half)
    fuse = nn.Conv2d(in_channels + 2 * half, out_channels, kernel_size=1)
    return nn.Sequential(Branches([nn.Upsample(scale_factor=2), one, two]), fuse)


def inception_head(in_channels: int, out_channels: int) -> nn.Module:
    """Halve the channels in an Inception-Res block, before the last 1x1 convolution."""
    half = in_channels // 2
    return nn.Sequential(InceptionRes(in_channels, half), nn.Conv2d(half, out_channels, 1))


def dense_inception_unet(
    *sizes: int, width: int = 64, upsampling: Upsampling = "transpose"
) -> UNet:
    """Build DENSE-INception U-Net, doi:10.1016/j.cmpb.2020.105395, after its figures."""
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
        head=inception_head,
    )
