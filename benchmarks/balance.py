"""What each balance costs beside the sum: time per step and memory, as a Markdown table.

    taskset -c 1 env OMP_NUM_THREADS=1 python benchmarks/balance.py [balance ...]

Time: steps of the balance and of the sum in turn, in one process; the ratio of each pair. Memory:
the highest resident memory of a process of its own over three steps (Linux), less what it held
before. Generated images of 64 pixels in batches of 16, vovunet_var of width 16, tasks classify and
segment; the conflict between the tasks is not measured where the balance doesn't need it.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from lightning.fabric import Fabric

from medduet import ConfigError, create_model
from medduet.config import ObjectiveConfig, RunConfig
from medduet.losses.objective import Objective
from medduet.runs.folder import RunFolder
from medduet.training.experiment import Experiment
from medduet.training.loop import new_state
from medduet.training.step import train_step
from medduet.types import Balance, Batch, DenseLayout

PAIRS, BATCH, SIZE = 6, 16, 64
NETWORK = {"in_channels": 1, "num_classes": 3, "dense_channels": 1, "width": 16}


def make_step(name: str) -> Callable[[], object]:
    """Return a function that does one training step on generated images."""
    torch.manual_seed(0)
    objective = ObjectiveConfig(tasks=("classify", "segment"), balance=name, conflict_steps=0)
    layout = DenseLayout(mask_classes=2, image_channels=0)
    network = create_model("vovunet_var", **NETWORK)
    experiment = Experiment(
        Fabric(accelerator="cpu", devices=1),
        RunConfig(objective=objective),
        None,  # no data set: the batch is below
        network,
        Objective(objective, layout),
        RunFolder(Path("nowhere")),
    )
    state = new_state(experiment)
    state.module.train()
    image = torch.randint(0, 256, (BATCH, 1, SIZE, SIZE), dtype=torch.uint8)
    mask = (image[:, 0] > 200).long()
    known = torch.ones(BATCH, dtype=torch.bool)
    batch = Batch(image, torch.arange(BATCH) % 3, mask, known, torch.arange(BATCH))
    return lambda: train_step(experiment, state, batch)


def seconds(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def resident(kind: str) -> float:
    """Return the resident memory of this process in MB: `VmRSS` now, `VmHWM` at most."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(kind)]
    return int(line.split()[1]) / 1e3


def memory(name: str) -> float:
    """Return the MB that three steps need, in a process of its own."""
    command = [sys.executable, __file__, "memory", name]
    # Freed blocks go back to the kernel at once, so that resident is what is in use.
    exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=exact)
    return float(done.stdout)


def main(names: list[str]) -> None:
    steps = {"sum": make_step("sum")}
    steps["sum"]()
    base = memory("sum")
    print("| balance | time to the sum: median (range) | memory to the sum |")
    print("| --- | --- | --- |")
    for name in names:
        try:
            step = make_step(name)
        except ConfigError as error:
            print(f"| `{name}` | {error} | |", flush=True)
            continue
        step()
        pairs = [(seconds(step), seconds(steps["sum"])) for _ in range(PAIRS)]
        ratios = sorted(own / other for own, other in pairs)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| `{name}` | {spread} | {memory(name) / base:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        step, before = make_step(sys.argv[2]), resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        for _ in range(3):
            step()
        print(resident("VmHWM") - before)
    else:
        main(sys.argv[1:] or list(get_args(Balance)))
