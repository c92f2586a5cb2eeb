"""U-Nets that are more than another block.

What their papers leave open or have otherwise stands in docs/models.md.
"""

from functools import partial

from medduet.errors import ModelError, closest
from medduet.models import inception
from medduet.models.blocks import (
    ACTIVATIONS,
    Block,
    ResidualUnit,
)
from medduet.models.unet import UNet, Upsampling


def dense_inception_unet(
    *sizes: int, width: int = 64, upsampling: Upsampling = "transpose"
) -> UNet:
    """Build DENSE-INception U-Net, doi:10.1016/j.cmpb.2020.105395, after its overall figure."""
    if width < 4:
        raise ModelError(f"dense_inception_unet needs a width of at least 4, but got {width}")
    growth = max(4, width // 2)
    outer: Block = partial(inception.DenseInception, layers=12, growth=growth)
    middle: Block = partial(inception.DenseInception, layers=24, growth=growth)
    return UNet(
        *sizes,
        block=(*[inception.InceptionRes] * 3, outer, middle),
        stem=inception.InceptionRes,
        width=width,
        upsampling=upsampling,
        pool=inception.inception_pool,
        enlarge=inception.inception_upsample,
    )


def adares_unet(
    *sizes: int,
    width: int = 32,
    upsampling: Upsampling = "transpose",
    kernel_size: int = 3,
    activation: str = "relu",
    dropout: float = 0.1,
) -> UNet:
    """Build AdaResU-Net, doi:10.1016/j.neucom.2019.01.110."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ModelError(f"expected an odd kernel_size such as 3 or 5, but got {kernel_size}")
    if activation not in ACTIVATIONS:
        raise ModelError(f"unknown activation '{activation}': {closest(activation, ACTIVATIONS)}")
    if not 0 <= dropout < 1:
        raise ModelError(f"expected a dropout of at least 0 and below 1, but got {dropout}")
    block: Block = partial(
        ResidualUnit, kernel_size=kernel_size, activation=activation, dropout=dropout
    )
    return UNet(*sizes, block=block, stem=block, width=width, upsampling=upsampling)
