"""How the losses of the tasks become one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from medduet import Batch, DenseLayout, ObjectiveConfig, Outputs
from medduet.losses.objective import Objective, balanced_weights
from medduet.losses.tasks import classification_loss, reconstruction_loss, segmentation_loss

ALL = ("classify", "segment", "reconstruct")
LAYOUT = DenseLayout(mask_classes=2, image_channels=1)


def random_batch(count: int = 8, known_masks: int = 5) -> tuple[Outputs, Batch, Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(count, 1, 6, 6, generator=generator)
    label = torch.arange(count) % 3
    label[1] = -1
    has_mask = torch.arange(count) < known_masks
    mask = torch.randint(0, 2, (count, 6, 6), generator=generator)
    outputs = Outputs(
        torch.randn(count, 3, generator=generator).requires_grad_(),
        torch.randn(count, 2, 6, 6, generator=generator).requires_grad_(),
    )
    return outputs, Batch(image, label, mask, has_mask, torch.arange(count)), image * 2 - 1


def loss_of(objective: Objective, outputs: Outputs, batch: Batch, normalized: Tensor) -> Tensor:
    terms = objective(outputs, batch, normalized)
    weights = torch.stack([term.weight.sum() for term in terms.values()])
    return objective.losses(terms, weights).sum()


def test_terms_are_the_losses_of_the_tasks() -> None:
    outputs, batch, normalized = random_batch()
    weight = torch.tensor([1.0, 2.0, 3.0])
    terms = Objective(ObjectiveConfig(tasks=ALL), LAYOUT, weight)(outputs, batch, normalized)
    expected = {
        "classify": classification_loss(outputs.class_logits, batch.label, weight),
        "segment": segmentation_loss(outputs.dense, batch.mask, batch.has_mask, LAYOUT),
        # The mask logits come first, the image behind them.
        "reconstruct": reconstruction_loss(outputs.dense[:, 1:], normalized),
    }
    assert list(terms) == list(expected)
    for task, term in terms.items():
        assert torch.equal(term.loss, expected[task].loss)
        assert torch.equal(term.weight, expected[task].weight)


def test_factors_weigh_the_tasks() -> None:
    outputs, batch, normalized = random_batch()
    single = [
        loss_of(Objective(ObjectiveConfig(tasks=(task,)), LAYOUT), outputs, batch, normalized)
        for task in ALL
    ]
    config = ObjectiveConfig(
        tasks=ALL, classify_weight=0.5, segment_weight=3.0, reconstruct_weight=7.0
    )
    found = loss_of(Objective(config, LAYOUT), outputs, batch, normalized)
    torch.testing.assert_close(found, 0.5 * single[0] + 3 * single[1] + 7 * single[2])


def test_a_batch_without_any_truth_costs_nothing() -> None:
    outputs, batch, normalized = random_batch(known_masks=0)
    batch = batch._replace(label=torch.full((8,), -1))
    objective = Objective(ObjectiveConfig(tasks=("classify", "segment")), LAYOUT)
    loss = loss_of(objective, outputs, batch, normalized)
    assert loss.item() == 0
    loss.backward()
    assert outputs.class_logits.grad.abs().sum() == 0
    assert outputs.dense.grad.abs().sum() == 0


@pytest.mark.parametrize("processes", [2, 3])
def test_a_batch_split_over_processes_has_the_gradient_of_the_whole(processes: int) -> None:
    # What the trainer does: each process divides by the weights of all, and takes its sum times
    # the number of processes, since gradients are averaged. The shares are uneven on purpose.
    outputs, batch, normalized = random_batch()
    objective = Objective(ObjectiveConfig(tasks=ALL), LAYOUT, torch.tensor([1.0, 5.0, 0.3]))
    loss_of(objective, outputs, batch, normalized).backward()
    expected = [head.grad.clone() for head in outputs]
    shares = [torch.arange(rank, 8, processes) for rank in range(processes)]
    parts = []
    for share in shares:
        heads = Outputs(*(head.detach()[share].requires_grad_() for head in outputs))
        piece = Batch(*(field[share] for field in batch))
        parts.append((heads, objective(heads, piece, normalized[share])))
    weights = sum(torch.stack([t.weight.sum() for t in terms.values()]) for _, terms in parts)
    for share, (heads, terms) in zip(shares, parts, strict=True):
        (objective.losses(terms, weights).sum() * processes).backward()
        for head, whole in zip(heads, expected, strict=True):
            torch.testing.assert_close(head.grad / processes, whole[share])


def test_balanced_weights_are_scikit_learns() -> None:
    label = torch.from_numpy(np.random.default_rng(0).choice(4, 200, p=[0.6, 0.2, 0.15, 0.05]))
    expected = compute_class_weight("balanced", classes=np.arange(4), y=label.numpy())
    np.testing.assert_allclose(balanced_weights(label, 4), expected, rtol=1e-6)
    with_unknown = torch.cat([label, torch.full((50,), -1)])
    np.testing.assert_allclose(balanced_weights(with_unknown, 4), expected, rtol=1e-6)
    assert balanced_weights(label, 5)[4] == 0


def test_balanced_weights_of_multi_label_sets() -> None:
    label = torch.tensor([[1, 0, -1], [0, 0, 0], [0, 0, -1], [0, 0, 1]])
    assert balanced_weights(label, 3).tolist() == [3, 0, 1]
