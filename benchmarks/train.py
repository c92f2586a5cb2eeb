"""How long a training step takes: the plain loop, MedDuet, and the peers. On the CPU.

    python -m benchmarks.train [--quick] [--rounds 5] [--only 224x16] [--out FILE.json]
    python -m benchmarks.train --profile 224x16       # where the time of a step goes

VovUnet_Var on RGB images, with class and reconstruction as in the paper. "plain" is its training
loop as its users write it: float32, medmnist's data set with 4 workers, default Adam, the loss read
at each step, and the C library as it comes; "plain, memory kept" is the same after MedDuet's
`keep_freed_memory`. "MedDuet" is `medduet.train` with nothing but data, size and batch given.
"peak" is the fastest 3x3 convolution that torch does here in bfloat16 and in float32. Peers are
trained on random images with what MedDuet has chosen for itself: bfloat16 where the machine has it,
channels last, fused Adam, memory kept; so is VovUnet_Var once more, as "network alone".

Each is a fresh process, they take turns, and the median step of each counts, after the first ones.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.turns import Runs, in_turns, machine, ratios, span

CASES = {"224x16": (224, 16), "28x16": (28, 16), "28x64": (28, 64)}
FLAGS = {224: "retinamnist", 28: "bloodmnist"}
ASKED = {"224x16": (4.0, 1.8), "28x16": (1.6, None), "28x64": (1.6, None)}
STEPS = {224: (1, 2), 28: (5, 15)}
"""Steps that don't count, and steps that do; of the plain loop at 224 pixels a minute each."""
PEERS = ("network alone", "smp Unet resnet34", "MONAI BasicUNet", "MONAI FlexibleUNet resnet34")


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def report(seconds: list[float], skip: int, **facts: Any) -> None:
    """Print the median step as JSON."""
    counted = seconds[skip:]
    facts |= {"step": statistics.median(counted), "steps": len(counted), "peak_gb": peak_gb()}
    print(json.dumps(facts))


