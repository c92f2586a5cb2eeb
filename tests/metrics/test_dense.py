"""Mask and image scores equal MONAI, scipy, scikit-image and sums by hand."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import SSIMMetric, compute_dice, compute_iou
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from medduet.errors import DataError
from medduet.metrics.dense import (
    PSNR_CAP,
    mean_over_classes,
    overlap_scores,
    reconstruction_errors,
    reconstruction_summary,
    segmentation_summary,
    surface_distances,
)
from medduet.metrics.intervals import wilson

NAN = float("nan")
LIKE_MONAI = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def masks(num_classes: int, side: int = 17) -> tuple[torch.Tensor, torch.Tensor]:
    """Random masks, then empty truth, empty prediction, both empty, equal, full."""
    generator = torch.Generator().manual_seed(num_classes)
    shape = (8, side, side + 2)
    predicted = torch.randint(0, num_classes, shape, generator=generator)
    truth = torch.randint(0, num_classes, shape, generator=generator)
    truth[1] = 0
    predicted[2] = 0
    truth[3] = predicted[3] = 0
    predicted[4] = truth[4]
    truth[5] = predicted[5] = 1
    truth[6] = 1
    return predicted, truth


def one_hot(mask: torch.Tensor, num_classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(mask, num_classes).movedim(-1, 1)


@pytest.mark.parametrize("num_classes", [2, 3, 6])
def test_overlap_equals_monai(num_classes: int) -> None:
    predicted, truth = masks(num_classes)
    truth[[0, 7], 3:9, 2:5] = 255  # ignored, which is as if there were background in both
    rest = (torch.where(truth == 255, 0, mask) for mask in (predicted, truth))
    hot = tuple(one_hot(mask, num_classes) for mask in rest)
    scores = overlap_scores(predicted, truth, num_classes)
    for found, monai in ((scores["dice"], compute_dice), (scores["iou"], compute_iou)):
        assert found.shape == (8, num_classes - 1)
        assert found.dtype == torch.float64
        expected = monai(*hot, include_background=False).double()
        # MONAI gives NaN to every empty truth; as in nnU-Net what is drawn there counts 0.
        drawn = hot[0].sum((2, 3))[:, 1:] > 0
        expected[expected.isnan() & drawn] = 0
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, equal_nan=True)
        assert found[3].isnan().all()


@pytest.mark.parametrize("score", [overlap_scores, surface_distances])
@pytest.mark.parametrize(
    ("predicted", "words"),
    [
        (torch.rand(1, 4, 4), r"logits\.argmax"),
        (torch.ones(1, 4, 4, dtype=torch.bool), r"logits\.argmax"),
        (torch.zeros(2, 4, 4, dtype=torch.int64), "one shape"),
        (torch.full((1, 4, 4), 2), "given 2 to 2"),
        (torch.full((1, 4, 4), -1), "given -1 to -1"),
    ],
)
def test_bad_masks(score: Any, predicted: torch.Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        score(predicted, torch.zeros(1, 4, 4, dtype=torch.int64), 2)
    with pytest.raises(DataError):  # -1 of this type has the bits of 255
        score(torch.zeros(1, 4, 4, dtype=torch.int8), torch.full((1, 4, 4), -1).to(torch.int8), 2)


def by_hand(predicted: np.ndarray, truth: np.ndarray, percentile: int) -> float:
    if not predicted.any() or not truth.any():
        return NAN
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (predicted, truth)]
    away = [ndimage.distance_transform_edt(~edge) for edge in edges]
    there, back = away[1][edges[0]], away[0][edges[1]]
    if not percentile:
        return float(np.concatenate([there, back]).mean())
    return max(np.percentile(x, percentile, method="linear") for x in (there, back))


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("side", [9, 32])
def test_distances_by_hand(num_classes: int, side: int) -> None:
    predicted, truth = masks(num_classes, side)
    yy, xx = np.mgrid[:side, : side + 2]
    for mask, centre in ((predicted, 4), (truth, 6)):
        mask[7] = torch.from_numpy(((yy - 4) ** 2 + (xx - centre) ** 2 < 9).astype(np.int64))
    ignored = truth.clone()
    predicted[0, :4, 3:], truth[0, :4, 3:], ignored[0, :4, 3:] = 0, 0, 255
    distances = surface_distances(predicted, ignored, num_classes)
    for found, percentile in ((distances["hd95"], 95), (distances["assd"], 0)):
        expected = [
            [by_hand(p == c, t == c, percentile) for c in range(1, num_classes)]
            for p, t in zip(predicted.numpy(), truth.numpy(), strict=True)
        ]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        assert found[1:4].isnan().all()
        assert found[5, 0] == 0


@pytest.mark.parametrize("num_classes", [2, 3])
def test_no_image_at_all(num_classes: int) -> None:
    empty = torch.zeros(0, 8, 8, dtype=torch.int64)
    scores = overlap_scores(empty, empty, num_classes)
    for found in (scores | surface_distances(empty, empty, num_classes)).values():
        assert found.shape == (0, num_classes - 1)
    errors = reconstruction_errors(torch.zeros(0, 1, 8, 8), torch.zeros(0, 1, 8, 8))
    assert all(error.shape == (0,) for error in errors.values())
    assert reconstruction_summary(errors) == {"n": 0, "mse": None, "psnr": None, "ssim": None}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [11, 28, 64])
def test_reconstruction_equals_skimage(channels: int, side: int) -> None:
    generator = torch.Generator().manual_seed(side)
    target = torch.rand(3, channels, side, side + 3, generator=generator) * 2 - 1
    predicted = target + 0.2 * torch.randn(target.shape, generator=generator)
    found = reconstruction_errors(predicted, target)
    monai = SSIMMetric(spatial_dims=2, data_range=2.0)(predicted + 1, target + 1)
    torch.testing.assert_close(found["ssim"], monai.flatten(), atol=1e-5, rtol=0)
    for i in range(3):
        a, b = predicted[i].double().numpy() + 1, target[i].double().numpy() + 1
        similarity = structural_similarity(a, b, data_range=2.0, channel_axis=0, **LIKE_MONAI)
        assert found["ssim"][i].item() == pytest.approx(similarity, abs=1e-5)
        assert found["mse"][i].item() == pytest.approx(np.mean((a - b) ** 2), rel=1e-5)
        assert found["psnr"][i].item() == pytest.approx(
            peak_signal_noise_ratio(b, a, data_range=2.0), rel=1e-5
        )


def test_perfect_and_tiny_images() -> None:
    image = torch.rand(2, 1, 5, 7)
    assert reconstruction_errors(image, image)["ssim"].tolist() == pytest.approx([1, 1], abs=1e-5)
    target = torch.zeros(2, 1, 2, 2)
    errors = reconstruction_errors(target + torch.tensor([0.0, 0.2])[:, None, None, None], target)
    assert errors["psnr"].tolist() == [math.inf, pytest.approx(20, abs=1e-3)]
    assert errors["ssim"].isnan().all()
    summary = reconstruction_summary(errors)
    assert summary["psnr"] == pytest.approx((PSNR_CAP + 20) / 2, abs=1e-3)
    assert summary["ssim"] is None


def test_segmentation_summary_by_hand() -> None:
    dice = [[0.5, NAN], [1.0, 0.0], [NAN, NAN], [0.0, NAN]]
    iou = [[0.4, NAN], [1.0, 0.0], [NAN, NAN], [0.0, NAN]]
    hd95 = [[3.0, NAN], [1.0, NAN], [NAN, NAN], [NAN, NAN]]
    nonempty = [[True, False], [True, True], [False, False], [False, False]]
    scores = {"dice": dice, "iou": iou, "hd95": hd95, "assd": dice}
    found = segmentation_summary(scores, nonempty, ["tumour", "cyst"])
    assert found["n"] == 4
    assert found["dice"] == pytest.approx((1.5 / 3 + 0) / 2)
    assert found["iou"] == pytest.approx((1.4 / 3 + 0) / 2)
    assert found["dice_nonempty"] == pytest.approx((1.5 / 2 + 0) / 2)
    assert found["dice_nonempty_n"] == 3
    assert found["per_mask"]["tumour"]["dice_interval"] == list(bootstrap([0.5, 1.0, 0.0]))
    assert (found["hd95"], found["hd95_n"], found["assd"]) == (2.0, 2, found["dice"])
    assert (found["empty_truth_n"], found["false_positives"]) == (2, 1)
    assert found["false_positive_rate"] == 0.5
    assert found["false_positive_rate_interval"] == list(wilson(1, 2))
    assert found["per_mask"]["cyst"]["dice_nonempty"] == 0.0
    assert found["per_mask"]["cyst"]["hd95"] is None
    assert found["per_mask"]["tumour"]["dice"] == pytest.approx(1.5 / 3)
    json.dumps(found, allow_nan=False)


def bootstrap(values: list[float]) -> tuple[float, float]:
    draws = np.random.default_rng(0).integers(0, len(values), (1000, len(values)))
    low, high = np.percentile(np.array(values)[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def test_drawing_nothing_is_no_score() -> None:
    """Six classes, one of them in each image: who draws nothing is right about most pairs."""
    truth = torch.zeros(12, 9, 9, dtype=torch.int64)
    truth[:, 2:5, 2:5] = (torch.arange(12) % 6 + 1)[:, None, None]
    one_right = torch.where(truth == 1, truth, 0)
    for predicted, expected in ((torch.zeros_like(truth), 0.0), (one_right, 1 / 6), (truth, 1.0)):
        dice = overlap_scores(predicted, truth, 7)["dice"]
        assert mean_over_classes(dice) == pytest.approx(expected)


def test_hd95_is_measured_along_the_depth() -> None:
    truth = torch.zeros(1, 20, 12, 12, dtype=torch.int64)
    guess = truth.clone()
    truth[0, 3:6, 4:8, 4:8] = guess[0, 8:11, 4:8, 4:8] = 1
    found = surface_distances(guess, truth, 2)
    assert found["hd95"].item() == 5
    assert found["assd"].item() == 4
    in_mm = surface_distances(guess, truth, 2, (2.0, 1.0, 1.0))
    assert in_mm["hd95"].item() == 10
    assert in_mm["assd"].item() == 8
    assert surface_distances(truth, truth, 2)["hd95"].item() == 0
    assert surface_distances(truth, torch.zeros_like(truth), 2)["assd"].isnan().all()


def test_ssim_of_volumes_is_scikit_image_s_of_their_slices() -> None:
    rng = np.random.default_rng(0)
    target = rng.uniform(-1, 1, (3, 18, 15))
    guess = np.clip(target + rng.normal(0, [[[0.1]], [[0.3]], [[0.6]]], target.shape), -1, 1)
    pairs = zip(target + 1, guess + 1, strict=True)
    expected = np.mean([structural_similarity(*pair, data_range=2, **LIKE_MONAI) for pair in pairs])
    errors = reconstruction_errors(*(torch.tensor(x)[None, None] for x in (guess, target)))
    assert errors["ssim"].item() == pytest.approx(expected, abs=1e-4)
    assert errors["mse"].item() == pytest.approx(((guess - target) ** 2).mean())
