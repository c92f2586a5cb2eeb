"""Predicting with an exported network, without torch: numpy and one runtime."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from medduet.errors import ConfigError, MissingFileError, ModelError
from medduet.runs.config import BundleConfig, Export
from medduet.utils.parsing import read_json, sha256

FORMAT, FILE, CONFIG = "medduet-export", "model.onnx", "config.json"


class BatchPrediction(NamedTuple):
    """A network's predictions for N images; ``None`` where it has no such head.

    Attributes:
        probability: ``(N, K)`` float, 0 to 1, calibrated if the bundle is.
        mask: ``(N, H, W)`` uint8 mask class, 0 is background; ``D, H, W`` of volumes, as below.
        reconstruction: ``(N, C, H, W)`` float32 image, where 0 is black and 1 is white.
        mask_probability: ``(N, K, H, W)`` float32 of the mask classes, where it is asked for.
    """

    probability: NDArray[np.floating[Any]] | None = None
    mask: NDArray[np.uint8] | None = None
    reconstruction: NDArray[np.float32] | None = None
    mask_probability: NDArray[np.float32] | None = None


class ExportedModel:
    """A network that `medduet export` wrote, on the CPU; an example is at `medduet.export_bundle`.

    Args:
        path: the folder.
        runtime: ``"onnxruntime"`` or ``"openvino"``, which is faster on many CPUs.
        precision: what is computed in; ``"bfloat16"`` is OpenVINO's, on CPUs that have it.
        threads: to compute with; 0 for as many as there are cores.

    Raises:
        MissingFileError: there is no exported network.
        ModelError: it is damaged.
        ConfigError: the runtime is not installed, or lacks that precision.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        runtime: Literal["onnxruntime", "openvino"] = "onnxruntime",
        precision: Literal["float32", "bfloat16"] = "float32",
        threads: int = 0,
    ) -> None:
        self._folder = Path(path)
        self.config, self.export = _read_config(self._folder)
        if runtime == "openvino":
            self._start_openvino(precision, threads)
        elif precision == "bfloat16":
            raise ConfigError("ONNX Runtime computes in float32 on CPUs: add runtime='openvino'")
        else:
            self._start_onnxruntime(threads)

    def _start_onnxruntime(self, threads: int) -> None:
        runtime = need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors are raised, and need no line in the log
        with self._errors():
            session = runtime.InferenceSession(
                str(self._folder / FILE), options, providers=["CPUExecutionProvider"]
            )
        self._run: Any = lambda image: session.run(None, {"image": image})

    def _start_openvino(self, precision: str, threads: int) -> None:
        core = need("openvino").Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bfloat16" and "BF16" not in capabilities:
            raise ConfigError("this processor has no bfloat16: leave the precision out")
        settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        with self._errors():
            compiled = core.compile_model(self._folder / FILE, "CPU", settings)
        # A request for each call, so that several threads can share the network.
        self._run = lambda image: list(compiled.create_infer_request().infer(image).values())

    def __call__(self, image: NDArray[np.uint8]) -> BatchPrediction:
        """Return the predictions for images ``(N, C, ...)``, uint8; ModelError if others."""
        network, size, least = self.config.network, self.export.size, self.export.min_side
        sides = tuple(image.shape[2:])
        fits = sides == tuple(size) if size else len(sides) == network.dims and min(sides) >= least
        if image.dtype != np.uint8 or image.shape[1:2] != (network.in_channels,) or not fits:
            free = [f"{side} >= {least}" for side in "DHW"[-network.dims :]]
            expected = ", ".join(map(str, size or free))
            images = f"images (N, {network.in_channels}, {expected}) of uint8"
            raise ModelError(f"expected {images}, given {image.shape} of {image.dtype}")
        with self._errors():
            outputs = self._run(np.ascontiguousarray(image))
            heads = dict(zip(self.export.outputs, outputs, strict=True))
            layouts = {"probability": (network.num_classes,), "mask": sides}
            layouts["reconstruction"] = (network.in_channels, *sides)
            for name, head in heads.items():
                kind, shape = "uint8" if name == "mask" else "float", (len(image), *layouts[name])
                if not (head.dtype.name.startswith(kind) and head.shape == shape):
                    raise ValueError(f"expected {name} {shape} of {kind}, given {head.dtype}")
                if name == "mask" and not (head <= max(len(self.config.mask_names) - 1, 0)).all():
                    raise ValueError("its masks have values beyond its mask_names")
        return BatchPrediction(**heads)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn any error of a runtime into a ModelError."""
        try:
            yield
        except Exception as error:  # the runtimes' errors have no common base class
            raise ModelError(f"the network in {self._folder} can't be used: {error}") from error


def need(module: str) -> Any:
    """Return the module; ConfigError says how to install it.

    OpenVINO reports to its makers that it was imported, unless it is being tested.
    """
    try:
        with patch.dict(os.environ, {"CI": "true"}):
            return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"this needs {module}: pip install 'medduet[export]'") from error


def _read_config(folder: Path) -> tuple[BundleConfig, Export]:
    for name in (CONFIG, FILE):
        if not (folder / name).is_file():
            raise MissingFileError(f"{folder} has no {name}: medduet export BUNDLE --out DIR")
    config = BundleConfig.check(read_json(folder / CONFIG, ModelError), folder / CONFIG)
    if config.format != FORMAT or config.export is None:
        raise ModelError(f"expected an exported network, given {folder / CONFIG} of another kind")
    if sha256(folder / FILE) != config.export.sha256:
        raise ModelError(f"{folder / FILE} was changed since the export: its SHA-256 differs")
    return config, config.export
