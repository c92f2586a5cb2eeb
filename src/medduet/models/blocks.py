"""The blocks that the U-Net takes: callables ``(in_channels, out_channels) -> nn.Module``."""

from __future__ import annotations

from collections.abc import Callable

from timm.models.vovnet import OsaBlock
from torch import nn

Block = Callable[[int, int], nn.Module]
"""Builds the unit of one level; it keeps height and width."""


def double_conv(in_channels: int, out_channels: int) -> nn.Module:
    """Two times 3x3 convolution (no bias), batch normalisation, ReLU: the U-Net's own block.

    Takes ``(N, in_channels, H, W)``, gives ``(N, out_channels, H, W)``. U-Net, arXiv:1505.04597,
    with the padding and the batch normalisation that today's implementations use.

    Example:
        >>> import torch
        >>> double_conv(3, 8)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def osa_unit(in_channels: int, out_channels: int) -> nn.Module:
    """One-shot aggregation, then batch normalisation and GELU: the block of VovUnet_Var.

    Two successive 3x3 convolutions; their maps and the input are concatenated once and fused by a
    1x1 convolution (VoVNet, arXiv:1904.09730; the module is timm's). Takes
    ``(N, in_channels, H, W)``, gives ``(N, out_channels, H, W)``.

    Example:
        >>> import torch
        >>> osa_unit(4, 8)(torch.zeros(2, 4, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """
    return nn.Sequential(
        OsaBlock(in_channels, mid_chs=out_channels, out_chs=out_channels, layer_per_block=2),
        nn.BatchNorm2d(out_channels),
        nn.GELU(),
    )
