from __future__ import annotations

import torch
from timm.models.vovnet import OsaBlock
from torch import nn

from medduet.models.blocks import double_conv, osa_unit


def test_osa_unit_is_timms_block_then_norm_and_gelu() -> None:
    torch.manual_seed(0)
    unit = osa_unit(3, 5)
    block, norm, activation = unit
    assert isinstance(block, OsaBlock)
    assert (type(norm), norm.num_features) == (nn.BatchNorm2d, 5)
    assert (type(activation), activation.approximate) == (nn.GELU, "none")
    assert not block.residual
    assert isinstance(block.attn, nn.Identity | None.__class__)
    # in + 2 * out channels are fused, once
    assert block.conv_concat.conv.weight.shape == (5, 3 + 2 * 5, 1, 1)
    assert [tuple(layer.conv.weight.shape) for layer in block.conv_mid] == [
        (5, 3, 3, 3),
        (5, 5, 3, 3),
    ]
    convolutions = [m for m in unit.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 3
    assert all(m.bias is None for m in convolutions)
    image = torch.rand(2, 3, 9, 8)
    expected = nn.functional.gelu(norm.eval()(block.eval()(image)))
    assert torch.equal(unit.eval()(image), expected)


def test_double_conv_has_no_bias_and_keeps_the_size() -> None:
    block = double_conv(3, 5)
    assert sum(p.numel() for p in block.parameters()) == 9 * 3 * 5 + 9 * 5 * 5 + 2 * 2 * 5
    assert block(torch.rand(2, 3, 7, 9)).shape == (2, 5, 7, 9)
