"""The one palette: lines of figures, masks over images, and heat maps.

The hues are those of Okabe and Ito, told apart with every common colour vision
(https://jfly.uni-koeln.de/color/), with three more where eight classes are not enough.
"""

from typing import Final

BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
GREEN: Final = "#009E73"
PURPLE: Final = "#CC79A7"
ORANGE: Final = "#E69F00"
SKY: Final = "#56B4E9"
YELLOW: Final = "#F0E442"
VIOLET: Final = "#6F4E7C"
OLIVE: Final = "#8A8A00"
SILVER: Final = "#BBBBBB"
INK, GREY, FAINT = "#1F2933", "#66717D", "#D9DEE3"

LINES: Final = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, VIOLET, OLIVE)
"""Colours of lines, bars and points on white, in order."""
MASKS: Final = (ORANGE, SKY, PURPLE, GREEN, YELLOW, VERMILION, BLUE, OLIVE, VIOLET, SILVER)
"""Colours of the foreground classes of a mask, in order: those that stand out on grey first."""
TRUTH: Final = SKY
PREDICTION: Final = ORANGE
HEAT: Final = "inferno"
"""matplotlib's colormap of heat maps."""


def mask_color(mask_class: int) -> tuple[int, int, int]:
    """Return red, green and blue of a mask class; background is black, after ten they repeat."""
    value = MASKS[(mask_class - 1) % len(MASKS)] if mask_class else "#000000"
    red, green, blue = bytes.fromhex(value[1:])
    return red, green, blue


def mask_colors(count: int) -> list[tuple[int, int, int]]:
    """Return red, green and blue of so many mask classes, background first."""
    return [mask_color(mask_class) for mask_class in range(count)]
