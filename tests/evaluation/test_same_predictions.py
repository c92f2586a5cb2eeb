"""Every command computes the same predictions for the same images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import medduet
from medduet import DataConfig, ExportedModel, Predictor
from medduet.runs.predictions import Predictions
from medduet.uncertainty.calibration import Calibration

COUNT = 30


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.random((COUNT, 8, 8)) ** (2 * rng.random((COUNT, 1, 1)) + 0.3)
    return (255 * coarse.repeat(4, 1).repeat(4, 2)).astype(np.uint8)


@pytest.fixture(scope="module")
def data(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    arrays = {}
    for split in ("train", "val", "test"):
        arrays |= {
            f"{split}_images": images if split == "test" else images[:, ::-1] // (len(split) - 2),
            f"{split}_labels": np.arange(COUNT) % 3,
            f"{split}_masks": (images > 127).astype(np.uint8),
        }
    path = tmp_path_factory.mktemp("data") / "set.npz"
    np.savez(path, **arrays)
    return DataConfig(name=str(path), size=32)


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated bundle whose probabilities and masks differ from image to image."""
    rng = np.random.default_rng(1)
    share = rng.dirichlet([1, 1, 1], 200)
    label = (share.cumsum(axis=1) < rng.random((200, 1))).sum(axis=1)
    calibration = Calibration.fit(label, share**2 / (share**2).sum(axis=1, keepdims=True))
    assert calibration.temperature > 1.5
    path = tmp_path_factory.mktemp("made") / "bundle"
    return make_bundle(path, calibration=calibration.model_dump(mode="json"))


@pytest.fixture(scope="module")
def expected(bundle: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, K) and masks (N, H, W), by hand."""
    loaded = medduet.load_bundle(bundle)
    with torch.inference_mode():
        class_logits, dense = loaded.network(torch.from_numpy(images)[:, None])
    logits = class_logits.double().numpy() / loaded.config.temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    masks = (dense[:, 0] > 0).numpy()
    assert 0.1 < masks.mean() < 0.9
    return powers / powers.sum(axis=1, keepdims=True), masks


Expected = tuple[np.ndarray, np.ndarray]


def test_predict_and_evaluate(
    bundle: Path, data: DataConfig, images: np.ndarray, expected: Expected, tmp_path: Path
) -> None:
    probability, masks = expected
    predictions = list(Predictor(bundle).predict(images))
    predicted = np.array([list(each.probabilities.values()) for each in predictions])
    np.testing.assert_allclose(predicted, probability, atol=1e-6)
    for prediction, mask in zip(predictions, masks, strict=True):
        np.testing.assert_array_equal(prediction.mask, mask)

    metrics = medduet.evaluate(bundle, data=data, out=tmp_path, device="cpu")
    evaluated = Predictions.from_csv(tmp_path / "predictions" / "test.csv")
    np.testing.assert_array_equal(evaluated.calibrated, predicted)  # bit for bit: one batch each
    np.testing.assert_array_equal(evaluated.predicted_pixels[:, 0], masks.sum(axis=(1, 2)))
    truth = images > 127
    overlap = 2 * (masks & truth).sum(axis=(1, 2)) / (masks.sum((1, 2)) + truth.sum((1, 2)))
    np.testing.assert_allclose(evaluated.dice[:, 0], overlap)
    assert metrics["test"]["accuracy"] == np.mean(predicted.argmax(1) == np.arange(COUNT) % 3)


def test_export(bundle: Path, images: np.ndarray, expected: Expected, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    probability, masks = expected
    out = medduet.export_bundle(bundle, tmp_path / "onnx", count=4).path
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    raw = session.run(None, {"image": images[:, None]})
    np.testing.assert_allclose(raw[0], probability, atol=1e-4)
    assert (raw[1] == masks).mean() > 0.9999
    exported, predictor = Predictor(out), Predictor(bundle)
    for one, two in zip(exported.predict(images), predictor.predict(images), strict=True):
        assert one.probabilities == pytest.approx(two.probabilities, abs=1e-4)
        assert one.prediction_set == two.prediction_set


def test_an_ensemble_is_exported_as_any_other(
    bundle: Path, images: np.ndarray, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    source = medduet.ensemble([bundle], tmp_path / "ensemble", tta="flip").path
    out = medduet.export_bundle(source, tmp_path / "onnx", count=4).path
    exported = ExportedModel(out)(images[:, None])
    with torch.inference_mode():
        expected = medduet.load(source)(torch.from_numpy(images)[:, None])
    probability = expected.class_logits.softmax(1).numpy()
    np.testing.assert_allclose(exported.probability, probability, atol=1e-4)
    assert (exported.mask == (expected.dense[:, 0] > 0).numpy()).mean() > 0.9999


def test_calibrate_and_stress(bundle: Path, data: DataConfig, tmp_path: Path) -> None:
    """Both take what the network predicts: the one before its calibration, the other after."""
    calibration = medduet.calibrate_bundle(
        bundle, tmp_path / "new", data=data, split="val", device="cpu"
    )
    loaded = medduet.load_bundle(bundle)
    val = medduet.open_images(data).val
    with torch.inference_mode():
        class_logits, _ = loaded.network(torch.from_numpy(np.array(val.images))[:, None])
    by_hand = Calibration.fit(val.labels, class_logits.double().softmax(dim=1).numpy())
    assert calibration.temperature == pytest.approx(by_hand.temperature, rel=1e-5)
    assert medduet.load_bundle(tmp_path / "new").config.calibration == calibration

    record = medduet.stress(
        bundle, data=data, corruptions=["jpeg_compression"], device="cpu", out=tmp_path / "stress"
    )
    summary = medduet.evaluate(bundle, data=data, out=tmp_path / "out", device="cpu")["test"]
    before, after = (summary["calibration"][key] for key in ("ece_before", "ece_after"))
    assert abs(before - after) > 0.01
    assert record["clean"]["ece"] == pytest.approx(after)
