"""What near-duplicates across splits fake: reads the grid of benchmarks/grids/leak.yaml.

medduet benchmark benchmarks/grids/leak.yaml --out GRID
python benchmarks/leak.py GRID busi_seg_64.npz
"""

import csv
import sys
from collections import Counter

import numpy as np
from scipy import stats

from medduet import open_images
from medduet.data.duplicates import find_duplicates
from medduet.metrics.intervals import wilson
from medduet.runs.folder import RunFolder, find_runs


def repeated(run: RunFolder, groups: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return which test images have a near-duplicate in train, and which have one anywhere."""
    with (run.path / "split.csv").open(newline="") as file:
        split_of = {row["image"]: row["split"] for row in csv.DictReader(file)}
    train = {groups[image] for image, split in split_of.items() if split == "train"}
    with (run.path / "predictions" / "test.csv").open(newline="") as file:
        images = [row["image"] for row in csv.DictReader(file)]
    size = Counter(groups.values())
    in_train = np.array([groups[image] in train for image in images])
    return in_train, np.array([size[groups[image]] > 1 for image in images])


def interval(values: np.ndarray) -> str:
    """Return the mean and its 95% interval by Student's t over splits."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.3f} ({values.mean() - half:+.3f} to {values.mean() + half:+.3f})"


def main(grid: str, data: str) -> None:
    pool = open_images(data).pool()
    found = find_duplicates(open_images(data)).groups(len(pool))
    groups = dict(zip(pool.ids.tolist(), found.tolist(), strict=True))
    rows: dict[str, dict[str, list[float]]] = {"random": {}, "grouped": {}}
    right = {(kind, has): [0, 0] for kind in rows for has in (True, False)}
    for run in find_runs([grid]):
        kind = "random" if run.config["data"]["group_by"] == "none" else "grouped"
        test, answers = run.validation_selected["test"], run.predictions("test")
        again, anywhere = repeated(run, groups)
        values = {name: test[name] for name in ("accuracy", "auc", "dice_nonempty")}
        values["share of test images with a near-duplicate in train"] = float(again.mean())
        for name, value in values.items():
            rows[kind].setdefault(name, []).append(value)
        # Repeated pictures may be easy ones: in the grouped splits they show how easy.
        marked = again if kind == "random" else anywhere
        for has in (True, False):
            right[kind, has][0] += int(answers.correct[marked == has].sum())
            right[kind, has][1] += int((marked == has).sum())
    print("| measure | random split | grouped split | difference (95%, t over splits) |")
    print("| --- | --- | --- | --- |")
    for name in rows["random"]:
        one, two = (np.array(rows[kind][name]) for kind in ("random", "grouped"))
        shown = [f"{v.mean():.3f} ± {v.std(ddof=1):.3f}" for v in (one, two)]
        print(f"| {name} | {shown[0]} | {shown[1]} | {interval(one - two)} |")
    count = len(rows["random"]["accuracy"])
    print(f"\n{count} splits of each. Accuracy, over all judgements of test images that")
    where = {"random": "in train (random splits)", "grouped": "in test alone (grouped splits)"}
    for (kind, has), (good, judged) in right.items():
        low, high = wilson(good, judged)
        told = f"{good / judged:.3f} ({low:.3f} to {high:.3f}), n = {judged}"
        print(f"- {'have' if has else 'lack'} a near-duplicate {where[kind]}: {told}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
