"""How well masks find their images: BUSI, reduced in several ways, gets its own masks back.

python benchmarks/attach_masks.py busi_seg_224.npz pneumoniamnist_28_reassembled.npz
"""

import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn.functional import interpolate

from medduet import ImageSet, open_images
from medduet.data.attach import attach
from medduet.data.imageset import SPLITS


def bicubic(images: np.ndarray, side: int) -> np.ndarray:
    made = [Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC) for x in images]
    return np.stack([np.asarray(x) for x in made])


def lanczos(images: np.ndarray, side: int) -> np.ndarray:
    made = [Image.fromarray(x).resize((side, side), Image.Resampling.LANCZOS) for x in images]
    return np.stack([np.asarray(x) for x in made])


def jpeg(images: np.ndarray, side: int) -> np.ndarray:
    made = []
    for image in bicubic(images, side):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=75)
        made.append(np.asarray(Image.open(file)))
    return np.stack(made)


def bilinear(images: np.ndarray, side: int) -> np.ndarray:
    grey = torch.tensor(images)[:, None].float()
    small = interpolate(grey, (side, side), mode="bilinear", antialias=True)
    return small[:, 0].round().to(torch.uint8).numpy()


def nearest(masks: np.ndarray, side: int) -> np.ndarray:
    made = [Image.fromarray(x).resize((side, side), Image.Resampling.NEAREST) for x in masks]
    return np.stack([np.asarray(x) for x in made])


def majority(masks: np.ndarray, side: int) -> np.ndarray:
    made = [Image.fromarray(255 * x).resize((side, side), Image.Resampling.BOX) for x in masks]
    return np.stack([np.asarray(x) for x in made]) >= 128


REDUCTIONS = {
    "Pillow bicubic": bicubic,
    "torch bilinear": bilinear,
    "Pillow Lanczos": lanczos,  # a filter that is not tried
    "bicubic, JPEG 75": jpeg,
}


def dice(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    both = (one * two).sum(axis=(1, 2))
    return 2 * both / (one.sum(axis=(1, 2)) + two.sum(axis=(1, 2)))


def write_target(path: Path, images: ImageSet, reduction: str, side: int) -> None:
    arrays = {}
    for name in SPLITS:
        split = images.split(name)
        arrays[f"{name}_images"] = REDUCTIONS[reduction](np.array(split.images), side)
        arrays[f"{name}_labels"] = split.labels[:, None]
    np.savez_compressed(path, **arrays)


def half(images: ImageSet) -> ImageSet:
    pool = images.pool()
    rows = np.random.default_rng(0).permutation(len(pool))[: len(pool) // 2]
    parts = zip(SPLITS, np.array_split(rows, 3), strict=True)
    return replace(images, **{name: pool.take(part) for name, part in parts})


def judge(table: pd.DataFrame, images: ImageSet, out: Path, side: int) -> str:
    """Return the cells of one row: counts, precision and Dice of the masks that were attached."""
    pool = images.pool()
    masks = pool.masks[:]
    place = {name: row for row, name in enumerate(pool.ids.tolist())}
    rows = np.array([place[name] for name in table["source"].tolist()])
    matched = (table["state"] == "matched").to_numpy()
    own = rows == np.arange(len(pool))
    same = own | (masks[rows] == masks).all(axis=(1, 2))
    with np.load(out) as file:
        given = np.concatenate([file[f"{name}_masks"] for name in SPLITS])
    lesion = (
        matched & nearest(masks, side).any(axis=(1, 2)) & majority(masks, side).any(axis=(1, 2))
    )
    agreement = [dice(given[lesion], by(masks, side)[lesion]).mean() for by in (nearest, majority)]
    ambiguous, unmatched = ((table["state"] == x).sum() for x in ("ambiguous", "unmatched"))
    return (
        f"{matched.mean():.4f} | {own[matched].mean():.4f} ({same[matched].mean():.4f}) | "
        f"{ambiguous} | {unmatched} | {agreement[0]:.3f} | {agreement[1]:.3f}"
    )


def match_table(images: ImageSet, folder: Path) -> None:
    print("| size | target | recall | precision | ambiguous | unmatched | Dice | Dice, majority |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for side in (28, 64):
        for reduction in REDUCTIONS:
            target, out = folder / "target.npz", folder / "out.npz"
            write_target(target, images, reduction, side)
            cells = judge(attach(target, [images], out), images, out, side)
            print(f"| {side} | {reduction} | {cells} |", flush=True)
            clear(folder)


def absent_table(images: ImageSet, xrays: Path, folder: Path) -> None:
    source = half(images)
    there = np.isin(images.pool().ids, source.pool().ids)
    print("\n| target | in the source: matched | not in the source: matched | of these |")
    print("| --- | --- | --- | --- |")
    for side in (28, 64):
        for reduction in REDUCTIONS:
            write_target(folder / "target.npz", images, reduction, side)
            found = attach(folder / "target.npz", [source], folder / "out.npz")
            matched = (found["state"] == "matched").to_numpy()
            ids, own = images.pool().ids, there & matched
            right = (found["source"].to_numpy()[own] == ids[own]).sum()
            cells = f"{right} of {there.sum()} | {(matched & ~there).sum()} | {(~there).sum()}"
            print(f"| BUSI at {side}, {reduction}, half of the source | {cells} |", flush=True)
            clear(folder)
    found = attach(xrays, [images], folder / "out.npz")
    print(f"| chest X-rays at 28 | | {(found['state'] == 'matched').sum()} | {len(found)} |")
    print(f"\nhighest score of an X-ray: {found['score'].max():.2f}")
    clear(folder)


def mask_table(images: ImageSet) -> None:
    masks = images.pool().masks[:]
    masks = masks[masks.any(axis=(1, 2))]
    print("\n| size | mask | Dice, enlarged again | area | lost |")
    print("| --- | --- | --- | --- | --- |")
    for side in (28, 64):
        for name, reduce in (("nearest", nearest), ("majority", majority)):
            small = reduce(masks, side)
            again = nearest(small.astype(np.uint8), masks.shape[1])
            area = again.sum(axis=(1, 2)) / masks.sum(axis=(1, 2))
            cells = f"{dice(again, masks).mean():.4f} | {area.mean():.3f} ± {area.std():.3f}"
            print(f"| {side} | {name} | {cells} | {(~small.any(axis=(1, 2))).sum()} |", flush=True)


def clear(folder: Path) -> None:
    for name in ("target.npz", "out.npz", "out.csv"):
        (folder / name).unlink(missing_ok=True)


def main(busi: Path, xrays: Path) -> None:
    images = open_images(str(busi))
    with tempfile.TemporaryDirectory() as folder:
        match_table(images, Path(folder))
        absent_table(images, xrays, Path(folder))
    mask_table(images)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
