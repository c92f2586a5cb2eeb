"""What every network promises, whoever wrote it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from medduet import MODELS, DuetNetwork, ModelError, create_model, load
from medduet.models.weights import save_network

OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"width": 4} for name in MODELS},
    "timm:resnet18": {},
    "timm:densenet121": {},
    "timm:mobilenetv3_small_050": {},
    "timm:convnextv2_atto": {},
    "timm:eva02_tiny_patch14_224": {},
    "timm:swin_tiny_patch4_window7_224": {},
    "smp:unet/resnet18": {},
    "smp:fpn/tu-convnextv2_atto": {},
    "smp:deeplabv3plus/mobilenet_v2": {},
    "smp:segformer/mit_b0": {},
}
NAMES = list(OPTIONS)
HEADS = {"both": (3, 2), "class": (3, 0), "dense": (0, 2)}


def build(
    name: str, channels: int = 1, classes: int = 3, dense: int = 2, **more: Any
) -> DuetNetwork:
    return create_model(
        name,
        in_channels=channels,
        num_classes=classes,
        dense_channels=dense,
        **OPTIONS[name],
        **more,
    )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


FAMILIES = (
    *("dla34", "dpn68", "efficientnet_lite0", "fbnetv3_b", "hardcorenas_a", "inception_next_tiny"),
    *("mixnet_s", "mnasnet_100", "mobilenetv2_100", "mobilenetv4_conv_small", "rexnet_100"),
    *("nfnet_l0", "vgg11_bn", "vit_tiny_patch16_224"),
)


@pytest.mark.parametrize("name", [*NAMES, *(f"timm:{name}" for name in FAMILIES)])
def test_classes_start_about_as_likely(name: str) -> None:
    network = create_model(name, in_channels=1, num_classes=3, **OPTIONS.get(name, {}))
    with torch.no_grad():
        scores = network(torch.rand(9, 1, 64, 64)).class_logits
    loss = torch.nn.functional.cross_entropy(scores, torch.arange(9) % 3)
    assert loss.item() == pytest.approx(math.log(3), abs=0.3)


@pytest.mark.parametrize(("channels", "heads"), [(1, "both"), (3, "class"), (1, "dense")])
@pytest.mark.parametrize("name", NAMES)
def test_shapes(name: str, channels: int, heads: str) -> None:
    classes, dense = HEADS[heads]
    network = build(name, channels, classes, dense).eval()
    for height, width in ((28, 28), (33, 50), (224, 224)):
        image = torch.randint(0, 256, (1, channels, height, width), dtype=torch.uint8)
        with torch.inference_mode():
            outputs = network(image)
        assert (outputs.class_logits is None) == (not classes)
        assert (outputs.dense is None) == (not dense)
        for head, shape in zip(outputs, [(1, classes), (1, dense, height, width)], strict=True):
            if head is not None:
                assert head.shape == shape
                assert head.dtype == torch.float32
                assert torch.isfinite(head).all()


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_trainable_parameter(name: str, heads: str) -> None:
    network = build(name, 1, *HEADS[heads])
    with torch.no_grad():  # timm starts the last norm of a residual branch at zero
        for parameter in network.parameters():
            if not parameter.any():
                parameter.uniform_(-0.5, 0.5)
    outputs = network(torch.rand(4, 1, 64, 64))
    torch.stack([head.square().sum() for head in outputs if head is not None]).sum().backward()
    trained = [(key, p) for key, p in network.named_parameters() if p.requires_grad]
    without = [key for key, p in trained if p.grad is None]
    assert not without
    # A bias in front of a batch normalisation, or a dead ReLU, may have a zero gradient.
    zero = [key for key, p in trained if not p.grad.abs().sum()]
    assert len(zero) < 0.1 * len(trained), zero
    idle = [key for key, p in network.named_parameters() if not p.requires_grad]
    assert len(idle) <= (0 if heads != "dense" else 6), idle


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    network = build(name, 3, 4, 3).eval()
    image = torch.randint(0, 256, (2, 3, 40, 64), dtype=torch.uint8)
    save_network(tmp_path / "network", network)
    files = {file.name for file in (tmp_path / "network").iterdir()}
    assert files == {"config.json", "model.safetensors"}
    again = load(tmp_path / "network")
    assert not again.training
    assert again.arguments == network.arguments
    with torch.inference_mode():
        for found, expected in zip(again(image), network(image), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_classifying_alone_gives_the_same_scores(name: str) -> None:
    network = build(name).eval()
    image = torch.randint(0, 256, (2, 1, 40, 64), dtype=torch.uint8)
    run: list[str] = []
    for module in network.decoder_modules:
        module.register_forward_hook(lambda *_: run.append("decoder"))
    with torch.inference_mode():
        expected = network(image).class_logits
        assert run, "the hook sees no decoder"
        run.clear()
        torch.testing.assert_close(network.classify(image), expected)
        assert not run
        alone = build(name, dense=0).eval()
        assert torch.equal(alone.classify(image), alone(image).class_logits)


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_can_be_frozen(name: str) -> None:
    network = build(name)
    shared = {id(p) for p in network.encoder_parameters()}
    assert shared
    heads = [p for p in network.parameters() if id(p) not in shared]
    assert len(heads) >= 4
    network.freeze_encoder()
    assert network.train().training
    before = {key: value.clone() for key, value in network.named_buffers()}
    outputs = network(torch.rand(4, 1, 64, 64))
    (outputs.class_logits.square().sum() + outputs.dense.square().sum()).backward()
    assert all(p.grad is None for p in network.encoder_parameters())
    assert all(p.grad is not None for p in heads)
    # Not even the running means of the encoder move; those of a decoder do.
    encoder = {id(buffer) for module in network.encoder_modules for buffer in module.buffers()}
    for key, buffer in network.named_buffers():
        if key.endswith("running_mean"):
            assert torch.equal(buffer, before[key]) == (id(buffer) in encoder), key


@pytest.mark.filterwarnings("ignore")  # timm's own, on the way to the error
@pytest.mark.parametrize(
    ("name", "dense", "words"),
    [
        ("crossvit_9_240", 1, "powers of 2.*--tasks classify"),
        ("mobilenetv5_300m_enc", 1, "classification"),
        ("csatv2", 0, "csatv2 can't be built"),  # for RGB only
    ],
)
def test_networks_of_timm_that_cannot_be_used_so(name: str, dense: int, words: str) -> None:
    with torch.device("meta"), pytest.raises(ModelError, match=words):
        create_model(f"timm:{name}", in_channels=1, num_classes=2, dense_channels=dense)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "eva02_tiny_patch14_224"])
def test_without_a_dense_head_it_is_timm_s_own(name: str) -> None:
    import timm

    network = build(f"timm:{name}", 3, 5, 0).eval()
    own = timm.create_model(name, num_classes=5).eval()
    own.load_state_dict(
        {k: v for k, v in network.encoder.state_dict().items() if k in own.state_dict()}
    )
    image = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        expected = own((image - 0.5) / 0.5)
        torch.testing.assert_close(network(image).class_logits, expected)
        both = build(f"timm:{name}", 3, 5, 1).eval()
        both.encoder.load_state_dict(network.encoder.state_dict())
        torch.testing.assert_close(both(image).class_logits, expected)
