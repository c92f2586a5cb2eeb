"""Sets in zarr stores: what is written is what was there, from a folder and from a server."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import medduet
from medduet import ImageSet
from medduet.cli import main
from medduet.data import download
from medduet.data.batches import WINDOW, train_batches
from medduet.data.imageset import SPLITS
from medduet.data.summary import data_summary
from medduet.data.zarr_store import write_zarr
from medduet.errors import ConfigError, DataError, DownloadError, MissingFileError

Capture = pytest.CaptureFixture[str]
Serve = Callable[[Path], Any]
SIZE, ROWS = 16, 5
SHARD_MB = ROWS * SIZE * SIZE / 1e6


@pytest.fixture(scope="module")
def source() -> ImageSet:
    return medduet.open_images("phantom", size=SIZE, count=60)


@pytest.fixture(scope="module")
def written(source: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """42 images of train in 9 shards; to be read only."""
    return write_zarr(source, tmp_path_factory.mktemp("zarr") / "set.zarr", shard_mb=SHARD_MB)


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(written, tmp_path / "set.zarr"))


@pytest.fixture(autouse=True)
def _few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRIES", 1)


def shards_of(server: Any) -> Counter[str]:
    names = [name for name in server.asked if "train/images/c/" in name]
    return Counter(name.split("/c/")[1] for name in names)


def assert_same(images: ImageSet, source: ImageSet) -> None:
    for name in ("class_names", "mask_names", "multi_label", "name", "in_channels", "size"):
        assert getattr(images, name) == getattr(source, name)
    for name in SPLITS:
        split, original = images.split(name), source.split(name)
        rows = np.arange(len(original))
        if name == "train":
            named = [f"train/{row}" for row in rows] if original.ids is None else original.ids
            rows = np.array([list(named).index(text) for text in split.ids])
            assert sorted(rows) == list(range(len(original)))
            assert rows.tolist() != sorted(rows), "images of one class may stand together"
        for field in ("images", "masks", "labels", "has_mask", "groups"):
            values, expected = getattr(split, field), getattr(original, field)
            assert (values is None) == (expected is None)
            if values is not None:
                np.testing.assert_array_equal(np.asarray(values), np.asarray(expected)[rows])


def test_the_store_holds_the_set(source: ImageSet, written: Path) -> None:
    assert_same(medduet.open_images(str(written)), source)
    group = zarr.open_group(written, mode="r")  # as another program reads it
    np.testing.assert_array_equal(group["val/images"][:], source.val.images)
    np.testing.assert_array_equal(group["test/masks"][:], source.test.masks)


def test_colour_labels_ids_groups_and_unknown_masks(tmp_path: Path) -> None:
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
    source = medduet.open_images(str(tmp_path / "rgb.npz"), cache=tmp_path / "cache")
    images = medduet.open_images(str(write_zarr(source, tmp_path / "s.zarr", shard_mb=0.002)))
    assert_same(images, source)
    assert images.val.ids.tolist() == arrays["val_ids"].tolist()


def test_a_set_is_written_to_the_same_bytes(
    source: ImageSet, written: Path, tmp_path: Path
) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    class Bar:
        left = 4

        def __init__(self, *arguments: Any) -> None: ...
        def close(self) -> None: ...
        def update(self, amount: int, /) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    out = tmp_path / "stopped.zarr"
    with pytest.raises(KeyboardInterrupt):
        write_zarr(source, out, shard_mb=SHARD_MB, progress=Bar)
    (out / "train/images/c/1/0/0.0123.partial").write_bytes(b"half")
    with pytest.raises(MissingFileError, match="which continues"):
        medduet.open_images(str(out))
    with pytest.raises(ConfigError, match="holds another set: delete it"):
        write_zarr(source, out, shard_mb=2 * SHARD_MB)
    first = out / "train/images/c/2/0/0"
    time = first.stat().st_mtime_ns
    write_zarr(source, out, shard_mb=SHARD_MB)
    assert first.stat().st_mtime_ns == time, "what is there is not written again"
    assert contents(out) == contents(written)
    with pytest.raises(ConfigError, match="holds another set: delete it"):
        write_zarr(source, written)


def images_of(arrays: Any) -> Any:
    return arrays["train/images"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda arrays: images_of(arrays).update(shape=[42, 10**9, 10**9]), "train/images: "),
        (lambda arrays: images_of(arrays).update(shape=[41, 16, 16]), "has the shape (42, 16, 16)"),
        (lambda arrays: arrays.pop("val/labels"), "labels"),
        (lambda arrays: images_of(arrays)["codecs"].append({"name": "pickle"}), "crc32c pickle"),
        (lambda arrays: arrays["train/ids"].update(data_type="object"), "given object"),
    ],
)
def test_metadata_that_are_refused(
    store: Path, capsys: Capture, change: Callable[[Any], object], expected: str
) -> None:
    path = store / "zarr.json"
    metadata = json.loads(path.read_text())
    change(metadata["consolidated_metadata"]["metadata"])
    path.write_text(json.dumps(metadata))
    assert main(["audit", str(store)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert expected in message


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_no_shard_is_read_twice_in_an_epoch(written: Path, serve: Serve, world_size: int) -> None:
    server, seen = serve(written.parent), []
    for rank in range(world_size):
        images = medduet.open_images(f"{server.address}/set.zarr", cache_gb=0)
        train = images.train
        server.asked.clear()
        options = {"rank": rank, "world_size": world_size, "shards": train.shard_sizes}
        batches = train_batches(len(train), 7, seed=0, epoch=1, **options)
        train.expect(batches)
        for index in batches:
            seen += train.batch(index).indices.tolist()
            assert train.images._shard.cache_info().currsize <= 2 * WINDOW
        train.images._pool.shutdown()  # what is read ahead may be asked for by the next rank too
        assert set(shards_of(server).values()) == {1}
        assert len(shards_of(server)) <= 9 / world_size + 2 * WINDOW
    assert sorted(seen) == list(range(42))


def test_the_first_lines_of_a_training_fetch_one_shard_of_masks(
    written: Path, serve: Serve
) -> None:
    server = serve(written.parent)
    images = medduet.open_images(f"{server.address}/set.zarr", cache_gb=0)
    server.asked.clear()
    assert any(line.strip().startswith("(looked at)") for line in data_summary(images))
    fetched = {place for place in server.asked if "/c/" in place}
    assert len(fetched) == 3, fetched  # of masks, in each split


def test_a_server_that_fails_and_comes_back(written: Path, serve: Serve) -> None:
    server = serve(written.parent)
    images = medduet.open_images(f"{server.address}/set.zarr").train.images
    server.failures = [503]
    assert images[:1].shape == (1, SIZE, SIZE)
    server.dead = True
    assert images[:5].shape[0] == 5, "what was read is there still"
    with pytest.raises(DownloadError, match=r"c/8/0/0 could not be .*answered 503"):
        images[-1:]
    server.dead = False
    assert images[-1:].shape == (1, SIZE, SIZE)


def test_what_arrives_is_checked(store: Path, serve: Serve) -> None:
    shards = store / "train/images/c"
    (shards / "1/0/0").write_bytes(bytes(1296))
    (shards / "2/0/0").write_bytes(bytes(10_000_000))
    (shards / "3/0/0").unlink()
    images = medduet.open_images(f"{serve(store.parent).address}/set.zarr").train.images
    reasons = ["c/1/0/0 is not as", "it is larger than it can be", "the server answered 404"]
    for number, reason in enumerate(reasons, start=1):
        with pytest.raises((DataError, DownloadError), match=reason):
            images[number * ROWS : number * ROWS + 1]
    for label in (9, -2):
        zarr.open_array(store / "val/labels", mode="r+")[1] = label
        with pytest.raises(DataError, match="values beyond 3"):
            medduet.open_images(str(store))
