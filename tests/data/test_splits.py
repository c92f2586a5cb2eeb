from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medduet import open_images
from medduet.config import DataConfig
from medduet.data.imageset import ImageSet
from medduet.data.splits import (
    apply_split,
    arrange,
    read_split,
    stratified_group_split,
    write_split,
)
from medduet.errors import DataError

SHARES = (0.7, 0.1, 0.2)


def _spread(labels: np.ndarray, parts: np.ndarray, shares: tuple[float, ...]) -> float:
    """The largest difference between a part's share of a class and what it should be."""
    found = [
        [(parts[labels == label] == part).mean() for part in range(len(shares))]
        for label in np.unique(labels)
    ]
    return float(np.abs(np.array(found) - shares).max())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(10, 80), min_size=1, max_size=6),
    st.sampled_from([SHARES, (0.5, 0.25, 0.25), (1.0, 1.0, 1.0, 1.0, 1.0), (0.8, 0.2)]),
    st.integers(0, 5),
)
def test_single_images_are_stratified_to_about_one_image(
    counts: list[int], shares: tuple[float, ...], seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    parts = stratified_group_split(labels, np.arange(len(labels)), shares, seed)
    share = np.array(shares) / sum(shares)
    for label, count in enumerate(counts):
        got = np.bincount(parts[labels == label], minlength=len(shares))
        assert np.abs(got - share * count).max() <= 1.5, (counts, label, got)
    total = np.bincount(parts, minlength=len(shares))
    # Rounding of each class adds up, but less than one image for each.
    assert np.abs(total - share * len(labels)).max() <= max(1, len(counts) / 2) + 1e-9


def test_groups_stay_whole_and_classes_alike() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), rng.integers(1, 8, 300))
    labels = rng.choice(3, 300, p=[0.6, 0.3, 0.1])[groups]
    parts = stratified_group_split(labels, groups, SHARES, seed=1)
    for group in range(300):
        assert len(set(parts[groups == group])) == 1
    assert _spread(labels, parts, SHARES) < 0.01
    assert not np.array_equal(parts, stratified_group_split(labels, groups, SHARES, seed=2))
    assert np.array_equal(parts, stratified_group_split(labels, groups, SHARES, seed=1))


def test_several_labels_at_once_are_stratified_each() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((800, 4)) < [0.5, 0.2, 0.1, 0.05]).astype(np.int64)
    parts = stratified_group_split(labels, np.arange(800), SHARES, seed=0)
    for label in labels.T:
        assert _spread(label[label == 1], parts[label == 1], SHARES) < 0.03
    assert np.bincount(parts) == pytest.approx(np.array(SHARES) * 800, abs=3)


def test_every_part_gets_something() -> None:
    # Nine tenths of the images are one patient.
    groups = np.array([0] * 27 + [1, 2, 3])
    parts = stratified_group_split(np.zeros(30, dtype=np.int64), groups, SHARES, seed=0)
    assert set(parts) == {0, 1, 2}
    with pytest.raises(DataError, match=r"at least 3 groups of images to split, given 2"):
        stratified_group_split(np.zeros(4, dtype=np.int64), np.array([0, 0, 1, 1]), SHARES, seed=0)


def test_each_fold_is_test_once_and_val_once(named: ImageSet, tmp_path: Path) -> None:
    splits = []
    for fold in range(5):
        config = DataConfig(name="phantom", folds=5, fold=fold, group_by="none")
        write_split(tmp_path / "split.csv", arrange(named, None, config))
        splits.append(read_split(tmp_path / "split.csv", named))
    for part in (1, 2):
        assert ((np.stack(splits) == part).sum(axis=0) == 1).all()


@pytest.fixture
def named() -> ImageSet:
    return open_images("phantom", size=16, count=20)


def test_a_pool_keeps_what_belongs_together(named: ImageSet) -> None:
    pool = named.pool()
    rows = np.array([pool.ids.tolist().index("test/1"), 0])
    batch = pool.batch(rows)
    assert np.array_equal(batch.image[0, 0].numpy(), named.test.images[1])
    assert np.array_equal(batch.mask[1].numpy(), named.train.masks[0])
    assert batch.label.tolist() == [named.test.labels[1], named.train.labels[0]]
    assert np.asarray(pool.images).shape == (20, 16, 16)
    nested = pool.take(rows).take(np.array([1]))
    assert np.array_equal(nested.images[:], named.train.images[:1])
    assert nested.ids.tolist() == ["train/0"]


def test_dividing_writing_and_reading(named: ImageSet, tmp_path: Path) -> None:
    parts = np.array([0] * 5 + [1] * 5 + [2] * 5 + [-1] * 5)
    other = apply_split(named, parts, {"made": "by hand"})
    assert [len(other.split(name)) for name in ("train", "val", "test")] == [5, 5, 5]
    assert other.fingerprint != named.fingerprint
    assert other.info["undivided"] == named.fingerprint
    write_split(tmp_path / "split.csv", other)
    assert (tmp_path / "split.csv").read_text().splitlines()[:2] == ["image,split", "train/0,train"]
    assert np.array_equal(read_split(tmp_path / "split.csv", named), parts)
    again = apply_split(named, read_split(tmp_path / "split.csv", named), {})
    assert again.fingerprint == other.fingerprint
    assert apply_split(other, parts[:15], {}).info["undivided"] == named.fingerprint
    with pytest.raises(DataError, match="no image for val"):
        apply_split(named, parts * 0, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,split\ntrain/0,trian\n", "train/0 is in none of train, val, test, drop"),
        ("image,split\ntrain/99,train\n", "train/99 is not in phantom"),
        ("image,split\ntrain/0,train\ntrain/0,val\n", "train/0 is listed twice"),
    ],
)
def test_a_table_that_is_no_split(text: str, message: str, named: ImageSet, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        apply_split(named, read_split(path, named), {})
