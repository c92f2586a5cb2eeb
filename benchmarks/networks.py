"""Images per second of the networks of the grid beside this file, in turn: docs/models.md.

python benchmarks/networks.py
"""

import os
import statistics
import time
from pathlib import Path

GRID = Path(__file__).parent / "grids" / "networks.yaml"
SIZE, RATE = 64, 5e-4
ROUNDS, STEPS, BATCH = 5, 2, 16


def speed() -> None:
    """Time a training step and a judgement of each network in turn, several rounds."""
    import torch

    from medduet import create_model, load_grid

    networks = {
        name: {path.partition(".")[2]: value for path, value in settings.items()}
        for name, settings in load_grid(str(GRID)).networks.items()
    }
    torch.set_num_threads(os.cpu_count() or 1)
    rates: dict[str, dict[str, list[float]]] = {
        name: {"train": [], "judge": []} for name in networks
    }
    image = torch.randint(0, 256, (BATCH, 1, SIZE, SIZE), dtype=torch.uint8)
    for number in range(ROUNDS):
        for name, options in networks.items():
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
    print("| network | images/s, training | images/s, judging |")
    print("| --- | --- | --- |")
    for name, kinds in rates.items():
        medians = [f"{statistics.median(kinds[kind]):.0f}" for kind in ("train", "judge")]
        print(f"| `{name}` | {' | '.join(medians)} |")


if __name__ == "__main__":
    speed()
