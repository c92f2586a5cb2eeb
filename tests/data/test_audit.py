"""The audit: each finding where it must appear, and none on phantoms but what is true of them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import medduet
from medduet import ImageSet
from medduet.data.audit.findings import Finding
from medduet.data.audit.leakage import clean, leak_warning
from medduet.data.imageset import SPLITS
from medduet.data.phantom import phantom_images
from medduet.data.splits import read_split, write_split


def phantoms(
    size: int = 32, count: tuple[int, int, int] = (80, 24, 40), **options: Any
) -> ImageSet:
    return phantom_images(size=size, count=count, **options)


def changed(images: ImageSet, **splits: Mapping[str, Any]) -> ImageSet:
    """Return a copy with other arrays; the fingerprint is that of no other set."""
    made = {name: replace(images.split(name), **fields) for name, fields in splits.items()}
    arrays = [value for fields in splits.values() for value in fields.values()]
    content = b"".join(np.asarray(value).tobytes() for value in arrays)
    return replace(images, **made, fingerprint=f"{images.fingerprint}{hash(content)}")


def audited(images: ImageSet, cache: Path) -> dict[str, Finding]:
    """Return the findings by kind, the first of each."""
    return {each.kind: each for each in reversed(medduet.audit(images, cache=cache).findings)}


def brighter(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (image * 0.8 + 40).astype(np.uint8)


@pytest.fixture
def leaky() -> ImageSet:
    """train/0 is also val/0, train/1 brighter test/1, val/2 also val/3 with another label.

    test/30 is also test/31.
    """
    images = phantoms()
    kinds = ("images", "labels", "masks")
    fields = {n: {k: np.array(getattr(images.split(n), k)) for k in kinds} for n in SPLITS}
    for kind in kinds:
        train, val, test = (fields[name][kind] for name in SPLITS)
        val[0], test[1], val[3], test[31] = train[0], train[1], val[2], test[30]
    fields["test"]["images"][1] = brighter(fields["train"]["images"][1])
    fields["val"]["labels"][[2, 3]] = 0, 1
    fields["val"]["masks"][[2, 3]] = 0
    fields["val"]["masks"][3, 8:20, 8:20] = 1
    fields["test"]["masks"][31, :12] = 255  # differs from 30 in nothing that counts
    return changed(images, **fields)


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (128, 3)])
def test_phantoms_are_clean_but_few(size: int, channels: int, cache: Path) -> None:
    found = audited(phantoms(size, channels=channels), cache)
    assert set(found) == {"few-test-images"}
    assert "normal (n = 10, ±26.3)" in found["few-test-images"].message
    assert not audited(phantoms(16, (40, 40, 400)), cache)


def test_duplicates(leaky: ImageSet, cache: Path) -> None:
    audit = medduet.audit(leaky, cache=cache)
    assert [f.severity for f in audit.findings[:3]] == ["leak", "leak", "warning"]
    ids = {f.kind: audit.images["image"].iloc[f.rows].tolist() for f in audit.findings}
    assert ids["exact-duplicates-across-splits"] == ["train/0", "val/0"]
    assert ids["near-duplicates-across-splits"] == ["train/1", "test/1"]
    assert ids["exact-duplicates-within-a-split"] == ["val/3", "test/31"]
    assert ids["label-conflicts"] == ids["mask-conflicts"] == ["val/2", "val/3"]
    assert "near-duplicates-within-a-split" not in ids
    flags = ["exact", "across_splits", "labels_differ", "masks_differ"]
    assert audit.pairs[["image_a", "image_b", *flags]].values.tolist() == [
        ["train/0", "val/0", True, True, False, False],
        ["train/1", "test/1", False, True, False, False],
        ["val/2", "val/3", True, False, True, True],
        ["test/30", "test/31", True, False, False, False],
    ]


def test_groups(cache: Path) -> None:
    images = phantoms()
    groups = [np.arange(80) // 2, 100 + np.arange(24), 200 + np.arange(40)]
    apart = {name: {"groups": g} for name, g in zip(SPLITS, groups, strict=True)}
    assert not medduet.audit(changed(images, **apart), cache=cache).leaks
    groups[1][:2], groups[2][3], groups[2][4:6] = 7, 7, -1  # -1 is unknown
    (leak,) = medduet.audit(changed(images, **apart), cache=cache).leaks
    assert leak.kind == "groups-across-splits"
    assert "5 images (2 train, 2 val, 1 test); also in train: 2 val, 1 test." in leak.message
    del apart["val"]  # which then has no groups
    (leak,) = medduet.audit(changed(images, **apart), cache=cache).leaks
    assert "3 images (2 train, 1 test); also in train: 1 test." in leak.message


def test_pixels_and_near_duplicates_within_a_split(cache: Path) -> None:
    images = phantoms()
    train = np.array(images.train.images)
    train[0], train[1], train[5] = 3, 77, brighter(train[4])
    found = audited(changed(images, train={"images": train}), cache)
    assert found["blank-images"].rows.tolist() == [0, 1]
    near = found["near-duplicates-within-a-split"].message
    assert "(2 train); 79 / 24 / 40 distinct" in near
    assert not {"near-duplicates-across-splits", "exact-duplicates-within-a-split"} & set(found)


def test_classes(cache: Path) -> None:
    images = phantoms(16, (400, 40, 200))
    labels = np.where(np.arange(200) < 150, 0, np.arange(200) % 3)
    found = audited(changed(images, test={"labels": labels}), cache)
    assert "class ring has no image in test." in found["missing-class"].message
    # V is the square root of half the sum of (p - q)^2 / (p + q).
    shift = found["class-distribution-shift"].message
    assert "normal is 25.0% of train, 83.5% of test (chi-square test, Cramér's V 0.61, " in shift
    # Large, but no more than chance among so few.
    few = changed(phantoms(16, (40, 4, 4)), val={"labels": np.array([0, 1, 1, 3])})
    assert "class-distribution-shift" not in audited(few, cache)


def test_multi_label_sets(cache: Path) -> None:
    images, rng = phantoms(16, (400, 100, 200)), np.random.default_rng(0)
    fields = {name: {"labels": rng.integers(0, 2, (len(images.split(name)), 4))} for name in SPLITS}
    several = replace(images, multi_label=True)
    assert "class-distribution-shift" not in audited(changed(several, **fields), cache)
    fields["test"]["labels"][:, 2] = np.arange(200) < 190
    audit = medduet.audit(changed(several, **fields), cache=cache)
    shifts = [f.message for f in audit.findings if f.kind == "class-distribution-shift"]
    assert all("spiculated is " in shift for shift in shifts)
    assert shifts
    assert audit.classes.loc["spiculated", "test"] == 190


def test_masks(cache: Path) -> None:
    images = phantoms()
    masks, labels = np.array(images.train.masks), images.train.labels
    normal, lesion = np.flatnonzero(labels == 0), np.flatnonzero(labels > 0)
    masks[lesion[0]], masks[lesion[1]] = 0, 1
    masks[normal[0], 4:9, 4:9] = 1
    masks[lesion[2:20], :3, :3] = 1
    masks[lesion[31]], masks[lesion[40:58], :3, :3] = 255, 255
    known = np.arange(80) != lesion[30]
    found = audited(changed(images, train={"masks": masks, "has_mask": known}), cache)
    for kind, row in (
        ("empty-masks", lesion[0]),
        ("masks-without-background", lesion[1]),
        ("masks-on-normal-images", normal[0]),
        ("missing-masks", lesion[30:32]),  # all of the second is ignored
    ):
        assert np.array_equal(found[kind].rows, np.atleast_1d(row)), kind
    border = set(found["masks-at-the-border"].rows)
    assert set(lesion[2:20]) <= border
    assert len(border & {*lesion[40:58]}) < 9


def test_a_cleaned_split(leaky: ImageSet, cache: Path, tmp_path: Path) -> None:
    groups = {"train": np.arange(80), "val": 100 + np.arange(24), "test": 200 + np.arange(40)}
    groups["train"][10] = groups["val"][10] = groups["test"][10] = 999
    images = changed(leaky, **{name: {"groups": g} for name, g in groups.items()})
    cleaned, changes = clean(images, cache=cache)
    write_split(tmp_path / "clean.csv", cleaned)
    assert not medduet.audit(cleaned, cache=cache).leaks
    # Leaks of train: 0, 1, 10; val: 0, 2, 3 (copies with different labels), 10; test: 1, 10.
    expected = np.repeat([0, 1, 2], [80, 24, 40])
    expected[[0, 1, 10, 82, 83, 90]] = -1
    assert changes.startswith("dropped 6 (3 train, 3 val); test unchanged; now 77 train")
    assert read_split(tmp_path / "clean.csv", images).tolist() == expected.tolist()


def test_real_chest_x_rays(shared_data: Path) -> None:
    path = shared_data / "pneumoniamnist_28_reassembled.npz"
    images = medduet.open_images(str(path))
    (leak,) = medduet.audit(images).leaks
    assert leak.kind == "exact-duplicates-across-splits"
    assert "also in train: 8 val" in leak.message
    assert not medduet.audit(clean(images)[0]).leaks
    text = leak_warning(images)
    assert text is not None
    assert f"medduet audit {path}. Exact duplicates" in text
