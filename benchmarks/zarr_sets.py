"""How fast a zarr store is read, from a folder and a server on loopback, against a memory map.

python -m benchmarks.zarr_sets --quick

Each way reads the same images in the order of training, batch by batch, in turns (A B C A B C
...); the medians are told, and their ratio to the memory map in its own order. Every round opens
the store anew, so that nothing is in memory; shards are read ahead as in training.
"""

import argparse
import http.server
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medduet.config import DataConfig
from medduet.data.batches import train_batches
from medduet.data.imageset import ImageSet, Split
from medduet.data.zarr_store import open_zarr, write_zarr

BATCH = 64


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None: ...


def make_set(folder: Path, side: int, channels: int, count: int, masks: bool) -> ImageSet:
    """A memory-mapped set; its pixels are noise on a gradient, as pixels don't matter here."""
    rng = np.random.default_rng(0)
    tail = (side, side) if channels == 1 else (side, side, channels)
    base = rng.integers(0, 200, tail, dtype=np.uint8)
    images = np.lib.format.open_memmap(folder / "i.npy", "w+", np.uint8, (count, *tail))
    for row in range(count):
        images[row] = base + np.uint8(row % 50)
    images.flush()
    lesions = None
    if masks:
        lesions = np.zeros((count, side, side), np.uint8)
        lesions[:, side // 4 : side // 2, side // 4 : side // 2] = 1
    mapped = np.load(folder / "i.npy", mmap_mode="r")
    labels = np.arange(count) % 2

    def some(rows: slice) -> Split:
        return Split(mapped[rows], labels[rows], None if lesions is None else lesions[rows])

    few = slice(0, 2)
    names = ("background", "lesion") if masks else ()
    whole = some(slice(None))
    return ImageSet("bench", whole, some(few), some(few), ("a", "b"), names, False, "0", {})


def epoch(split: Split, epoch: int) -> float:
    """Images per second of one epoch, as training gathers them."""
    started = time.perf_counter()
    batches = train_batches(len(split), BATCH, seed=0, epoch=epoch, shards=split.shard_sizes)
    split.expect(batches)
    for index in batches:
        split.batch(index)
    return len(split) / (time.perf_counter() - started)


def measure(side: int, channels: int, count: int, masks: bool, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = make_set(folder, side, channels, count, masks)
        started = time.perf_counter()
        out = write_zarr(images, folder / "set.zarr", shard_mb=8)
        writing = count / (time.perf_counter() - started)
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(_Quiet, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def read(source: str, number: int) -> float:
            return epoch(open_zarr(DataConfig(name=source, cache_gb=0)).train, number)

        url = f"http://127.0.0.1:{server.server_port}/set.zarr"
        ways: dict[str, Callable[[int], float]] = {
            "memory map": lambda number: epoch(images.train, number),
            "folder": partial(read, str(out)),
            "server": partial(read, url),
        }
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(1, rounds + 1):
            for way, run in ways.items():
                speeds[way].append(run(number))
        server.shutdown()
        server.server_close()
        medians = {way: statistics.median(values) for way, values in speeds.items()}
        on_disk = {
            kind: sum(p.stat().st_size for p in (out / "train" / kind / "c").rglob("*")) / count
            for kind in ("images", "masks")
        }
    return {
        "side": side,
        "channels": channels,
        "images": count,
        "written_per_second": round(writing),
        "images_per_second": {way: round(value) for way, value in medians.items()},
        "ratio": {way: round(value / medians["memory map"], 2) for way, value in medians.items()},
        "spread": {way: [round(min(v)), round(max(v))] for way, v in speeds.items()},
        "bytes_per_image": {kind: round(value, 1) for kind, value in on_disk.items() if value},
    }


def order_costs() -> dict[str, Any]:
    """Seconds and bytes of the order of one epoch: of all images, and shard by shard."""
    import tracemalloc

    costs = {}
    for count in (10**6, 10**7):
        for name, shards in (("whole", None), ("shards", np.full(count // 500, 500))):
            tracemalloc.start()
            started = time.perf_counter()
            train_batches(count, BATCH, seed=0, epoch=1, shards=shards)
            seconds = time.perf_counter() - started
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            costs[f"{name} {count:.0e}"] = {
                "seconds": round(seconds, 3),
                "mb": round(peak / 1e6, 1),
            }
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    quick = parser.parse_args().quick
    scale, rounds = (1, 3) if quick else (3, 7)
    for side, channels, count, masks in (
        (28, 3, 30_000, False),
        (224, 1, 2_000, True),
        (224, 3, 1_000, False),
    ):
        print(json.dumps(measure(side, channels, count * scale, masks, rounds), indent=2))
    print(json.dumps(order_costs(), indent=2))


if __name__ == "__main__":
    main()
