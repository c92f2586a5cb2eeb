"""A trained network as one file for ONNX Runtime, OpenVINO or torch, checked against itself.

Images go in as uint8, probabilities and masks come out: normalisation, softmax and threshold are
part of the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medduet._version import __version__
from medduet.config import Device
from medduet.data.imageset import ImageSet
from medduet.errors import ConfigError, MedDuetError, ModelError
from medduet.inference.agreement import Agreement, Predict, agreement, agrees
from medduet.inference.exported import FORMAT, ExportedModel, Prediction
from medduet.inference.formats import Format, Precision, export_page, quiet, write_program
from medduet.runs.bundle import ModelBundle, load_bundle
from medduet.runs.bundle_config import FILES
from medduet.utils.devices import find_device, keep_freed_memory
from medduet.utils.files import write_json, write_text
from medduet.utils.parsing import sha256

TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "int8": 0.05}
_EXAMPLE = (75, 101)
"""Sides that no network gets by without its padding, so that the padding is part of the graph."""
_ONE_SIZE = ("mobilevit", "swin")
"""Names of networks whose blocks choose by the size of the image what they compute."""


class ExportGraph(nn.Module):
    """A network with what comes after it, as it is exported.

    Takes ``(N, C, H, W)`` uint8, gives a tuple of what `outputs` names, see `Prediction`.

    Args:
        bundle: the network and what is known of it; its parameters get no gradient any more.
        classify_only: whether only the class is asked for, and no decoder is run.

    Raises:
        ConfigError: the class is asked for, and the network has no class head.
    """

    def __init__(self, bundle: ModelBundle, *, classify_only: bool = False) -> None:
        super().__init__()
        self.network = bundle.network.requires_grad_(False)
        self.config = bundle.config
        self.layout = bundle.layout
        self.multi_label = bool(bundle.config["multi_label"])
        self.classify_only = classify_only
        has_classes = bool(bundle.config["network"]["num_classes"])
        if classify_only and not has_classes:
            raise ConfigError(
                "--classify-only was given, but the network has no class head: leave it out"
            )
        self.outputs = ["probability"] if has_classes else []
        if not classify_only:
            self.outputs += ["mask"] if self.layout.mask_classes else []
            self.outputs += ["reconstruction"] if self.layout.image_channels else []
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return what is said of uint8 images ``(N, C, H, W)``, see `ExportGraph`."""
        if self.classify_only:
            return (self._probability(self.network.classify(image)),)
        found: list[Tensor] = []
        class_logits, dense = self.network(image)
        if class_logits is not None:
            found.append(self._probability(class_logits))
        if dense is not None:
            if self.layout.mask_classes:
                found.append(self.layout.mask(dense).to(torch.uint8))
            if self.layout.image_channels:
                found.append(self.network.normalize.invert(self.layout.image(dense)))
        return tuple(found)

    def _probability(self, class_logits: Tensor) -> Tensor:
        return class_logits.sigmoid() if self.multi_label else class_logits.softmax(dim=1)

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Return the same as an exported network would, computed by torch."""
        device = self.network.normalize.mean.device
        with torch.inference_mode():
            said = self(torch.from_numpy(image).to(device))
            found = [value.float().cpu().numpy() for value in said]
        return _prediction(self.outputs, found)


def _prediction(names: list[str], values: list[NDArray[Any]]) -> Prediction:
    named = dict(zip(names, values, strict=True))
    if "mask" in named:
        named["mask"] = named["mask"].astype(np.uint8)
    return Prediction(**named)


def open_graph(
    path: str | Path,
    *,
    classify_only: bool = False,
    device: Device = "cpu",
) -> ExportGraph:
    """Return the network of a bundle or run, with what comes after it, on a device.

    Raises:
        ConfigError: there is no such device, or no class head, and the class is asked for.
        MissingFileError: there is no network.
        ModelError: it is damaged, or does not say what its outputs mean.
    """
    place = find_device(device)
    bundle = load_bundle(path)
    if missing := sorted({"layout", "multi_label", "preprocessing"} - set(bundle.config)):
        raise ModelError(
            f"{path} does not say what its outputs mean ({', '.join(missing)} missing): give a "
            "finished run, or its bundle"
        )
    graph = ExportGraph(bundle, classify_only=classify_only)
    if place.type != "cpu":
        return graph.to(place)
    keep_freed_memory()  # as in training: without, 16 images together are slower than one by one
    return graph


def write_export(
    folder: Path,
    predictor: ExportGraph,
    images: ImageSet,
    *,
    kind: Format,
    precision: Precision,
    fixed_size: bool,
    count: int,
    tolerance: float | None,
) -> dict[str, Agreement]:
    """Write a network into `folder`, and return how well it agrees with itself in torch.

    It gets the file, ``config.json`` and ``README.md``. See `medduet.export_bundle` for the rest.

    Raises:
        ConfigError: a package is not installed.
        ModelError: the network can't be exported so, or says something else when it is.
    """
    size = _fixed(predictor, fixed_size)
    _write(folder, predictor, images, kind, precision, size)
    about: dict[str, Any] = {
        "format": kind,
        "precision": precision,
        "outputs": predictor.outputs,
        "size": size,
        "min_side": predictor.network.min_side,
        "sha256": {name: sha256(folder / name) for name in FILES[kind]},
        "versions": {"medduet": __version__, "torch": torch.__version__},
    }
    config = predictor.config | {"format": FORMAT, "export": about}
    write_json(folder / "config.json", config)  # the exported network is read from here
    runs = _runs(folder, kind, predictor.outputs)
    found = agreement(predictor.predict, runs, images, count, predictor.multi_label)
    limit = TOLERANCE[precision] if tolerance is None else tolerance
    name = predictor.network.arguments["name"]
    computed_in, first = next(iter(found.items()))
    worst = first.worst_share if precision == "int8" else first.worst
    if not worst <= limit:
        raise ModelError(
            f"exported, {name} says something else than it does in torch: a difference of "
            f"{worst:.2g}, and the tolerance is {limit:g}; give another --precision, or "
            "--tolerance if that is good enough"
        )
    if size is None:
        # Two images say nothing of INT8 but whether the shapes fit.
        loose = 1.0 if precision == "int8" else limit
        _check_other_size(predictor, runs[computed_in], images, loose)
    about["agreement"] = {name: each._asdict() for name, each in found.items()}
    write_json(folder / "config.json", config)
    write_text(folder / "README.md", export_page(config, images.name))
    return found


def _fixed(predictor: ExportGraph, fixed_size: bool) -> list[int] | None:
    name = predictor.network.arguments["name"]
    if not fixed_size and any(part in name for part in _ONE_SIZE):
        raise ModelError(
            f"{name} chooses by the size of the image what it computes, so it can't be exported "
            "for all of them: add --fixed-size"
        )
    size = predictor.config["preprocessing"]["size"]
    return [int(side) for side in size] if fixed_size else None


def _write(
    folder: Path,
    predictor: ExportGraph,
    images: ImageSet,
    kind: Format,
    precision: Precision,
    size: list[int] | None,
) -> None:
    """Write the graph, for any number of images and, without a `size`, for images of any size."""
    free: Any = torch.export.Dim.DYNAMIC
    channels = predictor.network.normalize.channels
    image = torch.zeros(2, channels, *(size or _EXAMPLE), dtype=torch.uint8)
    dims = {0: free} if size else {0: free, 2: free, 3: free}
    try:
        with quiet():
            program = torch.export.export(predictor, (image,), dynamic_shapes=(dims,))
            write_program(folder, program, predictor.outputs, images, kind, precision)
    except (MedDuetError, OSError):
        raise
    except Exception as error:  # the exporters have no common root for what can go wrong here
        hint = "" if size else "; add --fixed-size, and it needs to fit one size only"
        name = predictor.network.arguments["name"]
        raise ModelError(f"{name} can't be exported to {kind}: {_reason(error)}{hint}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _check_other_size(predictor: ExportGraph, run: Predict, images: ImageSet, limit: float) -> None:
    """Raise `ModelError` if what was written only holds for the size of the images."""
    image = images.test.batch(np.arange(min(2, len(images.test)))).image.numpy()
    larger = np.pad(image, [(0, 0), (0, 0), (0, 3), (0, 5)], mode="edge")
    name = predictor.network.arguments["name"]
    these = f"images of {larger.shape[2]} x {larger.shape[3]} pixels"
    try:
        found = run(larger)
    except MedDuetError:
        raise
    except Exception as error:  # the runtimes have no common root either
        raise ModelError(
            f"exported, {name} fails on {these}: {_reason(error)}; add --fixed-size"
        ) from error
    if not agrees(predictor.predict(larger), found, limit):
        raise ModelError(f"exported, {name} says something else of {these}: add --fixed-size")


def _runs(folder: Path, kind: Format, outputs: list[str]) -> dict[str, Predict]:
    """Return what was written, ready to predict, by the precision that it computes in."""
    if kind == "torch":
        module = torch.export.load(folder / "model.pt2").module(check_guards=False)

        def predict(image: NDArray[np.uint8]) -> Prediction:
            try:
                with torch.inference_mode():
                    found = [value.numpy() for value in module(torch.from_numpy(image))]
            except RuntimeError as error:  # a bound that torch has found for the size
                raise ModelError(f"{_reason(error)}: add --fixed-size, or --format onnx") from error
            return _prediction(outputs, found)

        return {"float32": predict}
    model = ExportedModel(folder, precision="float32")
    runs: dict[str, Predict] = {model.precision: model}
    best = ExportedModel(folder)
    return runs | {best.precision: best}
