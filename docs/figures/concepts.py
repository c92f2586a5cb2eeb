"""Draw the figures of docs/concepts: python docs/figures/concepts.py [NAME ...].

Phantoms and simulated numbers only. Figures called chart-* have no pictures in them; the site turns
them dark with the page.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.nn.functional import interpolate

import medduet
from medduet.data.duplicates import SIDE, THRESHOLD, unit_vectors
from medduet.metrics.dense import overlap_scores
from medduet.metrics.intervals import wilson
from medduet.metrics.paired import mcnemar
from medduet.reports.style import STYLE, WIDTH, save
from medduet.utils.palette import BLUE, GREEN, GREY, VERMILION

IMAGES = Path(__file__).resolve().parents[1] / "images"
Pixels = NDArray[np.uint8]


def second_branch() -> Figure:
    """Draw what the second head is asked for: the image itself, or the outline of the lesion."""
    split = medduet.open_images("phantom", size=96, count=60, seed=3).test
    chosen = [int(np.flatnonzero(split.labels == label)[0]) for label in (1, 2, 0)]
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    axes = figure.subplots(3, 3)
    titles = ("image that goes in", "target of 'reconstruct'", "target of 'segment'")
    notes = ("a smooth lesion", "a spiculated lesion", "no lesion")
    for row, note, number in zip(axes, notes, chosen, strict=True):
        image, mask = np.asarray(split.images[number]), np.asarray(split.masks[number])
        for axis, shown in zip(row, (image, image, 255 * mask), strict=True):
            axis.imshow(shown, cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([]), axis.set_yticks([])
        row[0].set_ylabel(note)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    return figure


def selection() -> Figure:
    """Simulate how much the best of E epochs on the test split beats the truth."""
    rng, together = np.random.default_rng(0), 0.6
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axis = figure.subplots()
    epochs = np.array([1, 2, 5, 10, 25, 50, 100])
    border = 1.0364  # the normal quantile of 0.85, the true accuracy
    for n, colour in ((156, VERMILION), (624, BLUE), (3421, GREEN)):
        gaps = []
        for _ in range(max(20, 60000 // n)):
            shared = rng.standard_normal(n)[:, None] * np.sqrt(together)
            own = rng.standard_normal((n, epochs[-1])) * np.sqrt(1 - together)
            accuracy = (shared + own < border).mean(axis=0)
            runs = (accuracy.reshape(-1, count).max(axis=1).mean() for count in epochs)
            gaps.append([best - accuracy.mean() for best in runs])
        mean = 100 * np.mean(gaps, axis=0)
        axis.plot(epochs, mean, "o-", color=colour, label=f"{n:,} test images", markersize=4)
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks(epochs, [str(count) for count in epochs])
    axis.minorticks_off()
    axis.set_xlabel("epochs among which the best on the test split is reported")
    axis.set_ylabel("points above the truth")
    axis.set_title("Every epoch is equally good, and the best one seems better")
    axis.legend()
    return figure


def intervals() -> Figure:
    """Draw Wilson's interval over n, and the interval of a paired difference over agreement."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    sizes = 10 * np.unique(np.logspace(np.log10(5), 3, 40).round().astype(int))
    bounds = np.array([wilson(int(9 * n // 10), int(n)) for n in sizes]) * 100
    left.fill_between(sizes, *bounds.T, color=BLUE, alpha=0.2, linewidth=0)
    left.plot(sizes, bounds, color=BLUE, linewidth=1)
    left.axhline(90, color=GREY, linewidth=0.8)
    left.set_xscale("log")
    left.set_xticks([50, 156, 624, 3421, 10000], ["50", "156", "624", "3,421", "10,000"])
    left.minorticks_off()
    left.set_ylabel("accuracy, %")
    left.set_xlabel("test images")
    left.set_title("90% right: what else is possible")

    # Network a is right on 18 images more than b, of 600; they disagree on more and more images.
    for row, apart in enumerate((18, 30, 60, 120)):
        only_a, only_b = (apart + 18) // 2, (apart - 18) // 2
        both = 498 - only_a
        images = np.arange(600)
        right_a = images < 498
        right_b = (images < both) | ((images >= 498) & (images < 498 + only_b))
        found = mcnemar(right_a, right_b)
        low, high = (100 * bound for bound in found.interval)
        colour = BLUE if found.p < 0.05 else GREY
        right.plot([low, high], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        right.plot(100 * found.difference, row, "o", color=colour, markersize=5)
        p = f"p = {found.p:.2g}"
        right.annotate(p, (high, row), (6, 0), textcoords="offset points", va="center", fontsize=8)
    right.axvline(0, color=GREY, linewidth=0.8)
    right.set_yticks(range(4), ["18", "30", "60", "120"])
    right.set_xlim(-2, 9.5)
    right.invert_yaxis()
    right.set_ylabel("images on which one alone is right")
    right.set_xlabel("difference, points")
    right.set_title("3 points better, four times")
    return figure


def empty_masks() -> Figure:
    """Draw truth and prediction, with and without a lesion, and the Dice of each."""
    split = medduet.open_images("phantom", size=96, count=60, seed=3).test
    ill, well = (int(np.flatnonzero(split.labels == label)[0]) for label in (1, 0))
    mask = np.asarray(split.masks[ill])
    none, shifted = np.zeros_like(mask), np.roll(mask, 7, axis=1)
    small = np.zeros_like(mask)
    small[40:44, 60:64] = 1
    cases = [
        (ill, mask, shifted, "lesion, found"),
        (ill, mask, none, "lesion, missed"),
        (well, none, none, "none, none drawn"),
        (well, none, small, "none, false positive"),
    ]
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    for axis, (number, truth, drawn, title) in zip(figure.subplots(1, 4), cases, strict=True):
        axis.imshow(np.asarray(split.images[number]), cmap="gray", vmin=0, vmax=255)
        for shape, colour in ((truth, "#56B4E9"), (drawn, "#E69F00")):
            if shape.any():
                axis.contour(shape, [0.5], colors=[colour], linewidths=1.6)
        pair = (torch.from_numpy(part[None].astype(np.int64)) for part in (drawn, truth))
        score = overlap_scores(*pair, num_classes=2)["dice"].item()
        axis.set_title(title)
        named = "no Dice" if np.isnan(score) else f"Dice {score:.2f}"
        axis.set_xlabel(named, fontsize=10)
        axis.set_xticks([]), axis.set_yticks([])
    figure.suptitle("truth blue, prediction orange", x=0.01, ha="left", fontsize=8, color=GREY)
    return figure


def calibration() -> Figure:
    """Simulate a network that is too sure, and what temperature and sets make of it."""
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        logits = rng.normal(0, 1.2, (n, 4))
        true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        label = (true.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
        sharp = np.exp(2.5 * logits)
        return label, sharp / sharp.sum(axis=1, keepdims=True)

    found = medduet.Calibration.fit(*draw(500))
    label, before = draw(4000)
    after = found.calibrate(before)
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0.25, 1], [0.25, 1], color=GREY, linewidth=0.8)
    edges = np.linspace(0.25, 1, 11)
    for values, colour, name in ((before, VERMILION, "as trained"), (after, BLUE, "calibrated")):
        sure, hit = values.max(axis=1), values.argmax(axis=1) == label
        place = np.digitize(sure, edges[1:-1])
        points = [
            (sure[place == k].mean(), hit[place == k].mean())
            for k in range(10)
            if (place == k).sum() > 20
        ]
        left.plot(*np.transpose(points), "o-", color=colour, markersize=4, label=name)
    left.set_xlabel("confidence")
    left.set_ylabel("share that is right")
    left.set_title(f"Divided by a temperature of {found.temperature:.1f}")
    left.legend()
    coverages = np.arange(0.5, 1.0, 0.01).round(2)
    held, size = [], []
    for coverage in coverages:
        sets = found.sets(after, coverage)
        held.append(sets[np.arange(len(label)), label].mean())
        size.append(sets.sum(axis=1).mean())
    right.plot(100 * coverages, 100 * coverages, color=GREY, linewidth=0.8)
    right.plot(100 * coverages, 100 * np.array(held), color=BLUE, label="true class is in the set")
    right.set_xlabel("coverage asked for, %")
    right.set_ylabel("images whose set holds it, %", color=BLUE)
    other = right.twinx()
    other.spines.right.set_visible(True)
    other.plot(100 * coverages, size, color=GREEN)
    other.set_ylabel("classes in the set, mean", color=GREEN)
    other.set_ylim(1, 4)
    right.set_title("What a promise costs")
    return figure


def audit() -> Figure:
    """Draw a phantom, changes of it, and how alike the audit finds them."""
    images = np.asarray(medduet.open_images("phantom", size=96, count=60, seed=3).train.images)
    first, second = images[0].astype(float), images[5].astype(float)
    rng = np.random.default_rng(0)

    def cropped(by: int) -> NDArray[np.float64]:
        inner = torch.tensor(first[by:-by, by:-by])[None, None]
        return interpolate(inner, 96, mode="bilinear")[0, 0].numpy()

    cases = [
        ("the picture", first),
        ("brighter", np.clip(1.2 * first + 10, 0, 255)),
        ("with noise", np.clip(first + rng.normal(0, 12, first.shape), 0, 255)),
        ("cropped by 1 px", cropped(1)),
        ("cropped by 3 px", cropped(3)),
        ("mirrored", first[:, ::-1]),
        ("another phantom", second),
    ]
    small = [
        unit_vectors(np.uint8(picture)[None], (SIDE, SIDE), mode="area") for _, picture in cases
    ]
    vectors = torch.cat(small)
    figure = Figure(figsize=(WIDTH, 1.9), layout="constrained")
    for axis, (title, picture), like in zip(
        figure.subplots(1, 7), cases, (vectors @ vectors[0]).tolist(), strict=True
    ):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=7)
        same = like > THRESHOLD
        axis.set_xlabel(f"{like:.2f}: {'alike' if same else 'not alike'}", fontsize=7)
        axis.set_xticks([]), axis.set_yticks([])
    return figure


FIGURES: dict[str, tuple[Callable[[], Figure], str]] = {
    "second-branch": (second_branch, "concept-second-branch.png"),
    "selection": (selection, "chart-selection.svg"),
    "intervals": (intervals, "chart-intervals.svg"),
    "empty-masks": (empty_masks, "concept-empty-masks.png"),
    "calibration": (calibration, "chart-calibration.svg"),
    "audit": (audit, "concept-audit.png"),
}


def main() -> None:
    """Draw the figures that are named, or all."""
    for name in sys.argv[1:] or FIGURES:
        draw, file = FIGURES[name]
        with rc_context(STYLE):
            save(draw(), IMAGES / file, dpi=150)


if __name__ == "__main__":
    main()
