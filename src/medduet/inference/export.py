"""A trained network as ONNX, compared with itself in torch.

Images go in as uint8; calibrated probabilities, masks and images come out: normalisation,
temperature, softmax and threshold are part of the graph.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from medduet._version import __version__
from medduet.config import DataConfig
from medduet.data.cache import Progress
from medduet.data.imageset import ImageSet
from medduet.data.phantom import phantom_images
from medduet.data.sources import open_images
from medduet.errors import ConfigError, MedDuetError, ModelError
from medduet.inference.exported import CONFIG, FILE, FORMAT, BatchPrediction, ExportedModel, need
from medduet.inference.graph import NetworkGraph
from medduet.runs.environment import prepared_as
from medduet.runs.folder import RunFolder, is_run
from medduet.types import KINDS
from medduet.utils.files import atomic_folder, write_json, write_text
from medduet.utils.hub import bundle_folder
from medduet.utils.parsing import sha256

Predict = Callable[[NDArray[np.uint8]], BatchPrediction]
_BATCH = 4
# Sides that need the network's padding, so that it is part of the graph.
_EXAMPLE = {2: [75, 101], 3: [37, 43, 51]}
_SIDES = {2: ["height", "width"], 3: ["depth", "height", "width"]}
_OPSET, _IR = 18, 8  # older than the exporter's defaults, for runtimes that are installed already


@dataclass(frozen=True)
class ExportRecord:
    """An exported network.

    Attributes:
        path: its folder: ``model.onnx``, ``config.json`` and ``README.md``.
        images: the name of the set on which it was compared with the network in torch.
        n: number of these images.
        differences: share of another ``"class"`` and of pixels of the ``"mask"``; else the largest.
    """

    path: Path
    images: str
    n: int
    differences: dict[str, float]

    def __str__(self) -> str:
        """Return in one line how well it agrees with torch."""
        values = ", ".join(f"{name} {value:.2g}" for name, value in self.differences.items())
        return f"compared with torch on {self.images}, {self.n} images; differences: {values}"


def export_bundle(
    path: str | Path,
    out: str | Path,
    *,
    classify_only: bool = False,
    fixed_size: bool = False,
    data: DataConfig | None = None,
    count: Annotated[int, Field(ge=0)] = 64,
    tolerance: float = 1e-3,
    progress: Progress = None,
) -> ExportRecord:
    """Write the network of a bundle or run as ONNX, see `ExportedModel`, and compare the two.

    Args:
        path: the bundle or the run, or ``hf://OWNER/NAME``.
        out: the folder to write.
        classify_only: leave decoder, mask and reconstruction out.
        fixed_size: take images of the size of the training alone; the number stays free.
        data: on which images to compare; ``None`` for those of the run, or else phantoms.
        count: number of images of the test split to compare on, 0 for all.
        tolerance: largest difference from torch, 0 to 1.
        progress: draws the progress of downloads and conversions.

    Raises:
        ConfigError: settings that don't fit together, or a package that is not installed.
        ModelError: the network can't be exported so, or predicts something else when it is.

    Example:
        >>> import tempfile
        >>> from medduet import create_model
        >>> from medduet.runs.bundle import save_bundle
        >>> folder = Path(tempfile.mkdtemp())
        >>> network = create_model("vovunet_var", in_channels=1, num_classes=2, width=2)
        >>> save_bundle(folder / "bundle", network, {"class_names": ["a", "b"],
        ...     "layout": {"mask_classes": 0, "image_channels": 0},
        ...     "preprocessing": {"size": [32, 32], "channels": 1}})
        >>> record = export_bundle(folder / "bundle", folder / "onnx", count=4)
        >>> ExportedModel(record.path)(np.zeros((5, 1, 40, 33), np.uint8)).probability.shape
        (5, 2)
    """
    path, out = bundle_folder(path), Path(out)
    if out.exists():
        raise ConfigError(f"{out} already exists: give another --out")
    graph = NetworkGraph(path, classify_only=classify_only)
    if graph.network.patch is not None:
        raise ConfigError(f"{path} predicts by windows, which ONNX can't: train without --patch")
    images = _images(path, graph, data, progress)
    pixels = images.test.batch(np.arange(len(images.test))[: count or None]).image
    size = graph.preprocessing.size if fixed_size else None
    with atomic_folder(out) as folder:
        _write_onnx(folder / FILE, graph, size)
        config = graph.config.to_json() | {"format": FORMAT, "weights_sha256": None}
        config["export"] = {
            "precision": "float32",
            "outputs": graph.outputs,
            "size": size,
            "min_side": graph.network.min_side,
            "sha256": sha256(folder / FILE),
        }
        write_json(folder / CONFIG, config)
        model = ExportedModel(folder)
        gaps = _check(graph, model, pixels.contiguous().numpy(), tolerance)
        record = ExportRecord(out, images.name, len(pixels), gaps)
        page = Path(__file__).parent / "templates" / "onnx.md"
        text = page.read_text("utf-8").format(
            config=graph.config,
            size=graph.preprocessing.size,
            outputs=", ".join(graph.outputs),
            opset=_OPSET,
            ir=_IR,
            record=record,
        )
        write_text(folder / "README.md", text)
    return record


def _images(
    path: Path, graph: NetworkGraph, data: DataConfig | None, progress: Progress
) -> ImageSet:
    """Return the images to compare on: `data`, or those of the run, or phantoms."""
    channels, dims = graph.preprocessing.channels, graph.network.dims
    if data is not None:
        images = open_images(prepared_as(data, graph.preprocessing), progress=progress)
    elif is_run(path):
        run = RunFolder.open(path)
        images = open_images(run.run_config().data, progress=progress, saved_split=run.split)
    else:
        size, count = max(16, *graph.preprocessing.size), 32 if dims == 2 else 8
        images = phantom_images(size, (1, 1, count), channels, dims=dims)
    if (images.dims, images.in_channels) != (dims, channels) or not len(images.test):
        test = f"{len(images.test)} of {images.name} with {images.in_channels} in {images.dims}D"
        raise ConfigError(f"expected test {KINDS[dims]} with {channels} channel(s), given {test}")
    return images


def _write_onnx(file: Path, graph: NetworkGraph, size: list[int] | None) -> None:
    """Write the graph, for any number of images and, without a `size`, for images of any size."""
    for module in ("onnx", "onnxscript"):  # which the exporter imports when it is called
        need(module)
    dims, channels = graph.network.dims, graph.preprocessing.channels
    image = torch.zeros(2, channels, *(size or _EXAMPLE[dims]), dtype=torch.uint8)
    names = {0: "batch"} | ({} if size else dict(enumerate(_SIDES[dims], start=2)))
    free = dict.fromkeys(names, torch.export.Dim.DYNAMIC)
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                torch.export.export(graph, (image,), dynamic_shapes=(free,)),
                (),
                input_names=["image"],
                output_names=graph.outputs,
                dynamic_shapes=(names,),
                opset_version=_OPSET,
                dynamo=True,
            )
            # The exporter notes paths of this machine at every node.
            need("onnx_ir.passes.common").ClearMetadataAndDocStringPass()(program.model)
            program.model.ir_version = _IR
            program.model.metadata_props.clear()
            program.model.metadata_props.update(_metadata(graph))
            program.save(file, external_data=False)
    except (MedDuetError, OSError):
        raise
    except Exception as error:  # the exporters' errors have no common base class
        hint = "" if size else ": try --fixed-size"
        reason = " ".join(str(error).split())[:200]
        name = graph.config.network.name
        raise ModelError(f"{name} can't be exported: {reason}{hint}") from error


def _metadata(graph: NetworkGraph) -> dict[str, str]:
    """Return what those need who have nothing but the file; what is no text, as JSON."""
    config = graph.config
    parts = config.model_dump(include={"class_names", "multi_label", "mask_names", "preprocessing"})
    return {name: json.dumps(value) for name, value in parts.items()} | {
        "medduet_version": __version__,
        "network": config.network.name,
        "data_licence": str((config.data and config.data.info.get("licence")) or "not recorded"),
        "intended_use": "For research. Not a medical device, not for diagnosis.",
    }


def _check(
    graph: NetworkGraph, model: ExportedModel, pixels: NDArray[np.uint8], tolerance: float
) -> dict[str, float]:
    """Compare the exported network with torch, and once more on another size if it takes others."""
    trials = [(pixels, "--tolerance if that is good enough")]
    if model.export.size is None:
        borders = [(0, 0), (0, 0), (0, 3), (0, 5), (0, 2)][: pixels.ndim]
        larger = np.pad(pixels[:2], borders, mode="edge")
        trials.append((larger, "on images of another size: add --fixed-size"))
    gaps = []
    for images, hint in trials:
        gaps.append(differences(graph.predict, model, images, graph.config.multi_label))
        if not (worst := largest(gaps[-1])) <= tolerance:
            reason = f"{worst:.2g}, and the tolerance is {tolerance:g}"
            raise ModelError(f"{graph.config.network.name} differs from torch by {reason}; {hint}")
    return gaps[0]


def differences(
    reference: Predict, predict: Predict, images: NDArray[np.uint8], multi_label: bool
) -> dict[str, float]:
    """Return how far `predict` is from `reference` on images, see `ExportRecord`."""
    a, b = _heads(reference, images), _heads(predict, images)
    gaps = {name: float(np.abs(a[name] - b[name]).max()) for name in a if name != "mask"}
    if "mask" in a:
        gaps["mask"] = float((a["mask"] != b["mask"]).mean())
    if "probability" in a:
        p, q = a["probability"], b["probability"]
        differs = (p > 0.5) != (q > 0.5) if multi_label else p.argmax(axis=1) != q.argmax(axis=1)
        gaps["class"] = float(differs.reshape(len(p), -1).any(axis=1).mean())
    return gaps


def largest(gaps: dict[str, float]) -> float:
    """Return the largest difference, NaN if one is; a tie may be another class."""
    return float(np.max([gaps[name] for name in gaps.keys() - {"class"}]))


def _heads(predict: Predict, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    batches = [predict(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    heads = zip(BatchPrediction._fields, zip(*batches, strict=True), strict=True)
    return {name: np.concatenate(parts) for name, parts in heads if parts[0] is not None}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters print, log and warn of off the screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
