import logging
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medduet import ImageSet, open_images
from medduet.cli import main
from medduet.data.imageset import SPLITS
from medduet.errors import ConfigError, DataError


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def phantoms() -> ImageSet:
    return open_images("phantom", size=32, count=40)


@pytest.fixture
def root(phantoms: ImageSet, tmp_path: Path) -> Path:
    """The set in the naming of BUSI, with two masks where there is something to divide."""
    return _as_folder(phantoms, tmp_path / "set")


def _as_folder(images: ImageSet, root: Path, *, splits: bool = False) -> Path:
    pool = images.pool()
    for row, (pixels, masks) in enumerate(zip(pool.images[:], pool.masks[:], strict=True)):
        name = images.class_names[pool.labels[row]]
        split = f"{pool.ids[row].split('/')[0]}/" if splits else ""
        stem = root / split / name / f"{name} ({row + 1})"
        _write(Path(f"{stem}.png"), pixels)
        upper = np.where(np.arange(32)[:, None] < 16, masks * 255, 0).astype(np.uint8)
        _write(Path(f"{stem}_mask.png"), upper)
        _write(Path(f"{stem}_mask_1.png"), masks * 255 - upper)
    return root


def test_files_give_the_batches_of_the_set(phantoms: ImageSet, tmp_path: Path) -> None:
    root = _as_folder(phantoms, tmp_path / "set", splits=True)
    images = open_images(str(root), split="given")
    assert (images.size, images.in_channels) == (phantoms.size, 1)
    for name in SPLITS:
        ours, theirs = images.split(name), phantoms.split(name)
        # Files are ordered by name, classes too; the numbers in the names tell the old order.
        number = [int(text.rpartition("(")[2].partition(")")[0]) for text in ours.ids.tolist()]
        one, two = ours.batch(np.argsort(number)), theirs.batch(np.arange(len(theirs)))
        assert one.image.equal(two.image)
        assert one.mask.equal((two.mask > 0).long())
        assert one.has_mask.all()
        names = [images.class_names[label] for label in one.label]
        assert names == [phantoms.class_names[label] for label in two.label]
    words = f"train auto --data {root} --model.width 2 --epochs 1"
    assert main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    table = (tmp_path / "run" / "predictions" / "test.csv").read_text().splitlines()
    assert len(table) == len(phantoms.test) + 1
    assert table[1].split(",")[1].endswith(".png")
    assert len((tmp_path / "run" / "split.csv").read_text().splitlines()) == 1 + len(images.pool())


