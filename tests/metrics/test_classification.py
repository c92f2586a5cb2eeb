"""The numbers equal those of medmnist.Evaluator and scikit-learn."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from medduet.errors import DataError
from medduet.metrics.classification import (
    accuracy,
    balanced_accuracy,
    classification_metrics,
    reliability,
)
from medduet.metrics.roc import auc

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import medmnist

SETS = {"breastmnist": 2, "bloodmnist": 8, "retinamnist": 5, "chestmnist": 14}


def truth_of(flag: str, n: int, rng: np.random.Generator) -> np.ndarray:
    k = SETS[flag]
    if flag == "chestmnist":
        label = rng.integers(0, 2, (n, k))
        label[:2] = [[0] * k, [1] * k]
        return label
    label = rng.integers(0, k, n)
    label[:k] = np.arange(k)
    return label


PREDICT: dict[str, Callable[..., np.ndarray]] = {
    "random": lambda label, k, rng: rng.dirichlet(np.ones(k), len(label)),
    "ties": lambda label, k, rng: rng.integers(0, 5, (len(label), k)) / 4,
    "constant": lambda label, k, rng: np.full((len(label), k), 1 / k),
    "one class": lambda label, k, rng: np.eye(k)[np.zeros(len(label), dtype=int)],
    "perfect": lambda label, k, rng: label.astype(float) if label.ndim == 2 else np.eye(k)[label],
}


def official(flag: str, label: np.ndarray, probability: np.ndarray, folder: Path) -> Any:
    np.savez(folder / f"{flag}.npz", test_labels=label if label.ndim == 2 else label[:, None])
    evaluator = medmnist.Evaluator(flag, "test", root=str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluator.evaluate(probability)


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("flag", SETS)
@pytest.mark.parametrize("name", PREDICT)
def test_equals_the_official_evaluator(flag: str, name: str, absent: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    label = truth_of(flag, 100, rng)
    if absent:
        label[label == 1] = 0
    probability, several = PREDICT[name](label, SETS[flag], rng), label.ndim == 2
    expected = official(flag, label, probability, tmp_path)
    assert np.isnan(expected.AUC) == absent
    assert accuracy(label, probability, several) == pytest.approx(expected.ACC, abs=1e-12)
    assert auc(label, probability, several) == pytest.approx(expected.AUC, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("k", [2, 3, 9])
@pytest.mark.parametrize("predict", ["random", "ties", "one class", "perfect"])
def test_single_label_equals_sklearn(k: int, predict: str) -> None:
    rng = np.random.default_rng(k)
    label = rng.integers(0, k, 100)
    probability = PREDICT[predict](label, k, rng)
    said = (probability[:, -1] > 0.5).astype(int) if k == 2 else probability.argmax(1)
    names = [f"class {i}" for i in range(k)]
    found = classification_metrics(label, probability, multi_label=False, class_names=names)
    assert balanced_accuracy(label, probability) == pytest.approx(
        sk.balanced_accuracy_score(label, said)
    )
    assert found["macro_f1"] == pytest.approx(
        sk.f1_score(label, said, average="macro", zero_division=0)
    )
    expected = sk.confusion_matrix(label, said, labels=range(k))
    assert found["confusion_matrix"] == expected.tolist()
    scores = sk.precision_recall_fscore_support(
        label, said, labels=range(k), zero_division=float("nan")
    )
    for i, name in enumerate(names):
        row = found["per_class"][name]
        for key, values in zip(["precision", "recall", "f1", "support"], scores, strict=True):
            wanted = None if np.isnan(values[i]) else pytest.approx(values[i])
            assert row[key] == wanted, (name, key)
        assert row["specificity"] == pytest.approx(
            sk.recall_score(label != i, said != i, zero_division=0)
        )
        assert row["auc"] == pytest.approx(sk.roc_auc_score(label == i, probability[:, i]))


def test_multi_label_equals_sklearn() -> None:
    rng = np.random.default_rng(3)
    label, probability = rng.integers(0, 2, (80, 5)), rng.random((80, 5))
    said = (probability > 0.5).astype(int)
    found = classification_metrics(label, probability, multi_label=True, class_names=list("abcde"))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(label, said, average="macro"))
    assert balanced_accuracy(label, probability, True) == pytest.approx(
        np.mean([sk.balanced_accuracy_score(label[:, i], said[:, i]) for i in range(5)])
    )


def test_unknown_labels_are_left_out() -> None:
    rng = np.random.default_rng(4)
    label, probability = rng.integers(0, 3, 90), rng.dirichlet(np.ones(3), 90)
    hidden = label.copy()
    hidden[::4] = -1
    known = hidden >= 0
    options = {"multi_label": False, "class_names": ["a", "b", "c"]}
    left_out = classification_metrics(label[known], probability[known], **options)
    assert classification_metrics(hidden, probability, **options) == left_out


def test_unknown_elements_are_left_out_per_label() -> None:
    rng = np.random.default_rng(5)
    label, probability = rng.integers(0, 2, (90, 3)), rng.random((90, 3))
    label[rng.random((90, 3)) < 0.3] = -1
    label[:, 2] = -1
    label[:5] = -1
    parts = [(label[label[:, i] >= 0, i], probability[label[:, i] >= 0, i]) for i in range(2)]
    assert auc(label, probability, True) == pytest.approx(
        np.mean([sk.roc_auc_score(*part) for part in parts])
    )
    assert accuracy(label, probability, True) == pytest.approx(
        np.mean([np.mean((score > 0.5) == truth) for truth, score in parts])
    )
    found = classification_metrics(label, probability, multi_label=True, class_names=list("abc"))
    assert found["n"] == (label >= 0).any(axis=1).sum()
    assert found["accuracy_interval"][0] < found["accuracy"] < found["accuracy_interval"][1]
    assert found["accuracy_interval_method"] == "bootstrap over images"
    assert found["per_class"]["c"]["support"] == 0
    assert found["per_class"]["c"]["recall"] is None
    assert "confusion_matrix" not in found


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("n", [0, 3])
def test_no_known_label_gives_none(multi_label: bool, n: int) -> None:
    label = np.full((n, 3) if multi_label else n, -1)
    found = classification_metrics(
        label, np.full((n, 3), 0.2), multi_label=multi_label, class_names=list("abc")
    )
    assert found["n"] == 0
    means = ("accuracy", "auc", "balanced_accuracy", "macro_f1")
    assert {found[key] for key in (*means, "accuracy_interval", "auc_interval")} == {None}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("label", "probability", "multi_label", "words"),
    [
        ([0, 1], [[0.5, 0.5]], False, r"expected label \(1,\)"),
        ([[0], [1]], [[0.5, 0.5]] * 2, False, r"expected label \(2,\)"),
        ([0, 2], [[0.5, 0.5]] * 2, False, "0 to 2"),
        ([0, 1], [0.5, 0.5], False, "K >= 2"),
        ([0, 1], [[np.nan, 0.5]] * 2, False, "given NaN"),
        ([[0, 2]], [[0.5, 0.5]], True, "0 to 2"),
    ],
)
def test_bad_input(label: Any, probability: Any, multi_label: bool, words: str) -> None:
    with pytest.raises(DataError, match=words):
        accuracy(label, probability, multi_label)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 200),
    classes=st.integers(2, 9),
    bins=st.integers(1, 30),
)
def test_the_error_is_that_of_torchmetrics(seed: int, n: int, classes: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    probability = softmax(3 * rng.normal(size=(n, classes)), axis=1)
    label = rng.integers(0, classes, n)
    expected = multiclass_calibration_error(
        torch.from_numpy(probability), torch.from_numpy(label), classes, n_bins=bins
    )
    found = reliability(label, probability, bins=bins).error
    assert found == pytest.approx(float(expected), abs=1e-6)
    several = rng.integers(0, 2, (n, classes))
    expected = binary_calibration_error(
        torch.from_numpy(probability).flatten(), torch.from_numpy(several).flatten(), n_bins=bins
    )
    found = reliability(several, probability, True, bins=bins).error
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_bins_are_counted_by_confidence_and_unknown_labels_left_out() -> None:
    probability = [[1.0, 0.0], [0.95, 0.05], [0.4, 0.6], [0.9, 0.1]]
    diagram = reliability([0, 1, 1, -1], probability)
    assert diagram.n.tolist() == [0] * 9 + [1] + [0] * 4 + [2]
    assert diagram.confidence[14] == pytest.approx(0.975)
    assert (diagram.frequency[14], diagram.frequency[9]) == (0.5, 1.0)
    assert np.isnan(diagram.frequency[0])
    assert diagram.error == pytest.approx((0.4 + 2 * 0.475) / 3)
    assert np.isnan(reliability([-1], [[0.5, 0.5]]).error)
