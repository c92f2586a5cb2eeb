"""Training on patches and predicting by windows, of images and of volumes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import medduet
from medduet import ConfigError, RunConfig
from medduet.data.patches import patches_and_views, view
from medduet.models.base import DuetNetwork, Normalize
from medduet.runs.bundle import load_bundle
from medduet.types import IGNORED_MASK, Batch, Outputs


class Brightness(DuetNetwork):
    """Its dense output is the image itself, its class the mean; both on the sides it was given."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.normalize = Normalize(1, dims)
        self.arguments = {"name": "brightness", "dense_channels": 1, "num_classes": 1}
        self.layer, self.seen = nn.Identity(), list[tuple[int, ...]]()

    def forward(self, image: Tensor) -> Outputs:
        self.seen.append(tuple(image.shape[2:]))
        return Outputs(self._classify(image), self.normalize(image))

    def _classify(self, image: Tensor) -> Tensor:
        return self.normalize(image).flatten(1).mean(dim=1, keepdim=True)


def random_batch(*sides: int, count: int = 2) -> Batch:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (count, 1, *sides), dtype=torch.uint8)
    mask = (image[:, 0] > 128).long()
    known = torch.ones(count, dtype=torch.bool)
    return Batch(image, torch.arange(count) % 2, mask, known, torch.arange(count))


@pytest.mark.parametrize("sides", [(50, 70), (20, 33, 27)])
def test_windows_give_the_image_at_its_place(sides: tuple[int, ...]) -> None:
    network = Brightness(len(sides)).eval()
    image = random_batch(*sides).image
    whole = network(image)
    network.patch = (16,) * len(sides)
    outputs = network(image)
    assert set(network.seen[1:]) == {network.patch}
    assert torch.allclose(outputs.dense, whole.dense, atol=1e-5)
    assert torch.allclose(outputs.class_logits, network.classify(image))
    assert torch.allclose(outputs.class_logits, whole.class_logits, atol=0.02)
    floats = network(image / 255)
    assert torch.allclose(floats.dense, outputs.dense, atol=1e-5)
    network.train()
    assert torch.equal(network(image).dense, whole.dense)


def test_a_real_network_by_windows() -> None:
    network = medduet.create_model(
        "unet_var", in_channels=1, num_classes=2, dense_channels=1, width=2
    )
    image = random_batch(64, 96).image
    with torch.no_grad():
        whole, network.patch = network.eval()(image), (64, 64)
        outputs = network(image)
        # The first 32 columns are in one window alone, which sees the border of the image, too.
        first = network.__class__.forward(network, image[..., :64]).dense
    assert torch.allclose(outputs.dense[..., :8], first[..., :8], atol=1e-4)
    assert outputs.dense.shape == whole.dense.shape


@pytest.mark.parametrize("sides", [(50, 70), (20, 33, 27)])
def test_masks_stay_with_their_pixels(sides: tuple[int, ...]) -> None:
    batch, patch = random_batch(*sides), (16,) * len(sides)
    both = patches_and_views(batch, patch)
    assert torch.equal(both.mask[:2], (both.image[:2, 0] > 128).long())
    assert both.label.tolist() == [-1, -1, 0, 1]
    assert both.has_mask.tolist() == [True, True, False, False]
    assert torch.equal(both.image[2:], view(batch.image, patch))
    assert len(patches_and_views(batch, patch, classify=False).image) == 2
    assert patches_and_views(batch, sides) is batch


def test_a_third_of_the_patches_lie_around_the_mask() -> None:
    batch = random_batch(64, 64, count=300)
    mask = torch.zeros_like(batch.mask)
    mask[:, 0, 0], mask[:, 60, 60] = IGNORED_MASK, 1
    drawn = patches_and_views(batch._replace(mask=mask), (8, 8), classify=False)
    hit = (drawn.mask == 1).flatten(1).any(dim=1).float().mean()
    assert 0.25 < hit < 0.45
    none = patches_and_views(batch._replace(mask=torch.zeros_like(mask)), (8, 8), classify=False)
    assert none.image.shape == (300, 1, 8, 8)


@pytest.mark.parametrize(("name", "side"), [("phantom", 48), ("phantom3d", 24)])
def test_a_run_on_patches(
    make_config: Callable[..., RunConfig], tmp_path: Path, name: str, side: int
) -> None:
    dims = 2 if name == "phantom" else 3
    data, patch = {"name": name, "size": side, "count": 20}, 16
    train = {"epochs": 2, "patch": patch, "augment": "light"}
    objective = {"tasks": ["classify", "segment", "reconstruct"]}
    config = make_config(tmp_path / "run", data=data, train=train, objective=objective)
    record = medduet.train(config)
    bundle = load_bundle(record.path)
    assert bundle.network.patch == (patch,) * dims
    assert bundle.config.preprocessing.size == [side] * dims
    again = medduet.evaluate(record.path, out=tmp_path / "again")["test"]
    assert again["dice"] == record.metrics["test"]["dice"]
    with pytest.raises(ConfigError, match="predicts by windows, which ONNX can't"):
        medduet.export_bundle(record.path, tmp_path / "onnx")
    second = config.model_copy(
        update={"out": tmp_path / "2", "train": config.train.model_copy(update={"seed": 7})}
    )
    other = medduet.train(second)
    joined = medduet.ensemble([record.path, other.path], tmp_path / "ensemble")
    assert joined.scores["test"][0]["mse"] == again["mse"], "not by windows"
    if dims == 2:
        assert medduet.Predictor(record.path)(np.zeros((90, 120), np.uint8)).mask.shape == (90, 120)
        with pytest.raises(ConfigError, match="of which there are no heat maps"):
            medduet.Predictor(record.path, explain=True)


def test_patches_need_masks(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    data, objective = {"name": "phantom", "size": 32, "count": 20}, {"tasks": ["classify"]}
    for train, message in (
        ({"patch": 16}, "learnt from whole images: give --size instead"),
        ({"patch": [16, 16, 16]}, "expected a patch of one number or 2 for 2D, given 16 16 16"),
    ):
        tasks = objective if "whole" in message else {"tasks": ["segment"]}
        with pytest.raises(ConfigError, match=message):
            medduet.train(make_config(tmp_path / "x", data=data, train=train, objective=tasks))
