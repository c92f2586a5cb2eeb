"""How the losses of the tasks become one."""

import math

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from medduet import Batch, DenseLayout, ObjectiveConfig, Outputs
from medduet.losses.objective import (
    Objective,
    PerImage,
    balanced_weights,
    classification_loss,
    reconstruction_loss,
    segmentation_loss,
)

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
    return objective.loss(terms, weights)


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
    config = ObjectiveConfig(tasks=ALL, balance="uncertainty")
    objective = Objective(config, LAYOUT, torch.tensor([1.0, 5.0, 0.3]))
    loss_of(objective, outputs, batch, normalized).backward()
    expected = [head.grad.clone() for head in outputs]
    expected.append(objective.log_variance.grad.clone())
    objective.log_variance.grad = None
    shares = [torch.arange(rank, 8, processes) for rank in range(processes)]
    parts = []
    for share in shares:
        heads = Outputs(*(head.detach()[share].requires_grad_() for head in outputs))
        piece = Batch(*(field[share] for field in batch))
        parts.append((heads, objective(heads, piece, normalized[share])))
    weights = sum(torch.stack([t.weight.sum() for t in terms.values()]) for _, terms in parts)
    for share, (heads, terms) in zip(shares, parts, strict=True):
        (objective.loss(terms, weights, 1 / processes) * processes).backward()
        for head, whole in zip(heads, expected[:2], strict=True):
            torch.testing.assert_close(head.grad / processes, whole[share])
    torch.testing.assert_close(objective.log_variance.grad / processes, expected[2])


def test_uncertainty_learns_the_weights_of_known_tasks() -> None:
    # s takes the gradient of exp(-s) L / 2 + s / 2; that of an unknown task, or of factor 0, none.
    factors = {"classify": 1, "segment": 0, "reconstruct": 3}
    weights = {f"{task}_weight": factor for task, factor in factors.items()}
    objective = Objective(ObjectiveConfig(tasks=ALL, balance="uncertainty", **weights), LAYOUT)
    outputs, batch, normalized = random_batch()
    optimizer = torch.optim.SGD([objective.log_variance], lr=0.1)
    terms = objective(outputs, batch, normalized)
    losses = {x: factors[x] * y.total().item() / y.weight.sum().item() for x, y in terms.items()}
    s = dict.fromkeys(ALL, 0.0)
    for _ in range(3):
        expected = {x: factors[x] * math.exp(-s[x]) / 2 for x in ALL}
        assert objective.learnt_weights() == pytest.approx(expected)
        optimizer.zero_grad()
        loss = loss_of(objective, outputs, batch, normalized)
        learnt = [x for x in ALL if factors[x]]
        value = sum(math.exp(-s[x]) * losses[x] / 2 + s[x] / 2 for x in learnt)
        assert loss.item() == pytest.approx(value, rel=1e-5)
        loss.backward()
        optimizer.step()
        s |= {x: s[x] - 0.1 * (0.5 - math.exp(-s[x]) * losses[x] / 2) for x in learnt}
    unknown = batch._replace(label=torch.full((8,), -1))
    optimizer.zero_grad()
    loss_of(objective, outputs, unknown, normalized).backward()
    assert objective.log_variance.grad[0] == 0
    one = Objective(ObjectiveConfig(tasks=("classify",), balance="uncertainty"), LAYOUT)
    assert one.log_variance is None
    assert one.learnt_weights() == {}


def test_balanced_weights_are_scikit_learns() -> None:
    label = torch.from_numpy(np.random.default_rng(0).choice(4, 200, p=[0.6, 0.2, 0.15, 0.05]))
    expected = compute_class_weight("balanced", classes=np.arange(4), y=label.numpy())
    np.testing.assert_allclose(balanced_weights(label, 4), expected, rtol=1e-6)
    with_unknown = torch.cat([label, torch.full((50,), -1)])
    np.testing.assert_allclose(balanced_weights(with_unknown, 4), expected, rtol=1e-6)
    assert balanced_weights(label, 5)[4] == 0
    # Of several labels: negatives divided by positives.
    label = torch.tensor([[1, 0, -1], [0, 0, 0], [0, 0, -1], [0, 0, 1]])
    assert balanced_weights(label, 3).tolist() == [3, 0, 1]


EPSILON = 1e-5  # MONAI's, in numerator and denominator


def mean(term: PerImage) -> float:
    return float(term.total() / term.weight.sum())


def random_logits(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_classification_equals_torchs(weighted: bool, smoothing: float) -> None:
    logits, label = random_logits(9, 4), torch.arange(9) % 4
    weight = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64) if weighted else None
    plain = classification_loss(logits, label, weight if not smoothing else None, smoothing)
    expected = nn.CrossEntropyLoss(None if smoothing else weight, label_smoothing=smoothing)
    assert mean(plain) == pytest.approx(expected(logits, label).item())
    several = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (9, 4)))
    soft = several.double() * (1 - smoothing) + smoothing / 2
    loss = nn.BCEWithLogitsLoss(pos_weight=weight)(logits, soft)
    term = classification_loss(logits, several, weight, smoothing)
    assert mean(term) == pytest.approx(loss.item())


