"""How many requests `medduet serve` answers, and whether each gets its own answer. On the CPU.

    python -m benchmarks.serve [--clients 16] [--seconds 60] [--out FILE] [--quick]

VovUnet_Var, class and mask, 1 x 224 x 224 pixels, random weights, in a server process of its own.
Each client sends known images, one after another, which all differ, and compares what comes back
with what the predictor alone says of them: probabilities within 0.005, and no other image's nearer.
Clients, in one process, and server share the cores. A request that is refused (429) is counted and
sent again.

Beside it stands a bare loop over the same predictor, in this process, from the same bytes of PNG,
before and after: one image at a time, and as many together as the predictor likes. It neither
encodes nor sends the masks. Memory is the resident set of the server, read from its `/metrics`:
after the first tenth of the time and at the end.
"""

import argparse
import asyncio
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from PIL import Image

from medduet import DenseLayout, Predictor, create_model
from medduet.runs.bundle import save_bundle
from medduet.utils.files import write_json

TOLERANCE = 5e-3  # the scaled head makes rounding visible: batches of other sizes differ by 0.0015
CLASSES = 16
WARM_UP = 0.1  # of the time, until the first look at the memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--images", type=int, default=64, help="different images that are sent")
    parser.add_argument("--side", type=int, default=224, help="of the images in pixels")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="a small network, to try this out")
    parser.add_argument("--out", type=Path, help="also write the numbers to this file, as JSON")
    given = parser.parse_args()
    if given.quick:
        given.side, given.seconds, given.images, given.clients = 32, 5, 16, 8
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        write_bundle(bundle, given.side, width=4 if given.quick else None)
        predictor = Predictor(bundle)
        images, expected = chosen(predictor, given.images, given.side)
        loops = [bare_loops(predictor, images, given.seconds / 4)]
        found = asyncio.run(with_server(bundle, images, expected, given))
        loops.append(bare_loops(predictor, images, given.seconds / 4))
    found["bare_loops"] = loops
    show(found, given)
    if given.out:
        write_json(given.out, found)
    if found["wrong"] or found["lost"]:
        sys.exit(1)


def write_bundle(path: Path, side: int, width: int | None) -> None:
    """Write a network whose scores have mean 0 and deviation 2 over such images."""
    torch.manual_seed(0)
    options = {} if width is None else {"width": width}
    layout = DenseLayout(2, 0)
    network = create_model(
        "vovunet_var", in_channels=1, num_classes=CLASSES, dense_channels=layout.channels, **options
    ).train()
    images = torch.from_numpy(np.stack([pixels_of(-1 - n, side) for n in range(24)]))[:, None]
    with torch.no_grad():
        for batch in images.split(4):
            network(batch)
        logits = network.eval().classify(images)
        head = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
        scale, mean = 2 / logits.std(dim=0), logits.mean(dim=0)
        head.weight *= scale[:, None]
        head.bias.copy_(scale * (head.bias - mean))
    save_bundle(
        path,
        network,
        {
            "class_names": [f"class {number}" for number in range(CLASSES)],
            "mask_names": ["background", "lesion"],
            "multi_label": False,
            "layout": layout._asdict(),
            "preprocessing": {"size": [side, side], "channels": 1, "fit": "pad", "window": None},
        },
    )


