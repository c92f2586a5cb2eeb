"""The search for near-duplicates: time and memory on generated images, recall on real ones.

python benchmarks/duplicates.py 10000 30000 100000
python benchmarks/duplicates.py recall SET.npz

And the whole audit, of which the search is a part, of that many images of 64 pixels with masks:

python benchmarks/duplicates.py audit 100000
"""

from __future__ import annotations

import io
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

import medduet
from medduet import open_images
from medduet.data.duplicates import search_duplicates

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
    found = search_duplicates(images)
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    planted = int((found.pairs[:, 1] - found.pairs[:, 0] == len(images) - KNOWN).sum())
    others = len(found.pairs) - planted
    print(f"| {len(images):,} | {seconds:.0f} | {memory:.1f} | {planted} of {KNOWN} | {others} |")


SMALL = 64
BLANK = 50  # every so many images one is black, white or grey all over
STEP = 0.02  # seconds between two looks at the memory


def write_set(path: Path, count: int) -> None:
    """Write a set of `count` images as those of `write`, with labels and masks, as an .npz."""
    source = open_images("phantom", size=SMALL, count=1000)
    pool = source.pool()
    pixels, drawn = pool.images[:].astype(np.float32), pool.masks[:]
    rng = np.random.default_rng(0)
    images, masks = np.zeros((2, count, SMALL, SMALL), np.uint8)
    first, second = rng.integers(1000, size=(2, count))
    for row in range(count - KNOWN):
        turn, mirror, share = rng.integers(4), rng.choice([-1, 1]), rng.uniform(0.3, 0.7)
        one, two = np.rot90(pixels[first[row]], turn), pixels[second[row]][:, ::mirror]
        images[row] = share * one + (1 - share) * two
        masks[row] = np.rot90(drawn[first[row]], turn)
    images[::BLANK] = rng.choice([0, 128, 255], len(images[::BLANK]))[:, None, None]
    copies = slice(count - KNOWN, count)
    images[copies] = images[1 : KNOWN + 1] * 0.8 + 20
    masks[copies], first[copies] = masks[1 : KNOWN + 1], first[1 : KNOWN + 1]
    arrays = {"class_names": np.array(source.class_names), "mask_names": np.array(["no", "yes"])}
    ends = [0, round(0.7 * count), round(0.8 * count), count]
    for name, start, end in zip(("train", "val", "test"), ends[:-1], ends[1:], strict=True):
        rows = slice(start, end)
        arrays[f"{name}_images"], arrays[f"{name}_masks"] = images[rows], masks[rows]
        arrays[f"{name}_labels"] = pool.labels[first[rows]]
    np.savez(path, **arrays)


def anonymous() -> float:
    """Return the memory of this process that belongs to no file, in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**20


# Parts of an audit, by what its bar says: while there is that bar, and after it.
PARTS = {"check images": ("images and masks", "findings")}


def now() -> tuple[float, float]:
    """Return seconds on the clock, and those that processors worked for this process."""
    return time.perf_counter(), time.process_time()


class Parts:
    """Seconds, those of processors, and most anonymous memory of each part of an audit."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}
        self.begin("duplicates")

    def begin(self, name: str) -> None:
        self.last, self.began = self.found.setdefault(name, [0.0, 0.0, 0.0]), now()

    def end(self) -> None:
        for place, (start, end) in enumerate(zip(self.began, now(), strict=True)):
            self.last[place] += end - start

    def watch(self) -> None:
        while True:
            last = self.last
            last[2] = max(last[2], anonymous())
            time.sleep(STEP)

    def __call__(self, description: str, total: int) -> Parts:
        inner, self.after = PARTS.get(description, ("duplicates", "duplicates"))
        self.end()
        self.begin(inner)
        return self

    def update(self, amount: int) -> None:
        pass

    def close(self) -> None:
        self.end()
        self.begin(self.after)


def measure_audit(path: Path) -> None:
    """Audit, in a process of its own, and print what each part took."""
    images, audit = open_images(str(path), cache=path.parent / "cache"), medduet.audit  # imported
    before = anonymous()
    parts = Parts()
    threading.Thread(target=parts.watch, daemon=True).start()
    found = audit(images, cache=path.parent / "cache", progress=parts)
    parts.end()
    seconds, work, peaks = zip(*parts.found.values(), strict=True)
    print("| part | seconds | CPU seconds | peak anonymous memory, GiB |")
    print("| --- | --- | --- | --- |")
    print(f"| before | | | {before:.2f} |")
    for name, part in {**parts.found, "all": (sum(seconds), sum(work), max(peaks))}.items():
        print(f"| {name} | {part[0]:.1f} | {part[1]:.1f} | {part[2]:.2f} |")
    print("; ".join(finding.sentence for finding in found.findings))


def audit(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.npz"
        write_set(path, count)
        subprocess.run([sys.executable, __file__, "measure-audit", str(path)], check=True)


def _jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file))


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(small.resize(image.shape[::-1], Image.Resampling.BICUBIC))


def _cropped(image: np.ndarray, share: float) -> np.ndarray:
    edge = max(1, round(len(image) * share))
    return np.asarray(Image.fromarray(image[edge:-edge, edge:-edge]).resize(image.shape[::-1]))


CHANGES = {
    "JPEG, quality 50": _jpeg,
    "half the size and back": lambda image: _resized(image, len(image) // 2),
    "brightness times 0.7": lambda image: image * 0.7,
    "contrast times 1.3": lambda image: (image - 128.0) * 1.3 + 128,
    "gamma 0.8": lambda image: (image / 255) ** 0.8 * 255,
    "noise, s.d. 8": lambda image: image + np.random.default_rng(0).normal(0, 8, image.shape),
    "blur, 1 pixel": lambda image: ndimage.gaussian_filter(image, 1),
    "crop, 1% of each side": lambda image: _cropped(image, 0.01),
    "crop, 3% of each side": lambda image: _cropped(image, 0.03),
    "shift, 2 pixels": lambda image: np.roll(image, 2, axis=1),
}


def recall(data: str) -> None:
    """Print which share of changed copies of 200 images is found among all images."""
    pool = open_images(data).pool().images[:]
    places = np.linspace(0, len(pool) - 1, 200).astype(np.int64)
    groups = search_duplicates(pool).groups(len(pool))
    print("| change | found | pairs of unlike images |")
    print("| --- | --- | --- |")
    for name, change in CHANGES.items():
        changed = np.stack([change(image) for image in pool[places]])
        both = np.concatenate([pool, np.clip(changed, 0, 255).astype(np.uint8)])
        pairs = {tuple(pair) for pair in search_duplicates(both).pairs.tolist()}
        wanted = {(int(place), len(pool) + k) for k, place in enumerate(places)}
        origin = np.concatenate([np.arange(len(pool)), places])
        others = [pair for pair in pairs if groups[origin[pair[0]]] != groups[origin[pair[1]]]]
        print(f"| {name} | {len(pairs & wanted) / len(wanted):.3f} | {len(others)} |", flush=True)


def main(counts: list[int]) -> None:
    print("| images | seconds | peak memory, GiB | planted found | others |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.npy"
            write(path, count)
            subprocess.run([sys.executable, __file__, "measure", str(path)], check=True)


if __name__ == "__main__":
    if sys.argv[1] == "recall":
        recall(sys.argv[2])
    elif sys.argv[1] == "audit":
        audit(int(sys.argv[2]))
    elif sys.argv[1] == "measure-audit":
        measure_audit(Path(sys.argv[2]))
    elif sys.argv[1] == "measure":
        measure(Path(sys.argv[2]))
    else:
        main([int(word) for word in sys.argv[1:]])
