"""Is an image noticed that is none of its kind? The detector sees images alone, no network.

    python -m benchmarks.ood busi_seg_64.npz CHEST.npz       # in its own size
    python -m benchmarks.ood busi_seg_224.npz CHEST.npz 28

The detector of the first set is asked about its test images, which it should not flag, and about
images of other kinds: those of the second set (resized), noise, gradients, coloured noise, and
copies of its own: tinted, turned by 90 degrees, upside down, negative, four times as wide as high,
noisy, dark, and unsharp as images of 28 pixels are.
"""

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import medduet
from medduet.data.reading.core import ReadOptions
from medduet.data.reading.images import picture_of
from medduet.metrics.intervals import wilson
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


def main(file: str, chest_file: str, size: str | None = None) -> None:
    with np.load(chest_file) as arrays:
        chest = list(arrays["test_images"])[:COUNT]
    data = medduet.open_images(medduet.DataConfig(name=file, size=size and (int(size),)))
    train, val = (
        statistics(split.batch(np.arange(len(split))).image.numpy())
        for split in (data.train, data.val)
    )
    detector = OODDetector.fit(train, val, channels=data.in_channels, stretched=True)
    options = ReadOptions(data.size, "stretch", data.in_channels)
    print(f"{len(data.val)} validation images of {data.size[0]} pixels\n")
    print("| images | n | flagged (95% interval) |\n| --- | --- | --- |")
    for kind, images in other_kinds(list(data.test.images[:]), chest).items():
        pictures = [picture_of(image, options) for image in images]
        p = detector.p_values(statistics(np.stack([x.fitted for x in pictures])[:, None]))
        flagged = (p <= OOD_P) | [detector.odd(x.whole.shape[:2], x.coloured) for x in pictures]
        low, high = wilson(int(flagged.sum()), len(flagged))
        print(f"| {kind} | {len(flagged)} | {flagged.mean():.3f} ({low:.3f} to {high:.3f}) |")


if __name__ == "__main__":
    main(*sys.argv[1:])