def test_it_is_converted_again_only_if_a_file_changes(
    root: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_images(str(root), cache=cache)
    moved = root.rename(tmp_path / "moved")
    with monkeypatch.context() as without:
        without.setattr("medduet.data.convert.WorkerPool", None)
        again = open_images(str(moved), cache=cache)
    assert again.fingerprint == first.fingerprint
    assert again.train.ids.tolist() == first.train.ids.tolist()
    _write(moved / "ring" / "ring (99).png", np.full((32, 32), 9, np.uint8))
    second = open_images(str(moved), cache=cache)
    assert len(second.pool()) == len(first.pool()) + 1
    assert second.fingerprint != first.fingerprint


def test_it_says_how_deep_files_are_shown(root: Path, cache: Path) -> None:
    deep = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    _write(root / "ring" / "deep (1).png", deep)
    _write(root / "ring" / "deep (2).png", np.where(deep == 9, 65535, deep).astype(np.uint16))
    for _ in range(2):  # the second is read from the cache
        notes = open_images(str(root), cache=cache).info["notes"]
        assert [note[:12] for note in notes] == ["40 images ha", "2 of 42 file", "1 of 42 file"]
    assert open_images(str(root), cache=cache, window=(500.0, 800.0)).info["notes"] == notes[:1]


def test_near_duplicates_stay_in_one_split(phantoms: ImageSet, root: Path, cache: Path) -> None:
    pool = phantoms.pool()
    names = [phantoms.class_names[label] for label in pool.labels[:12]]
    for row, name in enumerate(names):
        again = (pool.images[row : row + 1][0] * 0.8).astype(np.uint8)
        _write(root / name / f"{name} (again {row}).png", again)
    apart = 0
    for seed, group_by in product(range(3), ("auto", "none")):
        images = open_images(str(root), cache=cache, seed=seed, group_by=group_by)
        at = {text: split for split in SPLITS for text in images.split(split).ids.tolist()}
        for row, name in enumerate(names):
            same = at[f"{name}/{name} ({row + 1}).png"] == at[f"{name}/{name} (again {row}).png"]
            assert same or group_by == "none"
            apart += not same
    assert apart > 3


def test_patients_stay_in_one_split(root: Path, cache: Path) -> None:
    rows = ["path,label,patient"]
    for number, path in enumerate(sorted(root.glob("*/*).png"))):
        rows.append(f"{path.relative_to(root)},{path.parent.name},p{number % 10}")
    (root / "table.csv").write_text("\n".join(rows))
    images = open_images(str(root / "table.csv"), cache=cache, group_by="given")
    groups = [set(images.split(name).groups.tolist()) for name in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10
    with pytest.raises(ConfigError, match="has no groups"):
        open_images(str(root), cache=cache, group_by="given")
    with pytest.raises(ConfigError, match="has no split:"):
        open_images(str(root), cache=cache, split="given")


def test_what_is_not_given_is_made(phantoms: ImageSet, tmp_path: Path, cache: Path) -> None:
    root = _as_folder(phantoms, tmp_path / "set", splits=True)
    (root / "val").rename(root / "train" / "more")  # a class of its own
    images = open_images(str(root), cache=cache)
    assert len(images.test) == 8
    assert len(images.val) == pytest.approx(4, abs=1)
    assert all(name.startswith("train/") for name in images.val.ids.tolist())
    made = open_images(str(root), cache=cache, split="made", seed=3)
    assert any(name.startswith("train/") for name in made.test.ids.tolist())
    (root / "test").rename(root / "val")
    with pytest.raises(DataError, match=r"no images for test: .*--data\.split made"):
        open_images(str(root), cache=cache)


def test_broken_files_are_named_and_skipped_only_on_request(
    root: Path,
    cache: Path,
    left_in: Callable[[Path], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    victim = sorted(root.glob("ring/ring*).png"))[0]
    victim.write_bytes(victim.read_bytes()[:200])
    _write(sorted(root.glob("smooth/smooth*_mask.png"))[0], np.zeros((8, 9), np.uint8))
    (root / "ring" / "text.png").write_text("no image")
    with pytest.raises(DataError) as error:
        open_images(str(root), cache=cache)
    message = str(error.value)
    for part in ("3 of 41 files", victim.name, "text.png", "8", "9", "--data.skip-broken"):
        assert part in message
    assert "\n" not in message
    assert not left_in(cache)
    with caplog.at_level(logging.WARNING):
        images = open_images(str(root), cache=cache, skip_broken=True)
    assert "left out 3 of 41 files" in caplog.text
    assert len(images.pool()) == 38
    assert {name for name, _ in images.info["skipped"]} >= {f"ring/{victim.name}", "ring/text.png"}
    caplog.clear()
    open_images(str(root), cache=cache, skip_broken=True)
    assert "left out 3 of 41 files" in caplog.text  # never silently


def test_partial_truth(root: Path, cache: Path) -> None:
    for path in sorted(root.glob("ring/*_mask*.png")):
        path.unlink()
    rows = ["path,label,mask"]
    for path in sorted(root.glob("*/*).png")):
        mask = path.with_name(f"{path.stem}_mask.png")
        label = "" if path.parent.name == "smooth" else path.parent.name
        given = mask.relative_to(root) if mask.exists() else ""
        rows.append(f"{path.relative_to(root)},{label},{given}")
    (root / "table.csv").write_text("\n".join(rows))
    pool = open_images(str(root / "table.csv"), cache=cache).pool()
    kind = np.array([text.split("/")[0] for text in pool.ids.tolist()])
    assert (pool.labels[kind == "smooth"] == -1).all()
    assert (pool.labels[kind != "smooth"] >= 0).all()
    assert np.array_equal(pool.known_masks, kind != "ring")
    assert pool.masks[:][kind == "ring"].max() == 0


def test_the_longest_side_without_wider_borders_than_needed(tmp_path: Path, cache: Path) -> None:
    for number, size in enumerate([(100, 60), (100, 41), (200, 90)]):
        Image.new("L", size, 50 + number).save(tmp_path / f"{number}.png")
    images = open_images(
        str(tmp_path), cache=cache, fit="longest", size=50, split="made", group_by="none"
    )
    assert (images.size, images.info["fit"]) == ((30, 50), "pad")
    filled = (images.pool().images[:] > 0).sum(axis=(1, 2))
    assert sorted(filled) == [50 * 20, 50 * 22, 50 * 30]
    Image.new("L", (60, 100), 9).save(tmp_path / "upright.png")
    options = {"fit": "longest", "size": 50, "split": "made", "group_by": "none"}
    assert open_images(str(tmp_path), cache=cache, **options).size == (50, 50)
    assert open_images(str(tmp_path), cache=cache, **options | {"size": 10}).size == (16, 16)
