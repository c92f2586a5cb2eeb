"""The U-Net that takes a block, with a head for the class and a head for the dense output."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medduet.errors import ModelError, closest
from medduet.models.base import DuetNetwork
from medduet.models.blocks import Block, double_conv
from medduet.models.normalize import Normalize
from medduet.types import Outputs

Upsampling = Literal["transpose", "bilinear"]
UPSAMPLINGS: tuple[Upsampling, ...] = get_args(Upsampling)
LEVELS = 4
MIN_SIDE = 2**LEVELS


class Down(nn.Sequential):
    """Halve height and width (2x2 max pooling, floor), then the block."""

    def __init__(self, in_channels: int, out_channels: int, block: Block) -> None:
        super().__init__(nn.MaxPool2d(2), block(in_channels, out_channels))


class Up(nn.Module):
    """Double height and width, join the skip, then the block.

    The deep map ``(N, in_channels, h, w)`` is upsampled to ``in_channels // 2`` channels, padded
    with zeros at the right and bottom to the size of the skip ``(N, in_channels // 2, H, W)``, and
    concatenated behind it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, block: Block, upsampling: Upsampling
    ) -> None:
        super().__init__()
        half = in_channels // 2
        if upsampling == "transpose":
            self.upsample: nn.Module = nn.ConvTranspose2d(in_channels, half, 2, stride=2)
        else:
            # Halving the channels by a 1x1 convolution keeps every other shape as it is.
            self.upsample = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Conv2d(in_channels, half, kernel_size=1),
            )
        self.block = block(in_channels, out_channels)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return ``(N, out_channels, H, W)``, see `Up`."""
        deep = self.upsample(deep)
        rows, columns = skip.shape[-2] - deep.shape[-2], skip.shape[-1] - deep.shape[-1]
        deep = F.pad(deep, (0, columns, 0, rows))
        fused: Tensor = self.block(torch.cat([skip, deep], dim=1))
        return fused


class UNet(DuetNetwork):
    """A five-level U-Net with a class head on the deepest map and a dense head on the finest.

    Args:
        in_channels: channels of the image.
        num_classes: classes K of the class head; 0 for no class head.
        dense_channels: channels D of the dense head; 0 for none, and then no decoder is built.
        block: builds the unit of each level below the stem, see `medduet.models.blocks`.
        width: channels of the stem; each level below has twice those above. The papers use 64.
        upsampling: ``"transpose"`` (2x2 transposed convolution) or ``"bilinear"``.
        mean: subtracted from the image in [0, 1], the same in every channel.
        std: what the difference is divided by.

    Shapes:
        Takes ``(N, C, H, W)``, uint8 or float in [0, 1], H and W at least 16. Gives
        ``Outputs(class_logits (N, K) or None, dense (N, D, H, W) or None)``.

    Raises:
        ModelError: both heads are off, a size is not positive, or the upsampling is unknown; on
            the forward pass, an image smaller than 16 pixels or with another number of channels.

    Example:
        >>> import torch
        >>> from medduet.models.blocks import osa_unit
        >>> network = UNet(1, num_classes=2, dense_channels=1, block=osa_unit, width=4)
        >>> outputs = network(torch.zeros(2, 1, 33, 16, dtype=torch.uint8))
        >>> outputs.class_logits.shape, outputs.dense.shape
        (torch.Size([2, 2]), torch.Size([2, 1, 33, 16]))
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dense_channels: int,
        *,
        block: Block,
        width: int = 64,
        upsampling: Upsampling = "transpose",
        mean: float = 0.5,
        std: float = 0.5,
    ) -> None:
        super().__init__()
        _check_sizes(in_channels, num_classes, dense_channels, width)
        if upsampling not in UPSAMPLINGS:
            hint = closest(upsampling, UPSAMPLINGS)
            raise ModelError(f"unknown upsampling '{upsampling}': {hint}")
        channels = [width * 2**level for level in range(LEVELS + 1)]
        self.normalize = Normalize(in_channels, mean, std)
        self.stem = double_conv(in_channels, width)
        self.down = nn.ModuleList(
            Down(channels[level], channels[level + 1], block) for level in range(LEVELS)
        )
        self.class_head = nn.Linear(channels[-1], num_classes) if num_classes else None
        self.up = nn.ModuleList()
        self.dense_head: nn.Module | None = None
        if dense_channels:
            for level in reversed(range(LEVELS)):
                self.up.append(Up(channels[level + 1], channels[level], block, upsampling))
            self.dense_head = nn.Conv2d(width, dense_channels, kernel_size=1)

    def forward(self, image: Tensor) -> Outputs:
        """Return the scores of both heads for ``(N, C, H, W)`` images, see `UNet`."""
        _check_side(image)
        maps = [self.stem(self.normalize(image))]
        for down in self.down:
            maps.append(down(maps[-1]))
        class_logits = None
        if self.class_head is not None:
            class_logits = self.class_head(maps[-1].mean(dim=(2, 3)))
        dense = None
        if self.dense_head is not None:
            dense = maps.pop()
            for up in self.up:
                dense = up(dense, maps.pop())
            dense = self.dense_head(dense)
        return Outputs(class_logits, dense)


def _check_sizes(in_channels: int, num_classes: int, dense_channels: int, width: int) -> None:
    if in_channels < 1 or width < 1 or num_classes < 0 or dense_channels < 0:
        raise ModelError(
            "expected in_channels and width of at least 1 and num_classes and dense_channels of "
            f"at least 0, but got in_channels={in_channels}, width={width}, "
            f"num_classes={num_classes}, dense_channels={dense_channels}"
        )
    if not num_classes and not dense_channels:
        raise ModelError(
            "a network needs a head, but num_classes and dense_channels are both 0: "
            "set at least one of them"
        )


def _check_side(image: Tensor) -> None:
    height, width = image.shape[-2:]
    if height < MIN_SIDE or width < MIN_SIDE:
        raise ModelError(
            f"expected images of at least {MIN_SIDE} x {MIN_SIDE} pixels, but got "
            f"{height} x {width}: resize them (--size {MIN_SIDE} or more)"
        )
