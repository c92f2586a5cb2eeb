"""Does a network notice that an image is none of its kind? Reads finished runs on BUSI.

    OMP_NUM_THREADS=1 medduet benchmark benchmarks/grids/ood.yaml --out GRID
    OMP_NUM_THREADS=1 python -m benchmarks.ood GRID CHEST.npz

Each run is asked about the test images that it was judged on, which it should not flag, and about
images of other kinds: chest X-rays (resized), noise, gradients, coloured noise, and copies of its
own images: tinted, turned by 90 degrees, upside down, negative, four times as wide as high, noisy,
dark, and unsharp as the X-rays are. Printed are the share that is flagged, mean over the seeds,
with its Wilson interval at the n of one of them, and the range over seeds; then the same for each
of the two distances alone.
"""

import sys
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import medduet
from medduet.metrics.intervals import wilson
from medduet.runs.folder import RunFolder, find_runs
from medduet.uncertainty.ood import OOD_P, OODDetector, statistics

COUNT = 156
Images = list[NDArray[np.uint8]]


def other_kinds(own: Images, chest: Images) -> dict[str, Images]:
    """Return images by what they are."""
    rng, side = np.random.default_rng(0), own[0].shape[0]

    def resized(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    def gradient(_: NDArray[np.uint8]) -> NDArray[np.uint8]:
        y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
        waves = sum(
            np.sin(rng.uniform(0.5, 3) * (x * np.cos(a) + y * np.sin(a)) + rng.uniform(0, 6))
            for a in rng.uniform(0, np.pi, 3)
        )
        return (255 * (waves - waves.min()) / np.ptp(waves)).astype(np.uint8)

    def noise(_: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return rng.integers(0, 256, (side, side), np.uint8)

    def colour_noise(_: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return rng.integers(0, 256, (side, side, 3), np.uint8)

    def tinted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return (image[:, :, None] * rng.uniform(0.2, 1, 3)).astype(np.uint8)

    made: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
        "noise": noise,
        "gradients": gradient,
        "colour noise": colour_noise,
        "own, tinted": tinted,
        "own, turned by 90 degrees": lambda image: np.rot90(image).copy(),
        "own, upside down": lambda image: image[::-1].copy(),
        "own, negative": lambda image: 255 - image,
        "own, four times as wide": lambda image: resized(image, side, 4 * side),
        "own, 20% noisier": lambda image: (
            (image + rng.normal(0, 51, image.shape)).clip(0, 255).astype(np.uint8)
        ),
        "own, dark (a quarter)": lambda image: image // 4,
        "own, through 28 pixels": lambda image: resized(resized(image, 28, 28), side, side),
    }
    kinds = {"own test images (false alarms)": own}
    kinds["chest X-rays"] = [resized(image, side, side) for image in chest]
    return kinds | {name: [make(image) for image in own] for name, make in made.items()}


def flagged(predictor: medduet.Predictor, images: Images) -> dict[str, NDArray[np.bool_]]:
    """Return which images are flagged: as predict does, and by each distance alone."""
    answers = list(predictor.predict(images))
    known, fitted = predictor.config.ood, [next(iter(predictor.read(each))) for each in images]
    found = {"both": np.array([answer.is_ood for answer in answers])}
    stack = np.stack([picture.fitted for picture in fitted])[:, None]
    found["plain statistics"] = known.p_values(None, statistics(stack)) <= OOD_P
    predictor._run(stack)
    alone = OODDetector(plain=known.features)
    found["class head"] = alone.p_values(None, predictor._features()) <= OOD_P
    return found


def main(folder: str, chest_file: str) -> None:
    with np.load(chest_file) as arrays:
        chest = list(arrays["test_images"])[:COUNT]
    found = defaultdict(list)
    for run in find_runs([folder]):
        found[run.data["size"][0]].append(run)
    for side, runs in found.items():
        print(f"## {side} pixels\n")
        show(runs, chest)


def show(runs: list[RunFolder], chest: Images) -> None:
    told: dict[str, dict[str, list[NDArray[np.bool_]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        config = run.config["data"]
        data = medduet.DataConfig(name=config["name"], size=config["size"])
        own = list(medduet.open_images(data).test.images[:])
        predictor = medduet.Predictor(run.path, device="cpu")
        for kind, images in other_kinds(own, chest).items():
            for how, those in flagged(predictor, images).items():
                told[how][kind].append(those)
    count = len(predictor.config.ood.plain.val_distances)
    print(f"{len(runs)} networks; validation images: {count}\n")
    for how, kinds in told.items():
        print(f"| images, flagged by {how} | n x seeds | flagged (95% interval) | over seeds |")
        print("| --- | --- | --- | --- |")
        for kind, rows in kinds.items():
            n, share = len(rows[0]), [float(row.mean()) for row in rows]
            # The seeds share the images: the interval is that of one of them.
            low, high = wilson(round(np.mean(share) * n), n)
            print(
                f"| {kind} | {n} x {len(rows)} | {np.mean(share):.3f} ({low:.3f} to {high:.3f}) "
                f"| {min(share):.3f} to {max(share):.3f} |"
            )
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
