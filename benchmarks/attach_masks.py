"""How well masks find their images: the official BreastMNIST gets those of BUSI, a folder.

python benchmarks/attach_masks.py BUSI_FOLDER ANSWER.npz FOREIGN.npz breastmnist.npz ...

ANSWER.npz is BreastMNIST with ids such as ``train/benign (1)``, the name of each picture;
FOREIGN.npz is a set that has none of them.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from medduet import ImageSet, open_images
from medduet.data.attach import attach
from medduet.data.imageset import SPLITS


def views(folder: str) -> list[ImageSet]:
    return [open_images(folder, fit=fit, group_by="none") for fit in ("crop", "stretch")]


def half(images: ImageSet) -> ImageSet:
    pool = images.pool()
    rows = np.sort(np.random.default_rng(0).permutation(len(pool))[: len(pool) // 2])
    parts = zip(SPLITS, np.array_split(rows, 3), strict=True)
    return replace(images, **{name: pool.take(part) for name, part in parts})


def stems(names: pd.Series) -> pd.Series:
    return names.str.rpartition("/")[2].str.removesuffix(".png")


def judged(target: Path, sources: list[ImageSet], truth: pd.Series) -> str:
    with tempfile.TemporaryDirectory() as folder:
        table = attach(target, sources, Path(folder) / "out.npz")
    there = truth.isin(stems(pd.Series(sources[0].pool().ids)))
    matched = table["state"] == "matched"
    right = matched & (stems(table["source"]) == truth)
    ambiguous, unmatched = ((table["state"] == x).sum() for x in ("ambiguous", "unmatched"))
    return (
        f"{there.sum()} | {right.sum()} | {(matched & there & ~right).sum()} | "
        f"{(matched & ~there).sum()} of {(~there).sum()} | {ambiguous} | {unmatched}"
    )


def main(folder: str, answer: str, foreign: str, *targets: str) -> None:
    sources = views(folder)
    halves = [half(source) for source in sources]
    truth = stems(pd.Series(open_images(answer).pool().ids))
    print("| target | source | in it | right | wrong | of others | ambiguous | unmatched |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for target in targets:
        name = Path(target).stem
        print(f"| {name} | BUSI | {judged(Path(target), sources, truth)} |", flush=True)
        print(f"| {name} | half of it | {judged(Path(target), halves, truth)} |", flush=True)
    count = len(open_images(foreign).pool())
    nothing = pd.Series(["none"] * count)
    print(f"| {Path(foreign).stem} | BUSI | {judged(Path(foreign), sources, nothing)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
