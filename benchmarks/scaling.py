"""What training costs against the side of the images, the batch, the width, their number, ranks.

    python -m benchmarks.scaling [--quick] [--rounds 5] [--out FILE.json] [--only 'volume side']

`medduet.train` on phantoms of three channels, or volumes of one, VovUnet_Var with class and
reconstruction, all else as it comes, on the CPU. Each point is a fresh process and they take turns.
One thing changes at a time; the power with which the cost grows is by least squares on the
logarithms of the medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from benchmarks.turns import Runs, in_turns, machine, span


class Point(NamedTuple):
    """What is trained: side in pixels, batch, width, steps that count, ranks, dimensions."""

    side: int = 64
    batch: int = 16
    width: int = 16
    steps: int = 6
    ranks: int = 1
    dims: int = 2


SERIES: dict[str, tuple[str, list[Point]]] = {
    "image side": ("side", [Point(side=side) for side in (32, 64, 128, 256)]),
    "volume side": ("side", [Point(side, 2, 8, dims=3) for side in (16, 24, 32, 48)]),
    "batch": ("batch", [Point(batch=batch) for batch in (4, 8, 16, 32, 64)]),
    "width": ("width", [Point(width=width) for width in (8, 16, 32, 64)]),
    "images in an epoch": (
        "steps",
        [Point(side=28, width=8, steps=steps) for steps in (16, 64, 256)],
    ),
    "ranks": ("ranks", [Point(batch=32, ranks=ranks) for ranks in (1, 2)]),
}
QUICK: dict[str, tuple[str, list[Point]]] = {
    "image side": ("side", [Point(side=side, steps=2, width=4) for side in (16, 32)]),
    "ranks": ("ranks", [Point(side=16, width=4, steps=2, ranks=ranks) for ranks in (1, 2)]),
}
WARM = 2
"""Steps that don't count."""


def one(point: Point) -> None:
    """Train in this process, or as one rank of several; print the seconds of an image as JSON."""
    import medduet
    from medduet.training.reporter import Reporter

    seconds: list[float] = []
    stop = threading.Event()

    class Clock(Reporter):
        started = time.perf_counter()

        def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
            seconds.append(time.perf_counter() - self.started)
            self.started = time.perf_counter()
            if len(seconds) == WARM + point.steps - 1:
                stop.set()

    count = -(-point.batch * (WARM + point.steps + 1) * 10 // 7)
    out = Path(os.environ["SCALING_OUT"])
    images = {"name": "phantom", "channels": 3} if point.dims == 2 else {"name": "phantom3d"}
    data = medduet.DataConfig(**images, size=point.side, count=count)
    config = medduet.RunConfig().model_copy(
        update={
            "data": data,
            "model": medduet.ModelConfig(width=point.width),
            "train": medduet.TrainConfig(batch_size=point.batch, device="cpu"),
            "out": out / "run",
        }
    )
    try:
        medduet.train(config, reporter=Clock(), stop=stop)
    except medduet.errors.Interrupted:
        if os.environ.get("RANK", "0") == "0":
            counted = seconds[WARM:]
            spent = sum(counted) if point.steps > 20 else statistics.median(counted) * len(counted)
            print(json.dumps({"image": spent / (len(counted) * point.batch)}))


def in_ranks(words: list[str]) -> None:
    """Measure one point, under torchrun if it has several ranks."""
    point = Point(*map(int, words))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SCALING_OUT"] = folder
        if point.ranks == 1 or "RANK" in os.environ:
            one(point)
            return
        threads = max(1, (os.cpu_count() or 1) // point.ranks)
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={point.ranks}"]
        command = [sys.executable, "-m", *launcher, "-m", "benchmarks.scaling", "--rank", *words]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        print(done.stdout.splitlines()[-1])


def slope(values: list[int], costs: list[float]) -> float:
    """Return the power with which the cost grows."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def main(quick: bool, rounds: int, out: Path | None, only: str | None) -> None:
    print(machine(), flush=True)
    found: dict[str, Runs] = {}
    series = QUICK if quick else {x: SERIES[x] for x in ([only] if only else SERIES)}
    for title, (_, points) in series.items():
        found[title] = in_turns(
            "benchmarks.scaling", {str(list(point)): list(point) for point in points}, rounds
        )
        if out is not None:
            out.write_text(json.dumps({"machine": machine(), "runs": found}, indent=1))
    for title, (field, points) in series.items():
        values = [getattr(point, field) for point in points]
        rest = {key: value for key, value in points[0]._asdict().items() if key != field}
        fixed = ", ".join(f"{key} {value}" for key, value in rest.items() if key != "steps")
        print(f"\n{title} ({fixed}): milliseconds an image, median of {rounds} rounds (range)")
        print(f"| {field} | ms an image |\n| --- | --- |")
        costs = [[1e3 * run["image"] for run in runs] for runs in found[title].values()]
        for value, cost in zip(values, costs, strict=True):
            print(f"| {value} | {span(cost)} |")
        print(f"\npower of {field}: {slope(values, [statistics.median(c) for c in costs]):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two short series")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--out", type=Path, help="also write all numbers as JSON")
    parser.add_argument("--only", choices=SERIES, help="one of the series")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--rank", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        in_ranks(chosen.one)
    elif chosen.rank:
        in_ranks(chosen.rank)
    else:
        main(chosen.quick, chosen.rounds or (2 if chosen.quick else 5), chosen.out, chosen.only)
