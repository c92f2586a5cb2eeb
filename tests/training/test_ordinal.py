"""Grades: classes in their order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, mean_absolute_error
from torch.nn import functional as F

import medduet
from medduet import ConfigError, RunConfig
from medduet.losses.objective import classification_loss
from medduet.metrics.classification import classification_metrics
from medduet.models.base import grade_scores

NAMES = ["0", "1", "2", "3"]


def test_the_loss_is_corns() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, label = torch.randn(50, 3, generator=generator), torch.arange(50) % 4
    scores = grade_scores(logits)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(50))
    # CORN asks each of K - 1 questions of the images that are above the grade before.
    expected = torch.zeros(50)
    for k in range(3):
        asked = label >= k
        above = (label[asked] > k).float()
        question = F.binary_cross_entropy_with_logits(logits[asked, k], above, reduction="none")
        expected[asked] += question
    torch.testing.assert_close(classification_loss(scores, label, None).loss, expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [("vovunet_var", {"width": 2}), ("timm:mobilenetv3_small_050", {}), ("smp:unet/resnet18", {})],
)
def test_every_head_has_one_score_less(name: str, options: dict[str, int]) -> None:
    sizes = {"in_channels": 1, "num_classes": 4, "dense_channels": 1}
    network = medduet.create_model(name, **sizes, ordinal=True, **options).eval()
    image = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        scores = network(image).class_logits
        torch.testing.assert_close(network.classify(image), scores)
    assert scores.shape == (2, 4)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(2))
    assert 3 in {x.out_features for x in network.modules() if isinstance(x, torch.nn.Linear)}
    assert network.arguments["ordinal"]


def random_grades() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    probability = rng.dirichlet([1.0] * 4, 300)
    guess = probability.argmax(axis=1)
    return np.clip(guess + rng.integers(-1, 2, 300), 0, 3), probability


def test_kappa_and_error_are_scikit_learns() -> None:
    label, probability = random_grades()
    metrics = classification_metrics(
        label, probability, multi_label=False, class_names=NAMES, ordinal=True
    )
    guess = probability.argmax(axis=1)
    kappa = cohen_kappa_score(label, guess, weights="quadratic")
    assert metrics["quadratic_kappa"] == pytest.approx(kappa)
    assert metrics["grade_error"] == pytest.approx(mean_absolute_error(label, guess))
    rng = np.random.default_rng(1)
    again = [rng.integers(0, 300, 300) for _ in range(400)]
    kappas = [cohen_kappa_score(label[x], guess[x], weights="quadratic") for x in again]
    np.testing.assert_allclose(
        metrics["quadratic_kappa_interval"], np.percentile(kappas, [2.5, 97.5]), atol=0.015
    )


def test_sets_are_ranges() -> None:
    label, probability = random_grades()
    plain, grades = (
        medduet.Calibration.fit(label, probability, ordinal=ordinal) for ordinal in (False, True)
    )
    classes, ranges = (each.sets(each.calibrate(probability), 0.8) for each in (plain, grades))
    assert (ranges >= classes).all()
    gaps = [np.ptp(np.flatnonzero(row)) + 1 - row.sum() for row in classes]
    assert max(gaps) > 0  # so there was something to fill
    assert all(np.ptp(np.flatnonzero(row)) + 1 == row.sum() for row in ranges)


def test_a_run_with_grades(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", objective={"ordinal": True})
    record = medduet.train(config)
    assert 0 <= record.metrics["test"]["grade_error"] <= 3
    predictor = medduet.Predictor(record.path)
    image = np.full((20, 20), 90, np.uint8)
    assert sum(predictor(image).probabilities.values()) == pytest.approx(1)
    with pytest.raises(ConfigError, match=r"--objective\.ordinal needs"):
        medduet.train(
            make_config(tmp_path / "b", objective={"ordinal": True, "tasks": ["segment"]})
        )
