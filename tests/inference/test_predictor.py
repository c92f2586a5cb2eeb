"""Answers about images of any size, type and source."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import medduet
from medduet import ConfigError, DataError, MissingFileError, ModelError, Predictor, create_model
from medduet.data.reading.core import ReadOptions
from medduet.data.reading.images import read_images
from medduet.inference.explain import Explainer
from medduet.models.ensemble import Ensemble
from medduet.runs.bundle import save_bundle
from medduet.uncertainty.calibration import Calibration

SIDE = 32


def bundle(
    path: Path,
    *,
    name: str = "vovunet_var",
    channels: int = 1,
    classes: int = 3,
    layout: tuple[int, int] = (3, 0),
    multi_label: bool = False,
    size: tuple[int, int] = (SIDE, SIDE),
    fit: str = "pad",
) -> Path:
    """Write a network whose answers differ from image to image."""
    torch.manual_seed(0)
    own = medduet.DenseLayout(*layout)
    network = create_model(
        name, in_channels=channels, num_classes=classes, dense_channels=own.channels, width=4
    ).train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(8, channels, *size))
    config = {
        "class_names": [f"class {number}" for number in range(classes)],
        "mask_names": ["background", "lesion", "cyst"][: own.mask_classes],
        "multi_label": multi_label,
        "layout": own._asdict(),
        "preprocessing": {"size": list(size), "channels": channels, "fit": fit, "window": None},
    }
    save_bundle(path, network.eval(), config)
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (8, 12), dtype=np.uint8))
    return np.asarray(small.resize((75, 50), Image.Resampling.BICUBIC))


def test_the_answer_is_the_networks_own(own: Path, picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    answer = Predictor(own)(tmp_path / "a.png")
    fitted = read_images(tmp_path / "a.png", ReadOptions(size=SIDE))
    with torch.inference_mode():
        class_logits, dense = medduet.load(own)(torch.from_numpy(fitted)[:, None])
    assert class_logits is not None
    assert dense is not None
    expected = class_logits.softmax(dim=1)[0]
    np.testing.assert_allclose(list(answer.probabilities.values()), expected, atol=1e-6)
    assert answer.label == f"class {int(expected.argmax())}"
    mask = medduet.DenseLayout(3, 0).mask(dense)[0].numpy().astype(np.uint8)
    assert len(np.unique(mask)) > 1
    assert answer.mask is not None
    assert answer.mask.shape == answer.image.shape == picture.shape
    # The image was fitted to 21 x 32 pixels with 5 black rows above.
    shares = torch.nn.functional.one_hot(torch.from_numpy(mask[5:26]).long()).permute(2, 0, 1)
    enlarged = torch.nn.functional.interpolate(shares[None].float(), picture.shape, mode="bilinear")
    np.testing.assert_array_equal(answer.mask, enlarged[0].argmax(dim=0))
    np.testing.assert_array_equal(answer.image, picture)
    assert answer.reconstruction is answer.heatmap is None


def test_paths_files_arrays_and_pillow_give_the_same(
    own: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    predictor = Predictor(own)
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    memory = io.BytesIO(path.read_bytes())
    sources = [path, str(path), memory, Image.fromarray(picture), picture, picture.astype(np.int32)]
    first, *others = list(predictor.predict(sources))
    for other in others[:-1]:
        assert other.probabilities == first.probabilities
        np.testing.assert_array_equal(other.mask, first.mask)
    # Values that are not uint8 are shown from the smallest to the largest, as those of files are.
    stretched = others[-1]
    assert stretched.image.min() == 0
    assert stretched.image.max() == 255


def test_threads_share_a_predictor(own: Path) -> None:
    predictor = Predictor(own, explain=True)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (40, 40), dtype=np.uint8) for _ in range(12)]
    expected = [predictor(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predictor, images * 3))
    for answer, other in zip(found, expected * 3, strict=True):
        assert answer.probabilities == other.probabilities
        np.testing.assert_array_equal(answer.mask, other.mask)
        np.testing.assert_array_equal(answer.heatmap, other.heatmap)


def test_what_is_asked_for(tmp_path: Path, picture: np.ndarray) -> None:
    both = bundle(tmp_path / "both", layout=(2, 1))
    answer = Predictor(both)(picture)
    assert answer.reconstruction is not None
    assert answer.reconstruction.shape == (SIDE, SIDE)
    alone = Predictor(both, classify_only=True)(picture)
    assert alone.mask is alone.reconstruction is None
    np.testing.assert_allclose(
        list(alone.probabilities.values()), list(answer.probabilities.values()), atol=1e-6
    )
    dense = bundle(tmp_path / "dense", classes=0)
    answer = Predictor(dense)(picture)
    assert answer.label is None
    assert answer.probabilities == {}
    with pytest.raises(ConfigError, match="no class head: leave --explain"):
        Predictor(dense, explain=True)
    with pytest.raises(ConfigError, match="no class head"):
        Predictor(dense, classify_only=True)


def test_sizes_that_are_not_square(tmp_path: Path, picture: np.ndarray) -> None:
    for fit in ("pad", "stretch"):
        predictor = Predictor(bundle(tmp_path / fit, size=(32, 48), fit=fit), explain=True)
        answer = predictor(picture)
        assert answer.mask is not None
        assert answer.heatmap is not None
        assert answer.mask.shape == answer.heatmap.shape == picture.shape


def test_grad_cam_finds_what_a_class_was_told_by() -> None:
    """A network that looks at one channel of its features alone is explained by where it is."""
    torch.manual_seed(0)
    network = create_model("unet_var", in_channels=1, num_classes=2, width=4).eval()
    image = np.zeros((2, 1, 64, 64), np.uint8)
    image[0, 0, 8:24, 8:24] = 255
    image[1, 0, 40:56, 40:56] = 255
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    network.train()
    pixels = torch.from_numpy(np.concatenate([image, np.zeros_like(image)]))
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(
            network.classify(pixels), torch.tensor([1, 1, 0, 0])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    heat = Explainer(network.eval(), (64, 64))(image, np.array([1, 1]))
    assert heat.max() == 1
    assert heat[0, 8:24, 8:24].mean() > 2 * heat[0, 40:56, 40:56].mean()
    assert heat[1, 40:56, 40:56].mean() > 2 * heat[1, 8:24, 8:24].mean()


def test_options_that_exported_networks_lack(own: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    medduet.export_bundle(own, tmp_path / "onnx", count=2)
    for options, line in (
        ({"explain": True}, "has no heat maps"),
        ({"device": "cuda"}, "runs on the CPU"),
        ({"classify_only": True}, "export it with --classify-only"),
    ):
        with pytest.raises(ConfigError, match=line):
            Predictor(tmp_path / "onnx", **options)  # type: ignore[arg-type]


def test_what_is_no_image_is_told(own: Path, tmp_path: Path) -> None:
    predictor = Predictor(own)
    with pytest.raises(MissingFileError, match=r"nothing\.png: expected an image file"):
        predictor(tmp_path / "nothing.png")
    (tmp_path / "a.png").write_bytes(b"%PDF-1.7")
    with pytest.raises(DataError, match=r"a\.png: expected PNG, JPEG"):
        predictor(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"expected \(H, W\), or \(H, W, 3\) of uint8"):
        predictor(np.zeros((4, 20, 30), np.uint8))
    with pytest.raises(DataError, match="given dict"):
        predictor({})  # type: ignore[arg-type]
    pages = [Image.new("L", (20, 20), level) for level in (0, 99)]
    pages[0].save(tmp_path / "two.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="several"):
        predictor(tmp_path / "two.tif")
    assert len(list(predictor.predict([tmp_path / "two.tif"]))) == 2


def test_bundles_that_say_too_little(own: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        Predictor(tmp_path)
    network = create_model("unet_var", in_channels=1, num_classes=2, width=2)
    save_bundle(tmp_path / "bare", network, {})
    with pytest.raises(ModelError, match="does not say what its outputs mean"):
        Predictor(tmp_path / "bare")
    sketch = {"class_names": ["a", "b"], "layout": {"mask_classes": 0, "image_channels": 0}}
    for wrong in ({"size": [32]}, {"size": [0, 3], "channels": 1}, []):
        with pytest.raises(ModelError, match="preprocessing"):
            save_bundle(tmp_path / "wrong", network, sketch | {"preprocessing": wrong})
    with pytest.raises(ConfigError, match="at least 1 image"):
        Predictor(own, batch_size=0)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no such device"):
            Predictor(own, device="cuda")


def test_calibrated_answers(own: Path, picture: np.ndarray, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    share = rng.dirichlet([1, 1, 1], 200)
    label = (share.cumsum(axis=1) < rng.random((200, 1))).sum(axis=1)
    sharp = share**3 / (share**3).sum(axis=1, keepdims=True)  # a network that is too sure
    calibration = Calibration.fit(label, sharp)
    loaded = medduet.load_bundle(own)
    path = tmp_path / "bundle"
    save_bundle(path, loaded.network, loaded.config.model_copy(update={"calibration": calibration}))
    plain, answer = Predictor(own)(picture), Predictor(path, coverage=0.8)(picture)
    assert plain.prediction_set is None
    before = np.array([list(plain.probabilities.values())])
    after = calibration.calibrate(before)
    np.testing.assert_allclose(list(answer.probabilities.values()), after[0])
    assert answer.label == plain.label
    held = calibration.sets(after, 0.8)[0]
    names = [f"class {k}" for k in np.argsort(-after[0], kind="stable") if held[k]]
    assert list(answer.prediction_set or ()) == names
    wide = Predictor(path, coverage=0.99)(picture).prediction_set
    assert wide is not None
    assert set(wide) >= set(names)
    if find_spec("onnxruntime"):
        medduet.export_bundle(path, tmp_path / "onnx", count=2)
        exported = Predictor(tmp_path / "onnx", coverage=0.8)(picture)
        assert exported.probabilities == pytest.approx(answer.probabilities, abs=1e-4)
        assert exported.prediction_set == answer.prediction_set
    top = float(after.max())
    assert Predictor(path, min_confidence=top + 0.01)(picture).abstained
    assert not Predictor(path, min_confidence=top - 0.01)(picture).abstained
    with pytest.raises(ConfigError, match="--min-confidence of 0 to 1"):
        Predictor(path, min_confidence=2)
    with pytest.raises(ConfigError, match="is not calibrated, so there are no prediction sets"):
        Predictor(own, coverage=0.9)
    with pytest.raises(ConfigError, match="coverage"):
        Predictor(path, coverage=1.5)


def test_an_ensemble_is_explained_by_its_members() -> None:
    torch.manual_seed(0)
    sizes = {"in_channels": 1, "num_classes": 2, "width": 4}
    members = [create_model("vovunet_var", **sizes).eval() for _ in range(2)]
    image = np.random.default_rng(0).integers(0, 255, (2, 1, 64, 64), np.uint8)
    classes = np.array([0, 1])
    alone = [Explainer(member, (64, 64))(image, classes) for member in members]
    for test_time in ("none", "flip"):
        both = Ensemble(members, multi_label=False, mask_channels=0, test_time=test_time).eval()
        heat = Explainer(both, (64, 64))(image, classes)
        mean = sum(alone) / 2
        np.testing.assert_allclose(heat, mean / mean.max(axis=(1, 2), keepdims=True), atol=1e-5)


@pytest.mark.parametrize("name", ["mobilevitv2_unet_var", "sharp_unet"])
def test_every_network_can_be_explained(name: str) -> None:
    torch.manual_seed(0)
    network = create_model(name, in_channels=1, num_classes=2).eval()
    explainer = Explainer(network, (64, 64))
    heat = explainer(
        np.random.default_rng(0).integers(0, 255, (1, 1, 64, 64), np.uint8), np.array([0])
    )
    assert heat.shape == (1, 64, 64)
    assert 0 <= heat.min() <= heat.max() <= 1 + 1e-6
