"""Sets in shards in a folder: what is written is what was there, and what is wrong is refused."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medduet
from medduet import ImageSet
from medduet.cli import main
from medduet.config import DataConfig
from medduet.data.batches import WINDOW, ShardedBatches, train_batches
from medduet.data.imageset import SPLITS
from medduet.data.shard_writer import write_shards
from medduet.data.shards import open_shards
from medduet.errors import ConfigError, DataError, MissingFileError

Capture = pytest.CaptureFixture[str]
SIZE = 16
ROWS = 5
SHARD_MB = ROWS * SIZE * SIZE / 1e6


@pytest.fixture(scope="module")
def source() -> ImageSet:
    return medduet.open_images("phantom", size=SIZE, count=60)


@pytest.fixture
def folder(source: ImageSet, tmp_path: Path) -> Path:
    return write_shards(source, tmp_path / "set", shard_mb=SHARD_MB).parent


def opened(folder: Path, **options: Any) -> ImageSet:
    return open_shards(DataConfig(name=f"shards:{folder}", **options))


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "index.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


# The same set ------------------------------------------------------------------------------------


def test_pixels_labels_and_names_are_those_of_the_source(source: ImageSet, folder: Path) -> None:
    images = opened(folder)
    for name in ("class_names", "mask_names", "multi_label", "name", "in_channels", "size"):
        assert getattr(images, name) == getattr(source, name)
    for name in SPLITS:
        own, first = images.split(name), source.split(name)
        rows = np.arange(len(first))
        if name == "train":
            assert own.ids is not None
            rows = np.array([int(text.removeprefix("train/")) for text in own.ids])
            assert sorted(rows) == list(range(len(first)))
            assert rows.tolist() != sorted(rows), "images of one class may stand together"
        assert own.masks is not None
        assert first.masks is not None
        np.testing.assert_array_equal(np.asarray(own.images), first.images[rows])
        np.testing.assert_array_equal(np.asarray(own.masks), first.masks[rows])
        np.testing.assert_array_equal(own.labels, first.labels[rows])
        assert own.known_masks.tolist() == first.known_masks[rows].tolist()


def test_all_that_is_known_of_an_image_goes_with_it(tmp_path: Path, rgb_set: ImageSet) -> None:
    write_shards(rgb_set, tmp_path / "set", shard_mb=0.002)
    images = opened(tmp_path / "set")
    assert images.multi_label
    assert images.in_channels == 3
    for name in SPLITS:
        own, first = images.split(name), rgb_set.split(name)
        assert own.ids is not None
        assert first.ids is not None
        assert first.groups is not None
        assert first.has_mask is not None
        rows = np.array([first.ids.tolist().index(text) for text in own.ids])
        np.testing.assert_array_equal(own.labels, first.labels[rows])
        np.testing.assert_array_equal(own.groups, first.groups[rows])
        np.testing.assert_array_equal(own.has_mask, first.has_mask[rows])
        some = np.array([len(own) - 1, 0, 0], dtype=np.int64)
        batch, same = own.batch(some), first.batch(rows[some])
        for value, expected in zip(batch[:4], same[:4], strict=True):
            assert value.equal(expected)


@pytest.fixture
def rgb_set(tmp_path: Path) -> ImageSet:
    """Colour, several labels an image, groups, names, and masks of which some are unknown."""
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 11), ("val", 4), ("test", 6)):
        arrays |= {
            f"{split}_images": rng.integers(0, 256, (count, 12, 10, 3), dtype=np.uint8),
            f"{split}_labels": rng.integers(0, 2, (count, 3)),
            f"{split}_masks": rng.integers(0, 2, (count, 12, 10), dtype=np.uint8),
            f"{split}_has_mask": np.arange(count) % 2 == 0,
            f"{split}_ids": np.array([f"{split}-é{n}" for n in range(count)]),
            f"{split}_groups": rng.integers(-1, 3, count),
        }
    np.savez_compressed(tmp_path / "rgb.npz", **arrays)
    return medduet.open_images(str(tmp_path / "rgb.npz"), cache=tmp_path / "cache")


def test_rows_are_indexed_like_arrays(source: ImageSet, folder: Path) -> None:
    images = opened(folder).val.images
    whole = np.asarray(source.val.images)
    some = np.arange(len(whole)) % 2 == 0
    for key in (slice(None), slice(1, 4), slice(None, None, -2), some, np.array([-1, 0]), some[:0]):
        key = key if isinstance(key, slice) or len(key) else np.empty(0, dtype=np.int64)
        np.testing.assert_array_equal(images[key], whole[key])
    with pytest.raises(IndexError, match=f"below {len(whole)}"):
        images[np.array([len(whole)])]


def test_the_same_set_is_written_to_the_same_bytes(source: ImageSet, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        folder = write_shards(source, tmp_path / name, shard_mb=SHARD_MB).parent
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]
    other = write_shards(source, tmp_path / "three", shard_mb=SHARD_MB, seed=1).parent
    assert opened(other).fingerprint != opened(folder).fingerprint
    assert (other / "val-images-000000.npy").read_bytes() == contents[0]["val-images-000000.npy"]


# The order of an epoch ---------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [3, 8, 60])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_image_comes_once_over_all_ranks(
    folder: Path, batch_size: int, world_size: int
) -> None:
    sizes = opened(folder).train.shard_sizes
    assert sizes is not None
    assert sizes.tolist() == [5] * 8 + [2]

    def epoch(number: int) -> list[list[list[int]]]:
        options = {"seed": 3, "epoch": number, "world_size": world_size, "shards": sizes}
        shares = [train_batches(42, batch_size, rank=r, **options) for r in range(world_size)]
        return [[index.tolist() for index in share] for share in shares]

    first = epoch(1)
    seen = [place for share in first for index in share for place in index]
    rest = 42 % batch_size
    assert len(seen) == len(set(seen)) == 42 - (rest if rest < 2 * world_size else 0)
    assert len({len(share) for share in first}) == 1
    for parts in zip(*first, strict=True):
        sizes_of_parts = [len(part) for part in parts]
        assert max(sizes_of_parts) - min(sizes_of_parts) <= 1
    assert epoch(1) == first
    assert (epoch(2) == first) == (len(first[0]) == 1 == world_size), "one sorted batch"


def test_the_later_steps_are_those_of_the_whole_epoch() -> None:
    sizes = np.array([7] * 9 + [4])
    whole = list(ShardedBatches(sizes, 4, seed=0, epoch=2, rank=1, world_size=2))
    for step in range(len(whole)):
        rest = ShardedBatches(sizes, 4, seed=0, epoch=2, rank=1, world_size=2)[step:]
        assert [index.tolist() for index in rest] == [index.tolist() for index in whole[step:]]
        needed = {int(place) // 7 for index in whole[step:] for place in index}
        assert needed <= set(rest.shards)
        assert len(rest.shards) <= len(needed) + WINDOW
    with pytest.raises(IndexError):
        rest[1]
    assert rest[1:].shards == []


def test_few_shards_are_open_at_a_time_and_images_are_mixed() -> None:
    sizes, steps = np.full(40, 100), []
    for rank in range(3):
        batches = ShardedBatches(sizes, 48, seed=0, epoch=1, rank=rank, world_size=3)
        steps += [set((index // 100).tolist()) for index in batches]
        # A process reads its own part alone, but for the ends of it.
        assert len(batches.shards) <= 40 / 3 + 2 * WINDOW
    assert max(len(shards) for shards in steps) <= 2 * WINDOW
    assert np.mean([len(shards) for shards in steps]) > 1.9
    whole = np.concatenate(list(ShardedBatches(sizes, 40, seed=0, epoch=1)))
    assert abs(np.corrcoef(np.arange(4000), whole)[0, 1]) < 0.4


def test_a_hundred_million_images_need_little_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    batches = ShardedBatches(np.full(10_000, 10_000), 256, seed=0, epoch=1, rank=5, world_size=8)
    index = batches[len(batches) // 2]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index) == 32
    assert len(batches) == -(-(10**8) // 256)
    assert peak < 5e6, "a permutation of all images takes 800 MB"


# What can't be used ------------------------------------------------------------------------------


def test_a_damaged_shard_is_named(folder: Path, tmp_path: Path) -> None:
    path = folder / "train-images-000002.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    images = opened(folder, cache=tmp_path / "cache").train.images
    assert images[:10].shape == (10, SIZE, SIZE)
    with pytest.raises(DataError, match=r"train-images-000002\.npy is damaged: .* copy it again"):
        images[10:11]
    path.unlink()
    with pytest.raises(MissingFileError, match=r"train-images-000002\.npy, but there is no such"):
        images[10:11]


def own_hash(folder: Path, name: str, place: Callable[[dict[str, Any]], Any]) -> None:
    """Let the index have the hash that a file has, as who damages it on purpose would."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()

    def change(index: dict[str, Any]) -> None:
        place(index)[0] = digest

    change_index(folder, change)


