"""How a network is written down for each runtime, and the page beside it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medduet.data.imageset import ImageSet
from medduet.inference.agreement import Agreement
from medduet.inference.exported import need

Format = Literal["onnx", "openvino", "torch"]
Precision = Literal["float32", "float16", "int8"]
CALIBRATION = 128
"""Images from which the ranges of INT8 are taken."""


def write_program(
    folder: Path,
    program: torch.export.ExportedProgram,
    outputs: Sequence[str],
    images: ImageSet,
    kind: Format,
    precision: Precision,
) -> None:
    """Write the file of a network into `folder`.

    Args:
        folder: where the file goes.
        program: the graph; takes images, gives `outputs`.
        outputs: their names.
        images: whose training split gives the ranges of INT8.
        kind: of file.
        precision: of its weights.

    Raises:
        ConfigError: a package is not installed.
    """
    if kind == "torch":
        # torch's own writer takes the whole process down where a disk is full.
        written = io.BytesIO()
        torch.export.save(program, written)
        (folder / "model.pt2").write_bytes(written.getbuffer())
        return
    need("onnxscript")
    onnx, file = need("onnx"), folder / "model.onnx"
    torch.onnx.export(
        program,
        (),
        file,
        input_names=["image"],
        output_names=outputs,
        dynamo=True,
        external_data=False,
    )
    if kind == "openvino":
        openvino = need("openvino")
        # Not `convert_model`, which would report its use, see `need`.
        model = openvino.Core().read_model(file)
        if precision == "int8":
            model = _quantized(model, images, lambda image: image)
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=precision == "float16")
        file.unlink()
    elif precision == "int8":
        model = _quantized(onnx.load(file), images, lambda image: {"image": image})
        onnx.save(model, file)
    elif precision == "float16":
        onnx.save(_halved(onnx.load(file)), file)


def _quantized(model: Any, images: ImageSet, feed: Callable[[NDArray[np.uint8]], Any]) -> Any:
    """Return `model` in INT8, with ranges from images of the training split."""
    nncf, split = need("nncf"), images.train
    rows = np.unique(np.linspace(0, len(split) - 1, CALIBRATION).round().astype(np.int64))
    calibration = nncf.Dataset(
        rows.tolist(), lambda row: feed(split.batch(np.array([row])).image.contiguous().numpy())
    )
    return nncf.quantize(model, calibration, subset_size=len(rows))


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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporters print, log and warn of off the screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


_CODE = {
    "onnx": """\
session = onnxruntime.InferenceSession(folder + "/model.onnx")
outputs = session.run(None, {"image": image})""",
    "openvino": """\
model = openvino.compile_model(folder + "/model.xml", "CPU")
outputs = list(model(image).values())""",
    "torch": """\
# Reading a .pt2 can run code: do so only with files that you trust.
module = torch.export.load(folder + "/model.pt2").module(check_guards=False)
outputs = module(torch.from_numpy(image))""",
}


def export_page(config: dict[str, Any], images: str) -> str:
    """Return the Markdown page of an exported network."""
    about, network = config["export"], config["network"]
    classes, masks = (config.get(name, []) for name in ("class_names", "mask_names"))
    height, width = config["preprocessing"]["size"]
    module = {"onnx": "onnxruntime"}.get(about["format"], about["format"])
    lines = [
        f"# {network['name']}, {about['format']}, {about['precision']}",
        "",
        *([f"Classes: {', '.join(classes)}.", ""] if classes else []),
        *([f"Mask: {', '.join(masks)}.", ""] if "mask" in about["outputs"] and masks else []),
        "For research. Not a medical device, not for diagnosis.",
        "",
        "```python",
        "import numpy as np",
        f"import {module}",
        "",
        'folder = "path/of/this/folder"',
        f"image = np.zeros((1, {network['in_channels']}, {height}, {width}), np.uint8)",
        *_CODE[about["format"]].splitlines(),
        f"# {', '.join(about['outputs'])}",
        "```",
        "",
        "Or `medduet.ExportedModel`, which checks files and images.",
        "",
    ]
    for name, each in about["agreement"].items():
        lines += [f"Compared with torch on {images}, computed in {name}: {Agreement(**each)}", ""]
    return "\n".join(lines)
