"""A trained network as ONNX, compared with itself in torch.

Images go in as uint8; calibrated probabilities, masks and images come out: normalisation,
temperature, softmax and threshold are part of the graph.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from medduet._version import __version__
from medduet.config import DataConfig
from medduet.data.cache import ProgressFactory
from medduet.data.imageset import ImageSet
from medduet.data.phantom import phantom_images
from medduet.data.sources import open_images
from medduet.errors import ConfigError, MedDuetError, ModelError
from medduet.inference.agreement import Agreement, agreement
from medduet.inference.exported import FILE, FORMAT, ExportedModel, need
from medduet.inference.graph import NetworkGraph
from medduet.runs.bundle import load_bundle
from medduet.runs.folder import RunFolder, is_run
from medduet.runs.images import in_classes_of, prepared_as
from medduet.utils.files import atomic_folder, write_json, write_text
from medduet.utils.hub import bundle_folder
from medduet.utils.parsing import sha256

Precision = Literal["float32", "float16", "int8"]
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "int8": 0.05}
_RANGES = 128
"""Images from which the ranges of INT8 are taken."""
_EXAMPLE = (75, 101)
"""Sides that no network gets by without its padding, so that the padding is part of the graph."""
_ONE_SIZE = ("mobilevit", "swin")
"""Names of networks whose blocks choose by the size of the image what they compute."""


@dataclass(frozen=True)
class ExportRecord:
    """An exported network.

    Attributes:
        path: its folder: ``model.onnx``, ``config.json`` and ``README.md``.
        images: the name of the set on which it was compared with the network itself.
        agreement: how well the two agree.
    """

    path: Path
    images: str
    agreement: Agreement


def export_bundle(
    path: str | Path,
    out: str | Path,
    *,
    classify_only: bool = False,
    precision: Precision = "float32",
    fixed_size: bool = False,
    data: DataConfig | None = None,
    count: int = 64,
    tolerance: float | None = None,
    progress: ProgressFactory | None = None,
) -> ExportRecord:
    """Write the network of a bundle or run as ONNX, and compare the two.

    ONNX Runtime and OpenVINO read it without torch, see `ExportedModel`.

    Args:
        path: the bundle or the run, or ``hf://OWNER/NAME``.
        out: the folder to write.
        classify_only: leave decoder, mask and reconstruction out.
        precision: of the weights in the file. ``"int8"`` computes in INT8, too, with ranges from
            128 images of the training split.
        fixed_size: take images of the size of the training alone; the number stays free.
        data: on which images to compare; ``None`` for those of the run, or else phantoms.
        count: number of images of the test split to compare on, 0 for all.
        tolerance: largest difference of a probability, of a reconstructed pixel (0 to 1), and
            largest share of mask pixels that differ; for INT8 largest share of images in another
            class, and of pixels. ``None`` for 0.001 (float32), 0.01 (float16), 0.05 (INT8).
        progress: draws the progress of downloads and conversions.

    Returns:
        What was written, and how well it agrees.

    Raises:
        ConfigError: settings that don't fit together, or a package that is not installed.
        ModelError: the network can't be exported so, or predicts something else when it is.

    Example:
        >>> import tempfile, numpy
        >>> from medduet import create_model, ExportedModel
        >>> from medduet.runs.bundle import save_bundle
        >>> folder = Path(tempfile.mkdtemp())
        >>> network = create_model("vovunet_var", in_channels=1, num_classes=2, width=2)
        >>> save_bundle(folder / "bundle", network, {"class_names": ["a", "b"],
        ...     "layout": {"mask_classes": 0, "image_channels": 0},
        ...     "preprocessing": {"size": [32, 32], "channels": 1}})
        >>> record = export_bundle(folder / "bundle", folder / "onnx", count=4)
        >>> image = numpy.zeros((5, 1, 40, 33), numpy.uint8)
        >>> ExportedModel(record.path)(image).probability.shape
        (5, 2)
    """
    path, out = bundle_folder(path), Path(out)
    if out.exists():
        raise ConfigError(f"{out} is there already: give another --out")
    if count < 0:
        raise ConfigError(f"expected a number of images, or 0 for all, given --count {count}")
    graph = NetworkGraph(load_bundle(path), path, classify_only=classify_only)
    name = graph.network.arguments["name"]
    if not fixed_size and any(part in name for part in _ONE_SIZE):
        raise ModelError(
            f"{name} chooses by the size of the image what it computes, so it can't be exported "
            "for all of them: add --fixed-size"
        )
    images = _images(path, graph, data, precision, progress)
    size = graph.preprocessing.size if fixed_size else None
    with atomic_folder(out) as folder:
        _write_onnx(folder / FILE, graph, images, precision, size)
        config = _write_config(folder, graph, precision, size)
        model = ExportedModel(folder)
        result = _check(graph, model, images, count or len(images.test), precision, tolerance)
        config["export"]["agreement"] = result._asdict()
        write_json(folder / "config.json", config)
        write_text(folder / "README.md", _page(graph, precision, f"{images.name}: {result}"))
    return ExportRecord(out, images.name, result)


def _images(
    path: Path,
    graph: NetworkGraph,
    data: DataConfig | None,
    precision: Precision,
    progress: ProgressFactory | None,
) -> ImageSet:
    """Return the images to compare on: `data`, or those of the run, or phantoms."""
    if data is not None:
        images = open_images(prepared_as(data, graph.preprocessing), progress=progress)
    elif is_run(path):
        folder = RunFolder.open(path)
        images = open_images(folder.run_config().data, progress=progress, saved_split=folder.split)
    elif precision == "int8":
        raise ConfigError(
            f"INT8 takes its ranges from real images, and {path} is a bundle: give --data NAME"
        )
    else:
        side = max(16, *graph.preprocessing.size)
        images = phantom_images(side, (1, 1, 32), graph.preprocessing.channels)
    channels = graph.preprocessing.channels
    if images.in_channels != channels:
        raise ConfigError(
            f"{path} takes {channels} channel(s), but {images.name} has {images.in_channels}: "
            "give others by --data"
        )
    if not len(images.test):
        raise ConfigError(f"{images.name} has no test images to compare on: give others by --data")
    return in_classes_of(images, graph.config.class_names)


def _write_onnx(
    file: Path, graph: NetworkGraph, images: ImageSet, precision: Precision, size: list[int] | None
) -> None:
    """Write the graph, for any number of images and, without a `size`, for images of any size."""
    onnx, name = need("onnx"), graph.network.arguments["name"]
    need("onnxscript")
    free: Any = torch.export.Dim.DYNAMIC
    image = torch.zeros(2, graph.preprocessing.channels, *(size or _EXAMPLE), dtype=torch.uint8)
    dims = {0: free} if size else {0: free, 2: free, 3: free}
    try:
        with _quiet():
            torch.onnx.export(
                torch.export.export(graph, (image,), dynamic_shapes=(dims,)),
                (),
                file,
                input_names=["image"],
                output_names=graph.outputs,
                dynamo=True,
                external_data=False,
            )
            if precision == "int8":
                onnx.save(_quantized(onnx.load(file), images), file)
            elif precision == "float16":
                onnx.save(_halved(onnx.load(file)), file)
    except (MedDuetError, OSError):
        raise
    except Exception as error:  # the exporters have no common root for what can go wrong here
        hint = "" if size else "; add --fixed-size, and it needs to fit one size only"
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{name} can't be exported: {reason}{hint}") from error


def _quantized(model: Any, images: ImageSet) -> Any:
    """Return an ONNX model in INT8, with ranges from images of the training split."""
    nncf, split = need("nncf"), images.train
    rows = np.unique(np.linspace(0, len(split) - 1, _RANGES).round().astype(np.int64))
    ranges = nncf.Dataset(
        rows.tolist(),
        lambda row: {"image": split.batch(np.array([row])).image.contiguous().numpy()},
    )
    return nncf.quantize(model, ranges, subset_size=len(rows))


def _halved(model: Any) -> Any:
    """Return an ONNX model whose large weights are kept in float16; it computes in float32."""
    onnx = need("onnx")
    casts = []
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < 64 or np.abs(values).max() > 6e4:
            continue
        name = weight.name
        half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.half")
        weight.CopyFrom(half)
        casts.append(onnx.helper.make_node("Cast", [half.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _write_config(
    folder: Path, graph: NetworkGraph, precision: Precision, size: list[int] | None
) -> dict[str, Any]:
    config = graph.config.to_json() | {
        "format": FORMAT,
        "weights_sha256": None,
        "export": {
            "precision": precision,
            "outputs": graph.outputs,
            "size": size,
            "min_side": graph.network.min_side,
            "sha256": sha256(folder / FILE),
            "versions": {"medduet": __version__, "torch": torch.__version__},
        },
    }
    write_json(folder / "config.json", config)  # the exported network is read from here
    return config


def _check(
    graph: NetworkGraph,
    model: ExportedModel,
    images: ImageSet,
    count: int,
    precision: Precision,
    tolerance: float | None,
) -> Agreement:
    """Compare the exported network with torch; ModelError if they differ by more than allowed.

    If it takes other sizes, it is tried on one, too, of which INT8 needs no more than the shapes.
    """
    pixels = images.test.batch(np.arange(min(count, len(images.test)))).image.contiguous().numpy()
    result = agreement(graph.predict, model, pixels, graph.config.multi_label)
    limit = TOLERANCE[precision] if tolerance is None else tolerance
    worst, hint = result.worst, "give another --precision, or --tolerance if that is good enough"
    if precision == "int8":
        worst = result.worst_share
    elif worst <= limit and model.config.export is not None and model.config.export.size is None:
        larger = np.pad(pixels[:2], [(0, 0), (0, 0), (0, 3), (0, 5)], mode="edge")
        worst = agreement(graph.predict, model, larger, graph.config.multi_label).worst
        hint = f"on images of {larger.shape[2]} x {larger.shape[3]} pixels: add --fixed-size"
    if not worst <= limit:
        raise ModelError(
            f"exported, {graph.network.arguments['name']} predicts something else than in torch: "
            f"a difference of {worst:.2g}, and the tolerance is {limit:g}; {hint}"
        )
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters print, log and warn of off the screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _page(graph: NetworkGraph, precision: str, comparison: str) -> str:
    """Return the Markdown page of an exported network."""
    config, (height, width) = graph.config, graph.preprocessing.size
    return f"""\
# {config.network.name}, ONNX, {precision}

Classes: {", ".join(config.class_names) or "none"}.
Mask: {", ".join(config.mask_names) or "none"}.

For research. Not a medical device, not for diagnosis.

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("path/of/this/folder/model.onnx")
image = np.zeros((1, {config.network.in_channels}, {height}, {width}), np.uint8)
outputs = session.run(None, {{"image": image}})
# {", ".join(graph.outputs)}; probabilities are calibrated if the bundle is
```

Or `medduet.ExportedModel`, which checks files and images.

Compared with torch on {comparison}
"""
