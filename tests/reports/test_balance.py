"""The figure of the balance shows the numbers of the epochs."""

from __future__ import annotations

import numpy as np

from medduet.reports.balance import balance_curves


def test_curves_are_the_numbers() -> None:
    rows = [
        {
            "epoch": epoch,
            "weights": {"classify": 0.5, "segment": epoch / 2},
            "conflict": {"classify-segment": None if epoch == 2 else -0.25},
        }
        for epoch in (1, 2, 3)
    ]
    figure = balance_curves(rows, "dwa")
    assert figure is not None
    weights, conflict = figure.axes
    assert weights.get_title(loc="left") == "Weight of each loss (dwa)"
    drawn = {line.get_label(): line.get_ydata() for line in weights.lines}
    assert list(drawn) == ["classify", "segment"]
    assert drawn["segment"].tolist() == [0.5, 1.0, 1.5]
    curve, zero = conflict.lines
    np.testing.assert_array_equal(curve.get_ydata(), [-0.25, np.nan, -0.25])
    assert set(zero.get_ydata()) == {0}


def test_what_is_not_known_has_no_panel() -> None:
    rows = [{"epoch": 1, "weights": {"classify": None}, "conflict": {"classify-segment": 0.5}}]
    figure = balance_curves(rows)
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["cosine on the encoder"]
    assert balance_curves([{"epoch": 1, "conflict": {"classify-segment": None}}]) is None
    assert balance_curves([{"epoch": 1}]) is None
