"""Grids of images: each card with its texts, outlines and frame, and all of it on the paper."""

import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from medduet.reports.image_grid import prediction_grid
from medduet.utils.palette import TRUTH

LONG = ["basophil", "immature granulocytes (myelocytes, metamyelocytes)", "platelet $x$"]


def texts(figure: Figure) -> list[str]:
    shown = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        shown += [axes.get_title(loc="left"), axes.get_xlabel()]
    return shown + [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def inside(figure: Figure) -> bool:
    """Return whether all that is drawn lies within the paper."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= min(width, 8.01) and box.y1 <= height


def images(n: int, colour: bool = False) -> np.ndarray:
    shape = (n, 28, 32, 3) if colour else (n, 28, 32)
    return np.random.default_rng(n).integers(0, 256, shape, dtype=np.uint8)


def disc(n: int) -> np.ndarray:
    yy, xx = np.mgrid[:28, :32]
    return np.stack([((yy - 9) ** 2 + (xx - 9) ** 2 < 30 + i).astype(np.int64) for i in range(n)])


@pytest.mark.parametrize(
    ("n", "colour", "extras"),
    [(1, False, ""), (5, True, "t"), (5, True, "r"), (1, True, "tp"), (16, False, "tpr")],
)
def test_predictions(n: int, colour: bool, extras: str) -> None:
    picture, labels = images(n, colour), np.arange(n) % 3
    samples = {"images": picture}
    samples |= {"truth_masks": disc(n), "has_mask": np.ones(n, bool)} if "t" in extras else {}
    samples |= {"predicted_masks": disc(n)} if "p" in extras else {}
    samples |= {"reconstructions": picture} if "r" in extras else {}
    shares = np.full((n, 3), [0.98, 0.01, 0.01])
    figure = prediction_grid(samples, "A title", LONG, labels, shares)
    panels = {"": 1, "t": 1, "r": 2, "tp": 2, "tpr": 3}[extras]
    assert len(figure.axes) == n * panels
    right = labels == 0
    for axes, correct in zip(figure.axes[::panels], right, strict=True):
        assert axes.get_title(loc="left").endswith("→ basophil 98% ✓" if correct else " 98% ✗")
        assert axes.spines["left"].get_visible() != correct
    assert f"{right.sum()} of {n} correct" in texts(figure)
    assert ("truth" in texts(figure)) == ("t" in extras)
    outlines = sum(len(axes.collections) for axes in figure.axes)
    assert outlines == n * sum(extra in "tp" for extra in extras)
    assert inside(figure)


def test_unknown_and_multi_label_truth() -> None:
    probability = np.array([[0.6, 0.4], [0.3, 0.7]])
    figure = prediction_grid({"images": images(2)}, "", ["a", "b"], np.array([-1, 1]), probability)
    assert {"unknown\n→ a 60%", "b\n→ b 70% ✓", "1 of 1 correct"} <= set(texts(figure))
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, -1, 0], [-1, -1, -1]])
    predicted = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=float)
    figure = prediction_grid({"images": images(4)}, "", ["a", "b", "c"], labels, predicted)
    headings = {"a + c\n→ a ✗", "none\n→ none ✓", "a\n→ a + b ✓", "unknown\n→ none"}
    assert {*headings, "2 of 3 correct"} <= set(texts(figure))


def test_masks_without_labels() -> None:
    samples = {"images": images(3), "truth_masks": disc(3), "predicted_masks": disc(3) * 0}
    figure = prediction_grid(samples | {"has_mask": np.arange(3) > 0}, "")
    assert {"truth: unknown", "prediction: empty"} <= set(texts(figure))
    ignored = {"images": images(1), "truth_masks": disc(1) * 254 + 1, "has_mask": np.ones(1, bool)}
    figure = prediction_grid(ignored, "")
    assert {"ignored", "truth"} <= set(texts(figure))
    assert same_color(figure.axes[0].collections[0].get_edgecolor(), TRUTH)
    several = disc(2)
    several[:, 20:, :] = 3
    samples = {"images": images(2), "truth_masks": several, "predicted_masks": several}
    figure = prediction_grid(samples | {"has_mask": np.ones(2, bool)}, "")
    assert "truth" in texts(figure)
    assert all(len(axes.collections) == 2 for axes in figure.axes)
    assert inside(figure)
