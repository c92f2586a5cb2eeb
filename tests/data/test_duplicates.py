import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from medduet import open_images
from medduet.data.duplicates import duplicates_file, find_duplicates, search_duplicates


def jpeg(image: np.ndarray) -> np.ndarray:
    Image.fromarray(image).save(file := io.BytesIO(), "JPEG", quality=40)
    return np.asarray(Image.open(file))


def resized(image: np.ndarray) -> np.ndarray:
    small = Image.fromarray(image).resize((len(image) // 2,) * 2, Image.Resampling.BICUBIC)
    return np.asarray(small.resize(image.shape[1::-1]))


def grown(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def smooth(rng: np.random.Generator, side: int, sigma: float, spread: float) -> np.ndarray:
    """A random picture without detail."""
    picture = gaussian_filter(rng.normal(0, 1, (side, side)), sigma)
    return picture * spread / picture.std()


CHANGES: list[Callable[[np.ndarray], np.ndarray]] = [
    jpeg,
    resized,
    lambda image: grown(image * 0.6),
    lambda image: grown((image - 128.0) * 1.3 + 128),
    lambda image: grown((image / 255) ** 0.8 * 255),
    lambda image: grown(image + np.random.default_rng(0).normal(0, 8, image.shape)),
    lambda image: np.where(np.indices(image.shape).sum(axis=0) < 3, 255, image).astype(np.uint8),
    lambda image: gaussian_filter(image, 1),
]


@pytest.fixture(scope="module")
def phantoms() -> np.ndarray:
    return open_images("phantom", size=64, count=300).pool().images[:]


def test_changed_copies_are_found(phantoms: np.ndarray) -> None:
    """All changes at once, each of other images; different images are no duplicates."""
    places = range(0, 300, 3)
    changed = [CHANGES[k % len(CHANGES)](phantoms[place]) for k, place in enumerate(places)]
    found = search_duplicates(np.concatenate([phantoms, np.stack(changed)]))
    expected = {(place, 300 + k) for k, place in enumerate(places)}
    pairs = set(map(tuple, found.pairs.tolist()))
    assert len(pairs & expected) >= 0.96 * len(expected)
    assert len(pairs - expected) <= 1
    assert not found.exact.any()
    assert (found.similarity > 0.95).all()
    assert len(search_duplicates(phantoms).pairs) == 0


def test_similar_anatomy_is_no_duplicate() -> None:
    """X-rays: what all share correlates above the threshold, but no two are of one patient."""
    rng = np.random.default_rng(0)
    anatomy = smooth(rng, 40, 5, 60)
    images = grown(np.stack([128 + anatomy + smooth(rng, 40, 2, 11) for _ in range(400)]))
    plain = np.corrcoef(images.reshape(400, -1))
    assert (plain[np.triu_indices(400, 1)] > 0.95).mean() > 0.5
    pairs = search_duplicates(np.concatenate([images, grown(images[7:8] * 0.9)])).pairs.tolist()
    assert [7, 400] in pairs
    assert len(pairs) <= 2  # of 80,000


def test_heads_of_several_patients_are_no_duplicates() -> None:
    rng = np.random.default_rng(0)
    radius = np.linalg.norm(np.indices((24, 24, 24)) - 11.5, axis=0)
    noise = rng.normal(0, 1, (30, 6, 6, 6)).repeat(4, 1).repeat(4, 2).repeat(4, 3)
    heads = np.uint8(np.where(radius < 9, (120 + 12 * noise).clip(1, 255), 0))
    heads = np.concatenate([heads, np.uint8(heads[:1] * 0.9)])
    assert search_duplicates(heads).pairs.tolist() == [[0, 30]]
    assert [0, 30] in (pairs := search_duplicates(heads[:, 12]).pairs.tolist())  # as images
    assert len(pairs) <= 2  # of 465


def test_exact_duplicates_are_paired_with_the_first(phantoms: np.ndarray) -> None:
    found = search_duplicates(np.concatenate([phantoms[:50], np.repeat(phantoms[3:4], 60, axis=0)]))
    assert found.exact.all()
    assert found.pairs.tolist() == [[3, 50 + k] for k in range(60)]
    assert len(set(found.groups(110))) == 50


@pytest.mark.parametrize("films", [20, 3])
def test_frames_of_films_are_found(films: int) -> None:
    """Related pairs are then common among random ones; they must not pass for chance."""
    rng, frames = np.random.default_rng(0), 20
    scenes = np.repeat([smooth(rng, 32, 1.5, 40) for _ in range(films)], frames, axis=0)
    found = search_duplicates(grown(128 + scenes + rng.normal(0, 5, scenes.shape)))
    groups = found.groups(films * frames).reshape(films, frames)
    assert (groups == groups[:, :1]).mean() > 0.9


@pytest.mark.parametrize("length", [0, 100, -20])
def test_a_damaged_result_is_searched_again(tmp_path: Path, length: int) -> None:
    images = open_images("phantom", size=16, count=20)
    once = find_duplicates(images, tmp_path)
    path = duplicates_file(images, tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    assert np.array_equal(once.pairs, find_duplicates(images, tmp_path).pairs)
