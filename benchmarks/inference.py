"""How long one prediction takes, in torch and exported, and how well the two agree. On the CPU.

    python -m benchmarks.inference [--quick] [--out FILE]           # milliseconds
    python -m benchmarks.inference --agree PATH DATA [--out FILE]   # a run or bundle

Milliseconds: VovUnet_Var, 3 x 224 x 224 pixels, random weights. Each way takes turns, in one
process, with float32 in torch and both heads, which is what a bundle computes when it is loaded and
called: medians of the rounds, the middle half of them, and the median of the ratios in the same
round. Asked for are 3 times that speed with both heads, and 8 times for the class alone, one image
at a time. Only two networks are in memory at a time, since 16 images take gigabytes in each.

Agreement: the same ways on the test images of DATA, with float32 in torch as the reference, of a
network with both heads. Asked
for are the same class for each image, and a Dice within 0.002.
"""

import argparse
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medduet import (
    ConfigError,
    DataConfig,
    ExportedModel,
    create_model,
    export_bundle,
    load_bundle,
    open_images,
)
from medduet.inference.export import differences
from medduet.inference.exported import BatchPrediction
from medduet.inference.graph import NetworkGraph
from medduet.runs.bundle import save_bundle
from medduet.utils.files import write_json

WAYS: dict[str, dict[str, Any]] = {
    "ONNX Runtime, float32": {},
    "OpenVINO, float32": {"runtime": "openvino"},
    "OpenVINO, bfloat16": {"runtime": "openvino", "precision": "bfloat16"},
}
EAGER, HALF = "torch, float32", "torch, bfloat16, channels last"
HEADS = {False: "class and mask", True: "class alone"}

Predict = Callable[[Any], BatchPrediction]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small network, to try this out")
    parser.add_argument("--agree", nargs=2, metavar=("PATH", "DATA"), help="compare, time nothing")
    parser.add_argument("--out", type=Path, help="also write the numbers to this file, as JSON")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = ("torch", "onnxruntime", "openvino")
    found: dict[str, Any] = {
        "versions": {name: importlib.metadata.version(name) for name in names},
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": given.threads,
        "malloc": {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")},
    }
    print(*(f"{name}: {value}" for name, value in found.items()), sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if given.agree:
            found["agreement"] = agree(Path(given.agree[0]), given.agree[1], Path(folder))
        else:
            found["speed"] = speed(given, Path(folder))
    if given.out is not None:
        write_json(given.out, found)


def speed(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    size, width = (64, 8) if given.quick else (224, 64)
    bundle = untrained(folder / "bundle", size, width)
    data = DataConfig(name="phantom", size=size, count=20, channels=3)
    eager, tables = in_torch(bundle), []
    for alone, heads in HEADS.items():
        for batch in given.batches:
            rng = np.random.default_rng(0)
            image = rng.integers(0, 256, (batch, 3, size, size), np.uint8)
            ways: dict[str, Callable[[], Predict]] = {
                HALF: partial(in_torch, bundle, alone, half=True)
            }
            if alone:
                ways = {EAGER: partial(in_torch, bundle, alone)} | ways
            path = exported(bundle, folder / f"onnx-{alone}", data, alone)
            for name, options in WAYS.items():
                ways[name] = partial(ExportedModel, path, threads=given.threads, **options)
            print(f"\nvovunet_var, width {width}, {heads}, {batch} x 3 x {size} x {size}\n")
            print(f"| | ms | middle half | {EAGER}, both heads | middle half | times as fast |")
            print("| --- | --- | --- | --- | --- | --- |")
            rows = {}
            for name, build in ways.items():
                try:
                    way = build()
                except ConfigError as error:  # the processor can't compute so
                    print(f"| {name} | {error} |")
                    continue
                rows[name] = times = timed(eager, way, image, given.rounds)
                del way
                own, base = (span(times[key]) for key in ("ms", "eager_ms"))
                print(f"| {name} | {own} | {base} | {times['times_as_fast']:.2f} |", flush=True)
            about = {"heads": heads, "batch": batch, "size": size, "width": width}
            tables.append(about | {"ways": rows})
    return tables


def untrained(path: Path, size: int, width: int) -> Path:
    torch.manual_seed(0)
    sizes = {"in_channels": 3, "num_classes": 8, "dense_channels": 1, "width": width}
    facts = {"class_names": [f"class {i}" for i in range(8)], "mask_names": ["background", "x"]}
    layout = {"mask_classes": 2, "image_channels": 0}
    preprocessing = {"size": [size, size], "channels": 3}
    more = {"multi_label": False, "layout": layout, "preprocessing": preprocessing}
    save_bundle(path, create_model("vovunet_var", **sizes), facts | more)
    return path


def exported(bundle: Path, path: Path, data: DataConfig, alone: bool) -> Path:
    if not path.exists():
        options = {"classify_only": alone, "data": data, "count": 2, "tolerance": float("inf")}
        export_bundle(bundle, path, **options)
    return path


def in_torch(bundle: Path, alone: bool = False, half: bool = False) -> Predict:
    predictor = NetworkGraph(bundle, classify_only=alone)
    if not half:
        return predictor.predict
    predictor.network.to(memory_format=torch.channels_last)

    def predict(image: Any) -> BatchPrediction:
        with torch.autocast("cpu", torch.bfloat16):
            return predictor.predict(image)

    return predict


def timed(eager: Predict, way: Predict, image: Any, rounds: int) -> dict[str, Any]:
    """Return the milliseconds of each round, in turn, and the median of their ratios."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for predict, times in zip((eager, way), spent, strict=True):
            if not times or times[-1] < 2000:
                predict(image)  # the caches and threads of the other are gone
            started = time.perf_counter()
            predict(image)
            times.append(1000 * (time.perf_counter() - started))
    ratio = float(np.median(np.divide(*spent)))
    return {"eager_ms": spent[0], "ms": spent[1], "times_as_fast": ratio}


def span(times: list[float]) -> str:
    low, median, high = np.percentile(times, [25, 50, 75])
    return f"{median:.1f} | {low:.1f} to {high:.1f}"


def agree(bundle: Path, name: str, folder: Path) -> list[dict[str, Any]]:
    config = load_bundle(bundle).config
    data = DataConfig(name=name, size=max(config.preprocessing.size))
    images = open_images(data)
    tables = []
    for alone, heads in HEADS.items():
        reference = in_torch(bundle, alone)
        ways: dict[str, Predict] = {HALF: in_torch(bundle, alone, half=True)}
        path = exported(bundle, folder / f"onnx-{alone}", data, alone)
        for way, options in WAYS.items():
            try:
                ways[way] = ExportedModel(path, **options)
            except ConfigError as error:  # the processor can't compute so
                print(f"no {way}: {error}")
        pixels = images.test.batch(np.arange(len(images.test))).image.contiguous().numpy()
        print(f"\n{heads}, {len(images.test)} test images of {images.name}, {data.size} pixels\n")
        print("| | class the same | probability within | mask pixels |")
        print("| --- | --- | --- | --- |")
        rows = {}
        for way, predict in ways.items():
            found = differences(reference, predict, pixels, config.multi_label)
            mask = f"{100 * found['mask']:.3f}%" if "mask" in found else ""
            same, within = f"{1 - found['class']:.1%}", f"{found['probability']:.2g}"
            print(f"| {way} | {same} | {within} | {mask} |")
            rows[way] = found
        print(flush=True)
        tables.append({"heads": heads, "images": images.name, "size": data.size, "ways": rows})
    return tables


if __name__ == "__main__":
    main()
