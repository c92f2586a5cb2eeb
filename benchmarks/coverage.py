"""Do conformal sets hold what they promise on test images? Reads the grid of grids/coverage.yaml.

    OMP_NUM_THREADS=1 medduet benchmark benchmarks/grids/coverage.yaml --out GRID
    OMP_NUM_THREADS=1 python -m benchmarks.coverage GRID

Takes any finished runs, of older versions too: the calibration is fitted here, on the validation
predictions of each run, and judged on its test predictions. Intervals are Wilson's at the mean over
seeds and the number of test images, which all seeds share.

The last column shows what `medduet calibrate` on images from the place of use would do: the
calibration is fitted on a random half of the test images and judged on the other half, mean over
seeds and 50 halves.
"""

import sys
from collections import defaultdict

import numpy as np

from medduet.metrics.intervals import wilson
from medduet.runs.folder import RunFolder, find_runs
from medduet.uncertainty.calibration import Calibration, calibration_summary

HALVES = 50


def judged(run: RunFolder) -> dict:
    """Return what the calibration of a run gives on its test split."""
    val, test = run.predictions("val"), run.predictions("test")
    calibration = Calibration.fit(val.label, val.probability, val.label.ndim == 2)
    names = run.data["class_names"]
    return calibration_summary(calibration, test.label, test.probability, names) | {
        "accuracy": (
            run.validation_selected["val"]["accuracy"],
            run.validation_selected["test"]["accuracy"],
        ),
        "half": on_half_of_test(run),
        "val": dict(zip(names, calibration.counts, strict=True)),
    }


def on_half_of_test(run: RunFolder) -> dict[str, dict[str, float]]:
    """Return the coverage if half of the test images are given up to fit the calibration on.

    By promise and class, the mean over random halves of what is held in the other half.
    """
    test, rng = run.predictions("test"), np.random.default_rng(run.seed)
    names = run.data["class_names"]
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(HALVES):
        place = rng.permutation(len(test.index))
        one, other = np.array_split(place, 2)
        calibration = Calibration.fit(test.label[one], test.probability[one], test.label.ndim == 2)
        told = calibration_summary(calibration, test.label[other], test.probability[other], names)
        for key, sets in told["sets"].items():
            for name, part in {"all": sets, **sets["per_class"]}.items():
                found[key][name].append(part["coverage"])
    return {
        key: {name: float(np.mean(values)) for name, values in of.items()}
        for key, of in found.items()
    }


def spread(values: list[float], digits: int = 3) -> str:
    """Return the mean over seeds and their standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def coverage_rows(name: str, rows: list[dict]) -> None:
    """Print what the sets hold, overall and per class."""
    for key in rows[0]["sets"]:
        sets = [row["sets"][key] for row in rows]
        parts = {"all": sets}
        parts |= {each: [row["per_class"][each] for row in sets] for each in sets[0]["per_class"]}
        for each, part in parts.items():
            n, shares = part[0]["n"], [row["coverage"] for row in part]
            low, high = wilson(round(np.mean(shares) * n), n)
            val = sum(rows[0]["val"].values()) if each == "all" else rows[0]["val"][each]
            sizes = spread([row["size"] for row in part], 2)
            print(
                f"| {name} | {key} | {each} | {spread(shares)} ({low:.3f} to {high:.3f}) | {sizes} "
                f"| {val} | {n} | {np.mean([row['half'][key][each] for row in rows]):.3f} |"
            )


def main(paths: list[str]) -> None:
    found: dict[str, list[dict]] = defaultdict(list)
    for run in find_runs(paths):
        found[run.data_name].append(judged(run))
    print("| data | seeds | accuracy, val | accuracy, test | T | ECE before | ECE after | n |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, rows in found.items():
        val, test = (spread([row["accuracy"][i] for row in rows]) for i in (0, 1))
        temperature = spread([row["temperature"] for row in rows], 2)
        before, after = (
            spread([row[f"ece_{kind}"] for row in rows]) for kind in ("before", "after")
        )
        print(
            f"| {name} | {len(rows)} | {val} | {test} | {temperature} | {before} | {after} "
            f"| {rows[0]['n']} |"
        )
    print(
        "\n| data | promised | class | held | classes in the set | n val | n test "
        "| held, if fitted on half of test |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, rows in found.items():
        coverage_rows(name, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