class Bomb:
    def __reduce__(self) -> Any:
        return os.kill, (os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("split", ["train", "val"])
def test_nothing_is_unpickled(folder: Path, split: str, cache: Path) -> None:
    name = f"{split}-images-000000.npy"
    if split == "train":
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    else:
        np.save(folder / name, np.array([Bomb()], dtype=object), allow_pickle=True)
    own_hash(folder, name, lambda index: index[split]["images"])
    with pytest.raises(DataError, match=rf"{name} can't be read: .*(magic string|object)"):
        opened(folder, cache=cache).split(split).images[:1]


def test_a_shard_that_is_not_as_the_index_says(folder: Path, cache: Path) -> None:
    name = "val-images-000000.npy"
    np.save(folder / name, np.zeros((ROWS, SIZE, SIZE + 1), dtype=np.uint8))
    own_hash(folder, name, lambda index: index["val"]["images"])
    with pytest.raises(DataError, match=r"expected uint8 \(5, 16, 16\), given uint8 \(5, 16, 17\)"):
        opened(folder, cache=cache).val.images[:1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("bomb", "it unpacks to more than its index says"),
        ("classes", "expected mask classes up to 1, given 7"),
        ("cut", "can't be read"),
    ],
)
def test_masks_of_a_stranger(folder: Path, cache: Path, content: str, expected: str) -> None:
    import gzip

    name = "val-masks-000000.npy.gz"
    if content == "bomb":
        (folder / name).write_bytes(gzip.compress(bytes(50_000_000)))
    elif content == "classes":
        with gzip.open(folder / name, "wb") as file:
            np.save(file, np.full((ROWS, SIZE, SIZE), 7, dtype=np.uint8))
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    own_hash(folder, name, lambda index: index["val"]["masks"])
    with pytest.raises(DataError, match=expected):
        opened(folder, cache=cache).val.batch(np.array([0]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda index: index.update(format="other"), "format: Input should be 'medduet-shards-1'"),
        (lambda index: index.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda index: index.update(name="../../etc"), "name: String should match"),
        (lambda index: index.update(shape=[10**9, 10**9]), "images of 1 to 32768 pixels"),
        (lambda index: index.update(rows=10**15), "shards of at most 2 GiB"),
        (lambda index: index.update(rows=1), "expected 42 shards of train images, given 9"),
        (lambda index: index["train"].update(count=10**18), "less than or equal"),
        (lambda index: index["train"].update(count=10**11), "expected 20000000000 shards"),
        (lambda index: index["val"]["images"].__setitem__(0, "../x"), "val.images.0: String"),
        (lambda index: index["val"]["facts"].pop("labels"), "expected labels of val"),
        (
            lambda index: index["val"]["facts"].update({"../x": {"sha256": "0" * 64, "bytes": 1}}),
            "val.facts",
        ),
        (
            lambda index: index["val"]["facts"]["labels"].update(bytes=10**12),
            "expected at most 4096 bytes for each fact",
        ),
    ],
)
def test_a_wrong_index_is_one_line(
    folder: Path, capsys: Capture, change: Callable[[Any], object], expected: str
) -> None:
    change_index(folder, change)
    assert main(["show", f"shards:{folder}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is no index of shards" in said
    assert expected in said


def test_what_is_no_index_at_all(folder: Path) -> None:
    for content in (b"", b"[" * 100_000, b"\xff", b"null", b"{}"):
        (folder / "index.json").write_bytes(content)
        with pytest.raises(DataError, match=r"index\.json is no index of shards"):
            opened(folder)
    with (folder / "index.json").open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(DataError, match="more than 256 MB"):
        opened(folder)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.zeros(3, dtype=np.int64), "expected int64 (6,), given int64 (3,)"),
        (np.zeros(6, dtype=np.float64), "expected int64 (6,), given float64 (6,)"),
        (np.full(6, 9), "expected labels from -1 to 3, given others"),
        (np.full(6, -2), "expected labels from -1 to 3, given others"),
    ],
)
def test_labels_that_fit_no_class(
    folder: Path, cache: Path, labels: np.ndarray, expected: str
) -> None:
    np.save(folder / "val-labels.npy", labels)
    digest = hashlib.sha256((folder / "val-labels.npy").read_bytes()).hexdigest()
    change_index(folder, lambda index: index["val"]["facts"]["labels"].update(sha256=digest))
    with pytest.raises(DataError) as caught:
        opened(folder, cache=cache)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"size": 32}, r"images of 16 x 16, but --size 32 .*'medduet shard'"),
        ({"folds": 3}, r"--data\.folds 3 was given"),
        ({"split": "made"}, r"--data\.split made was given"),
        ({"count": 5}, "count is for phantom only"),
        ({"skip_broken": True}, "skip_broken is for a folder"),
    ],
)
def test_what_has_to_be_asked_of_the_writer(
    folder: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        medduet.open_images(f"shards:{folder}", **options)
    assert len(medduet.open_images(f"shards:{folder}", size=16, split="given").train) == 42


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"there is no .*index\.json: write it by 'medduet"):
        opened(tmp_path)


