"""The audit: each finding where it must appear, and none on phantoms but what is true of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import medduet
from medduet import Audit, DataError, ImageSet
from medduet.data.audit.fix import clean
from medduet.data.audit.overlap import leak_warning
from medduet.data.splits import read_split, write_split
from medduet.utils.files import finite

Change = Callable[[dict[str, NDArray[Any]]], None]


def phantoms(
    size: int = 32, count: tuple[int, int, int] = (80, 24, 40), **options: Any
) -> ImageSet:
    return medduet.data.phantom_images(size=size, count=count, **options)


def changed(images: ImageSet, **splits: dict[str, Any]) -> ImageSet:
    """Return a copy with other arrays; the fingerprint is that of no other set."""
    made = {name: replace(images.split(name), **fields) for name, fields in splits.items()}
    content = b"".join(
        np.asarray(value).tobytes() for fields in splits.values() for value in fields.values()
    )
    return replace(images, **made, fingerprint=f"{images.fingerprint}{hash(content)}")


def kinds(audit: Audit) -> dict[str, str]:
    return {finding.kind: finding.sentence for finding in audit.findings}


@pytest.fixture
def leaky() -> ImageSet:
    """train/0 is also val/0, train/1 brighter test/1, val/2 also val/3 with another label."""
    images = phantoms()
    parts = {name: np.array(images.split(name).images) for name in ("train", "val", "test")}
    masks = np.array(images.val.masks)
    masks[[2, 3]] = 0
    masks[3, 8:20, 8:20] = 1
    parts["val"][0] = parts["train"][0]
    parts["test"][1] = (parts["train"][1] * 0.8 + 40).astype(np.uint8)
    parts["val"][3] = parts["val"][2]
    labels = {name: images.split(name).labels.copy() for name in parts}
    labels["val"][0], labels["test"][1] = labels["train"][0], labels["train"][1]
    labels["val"][[2, 3]] = 0, 1
    masks[0] = np.asarray(images.train.masks)[0]
    of_test = np.array(images.test.masks)
    of_test[1] = np.asarray(images.train.masks)[1]
    fields = {name: {"images": parts[name], "labels": labels[name]} for name in parts}
    fields["val"]["masks"], fields["test"]["masks"] = masks, of_test
    return changed(images, **fields)


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (128, 1), (128, 3), (224, 1)])
def test_phantoms_are_clean_but_few(size: int, channels: int, cache: Path) -> None:
    audit = medduet.audit(phantoms(size, channels=channels), cache=cache)
    assert set(kinds(audit)) == {"few-test"}
    assert "normal 10 (±26.3)" in kinds(audit)["few-test"]
    assert (len(audit.pairs), audit.leaks) == (0, ())


def test_many_test_images_are_not_few(cache: Path) -> None:
    assert not medduet.audit(phantoms(16, (40, 40, 400)), cache=cache).findings


def test_duplicates(leaky: ImageSet, cache: Path) -> None:
    audit = medduet.audit(leaky, cache=cache)
    found = kinds(audit)
    assert "1 image of val has one in train" in found["copies-across"]
    assert "1 image of test has one in train" in found["near-across"]
    assert found["copies-within"].endswith("1 in val.")
    assert "near-within" not in found
    assert "1 group of duplicates (2 images: 2 in val)" in found["labels-conflict"]
    assert [f.severity for f in audit.findings[:3]] == ["leak", "leak", "warning"]
    ids = {f.kind: [audit.row(place)["id"] for place in f.rows] for f in audit.findings}
    assert ids["copies-across"] == ["train/0", "val/0"]
    assert ids["near-across"] == ["train/1", "test/1"]
    assert ids["labels-conflict"] == ids["masks-conflict"] == ["val/2", "val/3"]
    assert audit.pairs.across.tolist() == [True, True, False]
    record = audit.record()
    assert finite(record)["images"] == {"train": 80, "val": 24, "test": 40}
    assert record["findings"][0]["images"][1] == {
        "id": "val/0",
        "split": "val",
        "label": leaky.class_names[leaky.val.labels[0]],
    }


def test_a_near_duplicate_within_a_split(cache: Path) -> None:
    images = phantoms()
    train = np.array(images.train.images)
    train[5] = (train[4] * 0.8 + 40).astype(np.uint8)
    found = kinds(medduet.audit(changed(images, train={"images": train}), cache=cache))
    assert "(2 in train), so the splits show 79 / 24 / 40 distinct" in found["near-within"]
    assert not {"near-across", "copies-within", "copies-across"} & set(found)


def test_groups(cache: Path) -> None:
    images = phantoms()
    groups = [np.arange(80) // 2, 100 + np.arange(24), 200 + np.arange(40)]
    names = ("train", "val", "test")
    apart = {name: {"groups": g} for name, g in zip(names, groups, strict=True)}
    assert "groups-across" not in kinds(medduet.audit(changed(images, **apart), cache=cache))
    groups[1][:2], groups[2][3], groups[2][4:6] = 7, 7, -1
    audit = medduet.audit(changed(images, **apart), cache=cache)
    text = "1 group (such as patients) is in several splits, with 5 images: 2 in train, 2 in val, 1"
    assert text in kinds(audit)["groups-across"]
    assert len(audit.leaks) == 1


def test_pictures_without_a_picture(cache: Path) -> None:
    images = phantoms()
    train = np.array(images.train.images)
    train[0], train[1], train[2, :20] = 3, 77, 255
    audit = medduet.audit(changed(images, train={"images": train}), cache=cache)
    rows = {f.kind: f.rows.tolist() for f in audit.findings}
    assert (rows["black"], rows["blank"], rows["saturated"]) == ([0], [1], [2])


def test_marks_are_a_hint(cache: Path) -> None:
    images = phantoms(128, (40, 8, 8))
    train = np.array(images.train.images)
    for place in (3, 9):
        picture = Image.fromarray(train[place])
        ImageDraw.Draw(picture).text((20, 90), "LT BREAST", fill=255)
        train[place] = np.asarray(picture)
    audit = medduet.audit(changed(images, train={"images": train}), cache=cache)
    (marks,) = (f for f in audit.findings if f.kind == "marks")
    assert (marks.rows.tolist(), marks.severity) == ([3, 9], "note")
    assert "A hint" in marks.sentence


def test_classes_missing_and_mixed_otherwise(cache: Path) -> None:
    images = phantoms(16, (400, 40, 200))
    labels = np.where(np.arange(200) < 150, 0, np.arange(200) % 3)
    audit = medduet.audit(changed(images, test={"labels": labels}), cache=cache)
    assert kinds(audit)["class-missing"] == "Class ring has no image in test."
    shown = kinds_of(audit, "prevalence")
    assert "normal is 25.0% of train, 83.5% of test (chi-square, Holm p < 0.001" in shown
    # Large, but no more than chance among so few.
    few = phantoms(16, (40, 4, 4))
    audit = medduet.audit(changed(few, val={"labels": np.array([0, 1, 1, 3])}), cache=cache)
    assert "prevalence" not in kinds(audit)


def kinds_of(audit: Audit, kind: str) -> str:
    return " ".join(f.sentence for f in audit.findings if f.kind == kind)


def test_several_labels(cache: Path) -> None:
    images = phantoms(16, (400, 100, 200))
    rng = np.random.default_rng(0)
    fields = {}
    for name in ("train", "val", "test"):
        labels = rng.integers(0, 2, (len(images.split(name)), 4))
        fields[name] = {"labels": labels}
    several = replace(changed(images, **fields), multi_label=True)
    assert "prevalence" not in kinds(medduet.audit(several, cache=cache))
    fields["test"]["labels"][:, 2] = np.arange(200) < 190
    audit = medduet.audit(replace(changed(images, **fields), multi_label=True), cache=cache)
    assert "spiculated is " in kinds_of(audit, "prevalence")
    assert "smooth is " not in kinds_of(audit, "prevalence")
    assert dict(audit.classes)["spiculated"][2] == 190


def test_masks(cache: Path) -> None:
    images = phantoms()
    masks, labels = np.array(images.train.masks), images.train.labels
    normal, lesion = np.flatnonzero(labels == 0), np.flatnonzero(labels > 0)
    masks[lesion[0]], masks[lesion[1]] = 0, 1
    masks[normal[0], 4:9, 4:9] = 1
    masks[lesion[2:20], :3, :3] = 1
    known = np.ones(80, dtype=bool)
    known[lesion[30]] = False
    fields = {"masks": masks, "has_mask": known}
    audit = medduet.audit(changed(images, train=fields), cache=cache)
    rows = {f.kind: f.rows.tolist() for f in audit.findings}
    assert rows["empty-masks"] == [lesion[0]]
    assert rows["full-masks"] == [lesion[1]]
    assert rows["normal-with-mask"] == [normal[0]]
    assert rows["unknown-masks"] == [lesion[30]]
    assert set(lesion[2:20]) <= set(rows["border-masks"])
    empty = medduet.audit(
        changed(images, val={"masks": np.zeros((24, 32, 32), np.uint8)}), cache=cache
    )
    assert kinds(empty)["mask-class-missing"] == "Mask class lesion does not occur in val."


def test_colours(cache: Path) -> None:
    images = phantoms(32, channels=3)
    names = ("train", "val", "test")
    colour = {n: np.array(images.split(n).images) for n in names}
    grey = {n: {"images": np.repeat(colour[n][..., 1:2], 3, axis=3)} for n in names}
    assert (
        "--data.channels 1"
        in kinds(medduet.audit(changed(images, **grey), cache=cache))["grey-as-rgb"]
    )
    some = colour["train"].copy()
    some[4] = some[4, ..., :1]
    audit = medduet.audit(changed(images, train={"images": some}), cache=cache)
    assert [f.rows.tolist() for f in audit.findings if f.kind == "some-grey"] == [[4]]
    # As of skin: much more red than blue.
    skin = {n: {"images": (colour[n] * [1.0, 0.7, 0.6]).astype(np.uint8)} for n in names}
    assert "blue-red" not in kinds(medduet.audit(changed(images, **skin), cache=cache))
    exchanged = {n: {"images": skin[n]["images"][..., ::-1]} for n in names}
    assert "A hint" in kinds(medduet.audit(changed(images, **exchanged), cache=cache))["blue-red"]


def test_splits_of_another_brightness(cache: Path) -> None:
    images = phantoms()
    darker = (np.asarray(images.test.images) * 0.6).astype(np.uint8)
    found = kinds(medduet.audit(changed(images, test={"images": darker}), cache=cache))
    assert {"brightness", "contrast"} <= set(found)


@pytest.mark.parametrize("by", ["drop", "regroup"])
def test_a_cleaned_split_has_no_leak(leaky: ImageSet, by: Any, cache: Path, tmp_path: Path) -> None:
    groups = {"train": np.arange(80), "val": 100 + np.arange(24), "test": 200 + np.arange(40)}
    groups["train"][10] = groups["val"][10] = groups["test"][10] = 999
    images = changed(leaky, **{name: {"groups": g} for name, g in groups.items()})
    cleaned = clean(images, by, cache=cache)
    write_split(tmp_path / "fix.csv", cleaned.images)
    parts = read_split(tmp_path / "fix.csv", images)
    assert not medduet.audit(cleaned.images, cache=cache).leaks
    # train: 0, 1, 10; val: 0, 2, 3, 10; test: 1, 10
    train, val, test = np.split(parts, [80, 104])
    # The copies val/2 and val/3 have labels at odds.
    assert val[[2, 3]].tolist() == [-1, -1]
    if by == "drop":
        assert (train[[0, 1, 10]].tolist(), val[[0, 10]].tolist()) == ([-1] * 3, [1, -1])
        assert (test == 2).all()
        assert "left out 6: 3 in train, 3 in val" in cleaned.changes
    else:
        assert (train[[1, 10]].tolist(), val[10]) == ([2, 2], 2)
        # A copy in the same split now: the first one stays.
        assert (train[0], val[0]) == (1, -1)
        assert "moved 4: 3 in train, 1 in val, to 1 in val, 3 in test" in cleaned.changes
    assert (np.delete(train, [0, 1, 10]) == 0).all()
    assert (np.delete(val, [0, 2, 3, 10]) == 1).all()


def test_what_is_clean_stays(cache: Path) -> None:
    assert clean(phantoms(), cache=cache).changes == ()
    ids = np.full(80, "the same")
    with pytest.raises(DataError, match="several images of one id"):
        clean(changed(phantoms(), train={"ids": ids}), cache=cache)


def test_training_is_warned(leaky: ImageSet, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert leak_warning(phantoms(), cache) is None
    # Large sets are not searched, but what is known of them counts.
    with monkeypatch.context() as patch:
        patch.setattr("medduet.data.audit.overlap.SMALL", 10)
        assert leak_warning(leaky, cache) is None
        assert not (cache / "duplicates" / f"{leaky.fingerprint}-1.npz").exists()
    text = leak_warning(leaky, cache)
    assert text is not None
    assert "1 image of val and 1 image of test have a duplicate in train" in text
    assert text.endswith("medduet audit phantom")


def test_real_ultrasound(shared_data: Path) -> None:
    images = medduet.open_images(str(shared_data / "busi_seg_224.npz"))
    audit = medduet.audit(images)
    assert not audit.leaks
    found = kinds(audit)
    assert found["labels-conflict"].startswith("8 groups of duplicates (19 images")
    assert found["marks"].startswith("197 images may")
    assert leak_warning(images) is None


def test_real_chest_x_rays(shared_data: Path) -> None:
    path = shared_data / "pneumoniamnist_28_reassembled.npz"
    images = medduet.open_images(str(path))
    audit = medduet.audit(images)
    assert [f.kind for f in audit.leaks] == ["copies-across"]
    assert "8 images of val have one in train" in audit.leaks[0].sentence
    assert not medduet.audit(clean(images).images).leaks
    text = leak_warning(images)
    assert text is not None
    assert "8 images of val have a duplicate in train" in text
    assert text.endswith(f"medduet audit {path}")
