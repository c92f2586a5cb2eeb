"""Answers about images as their owner has them: files, arrays, any size.

Torch is imported only for a bundle; an exported network answers without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medduet.config import Device
from medduet.data.reading.core import MAX_FRAME_PIXELS, Frame, ReadOptions, checked_array
from medduet.data.reading.images import Picture, picture_of, read_pictures
from medduet.data.reading.raster import frame_of
from medduet.data.reading.shape import restore_map, restore_mask
from medduet.errors import ConfigError, DataError, ModelError
from medduet.inference.exported import FORMAT as EXPORT
from medduet.inference.exported import ExportedModel, Prediction
from medduet.metrics.calibration import confidence
from medduet.uncertainty.calibration import Calibration
from medduet.uncertainty.ood import OOD_P, OODDetector, statistics
from medduet.utils.devices import find_device
from medduet.utils.parsing import read_json

if TYPE_CHECKING:
    from medduet.inference.explain import Explainer

ImageLike = str | Path | BinaryIO | Image.Image | NDArray[Any]
"""An image: the path of a file, an open file, a PIL image, or ``(H, W)`` or ``(H, W, 3)``."""
_COVERAGE = 0.9
_PIXELS_TOGETHER = 16 * 224**2  # a CPU is no faster with more, and needs memory for them


@dataclass(frozen=True)
class Answer:
    """What a network says of one image.

    Attributes:
        label: the likeliest class; of several that an image may have, those that are likelier
            than not, with commas between, or ``""`` if there is none. ``None`` without classes.
        probabilities: of each class, 0 to 1; calibrated if the network was.
        prediction_set: the classes that hold the true one with the chosen coverage, likeliest
            first; ``None`` if the network is not calibrated. Of several classes that an image may
            have: those that it may have.
        abstained: whether the network is not sure enough for its `label` to be relied on.
        mask: ``(H, W)`` uint8 mask class at the image's own size, 0 is background; ``None`` if the
            network draws none, or only classes were asked for.
        reconstruction: uint8 ``(S, S)`` or ``(S, S, 3)``, the image as the network redraws it.
        heat: ``(H, W)`` float32, 0 to 1: how much each place spoke for `label` (Grad-CAM);
            ``None`` if it was not asked for.
        image: uint8 ``(H, W)`` or ``(H, W, 3)``, what the answer is about, as people look at it.
        unfamiliar: how likely an image like those of the training is to look as strange as this
            one, a p-value: small for another modality, colour instead of grey, noise. ``None`` for
            older bundles and ensembles; exported networks look at plain statistics alone.
    """

    label: str | None
    probabilities: dict[str, float]
    prediction_set: tuple[str, ...] | None
    abstained: bool
    mask: NDArray[np.uint8] | None
    reconstruction: NDArray[np.uint8] | None
    heat: NDArray[np.float32] | None
    image: NDArray[np.uint8]
    unfamiliar: float | None = None

    def __repr__(self) -> str:
        """Say what was said, and of pictures their size."""
        values = [
            f"{name}={value.shape}" if isinstance(value, np.ndarray) else f"{name}={value!r}"
            for name, value in ((each.name, getattr(self, each.name)) for each in fields(self))
            if value is not None
        ]
        return f"Answer({', '.join(values)})"

    @property
    def is_unfamiliar(self) -> bool:
        """Whether the image is unlike those of the training: so are 5% of these themselves."""
        return self.unfamiliar is not None and self.unfamiliar <= OOD_P


class _Judged(NamedTuple):
    """What is said of the classes of one image."""

    probability: list[float]
    prediction_set: tuple[str, ...] | None
    abstained: bool


class Predictor:
    """Answers about images, by a trained network; several threads may use one.

    Images are prepared as the training's were, whatever their size, type and channels.

    Args:
        path: a bundle, a run, or a network that `medduet.export_bundle` wrote for ONNX Runtime or
            OpenVINO.
        classify_only: ask for classes alone; the decoder is not run.
        explain: also draw what spoke for the class, see `medduet.inference.explain.Explainer`;
            needs a bundle or a run.
        coverage: share of images, 0.5 to 0.99, whose true class is to be in the prediction set;
            ``None`` for 0.9 if the network is calibrated.
        abstain_below: confidence below which it abstains.
        accuracy: instead, the accuracy, 0.5 to 0.99, that answers without abstention reached on
            the images that the network was calibrated on.
        device: see `medduet.TrainConfig`; exported networks run on the CPU.
        batch_size: images that are computed together; ``None`` for as many as are worth it.

    Attributes:
        config: the content of ``config.json``.
        class_names: of the K classes, in their order.
        mask_names: of the mask classes, background first; empty if no mask is drawn.
        multi_label: whether an image can have several classes.
        calibration: of the network, or ``None``.
        familiarity: what the network was trained on, or ``None``.
        coverage: what prediction sets promise.
        abstain_below: confidence below which it abstains; ``None`` if it always answers.

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
        ...     "multi_label": False, "class_names": ["benign", "malignant"],
        ...     "mask_names": ["background", "lesion"],
        ...     "layout": {"mask_classes": 2, "image_channels": 0},
        ...     "preprocessing": {"size": [32, 32], "channels": 1, "fit": "pad"}})
        >>> predictor = Predictor(folder)
        >>> answer = predictor(np.zeros((50, 75), np.uint8))
        >>> list(answer.probabilities), answer.mask.shape
        (['benign', 'malignant'], (50, 75))
    """

    def __init__(
        self,
        path: str | Path,
        *,
        classify_only: bool = False,
        explain: bool = False,
        coverage: float | None = None,
        abstain_below: float | None = None,
        accuracy: float | None = None,
        device: Device = "auto",
        batch_size: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"expected a batch of at least 1 image, given {batch_size}")
        self.path = path
        self._run: Callable[[NDArray[np.uint8]], Prediction]
        self._explain: Explainer | None = None
        self._features: Callable[[], NDArray[np.float64] | None] = lambda: None
        if _is_exported(path):
            self._run, self.config = _exported(path, classify_only, explain, device)
        else:
            from medduet.inference.export import open_graph

            graph = open_graph(path, classify_only=classify_only, device=device)
            self._run, self.config = graph.predict, graph.config
        self.class_names: list[str] = list(self.config.get("class_names", []))
        self.mask_names: list[str] = list(self.config.get("mask_names", []))
        self.multi_label = bool(self.config["multi_label"])
        self.options = _options(path, self.config)
        self.calibration = Calibration.of_bundle(self.config)
        self.familiarity = OODDetector.of_bundle(self.config)
        self.abstain_below = _abstain_below(path, self.calibration, abstain_below, accuracy)
        if (abstain_below is not None or accuracy is not None) and not self.class_names:
            raise ConfigError(f"{path} knows no classes, so there is nothing to abstain from")
        if coverage is not None and self.calibration is None:
            raise ConfigError(
                f"{path} was not calibrated, so no set can promise a coverage: calibrate it with "
                f"medduet calibrate {path} --data DIR --out NEW, or leave the coverage out"
            )
        self.coverage = _COVERAGE if coverage is None else coverage
        if self.calibration is not None:  # a coverage that can't be had
            self.calibration.sets(np.empty((0, len(self.class_names))), self.coverage)
        height, width = self.options.sides
        if explain:
            from medduet.inference.explain import Explainer

            if not self.class_names:
                raise ConfigError(f"{path} knows no classes that could be explained: leave it out")
            self._explain = Explainer(graph.network, (height, width))
        if self.familiarity is not None and not _is_exported(path):
            from medduet.models.base import Features

            self._features = Features(graph.network).last  # the explainer has a copy without it
        self.batch_size = batch_size or max(1, min(256, _PIXELS_TOGETHER // (height * width)))

    def __call__(self, image: ImageLike) -> Answer:
        """Return the answer about one image.

        Raises:
            DataError: it can't be read, or has several frames: those are for `predict`.
            MissingFileError: there is no such file.
        """
        pictures = list(islice(self.read(image), 2))
        if len(pictures) > 1:
            raise DataError(f"{image}: expected one image, given a file of several: use predict")
        return self.answer(pictures)[0]

    def predict(self, images: Iterable[ImageLike]) -> Iterator[Answer]:
        """Give the answer about each image, and about each frame of files that have several.

        They are computed in batches, as they come.

        Raises:
            DataError: an image can't be read.
            MissingFileError: there is no such file.
        """
        pictures = (picture for image in images for picture in self.read(image))
        while batch := list(islice(pictures, self.batch_size)):
            yield from self.answer(batch)

    def read(self, image: ImageLike, name: str = "image") -> Iterator[Picture]:
        """Give the frames of an image as the network takes them and as people look at them.

        Args:
            image: what to read.
            name: what to call it in errors, if it is no path.

        Raises:
            DataError: it can't be read.
            MissingFileError: there is no such file.
        """
        if isinstance(image, str | Path):
            return read_pictures(Path(image), self.options)
        if isinstance(image, np.ndarray):
            return iter([picture_of(Frame(checked_array(name, image)), None, self.options)])
        if isinstance(image, Image.Image):
            return iter([picture_of(frame_of(image), None, self.options)])
        if hasattr(image, "seek"):
            return read_pictures(Path(name), self.options, image)
        raise DataError(
            f"expected the path of an image, an array, a PIL image or an open file, given "
            f"{type(image).__name__}"
        )

    def answer(self, pictures: Sequence[Picture], *, explain: bool = True) -> list[Answer]:
        """Return the answers about frames that `read` gave, computed `batch_size` at a time.

        Without `explain`, a predictor that could explain leaves it out.
        """
        answers: list[Answer] = []
        for start in range(0, len(pictures), self.batch_size):
            some = pictures[start : start + self.batch_size]
            fitted = np.stack([picture.fitted for picture in some])
            fitted = fitted[:, None] if fitted.ndim == 3 else fitted.transpose(0, 3, 1, 2)
            fitted = np.ascontiguousarray(fitted)
            said = self._run(fitted)
            unfamiliar = self._unfamiliar(some, fitted)
            heat: Sequence[NDArray[np.float32] | None] = [None] * len(some)
            if explain and self._explain is not None and said.probability is not None:
                heat = list(self._explain(fitted, said.probability.argmax(axis=1)))
            judged = self._judged(said, len(some))
            answers += [
                self._one(picture, said, place, judged[place], heat[place], unfamiliar[place])
                for place, picture in enumerate(some)
            ]
        return answers

    def _unfamiliar(
        self, pictures: Sequence[Picture], fitted: NDArray[np.uint8]
    ) -> list[float | None]:
        """Return the p-values of images on which the network was just run in this thread."""
        if self.familiarity is None:
            return [None] * len(pictures)
        known = self.familiarity
        p = known.p_values(self._features(), statistics(fitted)).tolist()
        return [
            known.smallest if known.odd(picture) else own
            for picture, own in zip(pictures, p, strict=True)
        ]

    def _judged(self, said: Prediction, count: int) -> list[_Judged]:
        """Return what is said of the classes of each image."""
        if said.probability is None:
            return [_Judged([], None, False)] * count
        probability: NDArray[Any] = said.probability
        if not np.isfinite(probability).all():
            raise ModelError(f"{self.path} answers what is no number: its weights are damaged")
        sets, abstained = None, np.zeros(count, bool)
        if self.calibration is not None:
            probability = self.calibration.calibrate(probability)
            sets = self.calibration.sets(probability, self.coverage)
        if self.abstain_below is not None:
            sure = confidence(probability.astype(np.float64), self.multi_label)
            abstained = (sure if sure.ndim == 1 else sure.min(axis=1)) < self.abstain_below
        order = np.argsort(-probability, axis=1, kind="stable")
        return [
            _Judged(
                probability[row].tolist(),
                None
                if sets is None
                else tuple(self.class_names[k] for k in order[row] if sets[row, k]),
                bool(abstained[row]),
            )
            for row in range(count)
        ]

    def _one(
        self,
        picture: Picture,
        said: Prediction,
        place: int,
        judged: _Judged,
        heat: NDArray[np.float32] | None,
        unfamiliar: float | None,
    ) -> Answer:
        height, width = picture.whole.shape[:2]
        values = judged.probability
        mask = reconstruction = None
        if said.mask is not None:
            mask = restore_mask(said.mask[place], height, width, self.options)
        if said.reconstruction is not None:
            levels = np.rint(np.nan_to_num(said.reconstruction[place]).clip(0, 1) * 255).astype(
                np.uint8
            )
            reconstruction = levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)
        return Answer(
            label=self._label(values) if values else None,
            probabilities=dict(zip(self.class_names, values, strict=True)) if values else {},
            prediction_set=judged.prediction_set,
            abstained=judged.abstained,
            mask=mask,
            reconstruction=reconstruction,
            heat=None if heat is None else restore_map(heat, height, width, self.options),
            image=picture.whole,
            unfamiliar=unfamiliar,
        )

    def _label(self, values: Sequence[float]) -> str:
        if self.multi_label:
            named = zip(self.class_names, values, strict=True)
            return ", ".join(name for name, value in named if value > 0.5)
        return self.class_names[int(np.argmax(values))]


def _is_exported(path: str | Path) -> bool:
    config = Path(path) / "config.json"
    try:
        found = read_json(config) if config.is_file() else None
    except DataError:
        return False
    return isinstance(found, dict) and found.get("format") == EXPORT


def _exported(
    path: str | Path, classify_only: bool, explain: bool, device: str
) -> tuple[ExportedModel, dict[str, Any]]:
    model = ExportedModel(path)
    about = model.config["export"]
    if explain:
        raise ConfigError(
            f"{path} is an exported network, which can't be explained: give the bundle that it "
            "was exported from"
        )
    if device != "auto" and find_device(device).type != "cpu":
        raise ConfigError(f"{path} is an exported network, which runs on the CPU: --device cpu")
    if classify_only and about["outputs"] != ["probability"]:
        raise ConfigError(
            f"{path} was exported with its decoder: export it with --classify-only instead"
        )
    return model, model.config


def _abstain_below(
    path: str | Path,
    calibration: Calibration | None,
    below: float | None,
    accuracy: float | None,
) -> float | None:
    if below is not None and accuracy is not None:
        raise ConfigError("an accuracy and abstain_below were both given: leave one out")
    if below is not None and not 0 <= below <= 1:
        raise ConfigError(f"expected a confidence of 0 to 1 to abstain below, given {below:g}")
    if accuracy is None:
        return below
    if calibration is None:
        raise ConfigError(
            f"{path} was not calibrated, so no accuracy can be promised: calibrate it with "
            f"medduet calibrate {path} --data DIR --out NEW, or give --abstain-below"
        )
    if calibration.multi_label:
        raise ConfigError(
            "an accuracy is of single labels where an image can have several, and says nothing of "
            "whole answers: give --abstain-below"
        )
    return calibration.threshold(accuracy)


def _options(path: str | Path, config: Mapping[str, Any]) -> ReadOptions:
    try:
        about = config["preprocessing"]
        height, width = (int(side) for side in about["size"])
        channels, window = about["channels"], about.get("window")
        fit = about.get("fit", "stretch")
        if channels not in (1, 3) or fit not in ("pad", "stretch") or min(height, width) < 1:
            raise ValueError
        if height * width > MAX_FRAME_PIXELS or channels != config["network"]["in_channels"]:
            raise ValueError
        shown = None if window is None else (float(window[0]), float(window[1]))
        if shown is not None and not np.isfinite(shown).all():
            raise ValueError
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ModelError(
            f"{path} does not say how images are to be prepared (preprocessing in config.json): "
            "give a finished run, or its bundle"
        ) from error
    return ReadOptions((height, width), fit, cast(Literal[1, 3], channels), shown)
