"""Networks for volumes keep what networks for images promise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medduet import ModelError, create_model, load
from medduet.models.ensemble import Ensemble
from medduet.models.weights import save_network

NETWORKS: dict[str, dict[str, Any]] = {
    "vovunet_var": {"width": 4},
    "unet_var": {"width": 4, "upsampling": "bilinear"},
    "unet": {"width": 4},
    "adares_unet": {"width": 4},
    "sharp_unet": {"width": 4},
    "dense_inception_unet": {"width": 4},
    "timm:resnet18": {},
    "timm:densenet121": {},
    "smp:unet/resnet18": {},
}
HEADS = {"in_channels": 1, "num_classes": 3, "dense_channels": 2}


@pytest.mark.parametrize("name", NETWORKS)
def test_three_different_sides(name: str) -> None:
    torch.manual_seed(0)
    network = create_model(name, **HEADS, dims=3, **NETWORKS[name]).eval()
    volume = torch.randint(0, 256, (2, 1, 17, 22, 19), dtype=torch.uint8)
    with torch.inference_mode():
        scores, dense = network(volume)
        torch.testing.assert_close(network.classify(volume), scores)
        network.normalize.memory_format = torch.channels_last_3d
        torch.testing.assert_close(network(volume).dense, dense, atol=1e-4, rtol=1e-3)
    assert network.dims == network.arguments["dims"] == 3
    assert (scores.shape, dense.shape) == ((2, 3), (2, 2, 17, 22, 19))
    assert (scores[0] - scores[1]).abs().max() > 0
    assert 0.01 < dense.std() < 10


@pytest.mark.parametrize(
    "name",
    [
        "mobilevitv2_unet_var",
        "timm:vit_tiny_patch16_224",
        "timm:seresnet18",
        "smp:segformer/mit_b0",
    ],
)
def test_networks_without_a_counterpart_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ModelError, match=r"can't be made for volumes.*unet_var") as caught:
        create_model(name, **HEADS, dims=3)
    assert "\n" not in str(caught.value)


def test_what_create_model_refuses() -> None:
    with pytest.raises(ModelError, match="weights are for images"):
        create_model("timm:resnet18", **HEADS, dims=3, pretrained=True)
    with pytest.raises(ModelError, match="given 4"):
        create_model("unet", **HEADS, dims=4)
    volumes = create_model("unet", **HEADS, dims=3, width=2)
    with pytest.raises(ModelError, match=r"expected volumes of shape \(N, 1, D, H, W\)"):
        volumes(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ModelError, match=r"volumes of at least 16 x 16 x 16 .*16 x 15 x 16"):
        volumes(torch.zeros(1, 1, 16, 15, 16))
    with pytest.raises(ModelError, match=r"expected images of shape \(N, 1, H, W\)"):
        create_model("unet", **HEADS, width=2)(torch.zeros(1, 1, 16, 16, 16))


def test_kernels_keep_the_variance_of_their_sums() -> None:
    torch.manual_seed(0)
    flat, deep = (create_model("dense_inception_unet", **HEADS, dims=d, width=48) for d in (2, 3))
    pairs = list(zip(flat.modules(), deep.modules(), strict=True))
    shapes = set()
    for a, b in pairs:
        if isinstance(a, nn.Conv2d) and a.weight.numel() > 200:
            assert isinstance(b, nn.Conv3d)
            shapes.add((a.kernel_size, b.kernel_size))
            sums = [conv.weight[0].numel() * conv.weight.var().item() for conv in (a, b)]
            assert sums[0] == pytest.approx(sums[1], rel=0.5)
    assert {((3, 3), (3, 3, 3)), ((1, 3), (1, 1, 3)), ((3, 1), (3, 3, 1))} <= shapes


@pytest.mark.parametrize("upsampling", ["transpose", "bilinear"])
@pytest.mark.parametrize("name", list(NETWORKS)[:6])
def test_thick_slices_are_left_alone_at_first(name: str, upsampling: str) -> None:
    options = {"width": 4, "upsampling": upsampling}
    network = create_model(name, **HEADS, dims=3, flat_levels=(2, 0, 1), **options).eval()
    with torch.no_grad():
        maps = network._encode(torch.rand(1, 1, 16, 64, 64))  # type: ignore[operator]
        assert [tuple(each.shape[2:]) for each in maps] == [
            *((16, 64, 64), (16, 32, 64), (16, 16, 32), (8, 8, 16), (4, 4, 8))
        ]
        assert network(torch.rand(2, 1, 17, 30, 19)).dense.shape == (2, 2, 17, 30, 19)
        plain = create_model(name, **HEADS, dims=3, flat_levels=(4, 0, 0), **options).eval()
        volume = torch.rand(1, 1, 16, 32, 32)
        changed = volume.clone()
        changed[:, :, 9:] = 0
        slices = [stage(plain.normalize(x)) for x in (volume, changed) for stage in [plain.stem]]  # type: ignore[operator]
    torch.testing.assert_close(slices[0][:, :, :9], slices[1][:, :, :9])
    assert network.arguments["flat_levels"] == [2, 0, 1]


@pytest.mark.parametrize("sides", [(1, 5, 5), (2, 5, 5), (3, 5, 5), (8, 1, 8)])
def test_gradients_in_bfloat16_are_those_of_float32(sides: tuple[int, ...]) -> None:
    """In oneDNN's own gradient of two slices is memory of something else."""
    torch.manual_seed(0)
    network = create_model("unet", **HEADS, dims=3, width=4)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    conv = next(m for m in convs if m.out_channels == 64)
    x = torch.randn(4, conv.in_channels, *sides)
    gradients = []
    for enabled in (False, True):
        full = [torch.full((2**k,), torch.nan) for k in range(8, 22)]
        del full
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = conv(x).float().square().sum()
        gradients += torch.autograd.grad(loss, conv.weight)
    error = (gradients[1] - gradients[0]).abs().max() / gradients[0].abs().max()
    assert error < 0.05


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    sizes = {"dims": 3, "width": 2, "flat_levels": (1, 0, 0)}
    network = create_model("sharp_unet", **HEADS, **sizes, ordinal=True).eval()
    network.normalize.set([0.3], [0.2])
    save_network(tmp_path, network)
    again, volume = load(tmp_path), torch.rand(1, 1, 16, 16, 20)
    assert again.arguments == network.arguments
    for a, b in zip(network(volume), again(volume), strict=True):
        assert torch.equal(a, b)


def test_ensembles_turn_volumes_within_their_slices() -> None:
    members = [create_model("unet", **HEADS, dims=3, width=2).eval() for _ in range(2)]
    ensemble = Ensemble(members, multi_label=False, mask_channels=1, test_time="turns")
    volume = torch.rand(1, 1, 16, 24, 24)
    scores, dense = ensemble(volume)
    turned = ensemble(volume.rot90(1, (3, 4)))
    torch.testing.assert_close(turned.class_logits, scores)
    torch.testing.assert_close(turned.dense, dense.rot90(1, (3, 4)), atol=1e-4, rtol=1e-4)
    other = create_model("unet", **HEADS, width=2)
    with pytest.raises(ModelError, match="members with the same"):
        Ensemble([members[0], other], multi_label=False, mask_channels=1)