def test_multi_label_by_hand_with_unknowns() -> None:
    probability = np.array([[0.9, 0.2], [0.4, 0.5], [0.3, 0.3]])
    label = torch.tensor([[1, 0], [-1, 1], [-1, -1]])
    logits = torch.from_numpy(np.log(probability / (1 - probability)))
    term = classification_loss(logits, label, None)
    first = (-np.log(0.9) - np.log(0.8)) / 2
    np.testing.assert_allclose(term.loss, [first, -np.log(0.5), 0], rtol=1e-12)
    assert term.weight.tolist() == [1, 1, 0]


def test_reconstruction_equals_torchs() -> None:
    image, target = random_logits(3, 2, 5, 4), random_logits(3, 2, 5, 4).flip(0)
    term = reconstruction_loss(image, target)
    by_hand = ((image - target) ** 2).numpy().reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(term.loss, by_hand, rtol=1e-12)
    assert mean(term) == pytest.approx(nn.MSELoss()(image, target).item())


@pytest.mark.parametrize("classes", [2, 4])
def test_ignored_pixels_are_as_cut_off(classes: int) -> None:
    layout, dense = DenseLayout(classes, 1), random_logits(3, 5, 6, 7).requires_grad_()
    mask = torch.from_numpy(np.random.default_rng(1).integers(0, classes, (3, 6, 7)))
    mask[0, :, 4:], mask[1] = 255, 255
    term = segmentation_loss(dense, mask, torch.tensor([True, True, False]), layout)
    rest = segmentation_loss(dense[:1, :, :, :4], mask[:1, :, :4], torch.tensor([True]), layout)
    assert term.loss[0].item() == pytest.approx(rest.loss.item(), rel=1e-6)
    assert term.weight.tolist() == [1, 0, 0]
    batch = Batch(dense[:, :1], mask[:, 0, 0], mask, torch.tensor([True, True, False]), mask[0])
    assert Objective(ObjectiveConfig(tasks=("segment",)), layout).weights(batch).item() == 1
    term.loss.sum().backward()
    drawn = dense.grad[:, : layout.mask_channels].abs().amax(dim=1)
    assert torch.equal(drawn > 0, mask != 255)


def test_binary_segmentation_by_hand() -> None:
    layout = DenseLayout(mask_classes=2, image_channels=1)
    dense = random_logits(3, 2, 4, 5)
    mask = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (3, 4, 5)))
    mask[1] = 0
    term = segmentation_loss(dense, mask, torch.tensor([True, True, True]), layout)
    p, t = 1 / (1 + np.exp(-dense[:, 0].numpy())), mask.numpy()
    entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(axis=(1, 2))
    shared, both = (p * t).sum(axis=(1, 2)), p.sum(axis=(1, 2)) + t.sum(axis=(1, 2))
    epsilon = np.where(t.any(axis=(1, 2)), EPSILON, 0.01 * 20)
    dice = 1 - (2 * shared + epsilon) / (both + epsilon)
    np.testing.assert_allclose(term.loss, dice + entropy, rtol=1e-9)
    seen = [0, 2]  # those with a mask
    monai = DiceLoss(sigmoid=True, reduction="none")(dense[:, :1], mask[:, None])
    np.testing.assert_allclose(
        term.loss.numpy()[seen] - entropy[seen], monai.flatten(1)[seen, 0], rtol=1e-9
    )


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
    epsilon = np.where(t.any(axis=(2, 3)), EPSILON, 0.01 * 24)
    dice = 1 - (2 * shared + epsilon) / (both + epsilon)
    np.testing.assert_allclose(term.loss, dice[:, 1:].mean(axis=1) + entropy, rtol=1e-9)


def test_drawing_where_nothing_is_costs() -> None:
    layout, known = DenseLayout(mask_classes=2, image_channels=0), torch.tensor([True])
    mask = torch.zeros(1, 10, 10, dtype=torch.long)
    losses = []
    for drawn in (0, 1, 10, 100):  # pixels
        dense = torch.full((1, 1, 100), -30.0)
        dense[..., :drawn] = 0  # a probability of a half, whose cross-entropy is log 2
        term = segmentation_loss(dense.view(1, 1, 10, 10), mask, known, layout)
        losses.append(term.loss.item() - drawn / 100 * math.log(2))
    assert losses == pytest.approx([0, 1 / 3, 5 / 6, 50 / 51], abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_losses_do_not_depend_on_where_voxels_are(classes: int) -> None:
    torch.manual_seed(0)
    layout, known = DenseLayout(classes, 1), torch.tensor([True, True, True, False])
    dense, image = torch.randn(4, layout.channels, 4, 6, 5), torch.rand(4, 1, 4, 6, 5)
    mask = torch.randint(0, classes, (4, 4, 6, 5))
    mask[1], mask[2, :2] = 0, 255
    flat = [x.reshape(*x.shape[:-3], 8, 15) for x in (dense, mask, image)]
    for loss, inputs in (
        (segmentation_loss, [(dense, mask, known, layout), (*flat[:2], known, layout)]),
        (reconstruction_loss, [(dense[:, -1:], image), (flat[0][:, -1:], flat[2])]),
    ):
        volume, plane = (loss(*each) for each in inputs)
        torch.testing.assert_close(volume.loss, plane.loss)
        assert torch.equal(volume.weight, plane.weight)
