"""Two or more ways to do the same, measured in turn, each time in a fresh process."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Runs = dict[Any, list[dict[str, Any]]]


def in_turns(
    module: str, ways: Mapping[Any, Sequence[object]], rounds: int, skip: Sequence[str] = ()
) -> Runs:
    """Run ``python -m MODULE --one WORDS`` for each way, A B C A B C; return what each printed.

    The last line that a process prints is JSON. A way in `skip` is run in the first round only.
    """
    runs: Runs = {name: [] for name in ways}
    for turn in range(rounds):
        for name, words in ways.items():
            if turn and name in skip:
                continue
            command = [sys.executable, "-m", module, "--one", *map(str, words)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {turn + 1} of {rounds}: {name}: {done.stdout.splitlines()[-1]}"[:160])
            sys.stdout.flush()
    return runs


def asked_rounds(about: str) -> int:
    """Return how many rounds were asked for by ``--rounds N`` or ``--quick``; 5 by default."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    given = parser.parse_args()
    return 1 if given.quick else given.rounds


def machine() -> str:
    """Return the processor, its bf16 units, torch and threads in one line."""
    import torch

    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "CPU")
    found = torch.cpu.get_capabilities()
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if found.get(unit)]
    return (
        f"{name}, {os.cpu_count()} core(s), {', '.join(units) or 'no bf16 units'}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} thread(s)"
    )


def span(values: Sequence[float], digits: int = 2) -> str:
    """Return the median and the range as text."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratio in each round."""
    return [a / b for a, b in zip(over, under, strict=True)]
