"""The one palette: lines of figures, masks over images, and heat maps.

The hues are those of Okabe and Ito, told apart with every common colour vision
(https://jfly.uni-koeln.de/color/), with three more where eight classes are not enough.
"""

from itertools import cycle, islice
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
MASK_RGB: Final = [bytes.fromhex(color[1:]) for color in ("#000000", *islice(cycle(MASKS), 255))]
"""Red, green and blue of the 256 values of a mask: black, then those of `MASKS` again and again."""
TRUTH: Final = SKY
PREDICTION: Final = ORANGE
HEAT: Final = "inferno"
"""matplotlib's colormap of heat maps."""
