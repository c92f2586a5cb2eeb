"""A training step with depthwise convolutions in bfloat16, and as MedDuet computes them.

python -m benchmarks.depthwise
"""

import json
import statistics
import sys
import time

from benchmarks.turns import asked_rounds, in_turns, machine, ratios, span

CASES = [
    *(("timm:mobilenetv2_100", 64), ("timm:mobilenetv2_100", 128), ("timm:mobilenetv2_100", 224)),
    *(("timm:efficientnet_b0", 64), ("timm:convnext_atto", 64)),
]
BATCH, STEPS = 16, 6


def one(name: str, side: str, way: str) -> None:
    """Print the median seconds of a step."""
    import torch

    from medduet import create_model
    from medduet.models.convolutions import DepthwiseConv2d
    from medduet.utils.devices import keep_freed_memory

    keep_freed_memory()
    network = create_model(name, in_channels=1, num_classes=3, dense_channels=2)
    network.normalize.memory_format = torch.channels_last
    for module in network.modules():
        if way == "bfloat16" and isinstance(module, DepthwiseConv2d):
            module.__class__ = torch.nn.Conv2d
    image = torch.randint(0, 256, (BATCH, 1, int(side), int(side)), dtype=torch.uint8)
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            class_logits, dense = network(image)
        (class_logits.float().square().mean() + dense.float().square().mean()).backward()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": statistics.median(seconds[1:])}))


def main() -> None:
    """Measure all cases, and print the table."""
    rounds = asked_rounds(__doc__)
    ways = ("bfloat16", "MedDuet")
    cases = {(*case, way): (*case, way) for case in CASES for way in ways}
    runs = in_turns("benchmarks.depthwise", cases, rounds)
    print(machine())
    print("| network | pixels | all in bfloat16, s | MedDuet, s | times as fast |")
    print("| --- | --- | --- | --- | --- |")
    for name, side in CASES:
        plain, ours = ([run["seconds"] for run in runs[name, side, way]] for way in ways)
        row = name, side, span(plain), span(ours), span(ratios(plain, ours))
        print(f"| `{row[0]}` | {' | '.join(map(str, row[1:]))} |")


if __name__ == "__main__":
    one(*sys.argv[2:]) if "--one" in sys.argv else main()
