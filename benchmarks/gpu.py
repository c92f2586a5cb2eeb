"""Everything about a GPU that is worth knowing, in one command and 8 minutes; no network needed.

    python -m benchmarks.gpu [--data busi_seg_224.npz] [--minutes 8] [--out gpu.json]
    python -m benchmarks.gpu --quick            # the same in small; a CPU will do
    python -m benchmarks.gpu --wheels FOLDER    # beforehand, where there is a network

The machine needs CUDA, torch, lightning and timm. The rest, MedDuet with it, is installed from the
folder of wheels: ``pip install --no-index --find-links FOLDER medduet``. In turn it

1. compares outputs and gradients with float64 on the CPU, in every arithmetic,
2. measures the rate of bfloat16 matrix products, and what --train.deterministic costs,
3. measures training and inference of VovUnet_Var and its peers: float32, TF32 and bfloat16, with
   and without torch.compile, several batch sizes; images a second, memory, share of that rate,
4. trains on a set with masks (BUSI at 224 pixels, if it is given) to convergence, three seeds.

What the time does not suffice for is left out and said so. Peers that are not installed, too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

GIVEN = ("torch", "torchvision", "lightning", "timm")
MODES = ("float32", "tf32", "bfloat16")
TOLERANCE = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 5e-2}
"""Of outputs, as distance over length, against float64."""
PEERS = ("smp Unet resnet34", "MONAI FlexibleUNet resnet34", "MONAI BasicUNet")


class Scale(NamedTuple):
    """How much is done: side, batches, steps, width and epochs; quick in brackets."""

    side: int = 224
    batches: tuple[int, ...] = (16, 64, 256)
    steps: int = 10
    width: int = 64
    epochs: int = 80
    seeds: int = 3
    matrix: int = 8192


QUICK = Scale(32, (4,), 2, 4, 2, 1, 256)


# Wheels -----------------------------------------------------------------------------------------


def needed(name: str, found: set[str]) -> set[str]:
    """Add the installed distributions that `name` needs to `found`, itself too, and return it."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    name = canonicalize_name(name)
    if name in found:
        return found
    found.add(name)
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed(requirement.name, found)
    return found


def collect_wheels(folder: Path) -> None:
    """Fill `folder` with what MedDuet needs besides `GIVEN`, in the versions that are here."""
    there: set[str] = set()
    for name in GIVEN:
        needed(name, there)
    rest = sorted(needed("medduet", set()) - there - {"medduet"})
    pinned = [f"{name}=={metadata.version(name)}" for name in rest]
    pip = [sys.executable, "-m", "pip"]
    root = Path(__file__).resolve().parents[1]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(root), *pinned], check=True)
    size = sum(path.stat().st_size for path in folder.glob("*.whl")) / 1e6
    print(f"{len(pinned) + 1} wheels, {size:.0f} MB, in {folder}")


# Arithmetic -------------------------------------------------------------------------------------


@contextmanager
def arithmetic(mode: str, device: str) -> Iterator[None]:
    """Compute in float32, in TF32 where products are concerned, or in bfloat16 by autocast."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode == "tf32"
    try:
        with torch.autocast(device, torch.bfloat16, enabled=mode == "bfloat16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def build(name: str, scale: Scale) -> Any:
    """Return a network with a dense output of 3 channels and, if it can, a head for 8 classes.

    Raises:
        ImportError: its library is not installed.
    """
    if name == "vovunet_var":
        from medduet import create_model

        return create_model(name, in_channels=3, num_classes=8, dense_channels=3, width=scale.width)
    from benchmarks.train import build as build_peer

    return build_peer(name)


def loss_of(outputs: Any, image: Any, label: Any) -> Any:
    """Return the paper's loss: class, where there is such a head, and reconstruction."""
    import torch
    from torch.nn import functional as F

    heads = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    dense = next(head for head in heads if head.ndim == 4)
    loss = F.mse_loss(dense.float(), image)
    for head in heads:
        if head.ndim == 2:
            loss = loss + F.cross_entropy(head.float(), label)
    return loss


