"""All networks of the paper under one budget: the table of docs/models.md.

    python benchmarks/networks.py train DATA.npz OUT     # resumable; finished runs are skipped
    python benchmarks/networks.py speed OUT              # images per second, networks in turn
    python benchmarks/networks.py table OUT              # Markdown, from the files in OUT alone

U-Nets have half of their usual width, so that 48 runs fit a machine with two cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SEEDS = (0, 1, 2)
SIZE, EPOCHS, RATE, WORKERS = 64, 8, 5e-4, 2
# The slow ones first, so that the workers end together.
NETWORKS: dict[str, dict[str, int]] = {
    "mobilevitv2_unet_var": {"width": 32},
    "timm:convnextv2_base": {},
    "timm:eva02_base_patch14_224": {},
    "timm:densenet201": {},
    "timm:resnet50": {},
    "sharp_unet": {"width": 32},
    "vovunet_var": {"width": 32},
    "dense_inception_unet": {"width": 32},
    "unet_var": {"width": 32},
    "timm:densenet121": {},
    "timm:eva02_small_patch14_224": {},
    "timm:mobilenetv3_small_100": {},
    "timm:mobilenetv3_large_100": {},
    "timm:resnet18": {},
    "timm:convnextv2_atto": {},
    "adares_unet": {"width": 16},
}
ROUNDS, STEPS, BATCH = 5, 2, 16


def folder(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(':', '-')}-seed{seed}"


def train(data: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    cells = [(name, seed) for seed in SEEDS for name in NETWORKS]
    with ThreadPoolExecutor(WORKERS) as pool:
        for line in pool.map(lambda cell: train_cell(data, out, *cell), cells):
            print(line, flush=True)


def train_cell(data: str, out: Path, name: str, seed: int) -> str:
    run = folder(out, name, seed)
    if (run / "metrics.json").is_file():
        return f"{run.name}: finished before"
    words = ["train", "--resume", str(run)]
    if not (run / "config.json").is_file():
        words = ["train", "segment", "--data", data, "--size", str(SIZE), "--model", name]
        words += [f"--model.{option}={value}" for option, value in NETWORKS[name].items()]
        words += ["--epochs", str(EPOCHS), "--lr", str(RATE), "--precision", "bf16-mixed"]
        words += ["--seed", str(seed), "--out", str(run)]
    started = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "medduet", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"{run.name}: failed: {done.stderr.strip().splitlines()[-1]}"
    return f"{run.name}: {time.perf_counter() - started:.0f} s"


def speed(out: Path) -> None:
    """Time a training step and a judgement of each network in turn, several rounds."""
    import torch

    from medduet import create_model

    torch.set_num_threads(os.cpu_count() or 1)
    rates: dict[str, dict[str, list[float]]] = {
        name: {"train": [], "judge": []} for name in NETWORKS
    }
    image = torch.randint(0, 256, (BATCH, 1, SIZE, SIZE), dtype=torch.uint8)
    for number in range(ROUNDS):
        for name, options in NETWORKS.items():
            network = create_model(name, in_channels=1, num_classes=3, dense_channels=1, **options)
            optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
            seconds = {"train": 0.0, "judge": 0.0}
            for step in range(STEPS + 1):  # the first one warms up
                started = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16):
                    outputs = network(image)
                loss = outputs.class_logits.float().square().mean()
                (loss + outputs.dense.float().square().mean()).backward()
                optimizer.step()
                optimizer.zero_grad()
                if step:
                    seconds["train"] += time.perf_counter() - started
            network.eval()
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                network(image)
                started = time.perf_counter()
                for _ in range(STEPS):
                    network(image)
                seconds["judge"] = time.perf_counter() - started
            for kind, spent in seconds.items():
                rates[name][kind].append(STEPS * BATCH / spent)
        print(f"round {number + 1} of {ROUNDS}", flush=True)
    (out / "speed.json").write_text(json.dumps(rates, indent=2) + "\n")


def table(out: Path) -> None:
    from medduet.models.cost import model_cost

    speeds = json.loads((out / "speed.json").read_text()) if (out / "speed.json").is_file() else {}
    print(
        "| network | accuracy | AUC | Dice, lesion | parameters / 10⁶ | GMAC | "
        "images/s, training | images/s, judging |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, options in sorted(NETWORKS.items()):
        tests = [
            json.loads(path.read_text())["test"]
            for seed in SEEDS
            if (path := folder(out, name, seed) / "metrics.json").is_file()
        ]
        if not tests:
            continue
        cost = model_cost(name, 1, 3, 1, SIZE, **options)
        cells = [cell(tests, metric) for metric in ("accuracy", "auc", "dice_lesion")]
        rates = [
            f"{statistics.median(speeds[name][kind]):.0f}" if name in speeds else ""
            for kind in ("train", "judge")
        ]
        title = f"`{name}`" + "".join(f", {key} {value}" for key, value in options.items())
        short = "" if len(tests) == len(SEEDS) else f" ({len(tests)} seeds)"
        costs = [f"{cost.parameters / 1e6:.2f}", f"{cost.gmacs:.2f}"]
        print("| " + " | ".join([title + short, *cells, *costs, *rates]) + " |")


def cell(tests: list[dict[str, float | list[float]]], metric: str) -> str:
    """Return mean and spread over seeds, and the interval of the first seed."""
    values = [test[metric] for test in tests]
    low, high = tests[0][f"{metric}_interval"]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "train":
        train(rest[0], Path(rest[1]))
    else:
        {"speed": speed, "table": table}[command](Path(rest[0]))
