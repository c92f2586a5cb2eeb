"""What each choice of `auto` is worth, paired by seed: reads the grid of grids/auto.yaml.

medduet benchmark benchmarks/grids/auto.yaml --datasets SET.npz ... --out AUTO
python benchmarks/ablation.py AUTO ...

Test metrics of the last epoch, and of the epoch that `auto` selects on val; the protocol `paper` is
what writes test metrics of every epoch.
"""

import sys
from collections import defaultdict

import numpy as np
from scipy import stats

from medduet.runs.folder import find_runs

MEASURES = {"accuracy": "accuracy", "auc": "AUC", "dice": "Dice"}
Scores = dict[str, dict[str, dict[int, dict[str, float]]]]  # by set, variant and seed


def scores_of(grids: list[str]) -> Scores:
    """Return the test metrics of the last epoch, and as ``selected NAME`` of the selected one."""
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    for run in find_runs(grids):
        variant = run.path.name.rpartition("-seed")[0].rpartition("_100-")[2]
        seed, dataset = run.config["train"]["seed"], run.path.name.partition("-")[0]
        epochs = run.epochs
        best = max(epochs, key=lambda row: row["val"]["score"])
        values = {name: epochs[-1]["test"][name] for name in MEASURES if name in best["test"]}
        values |= {f"selected {name}": best["test"][name] for name in values}
        scores[dataset][variant][seed] = values
    return scores


def difference(
    one: dict[int, dict[str, float]], two: dict[int, dict[str, float]], name: str
) -> str:
    """Return mean and 95% interval (t over seeds) of `one` minus `two`, and the p-value."""
    seeds = sorted(one.keys() & two.keys())
    gaps = np.array([one[seed][name] - two[seed][name.removeprefix("selected ")] for seed in seeds])
    if len(gaps) < 2:
        return f"{gaps.mean():+.3f}"
    half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
    p = 2 * stats.t.sf(
        abs(gaps.mean()) / max(half / stats.t.ppf(0.975, len(gaps) - 1), 1e-12), len(gaps) - 1
    )
    return f"{gaps.mean():+.3f} ({gaps.mean() - half:+.3f} to {gaps.mean() + half:+.3f}; {p:.2g})"


def main(grids: list[str]) -> None:
    for dataset, variants in scores_of(grids).items():
        auto = variants.pop("auto")
        names = [name for name in MEASURES if name in next(iter(auto.values()))]
        means = [f"{np.mean([row[name] for row in auto.values()]):.3f}" for name in names]
        print(f"\n{dataset}, {len(auto)} seeds")
        print(f"| | {' | '.join(MEASURES[name] for name in names)} |")
        print("| --- " * (len(names) + 1) + "|")
        print(f"| `auto`, last epoch | {' | '.join(means)} |")
        cells = [difference(auto, auto, f"selected {name}") for name in names]
        print(f"| epoch selected on val | {' | '.join(cells)} |")
        for variant, rows in variants.items():
            cells = [difference(rows, auto, name) for name in names]
            print(f"| {variant} ({len(rows)}) | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