# Writing -----------------------------------------------------------------------------------------


def test_a_folder_that_is_taken(source: ImageSet, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a set in shards already: give another --out"):
        write_shards(source, folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds other files"):
        write_shards(source, tmp_path / "other")
    with pytest.raises(ConfigError, match="is a file"):
        write_shards(source, tmp_path / "other" / "thesis.tex")
    for size in (0.0, -1.0, 5000.0):
        with pytest.raises(ConfigError, match="--shard-mb above 0 and up to 2147"):
            write_shards(source, tmp_path / "new", shard_mb=size)


def _write_slowly(source: ImageSet, out: Path) -> None:
    write_shards(source, out, shard_mb=SHARD_MB, progress=lambda *_: _Slow())


class _Slow:
    total = 0

    def update(self, amount: int, /) -> None:
        time.sleep(0.05)

    def reset(self) -> None: ...

    def close(self) -> None: ...


def test_a_call_that_was_killed_goes_on(source: ImageSet, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    writer = multiprocessing.get_context("fork").Process(target=_write_slowly, args=(source, out))
    writer.start()
    while not (out / "train-images-000004.npy").exists():
        time.sleep(0.005)
    writer.kill()
    writer.join()
    (out / ".train-images-000005.npy.x.tmp").write_bytes(b"half")
    with pytest.raises(MissingFileError, match="goes on where it was stopped"):
        opened(out)
    with pytest.raises(ConfigError, match="holds a part of other shards: delete it"):
        write_shards(source, out, shard_mb=2 * SHARD_MB)
    done = (out / "train-images-000002.npy").stat().st_mtime_ns
    write_shards(source, out, shard_mb=SHARD_MB)
    assert (out / "train-images-000002.npy").stat().st_mtime_ns == done
    names = [{path.name: path.read_bytes() for path in each.iterdir()} for each in (out, folder)]
    assert names[0] == names[1]


def test_what_is_typed(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "set"
    words = ["shard", "phantom", "--size", "16", "--data.count", "60", "--out", str(out)]
    assert main([*words, "--shard-mb", "0.002", "--data.folds", "4", "--data.fold", "1"]) == 0
    assert f"use it: --data shards:{out}\n" in capsys.readouterr().out
    images = medduet.open_images(f"shards:{out}")
    assert [len(images.split(name)) for name in SPLITS] == [30, 15, 15]
    assert main(["show", f"shards:{out}", "--out", str(tmp_path / "show.png")]) == 0
    assert main(["audit", f"shards:{out}", "--out", str(tmp_path / "audit")]) == 0
    assert main(["shard"]) == main(["shard", "--out", str(out)]) == 2
    assert "expected a data set after 'shard'" in capsys.readouterr().err
