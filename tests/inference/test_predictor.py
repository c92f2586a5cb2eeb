"""Answers about images of any size, type and source."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz_samples import read_images
from numpy.typing import NDArray
from PIL import Image

import medduet
from medduet import ConfigError, DataError, Predictor, create_model
from medduet.data.reading.core import ReadOptions
from medduet.inference.explain import Explainer
from medduet.models.ensemble import Ensemble
from medduet.runs.bundle import save_bundle
from medduet.uncertainty.calibration import Calibration

MakeBundle = Callable[..., Path]
Images = Callable[[int, int, int], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def own(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle", layout=(3, 0))


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (8, 12), dtype=np.uint8))
    return np.asarray(small.resize((75, 50), Image.Resampling.BICUBIC))


def test_the_answer_is_the_networks_own(own: Path, picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    answer = Predictor(own)(tmp_path / "a.png")
    fitted = read_images(tmp_path / "a.png", ReadOptions((32, 32)))
    with torch.inference_mode():
        class_logits, dense = medduet.load(own)(torch.from_numpy(fitted)[:, None])
    expected = class_logits.softmax(dim=1)[0]
    np.testing.assert_allclose(list(answer.probabilities.values()), expected, atol=1e-6)
    assert answer.label == f"class {int(expected.argmax())}"
    mask = medduet.DenseLayout(3, 0).mask(dense)[0].numpy().astype(np.uint8)
    assert len(np.unique(mask)) > 1
    assert answer.mask.shape == answer.image.shape == picture.shape
    # The image was fitted to 21 x 32 pixels with 5 black rows above.
    shares = torch.nn.functional.one_hot(torch.from_numpy(mask[5:26]).long()).permute(2, 0, 1)
    enlarged = torch.nn.functional.interpolate(shares[None].float(), picture.shape, mode="bilinear")
    np.testing.assert_array_equal(answer.mask, enlarged[0].argmax(dim=0))
    np.testing.assert_array_equal(answer.image, picture)
    assert answer.heatmap is None


def test_paths_files_arrays_and_pillow_give_the_same(
    own: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    memory = io.BytesIO(path.read_bytes())
    sources = [path, str(path), memory, Image.fromarray(picture), picture, picture.astype(np.int32)]
    first, *others, stretched = Predictor(own).predict(sources)
    for other in others:
        assert other.probabilities == first.probabilities
        np.testing.assert_array_equal(other.mask, first.mask)
    page = Image.fromarray(picture)
    page.save(tmp_path / "two.tif", save_all=True, append_images=[page])
    with pytest.raises(DataError, match="expected one frame"):
        Predictor(own)(tmp_path / "two.tif")
    # Values that are not uint8 are shown from the smallest to the largest, as those of files are.
    assert (stretched.image.min(), stretched.image.max()) == (0, 255)


def test_threads_share_a_predictor(own: Path, images: Images) -> None:
    predictor, pictures = Predictor(own, explain=True), list(images(12, 40, 40)[:, 0])
    expected = [predictor(image) for image in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predictor, pictures * 3))
    for answer, other in zip(found, expected * 3, strict=True):
        assert answer.probabilities == other.probabilities
        np.testing.assert_array_equal(answer.mask, other.mask)
        np.testing.assert_array_equal(answer.heatmap, other.heatmap)


def test_what_is_asked_for(make_bundle: MakeBundle, tmp_path: Path, picture: np.ndarray) -> None:
    sides = {"size": (32, 48), "fit": "stretch", "multi_label": True}
    both = make_bundle(tmp_path / "both", layout=(2, 1), **sides)
    answer = Predictor(both, explain=True)(picture)
    assert answer.mask.shape == answer.heatmap.shape == picture.shape
    assert answer.label == ", ".join(name for name, p in answer.probabilities.items() if p > 0.5)
    alone = Predictor(both, classify_only=True)(picture)
    assert alone.mask is None
    assert alone.probabilities == pytest.approx(answer.probabilities, abs=1e-6)
    dense = make_bundle(tmp_path / "dense", classes=0)
    answer = Predictor(dense)(picture)
    assert (answer.label, answer.probabilities) == (None, {})
    for options in ({"explain": True}, {"classify_only": True}, {"min_confidence": 0.5}):
        with pytest.raises(ConfigError, match="no class head: omit --"):
            Predictor(dense, **options)


def test_calibrated_answers(own: Path, picture: np.ndarray, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    share = rng.dirichlet([1, 1, 1], 200)
    label = (share.cumsum(axis=1) < rng.random((200, 1))).sum(axis=1)
    sharp = share**3 / (share**3).sum(axis=1, keepdims=True)  # a network that is too sure
    calibration = Calibration.fit(label, sharp)
    loaded, path = medduet.load_bundle(own), tmp_path / "bundle"
    save_bundle(path, loaded.network, loaded.config.model_copy(update={"calibration": calibration}))
    plain, answer = Predictor(own)(picture), Predictor(path, coverage=0.8)(picture)
    assert plain.prediction_set is None
    after = calibration.calibrate([list(plain.probabilities.values())])
    np.testing.assert_allclose(list(answer.probabilities.values()), after[0])
    assert answer.label == plain.label
    held = calibration.sets(after, 0.8)[0]
    names = [f"class {k}" for k in np.argsort(-after[0], kind="stable") if held[k]]
    assert list(answer.prediction_set or ()) == names
    assert set(Predictor(path, coverage=0.99)(picture).prediction_set or ()) >= set(names)
    top = float(after.max())
    assert Predictor(path, min_confidence=top + 0.01)(picture).abstained
    assert not Predictor(path, min_confidence=top - 0.01)(picture).abstained
    for bundle, options, words in (
        (path, {"min_confidence": 2}, "--min-confidence of 0 to 1"),
        (own, {"coverage": 0.9}, "is not calibrated: medduet calibrate"),
        (path, {"coverage": 0.0}, "coverage"),
    ):
        with pytest.raises(ConfigError, match=words):
            Predictor(bundle, **options)


def test_grad_cam_finds_what_a_class_was_told_by() -> None:
    """A network that tells two classes by a bright square is explained by where it is."""
    torch.manual_seed(0)
    network = create_model("unet_var", in_channels=1, num_classes=2, width=4)
    image = np.zeros((2, 1, 64, 64), np.uint8)
    image[0, 0, 8:24, 8:24] = image[1, 0, 40:56, 40:56] = 255
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    pixels = torch.from_numpy(np.concatenate([image, np.zeros_like(image)]))
    for _ in range(30):
        class_logits = network.classify(pixels)
        loss = torch.nn.functional.cross_entropy(class_logits, torch.tensor([1, 1, 0, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    heat = Explainer(network, (64, 64))(image, np.array([1, 1]))
    both = Ensemble([network, network], multi_label=False, mask_channels=0, test_time="flip").eval()
    again = Explainer(both, (64, 64))(image, np.array([1, 1]))
    np.testing.assert_allclose(again, heat, atol=1e-5)
    assert heat.max() == 1
    assert heat[0, 8:24, 8:24].mean() > 2 * heat[0, 40:56, 40:56].mean()
    assert heat[1, 40:56, 40:56].mean() > 2 * heat[1, 8:24, 8:24].mean()
