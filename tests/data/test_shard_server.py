"""Sets in shards on a real server: what is fetched, how often, and how much is kept."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import medduet
from medduet import ImageSet
from medduet.cli import main
from medduet.config import DataConfig
from medduet.data import download
from medduet.data.batches import WINDOW, train_batches
from medduet.data.imageset import SPLITS
from medduet.data.shard_writer import write_shards
from medduet.data.shards import open_shards
from medduet.errors import ConfigError, DownloadError

Serve = Callable[[Path], Any]
Capture = pytest.CaptureFixture[str]
SIZE = 64
ROWS = 5
SHARD_BYTES = 256 + ROWS * SIZE * SIZE + 20  # what is reckoned with, for images and for masks


@pytest.fixture(scope="module")
def source() -> ImageSet:
    return medduet.open_images("phantom", size=SIZE, count=100)


@pytest.fixture
def folder(source: ImageSet, tmp_path: Path) -> Path:
    return write_shards(source, tmp_path / "set", shard_mb=ROWS * SIZE * SIZE / 1e6).parent


@pytest.fixture
def plain(source: ImageSet, tmp_path: Path) -> Path:
    """The images alone, in 14 shards of train, so that room for three of them holds three."""
    splits = {name: replace(source.split(name), masks=None) for name in SPLITS}
    images = replace(source, **splits, mask_names=())
    return write_shards(images, tmp_path / "plain", shard_mb=ROWS * SIZE * SIZE / 1e6).parent


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds, real=time.sleep: real(seconds / 50))


@pytest.fixture(autouse=True)
def _no_thread_left(serve: Serve, _short_waits: None) -> Iterator[None]:
    """Wait for what is fetched ahead, before the server ends and waits are long again."""
    yield
    wait_for_fetches()


def wait_for_fetches() -> None:
    for thread in threading.enumerate():
        if "_fetch" in thread.name:
            thread.join(timeout=10)


def opened(url: str, cache: Path, shards: float = 1000) -> ImageSet:
    limit = shards * SHARD_BYTES / 1e9
    return open_shards(DataConfig(name=f"shards:{url}", cache=cache, shard_cache_gb=limit))


def kept(cache: Path) -> int:
    """Bytes of shards in the cache, half-arrived ones included."""
    total = 0
    for path in cache.glob("shards/*/*"):
        try:
            total += path.stat().st_size * ("-images-" in path.name or "-masks-" in path.name)
        except FileNotFoundError:
            continue
    return total


def test_a_slow_thread_does_not_set_a_use_back(
    folder: Path, cache: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = opened(serve(folder).address, cache).train.images.files
    path, real, begun = files.folder / "train-images-000000.npy", os.utime, threading.Event()
    path.write_bytes(b"")

    def utime(path: Path, ns: tuple[int, int]) -> None:
        if not begun.is_set():
            begun.set()
            threading.Event().wait(0.2)
        real(path, ns=ns)

    monkeypatch.setattr("medduet.data.shard_files.os.utime", utime)
    slow = threading.Thread(target=files.mark, args=(path.name,))
    slow.start()
    begun.wait()
    between = time.time_ns()
    files.mark(path.name)
    slow.join()
    assert path.stat().st_mtime_ns >= between


def shards_asked(server: Any) -> Counter[str]:
    return Counter(name for name in server.asked if "-images-" in name)


def test_a_server_gives_what_a_folder_gives(folder: Path, cache: Path, serve: Serve) -> None:
    server = serve(folder)
    for shards in (1000, 2 * (WINDOW + 1)):
        images, local = opened(server.address, cache, shards), opened(str(folder), cache)
        assert images.fingerprint == local.fingerprint
        for name in SPLITS:
            own, other = images.split(name), local.split(name)
            np.testing.assert_array_equal(np.asarray(own.images), np.asarray(other.images))
            np.testing.assert_array_equal(np.asarray(own.masks), np.asarray(other.masks))
            np.testing.assert_array_equal(own.labels, other.labels)
            assert (own.ids is None) == (other.ids is None) == (name != "train")


@pytest.mark.parametrize("room", [WINDOW + 1, WINDOW + 2, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_no_shard_is_fetched_twice_in_an_epoch(
    plain: Path, cache: Path, serve: Serve, world_size: int, room: int
) -> None:
    server, seen = serve(plain), []
    for rank in range(world_size):
        own_cache = cache / str(rank)
        train = opened(server.address, own_cache, room).train
        sizes = train.shard_sizes
        assert sizes is not None
        assert len(sizes) == 14
        server.asked.clear()
        options = {"rank": rank, "world_size": world_size, "shards": sizes}
        batches = train_batches(len(train), 7, seed=0, epoch=1, **options)
        train.expect(batches)
        for index in batches:
            seen += train.batch(index).indices.tolist()
            assert kept(own_cache) <= room * SHARD_BYTES
        wait_for_fetches()  # of shards that the next rank may ask for too
        asked = shards_asked(server)
        assert set(asked.values()) == {1}
        assert len(asked) <= 14 / world_size + 2 * WINDOW
        if world_size == 1:
            assert len(asked) == 14
    assert sorted(seen) == list(range(70))


@pytest.mark.parametrize("room", [WINDOW + 1, WINDOW + 2])
def test_what_is_passed_over_is_kept(plain: Path, cache: Path, serve: Serve, room: int) -> None:
    """The third shard is fetched ahead, the fourth is asked for first, as batches may do."""
    server = serve(plain)
    images = opened(server.address, cache, room).train.images
    images.read_ahead(range(6))
    for shards in ([0], [1], [0, 1], [0, 1, 3], [2, 3]):
        images[np.array(shards) * ROWS]
        wait_for_fetches()
    assert set(shards_asked(server).values()) == {1}


def test_so_many_shards_stay_as_there_is_room_for(plain: Path, cache: Path, serve: Serve) -> None:
    server = serve(plain)
    train = opened(server.address, cache, 3).train
    np.asarray(train.images)
    left = sorted(path.name for path in cache.glob("shards/*/train-images-*"))
    assert left == [f"train-images-{number:06}.npy" for number in (11, 12, 13)]
    server.asked.clear()
    train.images[-5:]
    assert not shards_asked(server)
    train.images[:5]
    wait_for_fetches()  # who begins anew is taken to go on: the next shard comes along
    assert list(shards_asked(server)) == [f"train-images-{number:06}.npy" for number in (0, 1)]
    with pytest.raises(ConfigError, match=r"room for 3 shards of .* --data\.shard-cache-gb") as no:
        opened(server.address, cache, 2.9)
    enough = float(str(no.value).split("--data.shard-cache-gb ")[1].split()[0])
    open_shards(DataConfig(name=f"shards:{server.address}", cache=cache, shard_cache_gb=enough))


def test_each_process_of_a_machine_needs_its_own_room(
    plain: Path, cache: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(plain)
    opened(server.address, cache, 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="needs room for 6 shards"):
        opened(server.address, cache, 5)
    opened(server.address, cache, 6)


def test_the_next_shards_come_before_they_are_asked_for(
    folder: Path, cache: Path, serve: Serve
) -> None:
    server = serve(folder)
    train = opened(server.address, cache).train
    batches = train_batches(70, 5, seed=0, epoch=1, shards=train.shard_sizes)
    train.expect(batches[2:])  # the two batches before were those of the first window
    train.batch(batches[2])
    first = batches[2:].shards[: 2 * WINDOW]  # type: ignore[attr-defined]
    wanted = {f"train-{kind}-{n:06}.npy" for n in first for kind in ("images", "masks")}
    for _ in range(500):
        if {name.removesuffix(".gz") for name in server.asked} >= wanted:
            break
        threading.Event().wait(0.01)
    else:
        pytest.fail(f"expected {wanted} to be fetched, asked for {server.asked}")


@pytest.mark.parametrize("failures", [[503, 503], [500, 429]])
def test_a_server_that_fails_twice(
    folder: Path, cache: Path, serve: Serve, failures: list[int]
) -> None:
    server = serve(folder)
    images = opened(server.address, cache).train.images
    server.failures = failures
    assert images[:1].shape == (1, SIZE, SIZE)
    assert shards_asked(server)["train-images-000000.npy"] == 3


def test_a_server_that_is_gone(folder: Path, cache: Path, serve: Serve, capsys: Capture) -> None:
    server = serve(folder)
    images = opened(server.address, cache).train.images
    images[:5]
    server.dead = True
    assert images[:5].shape[0] == 5, "what was fetched is there still"
    with pytest.raises(DownloadError, match=r"000013\.npy .* answered 503 .* server runs"):
        images[-1:]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert main(["show", f"shards:http://127.0.0.1:{port}/x"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"index.json could not be downloaded from http://127.0.0.1:{port}/x/index.json" in said
    assert "no connection to the server; see whether the server runs" in said


def test_what_arrives_is_checked(folder: Path, cache: Path, serve: Serve) -> None:
    server = serve(folder)
    (folder / "train-images-000001.npy").write_bytes(bytes(20_000))
    (folder / "train-images-000002.npy").write_bytes(bytes(10_000_000))
    (folder / "train-images-000003.npy").unlink()
    images = opened(server.address, cache).train.images
    for number, reason in (
        (1, "what arrived has the wrong SHA-256"),
        (2, "it is larger than it can be"),
        (3, "the server answered 404"),
    ):
        with pytest.raises(DownloadError, match=reason):
            images[number * ROWS : number * ROWS + 1]
    assert not list(cache.glob("shards/*/*00000[123]*"))
    assert not list(cache.glob("shards/*/tmp*"))


def test_a_shard_that_another_process_removes(folder: Path, cache: Path, serve: Serve) -> None:
    server = serve(folder)
    images = opened(server.address, cache).train.images
    before = images[:5]
    for path in cache.glob("shards/*/*-images-*"):
        path.unlink()
    np.testing.assert_array_equal(images[:5], before)  # open still
    np.testing.assert_array_equal(opened(server.address, cache).train.images[:5], before)


def test_every_place_that_fsspec_knows(folder: Path, cache: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/set", recursive=True)
    try:
        images, local = opened("memory://set", cache), opened(str(folder), cache)
        np.testing.assert_array_equal(np.asarray(images.test.images), np.asarray(local.test.images))
        with pytest.raises(DownloadError, match=r"index\.json could not be downloaded"):
            opened("memory://other", cache)
        with pytest.raises(DownloadError, match="Protocol not known"):
            opened("nowhere://other", cache)
    finally:
        memory.rm("/set", recursive=True)


def test_an_endless_index(cache: Path, folder: Path, serve: Serve, monkeypatch: Any) -> None:
    monkeypatch.setattr("medduet.data.shards.MOST_INDEX", 10_000)
    with (folder / "index.json").open("ab") as file:
        file.truncate(20_000)
    with pytest.raises(DownloadError, match="it is larger than it can be"):
        opened(serve(folder).address, cache)


def test_retries_are_few(folder: Path, cache: Path, serve: Serve) -> None:
    server = serve(folder)
    images = opened(server.address, cache).train.images
    server.dead = True
    with pytest.raises(DownloadError):
        images[:1]
    assert shards_asked(server)["train-images-000000.npy"] == 1 + download.RETRIES
