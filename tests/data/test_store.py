from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medduet.data.npz import open_npz
from medduet.errors import DataError, StorageError

Arrays = dict[str, np.ndarray]
Save = Callable[..., Path]
LeftIn = Callable[[Path], list[str]]


class Waiting:
    """A bar that lets others act in the middle of unpacking."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __call__(self, description: str, total: int) -> Waiting:
        self.unpacks = description.startswith("unpack")
        return self

    def update(self, amount: int) -> None:
        if self.unpacks:
            self.unpacks = False
            self.act()

    def close(self) -> None: ...


def test_a_set_is_unpacked_by_two_at_once(
    arrays: Arrays, save: Save, cache: Path, left_in: LeftIn
) -> None:
    path, seen = save(arrays), []

    def other() -> None:
        seen.append(open_npz(path, cache=cache))
        assert len(left_in(cache)) == 2  # the first is not done, in a folder of its own

    seen.append(open_npz(path, cache=cache, progress=Waiting(other)))
    for images in seen:
        assert np.array_equal(images.test.images, arrays["test_images"])
    assert len(left_in(cache)) == 1


def test_what_a_killed_process_left_is_no_store_and_is_removed(
    arrays: Arrays, save: Save, cache: Path, left_in: LeftIn
) -> None:
    path = save(arrays)

    def die() -> None:
        os._exit(1)

    child = os.fork()
    if not child:
        open_npz(path, cache=cache, progress=Waiting(die))
    os.waitpid(child, 0)
    (half,) = left_in(cache)
    assert half.startswith(".")
    (cache / "store" / ".another.tmp").mkdir()
    assert np.array_equal(open_npz(path, cache=cache).test.images, arrays["test_images"])
    assert [name.startswith(".") for name in left_in(cache)] == [False]


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "Permission denied")]
)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    arrays: Arrays, save: Save, cache: Path, left_in: LeftIn, number: int, reason: str
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError, match=f"{reason}.*MEDDUET_CACHE"):
        open_npz(save(arrays), cache=cache, progress=Waiting(fail))
    assert left_in(cache) == []


def test_too_little_room_is_known_before_unpacking(
    arrays: Arrays, save: Save, cache: Path, left_in: LeftIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(arrays)
    pixels = 2 * sum(arrays[f"{split}_images"].size for split in ("train", "val", "test"))
    usage = shutil.disk_usage(path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=pixels - 1))
    with pytest.raises(StorageError, match="disk is full"):
        open_npz(path, cache=cache)
    assert left_in(cache) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * pixels))
    open_npz(path, cache=cache)
    with pytest.raises(StorageError, match="disk is full"):
        open_npz(path, cache=cache, size=64)
    assert len(left_in(cache)) == 1


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_store_damaged_by_hand(
    arrays: Arrays, save: Save, cache: Path, left_in: LeftIn, damage: Callable[[Path], object]
) -> None:
    path = save(arrays)
    open_npz(path, cache=cache)
    folder = cache / "store" / left_in(cache)[0]
    damage(folder / "val_images.npy")
    with pytest.raises(DataError, match="delete it") as caught:
        open_npz(path, cache=cache)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("size", [7, 10, 40])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_resized_as_pillow_does(
    arrays: Arrays, save: Save, cache: Path, size: int, channels: int
) -> None:
    if channels == 3:
        for split in ("train", "val", "test"):
            grey = arrays[f"{split}_images"]
            arrays[f"{split}_images"] = np.stack([grey, 255 - grey, grey // 2], axis=-1)
    images = open_npz(save(arrays), cache=cache, size=size)
    assert images.size == (size, size)
    assert images.info["original_size"] == [20, 24]
    for index, given in enumerate(images.val.images):
        picture = Image.fromarray(arrays["val_images"][index])
        expected = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
        assert np.array_equal(given, expected)
    assert np.array_equal(images.val.labels, arrays["val_labels"][:, 0])


@pytest.mark.parametrize("size", [7, 40])
def test_masks_keep_their_classes(arrays: Arrays, save: Save, cache: Path, size: int) -> None:
    for split in ("train", "val", "test"):
        shape = arrays[f"{split}_masks"].shape
        arrays[f"{split}_masks"] = np.where(np.arange(shape[2]) < 12, 0, 5).astype(np.uint8) * (
            np.ones(shape, np.uint8)
        )
        arrays[f"{split}_has_mask"] = np.ones(shape[0], np.bool_)
    images = open_npz(save(arrays), cache=cache, size=size)
    for index, given in enumerate(images.test.masks):
        picture = Image.fromarray(arrays["test_masks"][index])
        expected = np.asarray(picture.resize((size, size), Image.Resampling.NEAREST))
        assert np.array_equal(given, expected)
    assert set(np.unique(images.train.masks)) == {0, 5}
    assert images.train.has_mask.all()


# Opens argv[1] in the cache argv[2] and draws batches, while a thread watches the memory.
WATCHER = textwrap.dedent("""
    import sys, threading, time
    from pathlib import Path
    import numpy as np
    from medduet.data.npz import open_npz

    def resident():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    peak, done = [0.0], threading.Event()
    def watch():
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident())
    threading.Thread(target=watch, daemon=True).start()
    before = resident()
    images = open_npz(Path(sys.argv[1]), cache=Path(sys.argv[2]))
    for seed in range(20):
        batch = images.train.batch(np.random.default_rng(seed).integers(0, len(images.train), 16))
    done.set()
    print(len(images.train), tuple(batch.image.shape), before, max(peak[0], resident()), sep=";")
""")


def _write_big(path: Path, length: int) -> None:
    """Write a set whose train split has `length` images and masks of 224 x 224, all zero."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for split, count in (("train", length), ("val", 2), ("test", 2)):
            for kind, shape in (
                ("images", (count, 224, 224)),
                ("masks", (count, 224, 224)),
                ("labels", (count, 1)),
            ):
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                member = f"{split}_{kind}.npy"
                with archive.open(member, "w", force_zip64=True) as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    left = int(np.prod(shape))
                    while left:
                        left -= file.write(bytes(min(left, 1 << 20)))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_gigabyte_opens_in_little_memory(tmp_path: Path, cache: Path) -> None:
    path, length = tmp_path / "big.npz", 10_000
    _write_big(path, length)
    try:
        command = [sys.executable, "-c", WATCHER, str(path), str(cache)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
        stored = sum(file.stat().st_size for file in (cache / "store").rglob("*.npy"))
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    number, shape, before, peak = run.stdout.strip().split(";")
    assert (int(number), shape) == (length, "(16, 1, 224, 224)")
    assert stored > 1e9
    assert float(peak) < float(before) + 200, f"{before} MiB before, {peak} MiB at most"
