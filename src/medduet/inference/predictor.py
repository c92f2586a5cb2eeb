"""Predictions for images of any size and type: files, arrays, DICOM.

Torch is imported only for a bundle; an exported network predicts without it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medduet.data.batches import evaluation_batch_size
from medduet.data.reading.images import Picture, picture_of, read_pictures
from medduet.data.reading.shape import restore_map, restore_mask
from medduet.errors import ConfigError, DataError, ModelError
from medduet.inference.exported import FILE, BatchPrediction, ExportedModel
from medduet.uncertainty.ood import OOD_P, statistics

ImageLike = str | Path | BinaryIO | Image.Image | NDArray[Any]
"""An image: the path of a file, an open file, a PIL image, or ``(H, W)`` or ``(H, W, 3)``."""
_COVERAGE = 0.9


@dataclass(frozen=True)
class Prediction:
    """A network's prediction for one image; ``None`` where it has none.

    Attributes:
        image: uint8 ``(H, W)`` or ``(H, W, 3)``, the image as it was read; or ``(D, H, W)``.
        label: the likeliest class; of multi-label sets those above 0.5, with commas between.
        probabilities: of each class, 0 to 1; calibrated if the network was.
        prediction_set: the classes that hold the true one with the chosen coverage, if calibrated.
        abstained: whether the confidence is below the one asked for.
        mask: ``(H, W)`` uint8 mask class at the image's own size, 0 is background.
        mask_probability: ``(K, H, W)`` float32 of the mask classes, where it is asked for.
        heatmap: ``(H, W)`` float32, 0 to 1: evidence for `label` at each place (Grad-CAM).
        ood_p: p-value of the image being like those of the training; 0.05 or less is a warning.
        spacing: distance of slices, rows and columns of a volume in mm, empty if it is not known.
    """

    image: NDArray[np.uint8] = field(repr=False)
    label: str | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    prediction_set: tuple[str, ...] | None = None
    abstained: bool = False
    mask: NDArray[np.uint8] | None = field(default=None, repr=False)
    mask_probability: NDArray[np.float32] | None = field(default=None, repr=False)
    heatmap: NDArray[np.float32] | None = field(default=None, repr=False)
    ood_p: float | None = None
    spacing: tuple[float, ...] | None = None

    @property
    def is_ood(self) -> bool:
        """Whether the image is out of distribution; so are 5% of images like the training's."""
        return self.ood_p is not None and self.ood_p <= OOD_P


