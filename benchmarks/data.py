"""How fast batches come, MedDuet's way and with MedMNIST's own class, and what the data costs.

    python -m benchmarks.data [--quick]    # images per second, time to open, memory
    python -m benchmarks.data --memory     # training on sets that are large: `data_memory`

Both ways give batches of normalised float32 images on the CPU. MedDuet: rows of a memory map
gathered by `Split.batch`, normalised in the batch by the network's `Normalize`. MedMNIST, as its
examples use it: the package's Dataset (a PIL image each), ToTensor, Normalize(0.5, 0.5), torch's
DataLoader with 0, 2 and 4 workers that stay alive; of these the fastest counts. Both shuffle. They
take turns, each of them a second long and after the workers' store of batches is used up. The
process keeps the memory that it frees, as in training on a CPU, for both. The files are generated,
with the names, shapes and counts of the published ones.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from benchmarks.turns import span
from numpy.typing import NDArray

WORKERS = (0, 2, 4)
PREFETCHED = 2  # batches of each worker, torch's default


class Set(NamedTuple):
    """A set of MedMNIST at one size, and the ratio that is asked for."""

    flag: str
    size: int
    required: float | None

    @property
    def file(self) -> str:
        return f"{self.flag}.npz" if self.size == 28 else f"{self.flag}_{self.size}.npz"


SETS = (
    Set("pneumoniamnist", 28, 20),
    Set("bloodmnist", 28, None),
    Set("pneumoniamnist", 224, 5),
    Set("retinamnist", 224, None),
)


def smooth_images(
    number: int, size: int, channels: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return `number` smooth images; they compress about as real ones do."""
    from PIL import Image

    noise = rng.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    patterns = np.stack([Image.fromarray(each).resize((size, size)) for each in noise])
    images = patterns[rng.integers(len(patterns), size=number)]
    images += rng.integers(0, 256, (number, 1, 1, 3), dtype=np.uint8)
    return images if channels == 3 else np.ascontiguousarray(images[..., 0])


def generate(root: Path, data: Set) -> Path:
    """Write a file as MedMNIST publishes it into `root`, and return its path."""
    from medmnist import INFO

    info, rng, arrays = INFO[data.flag], np.random.default_rng(0), {}
    for split, number in info["n_samples"].items():
        arrays[f"{split}_images"] = smooth_images(number, data.size, info["n_channels"], rng)
        labels = rng.integers(0, len(info["label"]), (number, 1), dtype=np.uint8)
        arrays[f"{split}_labels"] = labels
    path = root / data.file
    np.savez_compressed(path, **arrays)
    return path


def medduet_batches(path: Path, cache: Path, batch: int) -> Iterator:
    """Give normalised batches without end."""
    from medduet import open_images
    from medduet.data.batches import train_batches
    from medduet.models.base import Normalize

    images = open_images(str(path), cache=cache)
    normalize = Normalize(images.in_channels)
    for epoch in count(1):
        for index in train_batches(len(images.train), batch, seed=0, epoch=epoch):
            yield normalize(images.train.batch(index).image)


def medmnist_batches(root: Path, data: Set, batch: int, workers: int) -> Iterator:
    """Give normalised batches without end."""
    from torch.utils.data import DataLoader

    options = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(medmnist_set(root, data, "train"), batch, shuffle=True, **options)
    while True:
        for image, _ in loader:
            yield image


def medmnist_set(root: Path, data: Set, split: str):
    import medmnist
    from torchvision import transforms

    kind = getattr(medmnist, medmnist.INFO[data.flag]["python_class"])
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    return kind(split, transform=steps, download=False, root=str(root), size=data.size)


def check_same(root: Path, data: Set) -> None:
    """Refuse to compare ways that give other numbers."""
    import torch

    from medduet import open_images
    from medduet.models.base import Normalize

    images = open_images(str(root / data.file), cache=root / "cache")
    ours = Normalize(images.in_channels)(images.train.batch(np.arange(4)).image)
    theirs = medmnist_set(root, data, "train")
    torch.testing.assert_close(ours, torch.stack([theirs[place][0] for place in range(4)]))


def rate(batches: Iterator, skip: int, seconds: float) -> float:
    """Return images per second, after `skip` batches."""
    for _ in range(skip):
        next(batches)
    images, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        images += len(next(batches))
    return images / spent


