"""How long a user waits: for the help, and for the first step of training. On the CPU.

    python -m benchmarks.start [--rounds 5] [--quick]

Each time in a fresh process, from its start on, the system's page cache being warm. Training is
`medduet train auto` on a generated PneumoniaMNIST of 28 pixels, at the network's full width; the
first time, its file is unpacked and searched for images that several splits share.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.data import SETS, generate
from benchmarks.turns import asked_rounds, span

PARTS = (
    "launch_fabric",
    "open_images",
    "build_network",
    "network_cost",
    "describe_environment",
    "leak_warning",
)
"""What `medduet.experiments.run.train` calls before the first step."""


def timed(home: Any, name: str, seconds: dict[str, float]) -> None:
    """Let the function `name` of `home` note the seconds that it takes."""
    function = getattr(home, name)

    def call(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            seconds[name] = seconds.get(name, 0) + time.perf_counter() - started

    setattr(home, name, call)


def train(started: float, words: list[str]) -> None:
    """Run the command, print as JSON what the time went into, and end at the first step."""
    import medduet.experiments.run
    from medduet.cli import main
    from medduet.cli.display.progress import ConsoleReporter

    seconds = {"imports": time.time() - started}
    for name in PARTS:
        timed(medduet.experiments.run, name, seconds)

    def begin(self: ConsoleReporter, *told: int) -> None:
        seconds["until training"] = time.time() - started

    def step(self: ConsoleReporter, *told: object) -> None:
        seconds["first step"] = time.time() - started
        sys.stdout.write(json.dumps(seconds) + "\n")
        sys.stdout.flush()
        os._exit(0)

    ConsoleReporter.begin_epoch, ConsoleReporter.step = begin, step
    sys.exit(main(words))


def main(rounds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {"first": [], "later": []}
    helps: dict[str, list[float]] = {"--help": [], "train auto --help": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        words = ["train", "auto", "--data", str(generate(root, SETS[0])), "--device", "cpu"]
        words += ["--data.cache", str(root / "cache"), "--out", str(root / "run")]
        for number in range(rounds + 1):  # the first round fills the page cache
            for typed, times in helps.items():
                started = time.perf_counter()
                command = [sys.executable, "-m", "medduet", *typed.split()]
                subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
                times.append(time.perf_counter() - started)
            for kind, runs in found.items():
                if kind == "first":
                    shutil.rmtree(root / "cache", ignore_errors=True)
                shutil.rmtree(root / "run", ignore_errors=True)
                command = [sys.executable, "-m", "benchmarks.start", "--one", str(time.time())]
                done = subprocess.run(
                    [*command, *words], stdout=subprocess.PIPE, text=True, check=True
                )
                runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number} of {rounds}", flush=True)
    print("| from a fresh process to | seconds: median (range) |")
    print("| --- | --- |")
    for typed, times in helps.items():
        print(f"| the end of `medduet {typed}` | {span(times[1:], 2)} |")
    for kind, runs in found.items():
        print(f"| the first step, {kind} | {span([run['first step'] for run in runs[1:]], 1)} |")
    print("\n| part | first | later |")
    print("| --- | --- | --- |")
    for part in ("imports", *PARTS, "until training", "first step"):
        medians = (statistics.median(x.get(part, 0) for x in runs[1:]) for runs in found.values())
        print(f"| {part} | " + " | ".join(f"{value:.2f}" for value in medians) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        train(float(sys.argv[2]), sys.argv[3:])
    else:
        main(asked_rounds(__doc__ or ""))