def check_kernels(scale: Scale, device: str) -> dict[str, Any]:
    """Return how far outputs and gradients are from float64, as distance over length."""
    import torch

    torch.manual_seed(0)
    exact = build("vovunet_var", scale).train()
    state = {key: value.clone() for key, value in exact.state_dict().items()}
    image, label = torch.rand(4, 3, 64, 64), torch.arange(4)
    exact.double()
    outputs = exact(image.double())
    loss_of(outputs, image.double(), label).backward()
    expected = torch.cat([head.detach().flatten() for head in outputs])
    gradient = torch.cat([p.grad.flatten() for p in exact.parameters()])
    found: dict[str, Any] = {}
    for mode in MODES:
        for layout in (torch.contiguous_format, torch.channels_last):
            network = build("vovunet_var", scale).train()
            network.load_state_dict(state)
            network.to(device).normalize.memory_format = layout
            with arithmetic(mode, device):
                heads = network(image.to(device))
                loss_of(heads, image.to(device), label.to(device)).backward()
            given = torch.cat([head.detach().double().cpu().flatten() for head in heads])
            own = torch.cat([p.grad.double().cpu().flatten() for p in network.parameters()])
            error = float((given - expected).norm() / expected.norm())
            cosine = float(torch.nn.functional.cosine_similarity(own, gradient, dim=0))
            name = f"{mode}, {str(layout).removeprefix('torch.')}"
            found[name] = {"error": error, "gradient_cosine": cosine}
            found[name]["right"] = error < TOLERANCE[mode] and cosine > 0.9
    return found


# Speed ------------------------------------------------------------------------------------------


def clock(step: Callable[[], object], steps: int, device: str) -> float:
    """Return the median seconds of `steps` calls, after two that don't count."""
    import torch

    seconds = []
    for _ in range(steps + 2):
        started = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def matrix_rate(scale: Scale, device: str) -> float:
    """Return 10^12 operations a second of a bfloat16 matrix product."""
    import torch

    n = scale.matrix
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=device) for _ in range(2))
    return 2 * n**3 / clock(lambda: a @ b, 20, device) / 1e12


