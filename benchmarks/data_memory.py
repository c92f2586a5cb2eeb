"""What large sets cost in memory: `python -m benchmarks.data --memory [--quick]`, on Linux.

A generated ``.npz`` is opened for the first time, which unpacks it, and then trained on for an
epoch by `medduet.train`, each in a process of its own; so is one of the same size with few images.
Counted is the anonymous resident memory (RssAnon): pages of mapped files can be dropped by the
system at any time, these can't. What the larger set adds is the cost of the data; the rest is
Python, torch and the network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchmarks.data import memory, smooth_images

LIMIT = 1500  # MB
EVERY = 0.02  # seconds between two readings
FEW = 640  # images, beside those of val and test


class Case(NamedTuple):
    """A set of RGB images: side in pixels, training images, and images of val and test each."""

    size: int
    train: int
    judged: int

    def few(self) -> Case:
        return self._replace(train=FEW)


CASES = (Case(28, 90_000, 300), Case(224, 53_400, 300))


def write(path: Path, case: Case) -> None:
    """Write the set piece by piece; the archive is not compressed."""
    rng = np.random.default_rng(0)
    step = max(1, (32 << 20) // (case.size**2 * 3))
    with zipfile.ZipFile(path, "w") as archive:
        for split, count in (("train", case.train), ("val", case.judged), ("test", case.judged)):
            for kind, descr, shape in (
                ("images", "|u1", (count, case.size, case.size, 3)),
                ("labels", "<i8", (count,)),
            ):
                header = {"descr": descr, "fortran_order": False, "shape": shape}
                with archive.open(f"{split}_{kind}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    if kind == "labels":
                        file.write(rng.integers(0, 4, count).tobytes())
                        continue
                    for start in range(0, count, step):
                        pieces = smooth_images(min(step, count - start), case.size, 3, rng)
                        file.write(pieces.tobytes())


@contextmanager
def watched(found: dict[str, Any]) -> Iterator[None]:
    """Put seconds and the highest memory in MB into `found`."""
    found |= {"before": memory("RssAnon"), "peak": 0.0, "mapped": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(EVERY):
            found["peak"] = max(found["peak"], memory("RssAnon"))
            found["mapped"] = max(found["mapped"], memory("RssFile"))

    thread, started = threading.Thread(target=watch), time.perf_counter()
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        found["seconds"] = time.perf_counter() - started


def work(what: str, path: Path) -> None:
    """Open or train on the set at `path` and print as JSON what it took."""
    import medduet
    import medduet.experiments.run

    found: dict[str, Any] = {}
    cache = path.parent / "cache"
    if what == "open":
        with watched(found):
            medduet.open_images(str(path), cache=cache)
    else:
        config = medduet.RunConfig(
            data=medduet.DataConfig(name=str(path), cache=cache),
            model=medduet.ModelConfig(name="vovunet_var", width=1),
            objective={"tasks": ["classify"]},
            train=medduet.TrainConfig(epochs=1, batch_size=64, device="cpu"),
            out=path.parent / f"run-{path.stem}",
        )
        with watched(found):
            medduet.train(config)
    print(json.dumps(found))


def measured(what: str, path: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.data_memory", what, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(quick: bool) -> None:
    rows = []
    for case in (Case(28, 5000, 300),) if quick else CASES:
        with tempfile.TemporaryDirectory() as folder:
            found = {}
            for each in (case.few(), case):
                path = Path(folder) / f"{each.train}.npz"
                write(path, each)
                gigabytes = path.stat().st_size / 1e9
                opened = measured("open", path)
                found[each] = opened, measured("train", path)
                opened, trained = found[each]
                rows.append(
                    f"| {each.size} | {each.train + 2 * each.judged:,} | {gigabytes:,.2f} | "
                    f"{opened['seconds']:,.1f} | {opened['peak'] - opened['before']:,.0f} | "
                    f"{trained['seconds']:,.0f} | {trained['before']:,.0f} | "
                    f"{trained['peak']:,.0f} | {trained['mapped']:,.0f} |"
                )
                print(rows[-1], flush=True)
            few, many = (found[each] for each in (case.few(), case))
            costs = {
                "opening": many[0]["peak"] - many[0]["before"],
                "training": many[1]["peak"] - few[1]["peak"],
            }
            for what, cost in costs.items():
                verdict = "under" if cost < LIMIT else "OVER"
                print(f"{case.size}: {what} costs {cost:,.0f} MB, {verdict} {LIMIT:,}", flush=True)
    print(
        "| size | images | GB | first opening, s | it adds, MB | epoch, s | before | peak | maps |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