def pixels_of(number: int, side: int) -> np.ndarray:
    rng = np.random.default_rng(number % 2**32)
    cells = int(rng.integers(2, 12))
    small = Image.fromarray(rng.integers(0, 255, (cells, cells), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def image_of(number: int, side: int) -> bytes:
    Image.fromarray(pixels_of(number, side)).save(file := io.BytesIO(), "png")
    return file.getvalue()


def chosen(predictor: Predictor, count: int, side: int) -> tuple[list[bytes], np.ndarray]:
    """Return images whose answers can be told apart, and the answers."""
    images, answers = list[bytes](), np.empty((0, len(predictor.class_names)))
    for number in range(20 * count):
        image = image_of(number, side)
        answer = np.array(list(predictor(io.BytesIO(image)).probabilities.values()))
        if (np.abs(answers - answer).max(axis=1) > 4 * TOLERANCE).all():
            images.append(image)
            answers = np.vstack([answers, answer])
        if len(images) == count:
            return images, answers
    sys.exit(f"only {len(images)} answers can be told apart: give --images {len(images)}")


def bare_loops(predictor: Predictor, images: list[bytes], seconds: float) -> dict[str, float]:
    """Return images per second of loops without a server."""

    def rate(together: int) -> float:
        done, start, ring = 0, time.perf_counter(), itertools.cycle(images)
        while time.perf_counter() - start < seconds:
            some = [predictor.read(io.BytesIO(next(ring)))[0] for _ in range(together)]
            predictor.predict_pictures(some)
            done += together
        return done / (time.perf_counter() - start)

    return {
        "one at a time": rate(1),
        f"{predictor.batch_size} together": rate(predictor.batch_size),
    }


async def with_server(
    bundle: Path, images: list[bytes], expected: np.ndarray, given: argparse.Namespace
) -> dict[str, Any]:
    command = [sys.executable, "-m", "medduet", "serve", str(bundle), "--port", "0", "--no-explain"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split(" at ")[1].split()[0]
            limits = httpx2.Limits(max_connections=given.clients + 1)
            async with httpx2.AsyncClient(base_url=address, limits=limits, timeout=120) as client:
                return await load(client, images, expected, given)
        finally:
            server.terminate()


async def load(
    client: httpx2.AsyncClient,
    images: list[bytes],
    expected: np.ndarray,
    given: argparse.Namespace,
) -> dict[str, Any]:
    counts, seconds, memory = Counter[str](), list[float](), list[float]()
    start = time.perf_counter()
    end = start + given.seconds

    async def one_client(number: int) -> None:
        rng = np.random.default_rng(number)
        while time.perf_counter() < end:
            which = int(rng.integers(len(images)))
            sent = time.perf_counter()
            counts["sent"] += 1
            try:
                response = await client.post("/predict", content=images[which])
                if response.status_code == 429:
                    counts["refused"] += 1
                    await asyncio.sleep(float(response.headers["retry-after"]))
                    continue
                response.raise_for_status()
                said = np.array(list(response.json()["probabilities"].values()))
            except httpx2.HTTPError as error:
                counts["lost"] += 1
                print(f"lost: {error!r}", file=sys.stderr)
                continue
            seconds.append(time.perf_counter() - sent)
            far = np.abs(expected - said).max(axis=1)
            counts["wrong"] += int(far[which] > TOLERANCE or far.argmin() != which)

    async def watch() -> None:
        await asyncio.sleep(WARM_UP * given.seconds)
        memory.append(await resident(client))

    await asyncio.gather(watch(), *(one_client(number) for number in range(given.clients)))
    took = time.perf_counter() - start
    memory.append(await resident(client))
    return {
        "clients": given.clients,
        "seconds": took,
        **{name: counts[name] for name in ("sent", "refused", "lost", "wrong")},
        "answered": len(seconds),
        "per_second": len(seconds) / took,
        "milliseconds": dict(
            zip(("p50", "p95", "p99"), np.percentile(seconds, [50, 95, 99]) * 1e3, strict=True)
        ),
        "megabytes": memory,
        "batch": await mean_batch(client),
    }


async def metrics(client: httpx2.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def resident(client: httpx2.AsyncClient) -> float:
    return (await metrics(client))["process_resident_memory_bytes"] / 2**20


async def mean_batch(client: httpx2.AsyncClient) -> float:
    found = await metrics(client)
    total, count = (
        sum(
            value for name, value in found.items() if name.startswith(f"medduet_batch_images_{end}")
        )
        for end in ("sum", "count")
    )
    return total / count


def show(found: dict[str, Any], given: argparse.Namespace) -> None:
    times = ", ".join(f"{name} {value:.0f}" for name, value in found["milliseconds"].items())
    before, after = found["megabytes"]
    print(
        f"VovUnet_Var, {given.side} pixels, {given.threads} threads; {found['clients']} clients, "
    )
    print(f"{found['seconds']:.0f} s, {given.images} different images\n")
    print("| | |\n| --- | --- |")
    print(f"| requests sent | {found['sent']} |")
    print(f"| refused for want of room | {found['refused']} |")
    print(f"| lost | {found['lost']} |")
    print(f"| answered with another's result | {found['wrong']} |")
    print(f"| images a second | {found['per_second']:.2f} |")
    print(f"| images computed together, mean | {found['batch']:.1f} |")
    print(f"| milliseconds from request to answer | {times} |")
    print(f"| memory of the server, MB, at {WARM_UP:.0%} and the end | {before:.0f}, {after:.0f} |")
    for name in found["bare_loops"][0]:
        rates = ", ".join(f"{loops[name]:.2f}" for loops in found["bare_loops"])
        print(f"| bare loop, {name}, images a second, before and after | {rates} |")


if __name__ == "__main__":
    main()