def speed(root: Path, data: Set, batch: int, rounds: int, seconds: float) -> str:
    """Return the row of the table for one set and batch size."""
    ways: dict[str, Callable[[], float]] = {}
    ours = medduet_batches(root / data.file, root / "cache", batch)
    ways["MedDuet"] = lambda: rate(ours, 2, seconds)
    for workers in WORKERS:
        theirs = medmnist_batches(root, data, batch, workers)
        skip = 2 + 2 * PREFETCHED * workers
        ways[str(workers)] = lambda theirs=theirs, skip=skip: rate(theirs, skip, seconds)
    for measure in ways.values():
        measure()  # starts workers, fills caches
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, measure in ways.items():
            rates[name].append(measure())
    best = max(map(str, WORKERS), key=lambda name: statistics.median(rates[name]))
    ratios = [own / other for own, other in zip(rates["MedDuet"], rates[best], strict=True)]
    others = " | ".join(
        f"**{span(rates[name], 0)}**" if name == best else span(rates[name], 0)
        for name in map(str, WORKERS)
    )
    asked = "" if data.required is None else f"{data.required:g}"
    return (
        f"| {data.flag} | {data.size} | {batch} | {span(rates['MedDuet'], 0)} | {others} | "
        f"{span(ratios, 1)} | {asked} |"
    )


def memory(kind: str) -> float:
    """Return the memory of this process in MB: `VmRSS` of all pages, `RssAnon` of its own."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(kind)]
    return int(line.split()[1]) / 1e3


def opening(way: str, root: Path, data: Set) -> None:
    """Print as JSON what opening all splits and reading train once takes, in this process."""
    import torch  # what both need is loaded before

    if way == "MedDuet":
        from medduet import open_images

        torch.zeros(1)

        def use() -> object:
            return open_images(str(root / data.file), cache=root / "cache")
    else:
        medmnist_set(root, SETS[0], "val")[0]

        def use() -> object:
            return [medmnist_set(root, data, split) for split in ("train", "val", "test")]

    before = {kind: memory(kind) for kind in ("VmRSS", "RssAnon")}
    started = time.perf_counter()
    opened = use()
    found = {"seconds": time.perf_counter() - started}
    images = opened.train.images if way == "MedDuet" else opened[0].imgs
    for place in range(0, len(images), 64):
        images[np.arange(place, min(place + 64, len(images)))].sum()
    print(json.dumps(found | {kind: memory(kind) - value for kind, value in before.items()}))


def openings(root: Path, data: Set, rounds: int) -> list[str]:
    """Return the rows of the table on opening for one set."""

    def measured(way: str) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.data", "--opening", way, str(root), data.file]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    found: dict[str, list[dict[str, float]]] = {"first": [], "MedDuet": [], "MedMNIST": []}
    for _ in range(rounds):
        shutil.rmtree(root / "cache", ignore_errors=True)
        found["first"].append(measured("MedDuet"))
        for way in ("MedDuet", "MedMNIST"):
            found[way].append(measured(way))
    names = {
        "first": "MedDuet, the first time",
        "MedDuet": "MedDuet, later",
        "MedMNIST": "MedMNIST, every time",
    }
    return [
        f"| {data.flag} | {data.size} | {names[way]} | {span([x['seconds'] for x in runs], 2)} | "
        f"{statistics.median(x['RssAnon'] for x in runs):,.0f} | "
        f"{statistics.median(x['VmRSS'] for x in runs):,.0f} |"
        for way, runs in found.items()
    ]


def main(quick: bool) -> None:
    import torch

    from medduet.utils.devices import keep_freed_memory

    keep_freed_memory()
    sets = SETS[:1] if quick else SETS
    rounds, seconds = (2, 0.2) if quick else (5, 1.0)
    warnings.filterwarnings("ignore", "This DataLoader will create 4 worker")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)", flush=True)
    rows, opened = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for data in dict.fromkeys((SETS[0], *sets)):
            generate(root, data)
            opened += openings(root, data, 2 if quick else 3)
            check_same(root, data)
            for batch in (64,) if quick else (16, 64, 128):
                rows.append(speed(root, data, batch, rounds, seconds))
                print(rows[-1], flush=True)
    print(f"\nImages per second: median of {rounds} rounds (range); the best of MedMNIST's in bold")
    print("| set | size | batch | MedDuet | no worker | 2 workers | 4 workers | ratio | asked |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    print("\nOpening all three splits, then reading train once; memory is what it adds")
    print("| set | size | | seconds | own memory, MB | with mapped files, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(opened))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one set, short turns")
    parser.add_argument("--memory", action="store_true", help="see data_memory")
    parser.add_argument("--opening", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.opening:
        way, root, file = chosen.opening
        opening(way, Path(root), {each.file: each for each in SETS}[file])
    elif chosen.memory:
        from benchmarks.data_memory import main as memory_main

        memory_main(chosen.quick)
    else:
        main(chosen.quick)
