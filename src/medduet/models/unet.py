"""The U-Net that takes a block, with a head for the class and a head for the dense output."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medduet.errors import ModelError, closest
from medduet.models.base import DuetNetwork, Normalize
from medduet.models.blocks import Block, double_conv
from medduet.types import KINDS, Outputs

Upsampling = Literal["transpose", "bilinear"]
LEVELS = 4
MIN_SIDE = 2**LEVELS
"""The smallest side in pixels that a U-Net takes."""
Enlarge = Callable[[int, int, Upsampling], nn.Module]
"""Builds what doubles height and width: channels in, channels out, how."""


def upsample(in_channels: int, out_channels: int, upsampling: Upsampling) -> nn.Module:
    """Double height and width: 2x2 transposed convolution, or bilinear and a 1x1 convolution."""
    if upsampling == "transpose":
        return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(in_channels, out_channels, kernel_size=1),
    )


class Sharpen(nn.Module):
    """Depthwise 3x3 convolution with a fixed Laplacian, which is not saved."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        kernel = torch.full((1, 1, 3, 3), -1.0)
        kernel[0, 0, 1, 1] = 8.0
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sharpened map."""
        channels, convolve = x.shape[1], F.conv2d if x.ndim == 4 else F.conv3d
        kernel = self.kernel.to(x.dtype).expand(channels, *self.kernel.shape[1:])
        return convolve(x, kernel, padding=1, groups=channels)


class Up(nn.Module):
    """Double height and width, join the skip, then the block.

    Where a row or column is missing or too many, as for odd sizes, that is a row of zeros or a cut
    at the bottom; where more are, because a block has changed the size, the map is scaled.
    """

    def __init__(self, upsample: nn.Module, skip: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.upsample, self.skip, self.block = upsample, skip, block

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Return the map of this level."""
        deep = self.upsample(deep)
        missing = [new - old for new, old in zip(skip.shape[2:], deep.shape[2:], strict=True)]
        if max(abs(rows) for rows in missing) > 1:
            deep = _resize(deep, skip)
        else:
            deep = F.pad(deep, [rows for last in reversed(missing) for rows in (0, last)])
        fused: Tensor = self.block(torch.cat([self.skip(skip), deep], dim=1))
        return fused


class UNet(DuetNetwork):
    """A five-level U-Net with a class head on the deepest map and a dense head on the finest.

    The first three sizes are those of `create_model`.

    Args:
        block: of `medduet.models.blocks`, or five, from the finest level to the deepest.
        width: channels of the stem; each level below has twice those above. The papers use 64.
        stem: the block at the full size on the way down.
        upsampling: ``"transpose"`` (2x2 transposed convolution) or ``"bilinear"``.
        pool: builds what halves height and width of a map with so many channels.
        enlarge: builds what doubles them; takes channels in, channels out, and `upsampling`.
        skip: builds what each skip passes through before it is joined.
        head: builds the dense head; takes channels in, channels out.
    """

    min_side = MIN_SIDE

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dense_channels: int,
        *,
        block: Block | Sequence[Block],
        width: int = 64,
        stem: Block = double_conv,
        upsampling: Upsampling = "transpose",
        pool: Callable[[int], nn.Module] = lambda channels: nn.MaxPool2d(2),
        enlarge: Enlarge = upsample,
        skip: Callable[[], nn.Module] = nn.Identity,
        head: Block = lambda in_channels, out_channels: nn.Conv2d(in_channels, out_channels, 1),
    ) -> None:
        super().__init__()
        if upsampling not in get_args(Upsampling):
            hint = closest(upsampling, get_args(Upsampling))
            raise ModelError(f"unknown upsampling '{upsampling}': {hint}")
        channels = [width * 2**level for level in range(LEVELS + 1)]
        blocks = [block] * (LEVELS + 1) if callable(block) else list(block)
        self.normalize = Normalize(in_channels)
        self.stem = stem(in_channels, width)
        self.down = nn.ModuleList(
            nn.Sequential(
                pool(channels[level]), blocks[level + 1](channels[level], channels[level + 1])
            )
            for level in range(LEVELS)
        )
        self.class_head = nn.Linear(channels[-1], num_classes) if num_classes else None
        self.up = nn.ModuleList()
        self.dense_head: nn.Module | None = None
        if dense_channels:
            for level in reversed(range(LEVELS)):
                deep, fine = channels[level + 1], channels[level]
                larger = enlarge(deep, deep // 2, upsampling)
                self.up.append(Up(larger, skip(), blocks[level](deep, fine)))
            self.dense_head = head(width, dense_channels)
        self.encoder_modules = [self.stem, self.down]
        self.decoder_modules = [*self.up, self.dense_head] if self.dense_head else []

    def forward(self, image: Tensor) -> Outputs:
        """Return the scores of both heads."""
        maps = self._encode(image)
        class_logits = self._class_scores(maps[-1])
        dense = None
        if self.dense_head is not None:
            dense = maps.pop()
            for up in self.up:
                dense = up(dense, maps.pop())
            dense = self.dense_head(dense)
            if dense.shape[2:] != image.shape[2:]:
                dense = _resize(dense, image)
        return Outputs(class_logits, dense)

    def level(self, number: int) -> list[nn.Module]:
        """Return what works on the maps of a level, 0 the finest, and between it and the next."""
        down: Any = self.down
        block = down[number - 1][1] if number else self.stem
        return [block, down[number][0], *self.up[-1 - number :][:1]]

    def _encode(self, image: Tensor) -> list[Tensor]:
        sides = image.shape[2:]
        if any(side < MIN_SIDE for side in sides):
            least, given = (" x ".join(map(str, x)) for x in ([MIN_SIDE] * len(sides), sides))
            raise ModelError(
                f"expected {KINDS[len(sides)]} of at least {least} pixels, but got {given}: resize "
                f"them (--size {MIN_SIDE} or more)"
            )
        maps = [self.stem(self.normalize(image))]
        for down in self.down:
            maps.append(down(maps[-1]))
        return maps

    def _class_scores(self, deepest: Tensor) -> Tensor | None:
        sides = tuple(range(2, deepest.ndim))
        return None if self.class_head is None else self.class_head(deepest.mean(dim=sides))

    def _classify(self, image: Tensor) -> Tensor | None:
        return self._class_scores(self._encode(image)[-1])


def _resize(x: Tensor, like: Tensor) -> Tensor:
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return F.interpolate(x, size=like.shape[2:], mode=mode, align_corners=False)
