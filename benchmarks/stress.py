"""What corruption does to networks, and what augmentation changes: the grid of grids/stress.yaml.

    OMP_NUM_THREADS=1 medduet benchmark benchmarks/grids/stress.yaml --out GRID
    OMP_NUM_THREADS=1 python -m benchmarks.stress GRID

Each run is stressed (once; ``RUN/stress`` is read again afterwards) on the test images of its set.
Means over all corruptions and severities are printed, with the spread over seeds, then the mean
rise of the balanced error by kind of corruption. `rBE` is the rise of the error as a share of that
of the plain vovunet_var of the same seed.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

import medduet
from medduet.runs.folder import RunFolder, find_runs
from medduet.utils.parsing import read_json

COLUMNS = ("accuracy", "balanced_error", "dice_nonempty", "ece")
BASELINE = ("vovunet_var", "none")


def stressed(run: RunFolder) -> dict[str, Any]:
    """Return the record of a run's stress test."""
    file = run.path / "stress" / f"{run.data_name}-test" / "stress.json"
    return read_json(file) if file.is_file() else medduet.stress(run.path, device="cpu")


def spread(values: list[float]) -> str:
    """Return the mean over seeds and their standard deviation."""
    if any(value is None for value in values):
        return ""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def main(folders: list[str]) -> None:
    found: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for run in find_runs([Path(each) for each in folders]):
        key = run.data_name, run.model_name, run.config["train"]["augment"]
        found[key][run.seed] = stressed(run)
    print("| data | network | augment | seeds | n | scores, clean -> corrupted | rBE |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (data, model, augment), records in found.items():
        shown = []
        for name in COLUMNS:
            clean, mean = (
                [record[part].get(name) for record in records.values()]
                for part in ("clean", "mean")
            )
            if None not in clean:
                shown.append(f"{name} {spread(clean)} -> {spread(mean)}")
        base = found[data, *BASELINE]
        shares = [
            record["mean"]["rise"] / base[seed]["mean"]["rise"]
            for seed, record in records.items()
            if seed in base and base[seed]["mean"]["rise"] > 0
        ]
        n = next(iter(records.values()))["clean"]["n"]
        told = spread(shares) if shares else ""
        print(
            f"| {data} | {model} | {augment} | {len(records)} | {n} | {'; '.join(shown)} | {told} |"
        )
    print("\n| data | network | augment | rise of the balanced error by kind of corruption |")
    print("| --- | --- | --- | --- |")
    for (data, model, augment), records in found.items():
        kinds: dict[str, list[float]] = defaultdict(list)
        for record in records.values():
            for each in record["corruptions"].values():
                kinds[each["kind"]].append(each["mean"]["rise"])
        told = ", ".join(f"{kind} {np.mean(values):+.3f}" for kind, values in kinds.items())
        print(f"| {data} | {model} | {augment} | {told} |")


if __name__ == "__main__":
    main(sys.argv[1:])
