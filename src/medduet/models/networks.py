"""The networks that are one U-Net with another block, and every choice that their papers leave.

Common to all: images of any side of 16 pixels or more; convolutions are padded, so that the dense
output has the size of the image; five levels, each with twice the channels of the one above; the
class head (global average pooling and a linear layer on the deepest map) and the dense head (a 1x1
convolution) are those of VovUnet_Var, whatever the paper of the network has. Either can be off.
Each function takes ``in_channels, num_classes, dense_channels`` and options.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from medduet.errors import ModelError, closest
from medduet.models import blocks
from medduet.models.blocks import ACTIVATIONS, Block, ResidualUnit
from medduet.models.inception import (
    DenseInception,
    InceptionRes,
    inception_pool,
    inception_upsample,
)
from medduet.models.unet import Sharpen, UNet, Upsampling


def unet(*sizes: int, width: int = 64, upsampling: Upsampling = "transpose") -> UNet:
    """Build U-Net, arXiv:1505.04597, after its figure 1.

    As there: two 3x3 convolutions with ReLU per level, 64 to 1024 channels, 2x2 max pooling, 2x2
    up-convolutions that halve the channels, skips by concatenation, a final 1x1 convolution.
    Chosen otherwise, as today's implementations do: padded convolutions instead of cropped skips,
    and batch normalisation after each convolution, which therefore has no bias. The paper's
    dropout at the end of the contracting path and its class-balancing weight map are left out.

    With a class head, which the paper lacks, it is UNet_VAR of the authors' code of `vovunet_var`.
    Their switch for bilinear upsampling cannot run; here a 1x1 convolution halves the channels.
    """
    return UNet(*sizes, block=blocks.double_conv, width=width, upsampling=upsampling)


def vovunet_var(*sizes: int, width: int = 64, upsampling: Upsampling = "transpose") -> UNet:
    """Build VovUnet_Var after the authors' code, which decides where the text is silent.

    The stem is a double convolution; every other block is a one-shot aggregation unit of two 3x3
    convolutions without residual or attention (VoVNet, arXiv:1904.09730, figure 2), then batch
    normalisation and GELU. Bilinear upsampling as in `unet`.
    """
    return UNet(*sizes, block=blocks.osa_unit, width=width, upsampling=upsampling)


def mobilevitv2_unet_var(
    *sizes: int, width: int = 64, upsampling: Upsampling = "transpose"
) -> UNet:
    """Build MobileViTV2-UNet, the third variant in the authors' code of VovUnet_Var.

    The stem is a double convolution; every other block is timm's MobileViT-v2 block
    (arXiv:2206.02680) with its defaults, then batch normalisation and GELU. It enlarges maps to
    multiples of 8 (at 224 pixels 28 to 32 and 14 to 16), and the authors' code then crops the
    enlarged map to the skip, which moves it against it. Chosen otherwise: it is scaled (bilinear).
    """
    return UNet(*sizes, block=blocks.mobilevit_unit, width=width, upsampling=upsampling)


def sharp_unet(*sizes: int, width: int = 64, upsampling: Upsampling = "transpose") -> UNet:
    """Build Sharp U-Net, doi:10.1016/j.combiomed.2021.104699 (arXiv:2107.12461).

    As there: `unet` in which every skip passes a depthwise 3x3 convolution with a fixed Laplacian
    kernel; weights of `unet` fit. Left open and chosen: zeros beyond the border; the kernel stays
    fixed (public code in Keras leaves the layer trainable); no activation after it; 64 channels in
    the first level, as `unet`, where that code has 32.
    """
    block = blocks.double_conv
    return UNet(*sizes, block=block, width=width, upsampling=upsampling, skip=Sharpen)


def dense_inception_unet(
    *sizes: int, width: int = 64, upsampling: Upsampling = "transpose"
) -> UNet:
    """Build DENSE-INception U-Net, doi:10.1016/j.cmpb.2020.105395, after its overall figure.

    As there: three Inception-Res blocks and one Dense-Inception block on the way down and on the
    way up, a deeper Dense-Inception block in the middle, Inception-like modules that halve and
    double the size, skips by concatenation.

    Chosen, because the text that could be read (abstract and summaries; not the full tables) does
    not fix it: 64 to 1024 channels as `unet`; 12 Inception layers in the outer Dense-Inception
    blocks and 24 in the middle, each adding width / 2 channels (DenseNet's growth of 32 at width
    64) and beginning with a 1x1 convolution to twice that; the branches of each module, see
    `medduet.models.inception`. Halving rounds up, and what stands over after doubling is cut.
    """
    if width < 4:
        raise ModelError(f"dense_inception_unet needs a width of at least 4, but got {width}")
    growth = max(4, width // 2)
    outer: Block = partial(DenseInception, layers=12, growth=growth)
    middle: Block = partial(DenseInception, layers=24, growth=growth)
    return UNet(
        *sizes,
        block=(InceptionRes, InceptionRes, InceptionRes, outer, middle),
        stem=InceptionRes,
        width=width,
        upsampling=upsampling,
        pool=inception_pool,
        enlarge=inception_upsample,
    )


def adares_unet(
    *sizes: int,
    width: int = 32,
    upsampling: Upsampling = "transpose",
    kernel_size: int = 3,
    activation: str = "relu",
    dropout: float = 0.1,
) -> UNet:
    """Build AdaResU-Net, doi:10.1016/j.neucom.2019.01.110.

    As there: a U-Net of residual blocks whose hyper-parameters (kernel size, number of filters,
    activation, dropout, learning rate) a multi-objective evolutionary search sets for a data set,
    with accuracy and size as objectives; ``medduet search adares`` does that. The default has 26%
    of the parameters of `unet`, as the abstract's "less than 30%".

    Chosen, because the text that could be read (the abstract) does not fix it: two convolutions
    per block with the shortcut of ResNet (1x1 where the channels differ), dropout of whole
    channels between them, the stem a residual block too, and the default hyper-parameters.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ModelError(f"expected an odd kernel_size such as 3 or 5, but got {kernel_size}")
    if activation not in ACTIVATIONS:
        raise ModelError(f"unknown activation '{activation}': {closest(activation, ACTIVATIONS)}")
    if not 0 <= dropout < 1:
        raise ModelError(f"expected a dropout of at least 0 and below 1, but got {dropout}")
    options: dict[str, Any] = {
        "kernel_size": kernel_size,
        "activation": activation,
        "dropout": dropout,
    }
    block: Block = partial(ResidualUnit, **options)
    return UNet(*sizes, block=block, stem=block, width=width, upsampling=upsampling)
