"""Exporting a trained network, and comparing it with itself on its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medduet.config import DataConfig
from medduet.data.cache import ProgressFactory
from medduet.data.imageset import ImageSet
from medduet.data.phantom import phantom_images
from medduet.data.sources import open_images
from medduet.errors import ConfigError
from medduet.inference.agreement import Agreement
from medduet.inference.export import open_graph, write_export
from medduet.inference.formats import Format, Precision
from medduet.runs.folder import RunFolder, is_run
from medduet.runs.images import in_classes_of, prepared_as
from medduet.utils.files import atomic_folder
from medduet.utils.hub import bundle_folder


@dataclass(frozen=True)
class ExportRecord:
    """An exported network.

    Attributes:
        path: its folder: the file, ``config.json`` and ``README.md``.
        images: the name of the set on which it was compared with the network itself.
        agreement: how well they agree, by the precision that was computed in.
    """

    path: Path
    images: str
    agreement: dict[str, Agreement]


def export_bundle(
    path: str | Path,
    out: str | Path,
    *,
    format: Format = "onnx",  # noqa: A002
    classify_only: bool = False,
    precision: Precision = "float32",
    fixed_size: bool = False,
    data: DataConfig | None = None,
    count: int = 64,
    tolerance: float | None = None,
    progress: ProgressFactory | None = None,
) -> ExportRecord:
    """Write the network of a bundle or run for another runtime, and compare the two.

    Args:
        path: the bundle or the run, or ``hf://OWNER/NAME``.
        out: the folder to write.
        format: ``"onnx"`` and ``"openvino"`` are read by `ExportedModel`, without torch.
            ``"torch"`` is a ``.pt2`` of torch.export; reading one from others can run code.
        classify_only: leave decoder, mask and reconstruction out.
        precision: of the weights in the file. ``"int8"`` computes in INT8, too, with ranges from
            128 images of the training split.
        fixed_size: take images of the size of the training alone; the number stays free.
        data: on which images to compare; ``None`` for those of the run, or else phantoms.
        count: number of images of the test split to compare on, 0 for all.
        tolerance: largest difference of a probability, of a reconstructed pixel (0 to 1), and
            largest share of mask pixels that differ; for INT8 largest share of images in another
            class, and of pixels. ``None`` for 0.001 (float32), 0.01 (float16), 0.05 (INT8). How
            OpenVINO agrees in bfloat16 is told, and not judged.
        progress: draws the progress of downloads and conversions.

    Returns:
        What was written, and how well it agrees.

    Raises:
        ConfigError: settings that don't fit together, or a package that is not installed.
        ModelError: the network can't be exported so, or says something else when it is.

    Example:
        >>> import tempfile, numpy
        >>> from medduet import create_model, ExportedModel
        >>> from medduet.runs.bundle import save_bundle
        >>> folder = Path(tempfile.mkdtemp())
        >>> network = create_model("vovunet_var", in_channels=1, num_classes=2, width=2)
        >>> save_bundle(folder / "bundle", network, {
        ...     "multi_label": False, "class_names": ["a", "b"], "mask_names": [],
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
    if format == "torch" and precision != "float32":
        raise ConfigError("--format torch keeps float32: give --format onnx or openvino")
    if count < 0:
        raise ConfigError(f"expected a number of images, or 0 for all, given --count {count}")
    graph = open_graph(path, classify_only=classify_only)
    images = _images(path, graph.config, data, precision, progress)
    with atomic_folder(out) as folder:
        found = write_export(
            folder,
            graph,
            images,
            kind=format,
            precision=precision,
            fixed_size=fixed_size,
            count=count or len(images.test),
            tolerance=tolerance,
        )
    return ExportRecord(out, images.name, found)


def _images(
    path: Path,
    config: Mapping[str, Any],
    data: DataConfig | None,
    precision: Precision,
    progress: ProgressFactory | None,
) -> ImageSet:
    """Return the images to compare on: given, or the run's own, or phantoms."""
    preprocessing = config["preprocessing"]
    if data is not None:
        images = open_images(prepared_as(data, preprocessing), progress=progress)
    elif is_run(path):
        folder = RunFolder.open(path)
        images = open_images(folder.run_config().data, progress=progress, saved_split=folder.split)
    elif precision == "int8":
        raise ConfigError(
            f"INT8 takes its ranges from real images, and {path} is a bundle: give --data NAME"
        )
    else:
        side = max(16, *preprocessing["size"])
        images = phantom_images(side, (1, 1, 32), 3 if preprocessing["channels"] == 3 else 1)
    channels = config["network"]["in_channels"]
    if images.in_channels != channels:
        raise ConfigError(
            f"{path} takes {channels} channel(s), but {images.name} has {images.in_channels}: "
            "give others by --data"
        )
    if not len(images.test):
        raise ConfigError(f"{images.name} has no test images to compare on: give others by --data")
    return in_classes_of(images, config.get("class_names", []))
