"""Predicting with an exported network, without torch: numpy and one runtime."""

from __future__ import annotations

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
from medduet.runs.bundle_config import check_said
from medduet.utils.parsing import read_object, sha256

FORMAT = "medduet-export"
Runtime = Literal["auto", "float32", "bfloat16"]


class Prediction(NamedTuple):
    """What an exported network says of N images; ``None`` where it was not asked.

    Attributes:
        probability: ``(N, K)`` float32, 0 to 1; of multi-label sets each class on its own.
        mask: ``(N, H, W)`` uint8 mask class, 0 is background.
        reconstruction: ``(N, C, H, W)`` float32 image, where 0 is black and 1 is white.
    """

    probability: NDArray[np.float32] | None = None
    mask: NDArray[np.uint8] | None = None
    reconstruction: NDArray[np.float32] | None = None


class ExportedModel:
    """A network that `medduet export` wrote, on the CPU; an example is at `medduet.export_bundle`.

    Args:
        path: the folder.
        precision: what OpenVINO computes in. ``"auto"`` is bfloat16 on processors that have it,
            else float32. ONNX Runtime computes in float32.
        threads: to compute with; 0 for as many as there are cores.
        shape: images, height and width in pixels of what will be given, if it is always the same:
            OpenVINO then plans for it, and is faster.

    Attributes:
        config: the content of ``config.json``: that of the bundle, and ``export``.
        class_names: of the K classes, in their order.
        mask_names: of the mask classes, background first.
        precision: what it computes in.

    Raises:
        MissingFileError: there is no exported network.
        ModelError: it is damaged, or in the format of torch, which this does not read.
        ConfigError: the runtime is not installed, or does not have that precision.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        precision: Runtime = "auto",
        threads: int = 0,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        folder = Path(path)
        self.config, self._folder = _read_config(folder), folder
        about = self.config["export"]
        self.class_names: list[str] = self.config.get("class_names", [])
        self.mask_names: list[str] = self.config.get("mask_names", [])
        self._outputs: list[str] = about["outputs"]
        self._channels: int = self.config["network"]["in_channels"]
        self._size: list[int] | None = about["size"]
        self._min_side: int = about["min_side"]
        self._shape = shape
        if shape is not None:
            self._check_size(*shape[1:])
        if about["format"] == "onnx":
            self._start_onnx(folder, precision, threads)
        elif about["format"] == "openvino":
            self._start_openvino(folder, precision, threads)
        else:
            raise ModelError(
                f"{folder} is for torch: load it with torch.export.load, as its README.md shows, "
                "or export it with --format onnx"
            )

    def _start_onnx(self, folder: Path, precision: Runtime, threads: int) -> None:
        if precision == "bfloat16":
            raise ConfigError(
                "ONNX Runtime computes in float32 on the CPU: leave the precision out, or export "
                "with --format openvino"
            )
        runtime = need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what is wrong is told once, as an error
        with _failures_told(folder):
            session = runtime.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        self.precision: Runtime = "float32"
        self._run: Any = lambda image: session.run(None, {"image": image})

    def _start_openvino(self, folder: Path, precision: Runtime, threads: int) -> None:
        core = need("openvino").Core()
        has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bfloat16" and not has_bfloat16:
            raise ConfigError("this processor has no bfloat16: leave the precision out")
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16 else "float32"
        self.precision = precision
        hint = {"float32": "f32", "bfloat16": "bf16"}[self.precision]
        settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        with _failures_told(folder):
            model = core.read_model(folder / "model.xml")
            if self._shape is not None:
                model.reshape([self._shape[0], self._channels, *self._shape[1:]])
            compiled = core.compile_model(model, "CPU", settings)
        # A request for each call, so that several threads can share the network.
        self._run = lambda image: list(compiled.create_infer_request().infer(image).values())

    def __call__(self, image: NDArray[np.uint8]) -> Prediction:
        """Return what the network says of images ``(N, C, H, W)``, uint8.

        Raises:
            ModelError: they have another type, or a shape that the network does not take.
        """
        image = np.ascontiguousarray(image)
        if image.dtype != np.uint8 or image.ndim != 4 or image.shape[1] != self._channels:
            raise ModelError(
                f"expected images (N, {self._channels}, H, W) of uint8, but got {image.shape} of "
                f"{image.dtype}"
            )
        if self._shape is not None and (len(image), *image.shape[2:]) != self._shape:
            raise ModelError(
                f"expected {_words(*self._shape)}, but got {_words(len(image), *image.shape[2:])}: "
                "leave the shape out"
            )
        self._check_size(*image.shape[2:])
        with _failures_told(self._folder):
            said = Prediction(**dict(zip(self._outputs, self._run(image), strict=True)))
            count, height, width = len(image), *image.shape[2:]
            expected: list[tuple[NDArray[Any] | None, tuple[int, ...]]] = [
                (said.probability, (count, self.config["network"]["num_classes"])),
                (said.mask, (count, height, width)),
                (said.reconstruction, (count, self._channels, height, width)),
            ]
            for values, shape in expected:
                if values is not None and values.shape != shape:
                    raise ValueError(f"expected {shape}, given {values.shape}")
        return said

    def _check_size(self, height: int, width: int) -> None:
        if self._size is not None and [height, width] != self._size:
            expected = " x ".join(map(str, self._size))
            raise ModelError(
                f"expected images of {expected} pixels, but got {height} x {width}: resize them, "
                "or export without --fixed-size"
            )
        if min(height, width) < self._min_side:
            raise ModelError(
                f"expected images of at least {self._min_side} x {self._min_side} pixels, but got "
                f"{height} x {width}: resize them"
            )


@contextmanager
def _failures_told(folder: Path) -> Iterator[None]:
    """Turn whatever a runtime has against a network into a ModelError."""
    try:
        yield
    except Exception as error:  # they have no common root
        raise ModelError(f"the network in {folder} can't be used: {error}") from error


def _words(count: int, height: int, width: int) -> str:
    return f"{count} image(s) of {height} x {width} pixels"


def need(module: str) -> Any:
    """Return the module, or raise `ConfigError` with what to type where it is not installed.

    OpenVINO and NNCF report to their makers, without asking, that they were imported and used.
    They don't where they believe to be tested.
    """
    try:
        with patch.dict(os.environ, {"CI": "true"}):
            return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"this needs {module}, which is not installed: pip install 'medduet[export]'"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise MissingFileError(
            f"expected an exported network at {folder}, but there is no config.json: "
            "medduet export BUNDLE --out DIR"
        )
    config = read_object(folder / "config.json", ModelError)
    if config.get("format") != FORMAT or not isinstance(config.get("export"), dict):
        raise ModelError(
            f"expected a {FORMAT} at {folder}, but config.json is something else: "
            "medduet export BUNDLE --out DIR"
        )
    check_said(folder / "config.json", config)
    if missing := {"layout", "multi_label", "preprocessing"} - set(config):
        raise ModelError(f"{folder / 'config.json'} lacks {' and '.join(sorted(missing))}")
    for name, expected in config["export"]["sha256"].items():
        if not (folder / name).is_file():
            raise MissingFileError(f"there is no {name} in {folder}: copy the whole folder again")
        if sha256(folder / name) != expected:
            raise ModelError(
                f"{folder / name} is not the file that config.json describes: its SHA-256 differs; "
                "copy the whole folder again"
            )
    return config
