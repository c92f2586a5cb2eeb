"""The networks are those of the paper, to the last parameter."""

from typing import Any

import pytest
import torch

from medduet import MODELS, ModelError, create_model
from medduet.models.registry import model_cost, model_names

# (network, (channels, dense channels, classes), trainable parameters) of the authors' code
PARAMETERS = [
    ("vovunet_var", (3, 3, 8), 35_931_723),
    ("vovunet_var", (3, 0, 8), 22_344_648),
    ("vovunet_var", (1, 1, 11), 35_933_516),
    ("vovunet_var", (1, 1, 2), 35_924_291),
    ("unet_var", (3, 3, 8), 31_045_963),
    ("unet_var", (3, 0, 8), 18_855_368),
    ("unet_var", (1, 1, 11), 31_047_756),
    ("unet_var", (1, 1, 2), 31_038_531),
    ("mobilevitv2_unet_var", (3, 3, 8), 30_450_459),
    # Without a class head U-Net is UNet_VAR without its own: 1024 * 8 + 8 parameters less.
    ("unet", (3, 3, 0), 31_045_963 - 8200),
    ("unet", (3, 3, 8), 31_045_963),
    ("sharp_unet", (3, 3, 8), 31_045_963),
    ("sharp_unet", (1, 1, 2), 31_038_531),
    ("dense_inception_unet", (3, 3, 8), 10_592_731),
    ("adares_unet", (3, 3, 8), 8_118_411),
]
# (network, dense channels, 10^9 multiply-accumulates at 3 x 224 x 224)
GMACS = [
    ("vovunet_var", 3, 42.23),
    ("vovunet_var", 0, 15.09),
    ("unet_var", 3, 36.89),
    ("mobilevitv2_unet_var", 3, 62.89),
]


@pytest.mark.parametrize(("name", "sizes", "expected"), PARAMETERS)
def test_parameters_are_the_papers(name: str, sizes: tuple[int, int, int], expected: int) -> None:
    channels, dense, classes = sizes
    with torch.device("meta"):
        network = create_model(
            name, in_channels=channels, num_classes=classes, dense_channels=dense
        )
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize(("name", "dense", "expected"), GMACS)
def test_cost_is_the_papers(name: str, dense: int, expected: float) -> None:
    # The convolutions of unet_var need 36.885; counters that add the biases say 36.89.
    assert model_cost(name, 3, 8, dense, size=224).gmacs == pytest.approx(expected, abs=0.0055)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widht": 4}, "widht"),
        ({"upsampling": "cubic"}, "upsampling"),
        ({"width": "4"}, "width"),
        ({"in_channels": 0}, "positive sizes"),
        ({"num_classes": -1}, "positive sizes"),
        ({"width": 0}, "positive sizes"),
        ({"num_classes": 0, "dense_channels": 0}, "a head"),
    ],
)
def test_options_and_sizes_that_cannot_be_built(options: dict[str, Any], words: str) -> None:
    sizes = {"in_channels": 1, "num_classes": 2, "dense_channels": 1}
    with pytest.raises(ModelError, match=words) as caught:
        create_model("vovunet_var", **(sizes | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*MODELS, "timm:eva02_tiny_patch14_224", "smp:segformer/mit_b0"])
def test_the_cost_without_decoder_is_that_of_the_classifier(name: str) -> None:
    whole, alone = (model_cost(name, 1, 3, dense, 64) for dense in (1, 0))
    assert (whole.parameters_alone, whole.gmacs_alone) == (alone.parameters, alone.gmacs)
    assert (alone.parameters_alone, alone.gmacs_alone) == (alone.parameters, alone.gmacs)
    assert whole.parameters > alone.parameters
    assert whole.gmacs > alone.gmacs


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet18", "timm:resnet18"),
        ("timm:resnet1", "timm:resnet18"),
        ("smp:unett/resnet34", "smp:unet/ENCODER"),
        ("smp:unet/resnet35", "smp:unet/resnet34"),
    ],
)
def test_the_five_closest(name: str, near: str) -> None:
    with pytest.raises(ModelError) as caught:
        create_model(name, in_channels=1, num_classes=2)
    listed = str(caught.value).partition("the closest are ")[2].partition(";")[0]
    assert len(listed.replace(" and ", ", ").split(", ")) == 5
    assert near in listed
    assert "\n" not in str(caught.value)


def test_names_by_pattern() -> None:
    assert model_names(["vov*", "smp:unet/resnet34"]) == ["vovunet_var", "smp:unet/resnet34"]
    assert "timm:convnextv2_atto" in model_names(["timm:*convnext*"])
    assert set(MODELS) < set(model_names([]))
    for pattern in ("nothing*", "timm:nothing*", "vovnet"):
        with pytest.raises(ModelError, match=pattern.replace("*", r"\*")):
            model_names([pattern])


def test_networks_of_one_size_say_so() -> None:
    with pytest.raises(ModelError, match=r"timm:maxvit_tiny_tf_224 does not take .* 64 x 64"):
        model_cost("timm:maxvit_tiny_tf_224", 1, 3, 1, 64)
    assert model_cost("timm:maxvit_tiny_tf_224", 1, 3, 1, 224).gmacs > 5


@pytest.mark.parametrize("name", ["timm:mobilenetv2_100", "timm:tf_efficientnet_lite0"])
def test_depthwise_convolutions_learn_in_float32_on_a_cpu(name: str) -> None:
    """oneDNN takes up to a hundred times as long for their gradients in bfloat16."""
    network = create_model(name, in_channels=1, num_classes=2)
    layer = next(m for m in network.modules() if getattr(m, "groups", 1) == 96 and m.stride[0] == 2)
    image = torch.randn(2, 96, 12, 12).bfloat16()
    for training in (True, False):
        layer.train(training)
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(image)
        assert output.dtype == torch.bfloat16
        (mixed,) = torch.autograd.grad(output.sum(), layer.weight)
        (exact,) = torch.autograd.grad(layer(image.float()).sum(), layer.weight)
        assert torch.equal(mixed, exact) == training