def plain(root: Path, size: int, batch: int, kept: bool) -> None:
    """The loop of the paper's users."""
    if kept:
        from medduet.utils.devices import keep_freed_memory

        keep_freed_memory()
    import medmnist
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader
    from torchvision import transforms

    from medduet import create_model

    info = medmnist.INFO[FLAGS[size]]
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    kind = getattr(medmnist, info["python_class"])
    images = kind("train", transform=steps, download=False, root=str(root), size=size)
    loader = DataLoader(images, batch, shuffle=True, num_workers=4)
    network = create_model(
        "vovunet_var", in_channels=3, num_classes=len(info["label"]), dense_channels=3
    )
    network.normalize = torch.nn.Identity()  # type: ignore[assignment]  # the data set has done it
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    skip, counted = STEPS[size]
    seconds, losses = [], []
    started = time.perf_counter()
    for image, label in loader:
        outputs = network(image)
        loss = F.cross_entropy(outputs.class_logits, label.squeeze(1).long())
        loss = loss + F.mse_loss(outputs.dense, image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        if len(seconds) == skip + counted:
            break
    report(seconds, skip)


def ours(root: Path, size: int, batch: int) -> None:
    """`medduet.train`, stopped after some steps."""
    import threading

    import medduet
    from medduet.errors import Interrupted
    from medduet.training.reporter import Reporter
    from medduet.utils.parsing import read_json

    skip, counted = STEPS[size]
    stop, seconds = threading.Event(), []

    class Clock(Reporter):
        started = 0.0

        def begin_epoch(self, epoch: int, epochs: int, steps: int) -> None:
            self.started = time.perf_counter()

        def step(self, images: int, losses: Callable[[], dict[str, float]]) -> None:
            seconds.append(time.perf_counter() - self.started)
            self.started = time.perf_counter()
            if len(seconds) == skip + counted - 1:
                stop.set()

    file = f"{FLAGS[size]}.npz" if size == 28 else f"{FLAGS[size]}_{size}.npz"
    with tempfile.TemporaryDirectory() as folder:
        config = medduet.RunConfig().model_copy(
            update={
                "data": medduet.DataConfig(name=str(root / file), cache=root / "cache"),
                "train": medduet.TrainConfig(batch_size=batch, device="cpu"),
                "out": Path(folder) / "run",
            }
        )
        try:
            medduet.train(config, reporter=Clock(), stop=stop)
        except Interrupted:
            report(
                seconds, skip, **read_json(Path(folder) / "run" / "environment.json")["training"]
            )


def stepper(name: str, size: int, batch: int) -> tuple[Callable[[], None], Any]:
    """Return a training step of a network with MedDuet's settings, and the network."""
    import torch
    from torch.nn import functional as F

    from medduet import TrainConfig, create_model
    from medduet.models.inference import prepare_network
    from medduet.training.fabric import launch_fabric

    config = TrainConfig(device="cpu")
    fabric = launch_fabric(config)
    network = create_model("vovunet_var", in_channels=3, num_classes=8, dense_channels=3)
    prepare_network(network, fabric.device, (size, size), fabric.strategy.precision.precision)
    network.train()
    image = network.normalize(torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8))
    network.normalize = torch.nn.Identity()  # type: ignore[assignment]
    model = network if name == PEERS[0] else build(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    label = torch.randint(0, 8, (batch,))

    def step() -> None:
        with fabric.autocast():
            outputs = model(image)
        heads = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        dense = next(head for head in heads if head.ndim == 4)
        loss = F.mse_loss(dense.float(), image)
        for head in heads:
            if head.ndim == 2:
                loss = loss + F.cross_entropy(head.float(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, model


def peer(name: str, size: int, batch: int) -> None:
    """A network alone, with the settings that MedDuet chooses for itself."""
    step, model = stepper(name, size, batch)
    skip, counted = STEPS[size]
    seconds = []
    for _ in range(skip + counted):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    report(seconds, skip, gmacs=gmacs(model, size))


def profile(size: int, batch: int) -> None:
    """Print the share of each kind of operation in two steps of VovUnet_Var."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    step, _ = stepper(PEERS[0], size, batch)
    step()
    with profiler(activities=[ProfilerActivity.CPU]) as found:
        step()
        step()
    spent = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    whole = sum(spent.values())
    print("| operation | share of a step |\n| --- | --- |")
    for name, time_us in sorted(spent.items(), key=lambda item: -item[1])[:14]:
        print(f"| `{name}` | {100 * time_us / whole:.1f}% |")


def build(name: str) -> Any:
    """Return a peer with a dense output of 3 channels, and a class head where it can have one."""
    if name.startswith("smp"):
        import segmentation_models_pytorch as smp

        return smp.Unet("resnet34", encoder_weights=None, classes=3, aux_params={"classes": 8})
    from monai.networks.nets import BasicUNet, FlexibleUNet

    if "Basic" in name:
        return BasicUNet(spatial_dims=2, in_channels=3, out_channels=3)
    return FlexibleUNet(in_channels=3, out_channels=3, backbone="resnet34")


def gmacs(model: Any, size: int) -> float:
    """Return the multiplications of a forward pass of one image, in 10^9."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 2e9


def peak(seconds: float) -> None:
    """The most that a convolution gets out of this machine, in GFLOP/s."""
    import torch
    from torch.nn import functional as F

    from medduet.utils.devices import keep_freed_memory

    keep_freed_memory()
    found = {}
    for kind in (torch.bfloat16, torch.float32):
        best = 0.0
        for channels, side in ((128, 56), (256, 56), (256, 28), (512, 28)):
            weight = torch.randn(channels, channels, 3, 3, dtype=kind)
            image = torch.randn(16, channels, side, side, dtype=kind)
            image = image.contiguous(memory_format=torch.channels_last)
            work = 2 * 16 * side * side * channels * channels * 9 / 1e9
            times: list[float] = []
            with torch.inference_mode():
                while sum(times) < seconds:
                    started = time.perf_counter()
                    F.conv2d(image, weight, padding=1)
                    times.append(time.perf_counter() - started)
            best = max(best, work / min(times))
        found[str(kind).removeprefix("torch.")] = best
    print(json.dumps(found))


def one(words: list[str]) -> None:
    """Measure one way in this process."""
    what, *rest = words
    if what == "peak":
        peak(float(rest[0]))
    elif what == "peer":
        peer(rest[0], int(rest[1]), int(rest[2]))
    else:
        root, size, batch = Path(rest[0]), int(rest[1]), int(rest[2])
        if what.startswith("plain"):
            plain(root, size, batch, what == "plain, memory kept")
        else:
            ours(root, size, batch)


def case_table(case: str, runs: Runs) -> Iterator[str]:
    """Yield the lines on one size and batch."""
    size, batch = CASES[case]
    steps = {name: [run["step"] for run in found] for name, found in runs.items() if name != "peak"}
    yield f"\n{size} pixels, batch {batch}: seconds a step, median of the rounds (range)"
    yield "| way | seconds a step | slower than MedDuet by | memory at most, GB |"
    yield "| --- | --- | --- | --- |"
    for name in ("plain", "plain, memory kept", "MedDuet"):
        if name in steps:
            slower = "" if name == "MedDuet" else span(ratios(steps[name], steps["MedDuet"]))
            memory = statistics.median(run["peak_gb"] for run in runs[name])
            yield f"| {name} | {span(steps[name], 3)} | {slower} | {memory:.2f} |"


def peer_table(case: str, runs: Runs) -> Iterator[str]:
    """Yield the lines on the peers."""
    size, batch = CASES[case]
    yield f"\nPeers at {size} pixels, batch {batch}, all with MedDuet's settings"
    yield "| network | GMAC an image | images a second | images a second x GMAC |"
    yield "| --- | --- | --- | --- |"
    for name in PEERS:
        speed = [batch / run["step"] for run in runs[name]]
        cost = runs[name][0]["gmacs"]
        shown = "VovUnet_Var" if name == "network alone" else name
        yield (
            f"| {shown} | {cost:.2f} | {span(speed)} | {span([each * cost for each in speed], 0)} |"
        )


def share_of_peak(case: str, runs: Runs) -> Iterator[str]:
    """Yield what part of the convolution peak a step is; three times a forward pass is its work."""
    _, batch = CASES[case]
    cost = runs["network alone"][0]["gmacs"]
    kind = "bfloat16" if runs["MedDuet"][0]["precision"] == "bf16-mixed" else "float32"
    peaks = [run[kind] for run in runs["peak"]]
    shares = [
        3 * 2 * cost * batch / run["step"] / top
        for run, top in zip(runs["MedDuet"], peaks, strict=True)
    ]
    yield (
        f"\nConvolution peak in {kind}: {span(peaks, 0)} GFLOP/s; a step of MedDuet has "
        f"{span([100 * share for share in shares], 0)}% of it"
    )


def main(quick: bool, rounds: int, only: list[str], out: Path | None) -> None:
    from benchmarks.data import Set, generate

    cases = ["28x16"] if quick else only or list(CASES)
    print(machine(), flush=True)
    found: dict[str, Runs] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for case in cases:
            size, batch = CASES[case]
            data = Set(FLAGS[size], size, None)
            if not (root / data.file).exists():
                generate(root, data)
            large = size >= 32  # smp's and MONAI's networks take no less
            names = ["plain", "plain, memory kept", "MedDuet"]
            ways: dict[str, list[object]] = {name: [name, root, size, batch] for name in names}
            if large:
                ways["peak"] = ["peak", 1.0]
                ways |= {name: ["peer", name, size, batch] for name in PEERS}
            found[case] = in_turns("benchmarks.train", ways, rounds)
            if out is not None:
                out.write_text(json.dumps({"machine": machine(), "runs": found}, indent=1))
    for case, runs in found.items():
        print("\n".join(case_table(case, runs)))
        if "peak" in runs:
            print("\n".join([*share_of_peak(case, runs), *peer_table(case, runs)]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="28 pixels, two rounds")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=[])
    parser.add_argument("--profile", choices=list(CASES), help="instead: where the time goes")
    parser.add_argument("--out", type=Path, help="also write all numbers as JSON")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        one(chosen.one)
    elif chosen.profile:
        profile(*CASES[chosen.profile])
    else:
        rounds = chosen.rounds or (2 if chosen.quick else 5)
        main(chosen.quick, rounds, chosen.only, chosen.out)
