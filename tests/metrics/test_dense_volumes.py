"""Scores of volumes: where they can be, equal to those of images."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from medduet.config import ObjectiveConfig
from medduet.losses.objective import Objective, reconstruction_loss, segmentation_loss
from medduet.metrics.dense import (
    dice_per_class,
    hd95_per_class,
    iou_per_class,
    reconstruction_errors,
)
from medduet.types import Batch, DenseLayout, Outputs


def random_masks(*sides: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    truth, guess = torch.randint(0, 3, (2, 4, *sides), generator=generator)
    truth[1] = 0
    guess[1, ..., :1] = 0
    truth[2, ..., :2] = 255
    return guess, truth


def test_overlap_does_not_depend_on_where_voxels_are() -> None:
    guess, truth = random_masks(4, 6, 5)
    flat = guess.reshape(4, 8, 15), truth.reshape(4, 8, 15)
    for score in (dice_per_class, iou_per_class):
        torch.testing.assert_close(score(guess, truth, 3), score(*flat, 3), equal_nan=True)


def test_hd95_is_measured_along_the_depth() -> None:
    truth = torch.zeros(1, 20, 12, 12, dtype=torch.int64)
    guess = truth.clone()
    truth[0, 3:6, 4:8, 4:8] = guess[0, 8:11, 4:8, 4:8] = 1
    assert hd95_per_class(guess, truth, 2).item() == 5
    assert hd95_per_class(truth, truth, 2).item() == 0
    assert hd95_per_class(truth, torch.zeros_like(truth), 2).isnan().all()


def test_ssim_of_volumes_is_scikit_image_s_of_their_slices() -> None:
    rng = np.random.default_rng(0)
    target = rng.uniform(-1, 1, (3, 18, 15))
    guess = np.clip(target + rng.normal(0, [[[0.1]], [[0.3]], [[0.6]]], target.shape), -1, 1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(target + 1, guess + 1, strict=True)
    expected = np.mean([structural_similarity(*pair, data_range=2, **options) for pair in pairs])
    errors = reconstruction_errors(*(torch.tensor(x)[None, None] for x in (guess, target)))
    assert errors["ssim"].item() == pytest.approx(expected, abs=1e-4)
    assert errors["mse"].item() == pytest.approx(((guess - target) ** 2).mean())


@pytest.mark.parametrize("classes", [2, 3])
def test_losses_do_not_depend_on_where_voxels_are(classes: int) -> None:
    torch.manual_seed(0)
    layout = DenseLayout(classes, 1)
    dense, image = torch.randn(4, layout.channels, 4, 6, 5), torch.rand(4, 1, 4, 6, 5)
    mask = random_masks(4, 6, 5)[1]
    mask[mask == 2] = classes - 1
    known = torch.tensor([True, True, True, False])
    flat = [x.reshape(*x.shape[:-3], 8, 15) for x in (dense, mask, image)]
    for a, b in (
        (
            segmentation_loss(dense, mask, known, layout),
            segmentation_loss(*flat[:2], known, layout),
        ),
        (
            reconstruction_loss(layout.image(dense), image),
            reconstruction_loss(layout.image(flat[0]), flat[2]),
        ),
    ):
        torch.testing.assert_close(a.loss, b.loss)
        assert torch.equal(a.weight, b.weight)
    objective = Objective(ObjectiveConfig(tasks=("segment", "reconstruct")), layout)
    batch = Batch(image, torch.zeros(4, dtype=torch.int64), mask, known, torch.arange(4))
    assert set(objective(Outputs(None, dense), batch, image)) == {"segment", "reconstruct"}
