"""A comparison in one plain sentence."""

from __future__ import annotations

import math

from medduet.metrics.intervals import Interval

EVIDENCE = 0.05
"""Below this p a comparison is called evidence of a difference."""


def verdict(
    first: str,
    second: str,
    measure: str,
    difference: float,
    interval: Interval,
    test: str,
    p: float,
    n: int,
    *,
    correction: str = "",
    per: str = "images",
) -> str:
    """Return what a comparison says, and how sure it is, in one sentence.

    Without evidence it doesn't say that there is no difference, for none was shown either.

    Args:
        first: name of one network or method.
        second: of the other.
        measure: ``"accuracy"``, or another name as it is read, such as ``"Dice"``.
        difference: of first minus second.
        interval: of the difference, 95%.
        test: name of the test.
        p: its p; NaN where it can't be tested.
        n: how many were compared.
        correction: what was done to p, such as ``"after Holm's correction for 4 tests"``.
        per: what was compared.

    Example:
        >>> verdict("unet", "resnet", "accuracy", 0.045, (0.003, 0.087), "McNemar", 0.03, 156)
        'unet is right on 4.5 points more of the 156 images than resnet (95% interval 0.3 to 8.7; \
McNemar p = 0.030): evidence of a difference.'
        >>> verdict("unet", "resnet", "Dice", -0.02, (-0.05, 0.01), "permutation", 0.2, 9)
        'resnet has a Dice 0.0200 higher than unet over 9 images (95% interval -0.0100 to 0.0500; \
permutation p = 0.20): no evidence of a difference.'
    """
    low, high = interval
    if difference < 0:
        first, second, difference, low, high = second, first, -difference, -high, -low
    points, places = measure == "accuracy", 5 if measure == "MSE" else 4
    if points:
        difference, low, high, places = 100 * difference, 100 * low, 100 * high, 1
    amount = f"{difference:.{places}f}"
    if math.isnan(difference):
        return f"{first} and {second}: {measure} can't be compared over {n} {per}."
    if float(amount) == 0:
        claim = f"{first} and {second} have about the same {measure} over {n} {per}"
    elif points:
        claim = f"{first} is right on {amount} points more of the {n} {per} than {second}"
    else:
        claim = f"{first} has {_article(measure)} {measure} {amount} higher than {second}"
        claim += f" over {n} {per}"
    known = not math.isnan(low)
    bounds = f"95% interval {low:.{places}f} to {high:.{places}f}; " if known else ""
    if math.isnan(p):
        return f"{claim} ({bounds}too few {per} for a test): no evidence of a difference."
    found = "evidence" if p < EVIDENCE else "no evidence"
    after = f" {correction}" if correction else ""
    return f"{claim} ({bounds}{test} p {shown_p(p)}{after}): {found} of a difference."


def _article(word: str) -> str:
    return "an" if word.startswith(("A", "I", "MSE")) else "a"


def shown_p(p: float) -> str:
    """Return a p value as it is read, with its sign.

    Example:
        >>> shown_p(0.2), shown_p(0.0304), shown_p(0.00001)
        ('= 0.20', '= 0.030', '< 0.001')
    """
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.2f}" if p >= 0.1 else f"= {p:.3f}"
