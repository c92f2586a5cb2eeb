"""Predictions for images of any size and type: files, arrays, DICOM.

Torch is imported only for a bundle; an exported network predicts without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medduet.data.reading.images import Picture, picture_of, read_pictures
from medduet.data.reading.shape import restore_map, restore_mask
from medduet.errors import ConfigError, DataError, ModelError
from medduet.inference.exported import BatchPrediction, ExportedModel, is_exported
from medduet.inference.prediction import Prediction
from medduet.metrics.calibration import confidence
from medduet.uncertainty.ood import statistics

if TYPE_CHECKING:
    from medduet.inference.explain import Explainer

ImageLike = str | Path | BinaryIO | Image.Image | NDArray[Any]
"""An image: the path of a file, an open file, a PIL image, or ``(H, W)`` or ``(H, W, 3)``."""
_COVERAGE = 0.9
_PIXELS_PER_BATCH = 16 * 224**2  # a CPU is no faster with more, and needs memory for them


class Predictor:
    """Predicts images by a trained network; several threads may use one.

    Images are prepared as the training's were, whatever their size, type and channels.

    Args:
        path: a bundle, a run, or a network that `medduet.export_bundle` wrote.
        classify_only: predict classes alone; the decoder is not run.
        explain: also compute heat maps, see `medduet.inference.explain.Explainer`; needs a bundle
            or a run.
        coverage: share of images, 0.5 to 0.99, whose true class is to be in the prediction set;
            ``None`` for 0.9 if the network is calibrated.
        min_confidence: confidence below which it abstains.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; exported networks run on the
            CPU.
        batch_size: images that are computed together; ``None`` for as many as are worth it.

    Attributes:
        config: the content of ``config.json``.
        class_names: of the K classes, in their order.
        mask_names: of the mask classes, background first; empty if there is no mask.
        multi_label: whether an image can have several classes.
        calibration: of the network, or ``None``.
        ood: the detector of images unlike those of the training, or ``None``.
        coverage: of prediction sets.
        min_confidence: ``None`` if it never abstains.

    Raises:
        MissingFileError: there is no network at `path`.
        ModelError: it is damaged, or does not say how images are to be prepared.
        ConfigError: options that the network can't fulfil.

    Example:
        >>> import tempfile
        >>> from medduet import create_model
        >>> from medduet.runs.bundle import save_bundle
        >>> network = create_model("vovunet_var", in_channels=1, num_classes=2, dense_channels=1,
        ...                        width=2)
        >>> folder = Path(tempfile.mkdtemp()) / "bundle"
        >>> save_bundle(folder, network, {
        ...     "class_names": ["benign", "malignant"], "mask_names": ["background", "lesion"],
        ...     "layout": {"mask_classes": 2, "image_channels": 0},
        ...     "preprocessing": {"size": [32, 32], "channels": 1, "fit": "pad"}})
        >>> predictor = Predictor(folder)
        >>> prediction = predictor(np.zeros((50, 75), np.uint8))
        >>> list(prediction.probabilities), prediction.mask.shape
        (['benign', 'malignant'], (50, 75))
    """

    def __init__(
        self,
        path: str | Path,
        *,
        classify_only: bool = False,
        explain: bool = False,
        coverage: float | None = None,
        min_confidence: float | None = None,
        device: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"expected a batch of at least 1 image, given {batch_size}")
        self.path = path
        self._run: Callable[[NDArray[np.uint8]], BatchPrediction]
        self._explain: Explainer | None = None
        self._features: Callable[[], NDArray[np.float64] | None] = lambda: None
        if is_exported(path):
            self._run = model = _open_exported(path, classify_only, explain, device)
            self.config = model.config
        else:
            from medduet.inference.graph import open_graph

            graph = open_graph(path, classify_only=classify_only, device=device)
            self._run, self.config = graph.predict, graph.config
        _, preprocessing = self.config.usable(path)
        self.class_names, self.mask_names = self.config.class_names, self.config.mask_names
        self.multi_label, self.options = self.config.multi_label, preprocessing.options
        self.calibration, self.ood = self.config.calibration, self.config.ood
        self.coverage = _COVERAGE if coverage is None else coverage
        self.min_confidence = min_confidence
        self._check(coverage, explain)
        height, width = self.options.sides
        if explain:
            from medduet.inference.explain import Explainer

            self._explain = Explainer(graph.network, (height, width), self.config.precision)
        if self.ood is not None and not is_exported(path):
            from medduet.models.base import Features

            self._features = Features(graph.network).last  # the explainer has a copy without it
        self.batch_size = batch_size or max(1, min(256, _PIXELS_PER_BATCH // (height * width)))

    def _check(self, coverage: float | None, explain: bool) -> None:
        """Raise `ConfigError` for options that the network can't fulfil."""
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"expected --min-confidence of 0 to 1, given {self.min_confidence:g}")
        if not self.class_names:
            for option, value in (
                ("--min-confidence", self.min_confidence),
                ("--explain", explain),
            ):
                if value:
                    raise ConfigError(f"{self.path} has no class head: leave {option} out")
        if coverage is not None and self.calibration is None:
            raise ConfigError(
                f"{self.path} is not calibrated, so there are no prediction sets: medduet "
                f"calibrate {self.path} --data DIR --out NEW, or leave --coverage out"
            )
        if self.calibration is not None:  # refuses a coverage out of range
            self.calibration.sets(np.empty((0, len(self.class_names))), self.coverage)

    def __call__(self, image: ImageLike) -> Prediction:
        """Return the prediction for one image.

        Raises:
            DataError: it can't be read, or has several frames: those are for `predict`.
            MissingFileError: there is no such file.
        """
        pictures = self.read(image)
        if len(pictures) > 1:
            raise DataError(f"{image}: expected one image, given a file of several: use predict")
        return self.predict_pictures(pictures)[0]

    def predict(self, images: Iterable[ImageLike]) -> Iterator[Prediction]:
        """Yield the prediction for each image, and for each frame of files that have several.

        They are computed in batches, as they come.

        Raises:
            DataError: an image can't be read.
            MissingFileError: there is no such file.
        """
        pictures = (picture for image in images for picture in self.read(image))
        while batch := list(islice(pictures, self.batch_size)):
            yield from self.predict_pictures(batch)

    def read(self, image: ImageLike, name: str = "image") -> list[Picture]:
        """Return the frames of an image as the network takes them and as people see them.

        Args:
            image: what to read.
            name: what to call it in errors, if it is no path.

        Raises:
            DataError: it can't be read.
            MissingFileError: there is no such file.
        """
        if isinstance(image, str | Path):
            return read_pictures(Path(image), self.options)
        if isinstance(image, np.ndarray | Image.Image):
            return [picture_of(image, self.options, name)]
        if hasattr(image, "seek"):
            return read_pictures(Path(name), self.options, image)
        raise DataError(
            f"expected the path of an image, an array, a PIL image or an open file, given "
            f"{type(image).__name__}"
        )

    def predict_pictures(
        self, pictures: Sequence[Picture], *, explain: bool = True
    ) -> list[Prediction]:
        """Return the predictions for frames that `read` gave, computed `batch_size` at a time.

        Without `explain`, there are no heat maps.
        """
        predictions: list[Prediction] = []
        for start in range(0, len(pictures), self.batch_size):
            predictions += self._predict_batch(pictures[start : start + self.batch_size], explain)
        return predictions

    def _predict_batch(self, pictures: Sequence[Picture], explain: bool) -> list[Prediction]:
        pixels = np.stack([picture.fitted for picture in pictures])
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        pixels = np.ascontiguousarray(pixels)
        batch, count = self._run(pixels), len(pictures)
        ood_p = self._ood_p(pictures, pixels)  # needs the features of the batch just computed
        p = batch.probability
        if p is not None and not np.isfinite(p).all():
            raise ModelError(f"{self.path}: probabilities are not finite; its weights are damaged")
        heatmaps: Sequence[NDArray[np.float32]] | None = None
        if explain and self._explain is not None and p is not None:
            heatmaps = list(self._explain(pixels, p.argmax(axis=1)))
        sets, abstained = self._sets(p, count)
        predictions = []
        for row, picture in enumerate(pictures):
            height, width = picture.whole.shape[:2]
            label, mask, reconstruction, heatmap = None, None, None, None
            probabilities: dict[str, float] = {}
            if p is not None:
                label = self._label(p[row])
                probabilities = dict(zip(self.class_names, p[row].tolist(), strict=True))
            if batch.mask is not None:
                mask = restore_mask(batch.mask[row], height, width, self.options)
            if batch.reconstruction is not None:
                reconstruction = _levels(batch.reconstruction[row])
            if heatmaps is not None:
                heatmap = restore_map(heatmaps[row], height, width, self.options)
            predictions.append(
                Prediction(
                    label,
                    probabilities,
                    prediction_set=sets[row],
                    abstained=bool(abstained[row]),
                    mask=mask,
                    reconstruction=reconstruction,
                    heatmap=heatmap,
                    image=picture.whole,
                    ood_p=ood_p[row],
                )
            )
        return predictions

    def _ood_p(
        self, pictures: Sequence[Picture], pixels: NDArray[np.uint8]
    ) -> Sequence[float | None]:
        """Return the p-values of images on which the network was just run in this thread."""
        if self.ood is None:
            return [None] * len(pictures)
        p = self.ood.p_values(self._features(), statistics(pixels)).tolist()
        return [
            self.ood.smallest if self.ood.odd(picture) else value
            for picture, value in zip(pictures, p, strict=True)
        ]

    def _sets(
        self, probability: NDArray[Any] | None, count: int
    ) -> tuple[Sequence[tuple[str, ...] | None], NDArray[np.bool_]]:
        """Return the prediction set of each image, and whether the network abstains."""
        sets: list[tuple[str, ...] | None] = [None] * count
        abstained = np.zeros(count, bool)
        if probability is None:
            return sets, abstained
        if self.calibration is not None:
            chosen = self.calibration.sets(probability, self.coverage)
            order = np.argsort(-probability, axis=1, kind="stable")
            sets = [
                tuple(self.class_names[k] for k in order[row] if chosen[row, k])
                for row in range(count)
            ]
        if self.min_confidence is not None:
            sure = confidence(probability.astype(np.float64), self.multi_label)
            sure = sure if sure.ndim == 1 else sure.min(axis=1)
            abstained = sure < self.min_confidence
        return sets, abstained

    def _label(self, probability: NDArray[Any]) -> str:
        if self.multi_label:
            pairs = zip(self.class_names, probability, strict=True)
            return ", ".join(name for name, value in pairs if value > 0.5)
        return self.class_names[int(np.argmax(probability))]


def _levels(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a reconstruction ``(C, H, W)`` of 0 to 1 as ``(H, W)`` or ``(H, W, 3)``."""
    levels: NDArray[np.uint8] = np.rint(np.nan_to_num(image).clip(0, 1) * 255).astype(np.uint8)
    return levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)


def _open_exported(
    path: str | Path, classify_only: bool, explain: bool, device: str
) -> ExportedModel:
    model = ExportedModel(path)
    assert model.config.export is not None
    if explain:
        raise ConfigError(
            f"{path} is an exported network, which has no heat maps: give the bundle that it was "
            "exported from"
        )
    if device not in ("auto", "cpu"):
        raise ConfigError(f"{path} is an exported network, which runs on the CPU: --device cpu")
    if classify_only and model.config.export.outputs != ["probability"]:
        raise ConfigError(
            f"{path} was exported with its decoder: export it with --classify-only instead"
        )
    return model
