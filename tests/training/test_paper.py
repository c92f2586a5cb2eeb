"""The recipe `paper` is the loop of the paper, written here as its authors would in plain torch."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, mse_loss

import medduet
from medduet import DataConfig, ModelConfig, load_recipe
from medduet.data.batches import train_batches
from medduet.training import loop
from medduet.utils.parsing import read_json

EPOCHS, BATCH = 4, 16


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """As torchvision's ``ToTensor`` and ``Normalize(mean=[.5], std=[.5])``."""
    return (torch.from_numpy(images)[:, None].float() / 255 - 0.5) / 0.5


def plain_loop(
    data: medduet.ImageSet,
) -> tuple[list[float], list[float], list[dict[str, torch.Tensor]]]:
    """Return the mean loss, the accuracy on test and the weights of each epoch.

    Source: Li, Li, Ting: A Study of Multi-Task Learning Using a VoVNet-OSA Block Enhanced U-Net:
    cross-entropy plus squared error of the normalised image, Adam 1e-4, cosine over 100 epochs.
    """
    torch.manual_seed(0)
    network = medduet.create_model(
        "vovunet_var", in_channels=1, num_classes=4, dense_channels=1, width=2
    )
    network.normalize = torch.nn.Identity()  # the images are normalised here
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    means, accuracies, weights = [], [], []
    for epoch in range(1, EPOCHS + 1):
        network.train()
        losses = []
        for rows in train_batches(len(data.train), BATCH, seed=0, epoch=epoch):
            image = to_tensor(data.train.images[rows])
            label = torch.from_numpy(data.train.labels[rows])
            logits, rebuilt = network(image)
            loss = cross_entropy(logits, label) + mse_loss(rebuilt, image)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += [loss.item()] * len(rows)
        scheduler.step()
        network.eval()
        with torch.no_grad():
            said = network(to_tensor(data.test.images)).class_logits.argmax(dim=1).numpy()
        means.append(float(np.mean(losses)))
        accuracies.append(float((said == data.test.labels).mean()))
        weights.append({name: value.clone() for name, value in network.state_dict().items()})
    return means, accuracies, weights


def test_the_recipe_paper_is_the_plain_loop_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: Any
) -> None:
    recipe = load_recipe("paper")
    small = {
        # 33 images in train: two whole batches and a single image, which the authors' loop takes.
        "data": DataConfig(name="phantom", size=32, count=46),
        "model": ModelConfig(name=recipe.model.name, width=2),
        "train": recipe.train.model_copy(update={"epochs": EPOCHS, "device": "cpu"}),
        "out": tmp_path / "run",
    }
    # Fused optimizers round in another order.
    monkeypatch.setattr(loop, "new_state", partial(loop.new_state, fused=False))
    record = medduet.train(recipe.model_copy(update=small))
    with torch.random.fork_rng(devices=[]):
        means, accuracies, weights = plain_loop(medduet.open_images(small["data"]))
    rows = epochs(record.path)
    assert [row["train"]["loss"] for row in rows] == pytest.approx(means, rel=1e-6)
    assert [row["test"]["accuracy"] for row in rows] == accuracies
    assert record.metrics["selected_epoch"] == 1 + int(np.argmax(accuracies))
    assert record.metrics["test"]["accuracy"] == max(accuracies)
    honest, selection = record.metrics["validation_selected"], record.metrics["selection"]
    assert (selection, honest["selection"]) == ("test-selected", "validation-selected")
    selected = honest["selected_epoch"]
    assert honest["test"]["accuracy"] == accuracies[selected - 1]
    bundle = read_json(record.path / "bundle" / "config.json")["metrics"]
    assert (bundle["selection"], bundle["test"]) == ("validation-selected", honest["test"])
    found = load_file(record.path / "bundle" / "model.safetensors")
    for name, value in weights[selected - 1].items():
        assert torch.equal(found[name], value), name
