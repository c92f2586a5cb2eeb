"""Each loss equals numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medduet.losses.tasks import (
    PerImage,
    classification_loss,
    reconstruction_loss,
    segmentation_loss,
)
from medduet.types import DenseLayout

EPSILON = 1e-5  # MONAI's, in numerator and denominator


def mean(term: PerImage) -> float:
    return float(term.total() / term.weight.sum())


def random_logits(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_equals_torchs(weighted: bool) -> None:
    logits, label = random_logits(9, 4), torch.arange(9) % 4
    weight = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64) if weighted else None
    expected = nn.CrossEntropyLoss(weight)(logits, label)
    assert mean(classification_loss(logits, label, weight)) == pytest.approx(expected.item())


def test_unknown_labels_weigh_zero() -> None:
    logits, label = random_logits(5, 3), torch.tensor([0, -1, 2, -1, 1])
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    term = classification_loss(logits, label, weight)
    assert term.weight.tolist() == [1, 0, 3, 0, 2]
    expected = nn.CrossEntropyLoss(weight, ignore_index=-1)(logits, label)
    assert mean(term) == pytest.approx(expected.item())


def test_multi_label_by_hand_with_unknowns() -> None:
    probability = np.array([[0.9, 0.2], [0.4, 0.5], [0.3, 0.3]])
    label = torch.tensor([[1, 0], [-1, 1], [-1, -1]])
    logits = torch.from_numpy(np.log(probability / (1 - probability)))
    term = classification_loss(logits, label, None)
    first = (-np.log(0.9) - np.log(0.8)) / 2
    np.testing.assert_allclose(term.loss, [first, -np.log(0.5), 0], rtol=1e-12)
    assert term.weight.tolist() == [1, 1, 0]


@pytest.mark.parametrize("weighted", [False, True])
def test_multi_label_equals_torchs(weighted: bool) -> None:
    logits = random_logits(6, 5)
    label = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (6, 5)))
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0], dtype=torch.float64) if weighted else None
    expected = nn.BCEWithLogitsLoss(pos_weight=weight)(logits, label.double())
    assert mean(classification_loss(logits, label, weight)) == pytest.approx(expected.item())


def test_reconstruction_equals_torchs() -> None:
    image, target = random_logits(3, 2, 5, 4), random_logits(3, 2, 5, 4).flip(0)
    term = reconstruction_loss(image, target)
    by_hand = ((image - target) ** 2).numpy().reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(term.loss, by_hand, rtol=1e-12)
    assert mean(term) == pytest.approx(nn.MSELoss()(image, target).item())


def test_binary_segmentation_by_hand() -> None:
    layout = DenseLayout(mask_classes=2, image_channels=1)
    dense = random_logits(3, 2, 4, 5)
    mask = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (3, 4, 5)))
    mask[1] = 0
    term = segmentation_loss(dense, mask, torch.tensor([True, True, True]), layout)
    p, t = 1 / (1 + np.exp(-dense[:, 0].numpy())), mask.numpy()
    entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(axis=(1, 2))
    shared, both = (p * t).sum(axis=(1, 2)), p.sum(axis=(1, 2)) + t.sum(axis=(1, 2))
    dice = 1 - (2 * shared + EPSILON) / (both + EPSILON)
    np.testing.assert_allclose(term.loss, dice + entropy, rtol=1e-9)


def test_multi_class_segmentation_by_hand() -> None:
    layout = DenseLayout(mask_classes=3, image_channels=2)
    dense = random_logits(2, 5, 6, 4)
    mask = torch.from_numpy(np.random.default_rng(1).integers(0, 3, (2, 6, 4)))
    mask[0][mask[0] == 2] = 1  # a class that the first image lacks
    term = segmentation_loss(dense, mask, torch.tensor([True, True]), layout)
    e = np.exp(dense[:, :3].numpy())
    p = e / e.sum(axis=1, keepdims=True)
    t = np.stack([mask.numpy() == k for k in range(3)], axis=1)
    entropy = -np.log((p * t).sum(axis=1)).mean(axis=(1, 2))
    shared, both = (p * t).sum(axis=(2, 3)), p.sum(axis=(2, 3)) + t.sum(axis=(2, 3))
    dice = 1 - (2 * shared + EPSILON) / (both + EPSILON)
    np.testing.assert_allclose(term.loss, dice[:, 1:].mean(axis=1) + entropy, rtol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_perfect_masks_cost_nothing_and_inverted_ones_much(classes: int) -> None:
    layout = DenseLayout(mask_classes=classes, image_channels=0)
    mask = torch.arange(32).reshape(2, 4, 4) % classes
    hot = nn.functional.one_hot(mask, classes).movedim(-1, 1).double()
    right = (hot if classes > 2 else hot[:, 1:]) * 60 - 30
    known = torch.ones(2, dtype=torch.bool)
    assert segmentation_loss(right, mask, known, layout).loss.max() < 1e-6
    assert segmentation_loss(-right, mask, known, layout).loss.min() > 10
