"""What the class head sees can be looked at, in every family of networks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from medduet import create_model
from medduet.models.base import Features


@pytest.mark.parametrize("dense_channels", [0, 1])
@pytest.mark.parametrize(
    "name", ["unet_var", "timm:resnet18", "timm:mobilenetv3_small_050", "smp:unet/resnet18"]
)
def test_the_head_makes_its_scores_of_them(name: str, dense_channels: int) -> None:
    torch.manual_seed(0)
    network = create_model(name, in_channels=1, num_classes=3, dense_channels=dense_channels).eval()
    seen, image = Features(network), torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        for scores in (network(image).class_logits, network.classify(image)):
            found = torch.from_numpy(seen.last()).float()
            assert found.ndim == 2
            torch.testing.assert_close(network.classifier(found), scores)
    seen.remove()
    assert not network.classifier._forward_pre_hooks


def test_each_thread_has_its_own() -> None:
    network = create_model("unet_var", in_channels=1, num_classes=2, width=2).eval()
    seen = Features(network)

    def look(count: int) -> set[int]:
        shapes = set()
        for _ in range(30):
            with torch.inference_mode():
                network.classify(torch.zeros(count, 1, 16, 16))
            shapes.add(len(seen.last()))
        return shapes

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(look, (1, 2, 3))) == [{1}, {2}, {3}]
