"""Evaluating: the order of the split, its metrics, and the score of the selection."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from medduet import DenseLayout, ObjectiveConfig, create_model
from medduet.data.imageset import ImageSet
from medduet.data.sources import open_images
from medduet.losses.objective import Objective
from medduet.metrics.dense import reconstruction_errors
from medduet.models.base import DuetNetwork
from medduet.runs.predictions import Predictions
from medduet.training import validation
from medduet.training.validation import (
    _in_pieces,
    predict_split,
    quick_metrics,
    selection_score,
    summarize,
)
from medduet.types import Batch

LAYOUT = DenseLayout(2, 1)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return open_images("phantom", size=16, count=40)


@pytest.fixture(scope="module")
def network() -> DuetNetwork:
    torch.manual_seed(0)
    sizes = {"in_channels": 1, "num_classes": 4, "dense_channels": LAYOUT.channels}
    return create_model("unet", width=2, **sizes)


def test_a_batch_that_memory_does_not_hold_is_halved(images: ImageSet) -> None:
    asked: list[int] = []

    def predict(batch: Batch) -> dict[str, Tensor]:
        asked.append(len(batch.indices))
        if len(batch.indices) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert batch.mask is not None
        return {"place": batch.indices, "pixels": batch.mask.sum(dim=(1, 2))}

    most, batch = 3, images.train.batch(np.arange(2, 13))
    parts = list(_in_pieces(predict, batch))
    assert asked == [11, 5, 2, 3, 6, 3, 3]
    assert torch.cat([part["place"] for part in parts]).tolist() == list(range(2, 13))
    expected = np.asarray(images.train.masks)[2:13].sum(axis=(1, 2), dtype=int)
    assert torch.cat([part["pixels"] for part in parts]).tolist() == expected.tolist()
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        list(_in_pieces(predict, batch))


@pytest.mark.parametrize("size", [1, 3, 64])
def test_predictions_come_in_the_order_of_the_split(
    images: ImageSet, network: DuetNetwork, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "evaluation_batch_size", lambda kind, *sides: size)
    whole = images.test.batch(np.arange(8))
    network.normalize.set((0.2,), (0.1,))
    with torch.no_grad():
        expected = network.eval()(whole.image)
    network.train()
    found = predict_split(
        Fabric(accelerator="cpu", devices=1),
        network,
        images.test,
        LAYOUT,
        data=images,
        objective=Objective(ObjectiveConfig(tasks=("classify", "segment")), LAYOUT),
    )
    assert network.training, "the mode was not given back"
    probability = expected.class_logits.softmax(dim=1)
    np.testing.assert_allclose(found.probability, probability, atol=1e-6)
    assert found.label.tolist() == images.test.labels.tolist()
    pixels = (expected.dense[:, :1] > 0).sum(dim=(1, 2, 3))
    assert found.predicted_pixels[:, 0].tolist() == pixels.tolist()
    truth = (images.test.masks > 0).sum(axis=(1, 2))
    assert found.truth_pixels[:, 0].tolist() == truth.tolist()
    loss = nn.functional.cross_entropy(expected.class_logits, whole.label, reduction="none")
    assert found.losses["classify"] == pytest.approx(loss.mean().item(), abs=1e-5)
    # Whatever the network normalises with, errors are on the same scale.
    rebuilt = expected.dense[:, 1:] * 0.1 + 0.2
    errors = reconstruction_errors(2 * rebuilt - 1, whole.image / 127.5 - 1)
    for name in ("mse", "psnr", "ssim"):
        np.testing.assert_allclose(getattr(found, name), errors[name].numpy(), rtol=1e-4)
    summary = summarize(found)
    assert list(summary["per_class"]) == list(images.class_names)
    assert list(summary["per_mask"]) == ["lesion"]
    assert (summary["n"], summary["dice_n"]) == (8, 8)
    json.dumps(summary, allow_nan=False)


def test_losses_are_means_of_what_is_known(images: ImageSet, network: DuetNetwork) -> None:
    label, weights = images.test.labels.copy(), torch.tensor([1.0, 2.0, 3.0, 4.0])
    objective = Objective(ObjectiveConfig(tasks=("classify", "segment")), LAYOUT, weights)
    label[:3] = -1
    split = replace(images.test, labels=label, has_mask=np.zeros(8, bool))
    fabric = Fabric(accelerator="cpu", devices=1)
    found = predict_split(fabric, network, split, LAYOUT, data=images, objective=objective)
    logits, known = torch.log(torch.from_numpy(found.probability)), torch.from_numpy(label)
    mean = nn.functional.cross_entropy(logits[3:], known[3:], weights.double()).item()
    assert quick_metrics(found)["classify"] == pytest.approx(mean, rel=1e-4)
    assert np.isnan(quick_metrics(found)["segment"])


def test_quick_metrics_leave_out_what_is_not_known() -> None:
    predictions = Predictions(
        np.arange(3),
        label=np.array([0, 1, -1]),
        probability=np.array([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5]]),
        has_mask=np.array([True, False, True]),
        dice=np.array([[0.5], [np.nan], [1.0]]),
    )
    metrics = quick_metrics(predictions)
    assert metrics["accuracy"] == 0.5
    assert metrics["dice"] == 0.75
    unknown = replace(predictions, label=np.full(3, -1), has_mask=None, dice=None)
    assert not {"accuracy", "auc", "dice"} & set(quick_metrics(unknown))


def test_selection_score() -> None:
    nan = float("nan")
    metrics = {"auc": 0.8, "dice": 0.4, "mse": 0.1, "accuracy": 0.5, "balanced_accuracy": 0.3}
    assert selection_score(metrics, "auto") == pytest.approx(0.6)
    assert selection_score(metrics | {"auc": nan}, "auto") == 0.4
    assert selection_score({"auc": 0.8, "mse": 0.1}, "auto") == 0.8
    assert selection_score({"mse": 0.1}, "auto") == -0.1
    assert selection_score({"auc": nan, "accuracy": 0.7}, "auto") == 0.7
    for name in ("auc", "dice", "accuracy", "balanced_accuracy"):
        assert selection_score(metrics, name) == metrics[name]
    assert selection_score(metrics, "mse") == -0.1
