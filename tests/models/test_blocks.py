import torch
from torch import nn

from medduet import create_model
from medduet.models.blocks import ResidualUnit
from medduet.models.inception import InceptionRes
from medduet.models.unet import Sharpen


def test_sharpening_is_a_fixed_laplacian_that_is_not_saved() -> None:
    sharpen = Sharpen()
    assert not list(sharpen.parameters())
    assert not sharpen.state_dict()
    image = torch.rand(2, 3, 6, 7)
    padded = nn.functional.pad(image, (1, 1, 1, 1))
    around = sum(padded[..., i : i + 6, j : j + 7] for i in range(3) for j in range(3))
    torch.testing.assert_close(sharpen(image), 9 * image - around)
    network = create_model("sharp_unet", in_channels=1, num_classes=2, dense_channels=1, width=2)
    assert sum(isinstance(module, Sharpen) for module in network.modules()) == 4
    plain = create_model("unet", in_channels=1, num_classes=2, dense_channels=1, width=2)
    plain.load_state_dict(network.state_dict())
    image = torch.rand(2, 1, 32, 32)
    found, expected = network.eval()(image), plain.eval()(image)
    assert torch.equal(found.class_logits, expected.class_logits)
    assert not torch.allclose(found.dense, expected.dense)


def test_residual_unit_by_hand() -> None:
    torch.manual_seed(0)
    for inside in (3, 5):
        unit = ResidualUnit(inside, 5, kernel_size=5, activation="elu", dropout=0.5).eval()
        x = torch.rand(2, inside, 9, 8)
        first, first_norm, _, _, second, second_norm = unit.residual
        y = nn.functional.elu(first_norm(first(x)))
        y = second_norm(second(y)) + unit.shortcut(x)
        torch.testing.assert_close(unit(x), nn.functional.elu(y))
        assert isinstance(unit.shortcut, nn.Identity) == (inside == 5)
    changed = unit.train()(x)
    assert not torch.equal(changed, unit(x)), "dropout does nothing"


def test_inception_res_by_hand() -> None:
    torch.manual_seed(0)
    block = InceptionRes(6, 8).eval()
    x = torch.rand(2, 6, 9, 8)
    one, two, three = block.branches
    maps = torch.cat([one(x), two[1](two[0](x)), three[2](three[1](three[0](x)))], dim=1)
    torch.testing.assert_close(block(x), (block.fuse(maps) + block.shortcut(x)).relu())
    assert maps.shape[1] == 8
    fused = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(fused) == 6, "every convolution but the fusing ones has a norm"
