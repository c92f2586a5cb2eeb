"""An ensemble says the mean of what its members say of each view."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medduet import ModelError, create_model, load
from medduet.models.ensemble import Ensemble, build_network
from medduet.models.weights import save_network
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json, sha256

VIEWS = {"none": [0], "flip": [0, 1], "flips": [0, 1, 4, 5], "turns": list(range(8))}


def members(count: int = 2, classes: int = 3, dense: int = 0, channels: int = 1) -> list[Any]:
    """Networks that say different things of different images, in evaluation mode."""
    found = []
    for seed, name in zip(range(count), ("vovunet_var", "unet_var", "unet_var"), strict=False):
        torch.manual_seed(seed)
        sizes = {"in_channels": channels, "num_classes": classes, "dense_channels": dense}
        network = create_model(name, width=2, **sizes)
        network(torch.rand(4, channels, 16, 16))  # moves the running means
        for parameter in network.parameters():
            parameter.data *= 1.5
        found.append(network.eval())
    return found


def turned(x: Tensor, view: int) -> Tensor:
    """One of the eight ways to lay a square, in an order of its own."""
    x = torch.rot90(x, view // 2, (2, 3))
    return x.flip(3) if view % 2 else x


def back(x: Tensor, view: int) -> Tensor:
    x = x.flip(3) if view % 2 else x
    return torch.rot90(x, -(view // 2), (2, 3))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("test_time", VIEWS)
@pytest.mark.parametrize(("mask", "image"), [(3, 0), (1, 2)])
@torch.inference_mode()
def test_probabilities_are_the_mean(
    multi_label: bool, test_time: str, mask: int, image: int
) -> None:
    parts = members(dense=mask + image, channels=2)
    network = Ensemble(parts, multi_label=multi_label, mask_channels=mask, test_time=test_time)
    network.eval()
    given = torch.randint(0, 256, (3, 2, 16, 21), dtype=torch.uint8)
    found = network(given)
    views = VIEWS[test_time]
    assert len(views) == len(network.views)
    said = [(part(turned(given, view)), view) for part in parts for view in views]

    def probability(x: Tensor, sigmoid: bool) -> Tensor:
        return x.double().sigmoid() if sigmoid else x.double().softmax(dim=1)

    scores = [probability(outputs.class_logits, multi_label) for outputs, _ in said]
    assert (scores[0] - scores[-1]).abs().max() > 1e-3, "members that say the same"
    torch.testing.assert_close(
        probability(found.class_logits, multi_label), sum(scores) / len(said)
    )
    torch.testing.assert_close(network.classify(given), found.class_logits)
    dense = [back(outputs.dense, view) for outputs, view in said]
    assert found.dense.shape == (3, mask + image, 16, 21)
    if mask:
        each = [probability(x[:, :mask], mask == 1) for x in dense]
        mean = probability(found.dense[:, :mask], mask == 1)
        torch.testing.assert_close(mean, sum(each) / len(each))
    if image:
        expected = sum(x[:, mask:] for x in dense) / len(dense)
        torch.testing.assert_close(found.dense[:, mask:], expected)


def test_certain_members_don_t_make_infinite_scores() -> None:
    parts = members(2, dense=1)
    for part, sign in zip(parts, (1, -1), strict=True):
        torch.nn.init.constant_(part.class_head.bias, 0)
        part.class_head.bias.data[0] = sign * 1e4
        torch.nn.init.constant_(part.dense_head.bias, sign * 1e4)
    network = Ensemble(parts, multi_label=True, mask_channels=1).eval()
    class_logits, dense = network(torch.rand(1, 1, 16, 16))
    assert class_logits[0, 0].sigmoid().item() == pytest.approx(0.5)
    assert dense.isfinite().all()


def test_each_member_normalises_in_its_own_way() -> None:
    parts = members(2, dense=1)
    parts[1].normalize.set([0.2], [0.1])
    network = Ensemble(parts, multi_label=False, mask_channels=0).eval()
    image = torch.rand(2, 1, 16, 16)
    rebuilt = network.normalize.invert(network(image).dense)
    each = [part.normalize.invert(part(image).dense) for part in parts]
    torch.testing.assert_close(rebuilt, sum(each) / 2)


def test_heads_may_be_missing() -> None:
    masks = Ensemble(members(2, 0, 1), multi_label=False, mask_channels=1, test_time="flip").eval()
    assert masks(torch.rand(1, 1, 16, 16)).class_logits is None
    with pytest.raises(ModelError, match="without a class head"):
        masks.classify(torch.rand(1, 1, 16, 16))
    classes = Ensemble(members(2), multi_label=False, mask_channels=0).eval()
    assert classes(torch.rand(1, 1, 16, 16)).dense is None


def test_members_that_don_t_fit() -> None:
    settings: dict[str, Any] = {"multi_label": False, "mask_channels": 0}
    for other in (members(1, classes=2), members(1, dense=1), members(1, channels=2)):
        with pytest.raises(ModelError, match="same in_channels, num_classes, dense_channels"):
            Ensemble([*members(1), *other], **settings)
    with pytest.raises(ModelError, match="1 to 64 members, given 0"):
        Ensemble([], **settings)
    with pytest.raises(ModelError, match="can't be a member"):
        Ensemble([Ensemble(members(1), **settings)], **settings)
    with pytest.raises(ModelError, match="mask_channels=1"):
        Ensemble(members(1), multi_label=False, mask_channels=1)


def test_a_stranger_s_file(tmp_path: Path) -> None:
    network = Ensemble(members(2), multi_label=False, mask_channels=0).eval()
    save_network(tmp_path, network)
    path = tmp_path / "config.json"
    config = read_json(path)
    good = config["network"]

    def refused(changed: dict[str, Any], match: str) -> None:
        write_json(path, config | {"network": good | changed})
        with pytest.raises(ModelError, match=match) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)

    one = good["ensemble"][0]
    refused({"ensemble": [one] * 65}, "1 to 64 members")
    refused({"ensemble": {"0": one}}, "settings of the ensemble")
    refused({"ensemble": [good]}, "unknown network 'ensemble of 1")
    refused({"ensemble": ["vovunet_var"]}, "settings of the ensemble")
    refused({"ensemble": [*good["ensemble"], one]}, "don't fit the network")
    refused({"ensemble": [one | {"width": 2**20}] * 2}, "don't fit the network")
    refused({"ensemble": [one | {"pretrained": True}] * 2}, "can't ask for other weights")
    refused({"test_time": "roll"}, "settings of the ensemble")
    refused({"mask_channels": 10**9}, "mask_channels=1000000000")
    refused({"multi_label": "no"}, "settings of the ensemble")
    with pytest.raises(ModelError, match="test_time"):
        build_network({name: value for name, value in good.items() if name != "test_time"})
    # What it calls itself is not believed.
    write_json(path, config | {"network": good | {"name": "<b>", "num_classes": 7}})
    assert load(tmp_path).arguments == good
    # A file of weights that says other shapes than its config.
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["extra"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors")
    config["weights_sha256"] = sha256(tmp_path / "model.safetensors")
    refused({}, "expected no extra, but the file has \\[2\\]")