def speed(
    name: str, mode: str, compiled: bool, batch: int, scale: Scale, device: str
) -> dict[str, Any]:
    """Return images a second of training and inference, and the memory of training."""
    import torch

    torch.manual_seed(0)
    network = build(name, scale).to(device)
    image = torch.rand(batch, 3, scale.side, scale.side, device=device)
    if mode == "bfloat16":
        image = image.contiguous(memory_format=torch.channels_last)
    label = torch.zeros(batch, dtype=torch.int64, device=device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    if compiled:
        network.compile()

    def train() -> None:
        with arithmetic(mode, device):
            outputs = network(image)
        loss_of(outputs, image, label).backward()
        optimizer.step()
        optimizer.zero_grad()

    def infer() -> None:
        with torch.inference_mode(), arithmetic(mode, device):
            network(image)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found: dict[str, Any] = {"train": batch / clock(train, scale.steps, device)}
    if device == "cuda":
        found["train_gb"] = torch.cuda.max_memory_allocated() / 1e9
    network.eval()
    found["inference"] = batch / clock(infer, scale.steps, device)
    return found


def speeds(scale: Scale, device: str, deadline: float, rate: float) -> list[dict[str, Any]]:
    """Return a row for each network, arithmetic and batch, until time is up."""
    import torch
    from benchmarks.train import gmacs

    rows: list[dict[str, Any]] = []
    plans = [
        (name, mode, compiled, batch)
        for batch in scale.batches
        for name in ("vovunet_var", *PEERS)
        for mode in MODES
        for compiled in ((False, True) if (name, mode) == ("vovunet_var", "bfloat16") else (False,))
    ]
    costs: dict[str, float] = {}
    for name, mode, compiled, batch in plans:
        row: dict[str, Any] = {"network": name, "mode": mode, "compiled": compiled, "batch": batch}
        if time.perf_counter() > deadline:
            rows.append(row | {"left_out": "no time"})
            continue
        try:
            if name not in costs:
                costs[name] = gmacs(build(name, scale), scale.side)
            row |= speed(name, mode, compiled, batch, scale, device)
            row["gmacs"] = costs[name]
            row["share_of_matrix_rate"] = 6e-3 * costs[name] * row["train"] / rate
        except ImportError as error:
            row["left_out"] = f"not installed: {error}"
        except torch.OutOfMemoryError:
            row["left_out"] = "out of memory"
        rows.append(row)
        print(json.dumps(row), flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def cost_of_determinism(scale: Scale, device: str) -> dict[str, Any]:
    """Return images a second of training as it comes and with `--train.deterministic`, in turns."""
    import torch

    found: dict[str, list[float]] = {"plain": [], "deterministic": []}
    for _ in range(3):
        for way, values in found.items():
            torch.use_deterministic_algorithms(way == "deterministic")
            row = speed("vovunet_var", "bfloat16", False, scale.batches[0], scale, device)
            values.append(row["train"])
    torch.use_deterministic_algorithms(False)
    medians: dict[str, Any] = {way: statistics.median(values) for way, values in found.items()}
    return medians | {"slower_by": medians["plain"] / medians["deterministic"]}


# Training ---------------------------------------------------------------------------------------


def converge(data: Path | None, scale: Scale, device: str, deadline: float) -> list[dict[str, Any]]:
    """Train class and mask, each seed until it gets no better, and return the test metrics."""
    import medduet
    from medduet.training.reporter import Reporter

    rows = []
    for seed in range(scale.seeds):
        if time.perf_counter() > deadline:
            rows.append({"seed": seed, "left_out": "no time"})
            continue
        images = medduet.DataConfig(name="phantom", size=scale.side, count=100, channels=3)
        if data is not None:
            images = medduet.DataConfig(name=str(data))
        with tempfile.TemporaryDirectory() as folder:
            config = medduet.RunConfig().model_copy(
                update={
                    "objective": medduet.ObjectiveConfig(tasks=("classify", "segment")),
                    "data": images,
                    "model": medduet.ModelConfig(width=scale.width),
                    "train": medduet.TrainConfig(
                        epochs=scale.epochs,
                        learning_rate=3e-4,
                        grad_clip=1.0,
                        augment="flip",
                        patience=20,
                        seed=seed,
                        device=device,
                    ),
                    "out": Path(folder) / "run",
                }
            )
            started = time.perf_counter()
            run = medduet.train(config, reporter=Reporter())
            epochs = (run.path / "epochs.jsonl").read_text("utf-8").splitlines()
            environment = json.loads((run.path / "environment.json").read_text("utf-8"))
        test = run.metrics["test"]
        row = {"seed": seed, "seconds": time.perf_counter() - started, "epochs": len(epochs)}
        row |= {"data": environment["data"]["name"], "training": environment["training"]}
        row["images_per_second"] = statistics.median(
            json.loads(line)["images_per_second"] for line in epochs
        )
        row |= {key: test[key] for key in ("n", "accuracy", "auc", "dice")}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main(quick: bool, data: Path | None, minutes: float, out: Path | None) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # --train.deterministic asks for it
    import torch

    started = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not quick:
        sys.exit("torch sees no GPU here: give --quick for a trial on the CPU")
    scale = QUICK if quick else Scale()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "torch": torch.__version__,
        "versions": {name: metadata.version(name) for name in ("medduet", "lightning", "timm")},
        "kernels": check_kernels(scale, device),
    }
    print(json.dumps(result["kernels"], indent=1), flush=True)
    result["matrix_tflops"] = matrix_rate(scale, device)
    result["determinism"] = cost_of_determinism(scale, device)
    # A third of the time is for training, whose three seeds are worth more than one more batch.
    result["speeds"] = speeds(scale, device, started + 60 * minutes * 0.5, result["matrix_tflops"])
    result["converged"] = converge(data, scale, device, started + 60 * minutes * 0.8)
    result["seconds"] = time.perf_counter() - started
    text = json.dumps(result, indent=1)
    print(text)
    if out is not None:
        out.write_text(text)
    if not all(check["right"] for check in result["kernels"].values()):
        sys.exit("kernels are not right: see above")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="all in small; a CPU will do")
    parser.add_argument("--data", type=Path, help="a set with masks; else phantoms")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, help="also write all as JSON")
    parser.add_argument("--wheels", type=Path, help="collect what a machine without network needs")
    chosen = parser.parse_args()
    if chosen.wheels:
        collect_wheels(chosen.wheels)
    else:
        main(chosen.quick, chosen.data, chosen.minutes, chosen.out)
