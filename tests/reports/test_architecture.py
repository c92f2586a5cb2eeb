from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medduet import ModelError, create_model
from medduet.cli import main
from medduet.models.registry import MODELS
from medduet.models.stages import anatomy
from medduet.reports.architecture import architecture_figure


def test_anatomy_of_a_u_net() -> None:
    network = create_model("vovunet_var", in_channels=3, num_classes=8, dense_channels=3, width=4)
    network.train()
    found = anatomy(network, 224, 96)
    assert network.training
    assert found.image == (3, 224, 96)
    assert found.down == [(4 * 2**i, 224 // 2**i, 96 // 2**i) for i in range(5)]
    assert found.up == found.down[3::-1]
    assert (found.classes, found.dense, found.skip) == (8, (3, 224, 96), "")
    # The 1x1 convolution reads the input (8) and both maps (16 each) at once.
    assert found.layers == [
        "3×3 conv 8 → 16, norm, ReLU",
        "3×3 conv 16 → 16, norm, ReLU",
        "1×1 conv 40 → 16, norm, ReLU, norm, GELU",
    ]


def test_anatomy_of_an_encoder_of_timm() -> None:
    network = create_model("timm:convnextv2_atto", in_channels=1, num_classes=2, dense_channels=1)
    found = anatomy(network, 64, 64)
    assert [each[1] for each in found.down] == [16, 8, 4, 2]
    assert [each[1] for each in found.up] == [4, 8, 16, 32, 64]
    assert found.layers[0].startswith("3×3 conv 480 → 256")


@pytest.mark.parametrize("heads", [(2, 0), (0, 1)])
@pytest.mark.parametrize("name", ["unet", "timm:resnet18", "smp:unet/resnet18"])
def test_both_heads_are_needed(name: str, heads: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = create_model(name, in_channels=1, num_classes=heads[0], dense_channels=heads[1])
    with pytest.raises(ModelError, match="both heads"):
        anatomy(network, 64, 64)


@pytest.mark.parametrize(
    "name", [*MODELS, "timm:resnet18", "timm:eva02_tiny_patch14_224", "smp:fpn/resnet18"]
)
def test_the_figure_has_every_stage(name: str) -> None:
    with torch.device("meta"):
        network = create_model(name, in_channels=3, num_classes=8, dense_channels=3)
    found = anatomy(network, 224, 224)
    figure = architecture_figure(name, "facts", found._asdict())
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    for each in (*found.down, *found.up):
        assert str(each.channels) in texts
        assert f"{each.height}×{each.width}" in texts
    assert set(found.layers) <= set(texts)
    assert ("sharpened" in texts) == (name == "sharp_unet")
    assert len(found.layers) <= 20, "does not fit"
    figure.draw_without_rendering()
    # Nothing is drawn on top of the arrow from the image or over the edge.
    box = figure.bbox
    for axes in figure.axes:
        for text in axes.texts:
            extent = text.get_window_extent()
            if text.get_text():
                assert extent.x0 >= box.x0 - 1, text.get_text()
                assert extent.x1 <= box.x1 + 1, text.get_text()


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "unet.png"
    assert main(["models", "unet", "--size", "64", "--figure", str(target)]) == 0
    assert "31,045,963" in capsys.readouterr().out
    assert target.read_bytes()[1:4] == b"PNG"
    for words in (["models", "--figure", "x.png"], ["models", "unet", "--figure", "x.pdf"]):
        assert main(words) == 2
        assert "--figure" in capsys.readouterr().err
