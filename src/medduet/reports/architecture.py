"""The figure of a network, drawn from its anatomy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from medduet.reports.style import STYLE, WIDTH
from medduet.utils.palette import BLUE, FAINT, GREEN, GREY, INK, VERMILION

_HALF = 0.3  # of the height of a box, in levels


@rc_context(STYLE)
def architecture_figure(title: str, facts: str, anatomy: Mapping[str, Any]) -> Figure:
    """Draw the stages of a network with both heads, and the layers of one block.

    Args:
        title: name of the network.
        facts: a line below it.
        anatomy: see `medduet.models.stages.Anatomy`, as a mapping.

    Example:
        >>> maps = [(4, 32, 32), (8, 16, 16)]
        >>> figure = architecture_figure("tiny", "", {
        ...     "image": (1, 32, 32), "down": maps, "up": maps[:1], "classes": 2,
        ...     "dense": (1, 32, 32), "skip": "", "block": "first", "layers": ["3×3 conv → 8"]})
        >>> len(figure.axes)
        2
    """
    figure = Figure(figsize=(WIDTH, 4.3))
    axes = figure.add_axes((0.01, 0.02, 0.66, 0.84))
    text = figure.add_axes((0.69, 0.02, 0.3, 0.84))
    for each in (axes, text):
        each.set_axis_off()
    figure.text(0.015, 0.945, title, fontweight="bold", fontsize=11)
    figure.text(0.015, 0.895, facts, color=GREY, fontsize=8)
    _draw_stages(axes, anatomy)
    text.set_xlim(0, 1)
    text.set_ylim(0, 1)
    text.text(0, 0.97, f"One block ({anatomy['block']})", fontweight="bold", fontsize=8)
    lines = list(anatomy["layers"])
    step = min(0.058, 0.93 / max(len(lines), 1))
    for number, line in enumerate(lines):
        text.text(0, 0.905 - number * step, line, fontsize=min(7.0, 120 * step), va="center")
    return figure


def _draw_stages(axes: Axes, anatomy: Mapping[str, Any]) -> None:
    down, up, image = anatomy["down"], anatomy["up"], anatomy["image"]
    heights = sorted({each[1] for each in (*down, *up, image)}, reverse=True)
    level = {height: -float(number) for number, height in enumerate(heights)}
    axes.set_xlim(-0.35, 6.45)
    axes.set_ylim(-len(heights) + 0.25, 0.75)
    left, right = 1.6, 4.4
    for number, each in enumerate(down):
        _box(axes, left, level[each[1]], each, BLUE)
        if number:
            _arrow(axes, (left, level[down[number - 1][1]] - _HALF), (left, level[each[1]] + _HALF))
    if down[0][1] == image[1]:
        _arrow(axes, (left - 0.95, 0), (left - _width(down[0]) / 2, 0))
    else:
        _arrow(axes, (left, -0.05), (left, level[down[0][1]] + _HALF))
    at = (left - 0.95, 0) if down[0][1] == image[1] else (left, 0.12)
    _label(axes, at, _size("image", image), ha="right" if at[0] < left else "center")
    bottom, low = down[-1], level[down[-1][1]]
    before, start = bottom, (left + _width(bottom) / 2, low)
    for each in up:
        y = level[each[1]]
        _box(axes, right, y, each, GREEN)
        end = (right, y - _HALF) if before is not bottom else (right - _width(each) / 2, y - 0.12)
        _arrow(axes, start, end)
        _skip(axes, [d for d in down[:-1] if d[1] == each[1]], left, right, y, each, anatomy)
        before, start = each, (right, y + _HALF)
    dense = anatomy["dense"]
    _arrow(axes, (right + _width(up[-1]) / 2, level[up[-1][1]]), (right + 0.95, level[up[-1][1]]))
    at = (right + 1.0, level[up[-1][1]])
    _label(axes, at, _size("dense output", dense), ha="left", color=VERMILION)
    _arrow(axes, (left - _width(bottom) / 2, low), (left - 0.95, low))
    where = left - 1.0, low
    _label(axes, where, f"{anatomy['classes']} class\nscores", ha="right", color=VERMILION)


def _skip(
    axes: Axes,
    partners: Sequence[Sequence[int]],
    left: float,
    right: float,
    y: float,
    each: Sequence[int],
    anatomy: Mapping[str, Any],
) -> None:
    if not partners:
        return
    start, end = left + _width(partners[0]) / 2, right - _width(each) / 2
    axes.annotate(
        "",
        (end, y + 0.08),
        (start, y + 0.08),
        arrowprops={"arrowstyle": "-|>", "color": GREY, "linestyle": "--", "linewidth": 1},
    )
    if anatomy["skip"]:
        _label(axes, ((start + end) / 2, y + 0.24), anatomy["skip"], ha="center", color=GREY)


def _width(each: Sequence[int]) -> float:
    return 0.28 + 0.11 * math.log2(max(each[0], 1))


def _size(name: str, each: Sequence[int]) -> str:
    return f"{name}\n{each[0]} × {each[1]} × {each[2]}"


def _box(axes: Axes, x: float, y: float, each: Sequence[int], colour: str) -> None:
    width = _width(each)
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - _HALF),
            width,
            2 * _HALF,
            boxstyle="round,pad=0,rounding_size=0.07",
            facecolor=colour,
            edgecolor="none",
        )
    )
    axes.text(x, y + 0.07, str(each[0]), color="white", ha="center", va="center", fontsize=9)
    axes.text(
        x, y - 0.17, f"{each[1]}×{each[2]}", color=FAINT, ha="center", va="center", fontsize=6
    )


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.1})


def _label(axes: Axes, at: tuple[float, float], text: str, *, ha: str, color: str = INK) -> None:
    axes.text(*at, text, ha=ha, va="center", fontsize=7, color=color)