class Predictor:
    """Predicts images by a trained network; several threads may use one.

    Images are prepared as the training's were, whatever their size, type and channels.

    Args:
        path: a bundle, a run, or a network that `medduet.export_bundle` wrote.
        classify_only: predict classes alone; the decoder is not run.
        explain: also compute heat maps by Grad-CAM; not for exported networks.
        probabilities: also those of the mask classes at each place; not for exported networks.
        coverage: share, 0.5 to 0.99, of images whose class is to be in the set; ``None`` for 0.9.
        min_confidence: confidence below which it abstains.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``cpu`` for exported networks.
        batch_size: images that are computed together; ``None`` for as many as are worth it.

    Attributes:
        config: the content of ``config.json``.
        class_names: of the K classes, in their order.
        mask_names: of the mask classes, background first; empty if there is no mask.

    Raises:
        MissingFileError: there is no network at `path`.
        ModelError: it is damaged, or does not say how images are to be prepared.
        ConfigError: options that the network can't fulfil.

    Example:
        >>> import tempfile
        >>> from medduet import create_model
        >>> from medduet.runs.bundle import save_bundle
        >>> network = create_model("vovunet_var", in_channels=1, num_classes=2, width=2)
        >>> folder = Path(tempfile.mkdtemp()) / "bundle"
        >>> save_bundle(folder, network, {"class_names": ["benign", "malignant"],
        ...     "layout": {"mask_classes": 0, "image_channels": 0},
        ...     "preprocessing": {"size": [32, 32], "channels": 1, "fit": "pad"}})
        >>> list(Predictor(folder)(np.zeros((50, 75), np.uint8)).probabilities)
        ['benign', 'malignant']
    """

    def __init__(
        self,
        path: str | Path,
        *,
        classify_only: bool = False,
        explain: bool = False,
        probabilities: bool = False,
        coverage: float | None = None,
        min_confidence: float | None = None,
        device: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise ConfigError(f"expected --min-confidence of 0 to 1, given {min_confidence:g}")
        self.path = path
        self._explain: Callable[..., NDArray[np.float32]] | None = None
        if (Path(path) / FILE).is_file():  # of an export, not of a bundle
            model = ExportedModel(path)
            if explain or probabilities or device not in ("auto", "cpu"):
                reason = "for the CPU, without heat maps and probabilities of masks"
                raise ConfigError(f"{path} is exported, {reason}")
            self._run: Callable[[NDArray[np.uint8]], BatchPrediction] = model
            if classify_only:
                self._run = lambda image: BatchPrediction(model(image).probability)
            self.config = model.config
        else:
            from medduet.inference.graph import NetworkGraph

            heads = {"classify_only": classify_only, "probabilities": probabilities}
            graph = NetworkGraph(path, **heads, device=device)
            self._run, self.config = graph.predict, graph.config
            if explain and graph.network.patch is not None:
                raise ConfigError(f"{path} predicts by windows, of which there are no heat maps")
        self.options = self.config.usable(path)[1].options
        self.class_names, self.mask_names = self.config.class_names, self.config.mask_names
        if not self.class_names and (explain or min_confidence is not None):
            raise ConfigError(f"{path} has no class head: omit --explain and --min-confidence")
        if coverage is not None and self.config.calibration is None:
            raise ConfigError(f"{path} is not calibrated: medduet calibrate, or omit --coverage")
        self.coverage = _COVERAGE if coverage is None else coverage
        self.min_confidence = min_confidence
        if self.config.calibration is not None:  # refuses a coverage out of range
            self.config.calibration.sets(np.empty((0, len(self.class_names))), self.coverage)
        sides = self.options.sides
        if explain:
            if len(sides) == 3:
                raise ConfigError(f"{path} is for volumes, of which there are no heat maps")
            from medduet.inference.explain import Explainer

            self._explain = Explainer(graph.network, (sides[0], sides[1]), self.config.precision)
        # A CPU is no faster with more, and needs memory for them.
        self.batch_size = batch_size or evaluation_batch_size("cpu", *sides)
        if len(sides) == 3 or self.options.spacing:  # they differ in size
            self.batch_size = 1

    def __call__(self, image: ImageLike) -> Prediction:
        """Return the prediction for one image; DataError if it can't be read, or has frames.

        An array, or an image of Pillow, has the distance of pixels of the training, if that counts.
        """
        pictures = self.read(image)
        if len(pictures) > 1:
            raise DataError(f"{image}: expected one frame, given {len(pictures)}: use predict")
        return self.predict_pictures(pictures)[0]

    def predict(self, images: Iterable[ImageLike]) -> Iterator[Prediction]:
        """Yield the prediction for each image, and for each frame of files that have several."""
        pictures = (picture for image in images for picture in self.read(image))
        while batch := list(islice(pictures, self.batch_size)):
            yield from self.predict_pictures(batch)

    def read(self, image: ImageLike) -> list[Picture]:
        """Return the frames of an image as the network takes them and as people see them."""
        if isinstance(image, str | Path):
            return read_pictures(Path(image), self.options)
        if isinstance(image, np.ndarray | Image.Image):
            return [picture_of(image, self.options)]
        if hasattr(image, "seek"):
            return read_pictures(Path("image"), self.options, image)
        raise DataError(f"expected an image or its path, given {type(image).__name__}")

    def predict_pictures(
        self, pictures: Sequence[Picture], *, explain: bool = True
    ) -> list[Prediction]:
        """Return the predictions for frames that `read` gave; without `explain`, no heat maps."""
        size = self.batch_size
        batches = (pictures[start : start + size] for start in range(0, len(pictures), size))
        return [answer for batch in batches for answer in self._predict_batch(batch, explain)]

    def _predict_batch(self, pictures: Sequence[Picture], explain: bool) -> list[Prediction]:
        pixels = np.stack([picture.fitted for picture in pictures])
        grey = pixels.ndim == 1 + len(self.options.sides)
        pixels = np.ascontiguousarray(pixels[:, None] if grey else np.moveaxis(pixels, -1, 1))
        batch = self._run(pixels)
        ood_p, p, heatmaps = self._ood_p(pictures, pixels), batch.probability, None
        if p is not None and not np.isfinite(p).all():
            raise ModelError(f"{self.path}: probabilities are not finite: damaged weights")
        if p is not None and explain and self._explain is not None:
            heatmaps = self._explain(pixels, p.argmax(axis=1))
        answers = [{} for _ in pictures] if p is None else self._classes(p)
        for row, (picture, answer) in enumerate(zip(pictures, answers, strict=True)):
            shape = picture.whole.shape[: len(self.options.sides)]
            whole = shape, self.options, picture.spacing
            answer |= {"image": picture.whole, "ood_p": ood_p[row]}
            answer["spacing"] = picture.spacing if len(shape) == 3 else None
            if batch.mask is not None:
                answer["mask"] = restore_mask(batch.mask[row], *whole)
            if (maps := batch.mask_probability) is not None:
                restored = [restore_map(each, *whole) for each in maps[row]]
                answer["mask_probability"] = np.stack(restored)
                # What is cropped is background, as in the mask.
                answer["mask_probability"][0] += 1 - sum(restored)
            if heatmaps is not None:
                answer["heatmap"] = restore_map(heatmaps[row], *whole)
        return [Prediction(**answer) for answer in answers]

    def _ood_p(self, pictures: Sequence[Picture], pixels: NDArray[np.uint8]) -> list[float | None]:
        """Return how like the training images these are, as p-values."""
        detector = self.config.ood
        if detector is None:
            return [None] * len(pictures)
        p = detector.p_values(statistics(pixels))
        dims = len(self.options.sides)
        odd = [detector.odd(each.whole.shape[:dims], each.coloured) for each in pictures]
        smallest = 1 / (1 + len(detector.val_distances))
        return [float(value) for value in np.where(odd, smallest, p)]

    def _classes(self, probability: NDArray[Any]) -> list[dict[str, Any]]:
        """Return what `Prediction` says of the classes of each image."""
        multi_label, calibration = self.config.multi_label, self.config.calibration
        names = np.array(self.class_names)
        both = np.maximum(probability, 1 - probability)  # of each label
        lowest = both.min(axis=1) if multi_label else probability.max(axis=1)
        rows: list[dict[str, Any]] = [
            {
                "label": ", ".join(names[p > 0.5] if multi_label else names[[p.argmax()]]),
                "probabilities": dict(zip(self.class_names, p.tolist(), strict=True)),
                "abstained": self.min_confidence is not None and bool(c < self.min_confidence),
            }
            for p, c in zip(probability, lowest, strict=True)
        ]
        if calibration is not None:
            sets = calibration.sets(probability, self.coverage)
            order = np.argsort(-probability, axis=1, kind="stable")
            for row, in_set, ranked in zip(rows, sets, order, strict=True):
                row["prediction_set"] = tuple(names[ranked[in_set[ranked]]].tolist())
        return rows
