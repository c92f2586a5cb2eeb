"""Whether a difference is more than chance: paired tests over images, seeds and data sets."""

from medduet.report.statistics.images import (
    EXACT_BELOW,
    DeLong,
    McNemar,
    OverImages,
    delong,
    mcnemar,
    over_images,
)
from medduet.report.statistics.repeats import (
    OverSeeds,
    OverSets,
    PairOverSets,
    holm,
    merge_p,
    over_seeds,
    over_sets,
)
from medduet.report.statistics.verdict import EVIDENCE, shown_p, verdict

__all__ = [
    "EVIDENCE",
    "EXACT_BELOW",
    "DeLong",
    "McNemar",
    "OverImages",
    "OverSeeds",
    "OverSets",
    "PairOverSets",
    "delong",
    "holm",
    "mcnemar",
    "merge_p",
    "over_images",
    "over_seeds",
    "over_sets",
    "shown_p",
    "verdict",
]
