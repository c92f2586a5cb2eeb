"""What a report says in words: what the tests found, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from medduet.reports.grouping import Runs
from medduet.reports.measures import MEASURES, Difference
from medduet.reports.verdict import EVIDENCE, shown_p, verdict
from medduet.reports.writer import Part
from medduet.utils.parsing import read_object

FEWEST_SEEDS = 3
MOST_SENTENCES = 6


def answer(runs: Runs, compared: dict[str, list[Difference]], paths: Sequence[str | Path]) -> Part:
    """Say in words what the tests found."""
    part = Part("In words")
    counts = {
        "finished run": sum(len(group.runs) for group in runs.groups.values()),
        "method": len(runs.methods),
        "data set": len(runs.datasets),
        "seed": len({seed for group in runs.groups.values() for seed in group.runs}),
    }
    part.text.append(
        f"{', '.join(counted(count, what) for what, count in counts.items())}. Every epoch was "
        "selected on the validation split unless a number says test-selected."
    )
    comparisons = sum(row.measure != "dice" for rows in compared.values() for row in rows)
    for dataset, rows in compared.items():
        for name, called in MEASURES.items():
            of = [row for row in rows if row.measure == name and not math.isnan(row.p)]
            if not of or name == "dice":
                continue
            if comparisons <= MOST_SENTENCES:
                part.text += [f"{dataset}: {_sentence(row)}" for row in of]
                continue
            found = [row for row in of if row.found]
            better = [row.method for row in found if row.difference < 0]
            worse = [row.method for row in found if row.difference > 0]
            said = [
                f"{word} than {of[0].reference}: {', '.join(names)}"
                for word, names in (("higher", better), ("lower", worse))
                if names
            ]
            rest = len(of) - len(found)
            over = " that every seed shares" if of[0].seeds.n > 1 else ""
            part.text.append(
                f"{dataset}, {called}, n = {of[0].n}: {'; '.join(said) or 'nothing found'}. "
                f"For {rest} of {len(of)} methods there is no evidence of a difference{over}."
            )
    part.text += [f"Failed: {line}" for line in _failures(paths)]
    part.text += runs.notes + _gaps(runs, paths)
    return part


def counted(count: int, what: str) -> str:
    """Return a number and what it counts, in the plural if need be."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def _sentence(row: Difference) -> str:
    """Return what the test over images says, and what the seeds add."""
    said = verdict(
        row.reference,
        row.method,
        MEASURES[row.measure],
        row.difference,
        row.interval,
        row.test,
        row.p_holm,
        row.n,
        correction="after Holm's correction",
    )
    seeds = row.seeds
    if seeds.n < FEWEST_SEEDS or math.isnan(seeds.p):
        return said
    scale, digits = (100, 1) if row.measure == "accuracy" else (1, 3)
    if row.difference < 0:  # as the sentence before puts it
        scale = -scale
    low, high = sorted(scale * bound for bound in seeds.interval)
    found = "evidence" if row.p_seeds_holm < EVIDENCE else "no evidence"
    return (
        f"{said} Over {seeds.n} seeds: {scale * seeds.difference:+.{digits}f} "
        f"({low:+.{digits}f} to {high:+.{digits}f}; paired t p {shown_p(row.p_seeds_holm)} after "
        f"Holm's correction): {found} that training again would tell them apart."
    )


def _failures(paths: Sequence[str | Path]) -> list[str]:
    """Return the errors of the cells that failed, where a folder is that of a grid."""
    lines = []
    for path in map(Path, paths):
        if (path / "grid.json").is_file():
            for file in sorted((path / "cells").glob("*.json")):
                failure = read_object(file)
                lines.append(f"{failure.get('cell')}: {failure.get('error')}")
    return lines


def _gaps(runs: Runs, paths: Sequence[str | Path]) -> list[str]:
    """Return what is missing: runs that go on, and seeds that others have."""
    unfinished = [
        folder.parent.name
        for path in map(Path, paths)
        for folder in sorted(path.rglob("checkpoints"))
        if (folder / "last.pt").is_file()
    ]
    lines = []
    if unfinished:
        lines.append(f"Not finished, and left out: {', '.join(unfinished)}.")
    for dataset in runs.datasets:
        groups = runs.of(dataset)
        most = max(len(group.runs) for group in groups)
        fewer = [f"{g.method} ({len(g.runs)})" for g in groups if len(g.runs) < most]
        if fewer:
            lines.append(f"{dataset}: fewer than {most} seeds of {', '.join(fewer)}.")
    return lines
