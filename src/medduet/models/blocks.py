"""The blocks that the U-Net takes: callables ``(in_channels, out_channels) -> nn.Module``."""

from collections.abc import Callable

from timm.models.mobilevit import MobileVitV2Block
from timm.models.vovnet import OsaBlock
from torch import Tensor, nn

Block = Callable[[int, int], nn.Module]
"""Builds the unit of one level."""


def double_conv(in_channels: int, out_channels: int) -> nn.Module:
    """Two times 3x3 convolution (no bias), batch normalisation, ReLU: the U-Net's own block.

    U-Net, arXiv:1505.04597, with the padding and the normalisation that are usual today.

    Example:
        >>> import torch
        >>> double_conv(3, 8)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers.append(nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def osa_unit(in_channels: int, out_channels: int) -> nn.Module:
    """One-shot aggregation, then batch normalisation and GELU: the block of VovUnet_Var.

    Two successive 3x3 convolutions; their maps and the input are concatenated once and fused by a
    1x1 convolution (VoVNet, arXiv:1904.09730; the module is timm's).
    """
    return nn.Sequential(
        OsaBlock(in_channels, mid_chs=out_channels, out_chs=out_channels, layer_per_block=2),
        nn.BatchNorm2d(out_channels),
        nn.GELU(),
    )


def mobilevit_unit(in_channels: int, out_channels: int) -> nn.Module:
    """MobileViT-v2 block (arXiv:2206.02680, timm's), then batch normalisation and GELU.

    It enlarges maps to the next multiple of 8.
    """
    return nn.Sequential(
        MobileVitV2Block(in_channels, out_channels), nn.BatchNorm2d(out_channels), nn.GELU()
    )


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class ResidualUnit(nn.Module):
    """Two convolutions with a shortcut around them: the block of AdaResU-Net.

    Each has batch normalisation; between them are activation and dropout of whole channels. The
    shortcut is a 1x1 convolution and batch normalisation where the channels differ.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        act = ACTIVATIONS[activation]

        def conv(channels: int, size: int) -> list[nn.Module]:
            kernel = nn.Conv2d(channels, out_channels, size, padding=size // 2, bias=False)
            return [kernel, nn.BatchNorm2d(out_channels)]

        first = [*conv(in_channels, kernel_size), act(), nn.Dropout2d(dropout)]
        self.residual = nn.Sequential(*first, *conv(out_channels, kernel_size))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv(in_channels, 1))
        self.activation = act()

    def forward(self, x: Tensor) -> Tensor:
        """Return the new map."""
        y: Tensor = self.activation(self.residual(x) + self.shortcut(x))
        return y
