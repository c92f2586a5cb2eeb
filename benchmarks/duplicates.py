"""Time and memory of the search for near-duplicates, on generated images in a temporary folder.

python benchmarks/duplicates.py 10000 30000 100000
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from medduet import open_images
from medduet.data.duplicates import find_duplicates

SIZE = 224
KNOWN = 100  # near-duplicates that are planted


def write(path: Path, count: int) -> None:
    """Write `count` images: turned, mirrored and mixed from a thousand phantoms."""
    pool = open_images("phantom", size=SIZE, count=1000).pool().images[:].astype(np.float32)
    rng = np.random.default_rng(0)
    shape = (count, SIZE, SIZE)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for row in range(count - KNOWN):
        one, two = pool[rng.integers(1000, size=2)]
        share = rng.uniform(0.3, 0.7)
        mixed = (
            share * np.rot90(one, rng.integers(4)) + (1 - share) * two[:, :: rng.choice([-1, 1])]
        )
        images[row] = mixed.astype(np.uint8)
    images[count - KNOWN :] = (images[:KNOWN] * 0.8 + 20).astype(np.uint8)
    images.flush()


def measure(path: Path) -> None:
    """Search, in a process of its own, and print what it took."""
    images = np.load(path, mmap_mode="r")
    started = time.perf_counter()
    found = find_duplicates(images)
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    planted = int((found.pairs[:, 1] - found.pairs[:, 0] == len(images) - KNOWN).sum())
    others = len(found.pairs) - planted
    print(f"| {len(images):,} | {seconds:.0f} | {memory:.1f} | {planted} of {KNOWN} | {others} |")


def main(counts: list[int]) -> None:
    print("| images | seconds | peak memory, GiB | planted found | others |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.npy"
            write(path, count)
            subprocess.run([sys.executable, __file__, "measure", str(path)], check=True)


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(Path(sys.argv[2]))
    else:
        main([int(word) for word in sys.argv[1:]])
