from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medduet import open_images
from medduet.data.duplicates import (
    MAX_PAIRS_PER_IMAGE,
    cached_duplicates,
    find_duplicates,
    search_duplicates,
)

Change = Callable[[np.ndarray], np.ndarray]


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(small.resize(image.shape[1::-1]))


CHANGES: dict[str, Change] = {
    "jpeg": lambda image: _jpeg(image, 40),
    "resize": lambda image: _resized(image, len(image) // 2),
    "darker": lambda image: (image * 0.6).astype(np.uint8),
    "contrast": lambda image: np.clip((image - 128.0) * 1.3 + 128, 0, 255).astype(np.uint8),
    "gamma": lambda image: ((image / 255) ** 0.8 * 255).astype(np.uint8),
    "noise": lambda image: np.clip(
        image + np.random.default_rng(0).normal(0, 8, image.shape), 0, 255
    ).astype(np.uint8),
    "mark": lambda image: np.where(np.indices(image.shape).sum(axis=0) < 3, 255, image).astype(
        np.uint8
    ),
    "blur": lambda image: ndimage.gaussian_filter(image, 1),
}


@pytest.fixture(scope="module")
def phantoms() -> np.ndarray:
    return open_images("phantom", size=64, count=300).pool().images[:]


def test_changed_copies_are_found(phantoms: np.ndarray) -> None:
    """All changes at once, each of other images; different images are no duplicates."""
    places = np.arange(0, 300, 3)
    changes = list(CHANGES.values())
    changed = [changes[k % len(changes)](phantoms[place]) for k, place in enumerate(places)]
    found = search_duplicates(np.concatenate([phantoms, np.stack(changed)]))
    expected = {(int(place), 300 + k) for k, place in enumerate(places)}
    pairs = set(map(tuple, found.pairs.tolist()))
    assert len(pairs & expected) >= 0.96 * len(expected)
    assert len(pairs - expected) <= 1
    assert not found.exact.any()
    assert (found.similarity > 0.95).all()
    assert len(search_duplicates(phantoms).pairs) == 0


def test_similar_anatomy_is_no_duplicate() -> None:
    """X-rays: what all share correlates above the threshold, but no two are of one patient."""
    rng = np.random.default_rng(0)
    anatomy = ndimage.gaussian_filter(rng.normal(0, 1, (40, 40)), 5)
    anatomy *= 60 / anatomy.std()
    own = np.stack([ndimage.gaussian_filter(rng.normal(0, 1, (40, 40)), 2) for _ in range(400)])
    own *= 11 / own.std()
    images = np.clip(128 + anatomy + own, 0, 255).astype(np.uint8)
    plain = np.corrcoef(images.reshape(400, -1))
    assert (plain[np.triu_indices(400, 1)] > 0.95).mean() > 0.5
    copy = (images[7:8] * 0.9).astype(np.uint8)
    pairs = search_duplicates(np.concatenate([images, copy])).pairs.tolist()
    assert [7, 400] in pairs
    assert len(pairs) <= 2  # of 80,000


def test_exact_duplicates_are_paired_with_the_first(phantoms: np.ndarray) -> None:
    images = np.concatenate([phantoms[:50], np.repeat(phantoms[3:4], 60, axis=0)])
    found = search_duplicates(images)
    assert found.exact.all()
    assert found.pairs.tolist() == [[3, 50 + k] for k in range(60)]
    assert len(set(found.groups(110))) == 50


def test_a_film_of_one_scene_gives_few_pairs_and_one_group() -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (1, 32, 32))
    frames = np.clip(scene + rng.normal(0, 3, (150, 32, 32)), 0, 255).astype(np.uint8)
    others = rng.integers(0, 256, (800, 32, 32), dtype=np.uint8)
    found = search_duplicates(np.concatenate([frames, others]))
    assert len(found.pairs) <= 150 * MAX_PAIRS_PER_IMAGE
    assert len(set(found.groups(950)[:150])) == 1


def test_the_search_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images("phantom", size=16, count=20)
    assert cached_duplicates(images, tmp_path) is None
    found = find_duplicates(images, tmp_path)
    monkeypatch.setattr("medduet.data.duplicates.search_duplicates", None)
    again = find_duplicates(images, tmp_path)
    assert np.array_equal(again.pairs, found.pairs)
    next((tmp_path / "duplicates").iterdir()).write_bytes(b"damaged")
    assert cached_duplicates(images, tmp_path) is None


@pytest.mark.parametrize(("films", "frames"), [(40, 10), (20, 20)])
def test_frames_of_films_are_found(films: int, frames: int) -> None:
    """Related pairs are then common among random ones; they must not pass for chance."""
    rng = np.random.default_rng(0)
    images = np.empty((films * frames, 32, 32))
    for film in range(films):
        scene = ndimage.gaussian_filter(rng.normal(0, 1, (32, 32)), 1.5)
        scene *= 40 / scene.std()
        for frame in range(frames):
            noise = rng.normal(0, 5, scene.shape)
            images[film * frames + frame] = 128 + scene + noise
    found = search_duplicates(np.clip(images, 0, 255).astype(np.uint8))
    groups = found.groups(films * frames).reshape(films, frames)
    assert (groups == groups[:, :1]).mean() > 0.9
