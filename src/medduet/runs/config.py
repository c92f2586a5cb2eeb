"""``config.json`` of a bundle or an exported network: typed, and checked once. Without torch."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from medduet.config import describe
from medduet.data.reading.core import ReadOptions
from medduet.errors import ModelError
from medduet.types import DenseLayout, Fit
from medduet.uncertainty.calibration import Calibration
from medduet.uncertainty.ood import OODDetector

Name = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(ge=0, le=1 << 20)]
Side = Annotated[int, Field(ge=1, le=1 << 13)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Layout = Annotated[DenseLayout, PlainSerializer(DenseLayout._asdict)]


class _Open(BaseModel):
    """A part that has further keys."""

    model_config = ConfigDict(strict=True, extra="allow")


class NetworkArguments(_Open):
    """What `medduet.create_model` built the network from; 0 channels where it has no such head."""

    name: Name = ""
    in_channels: Count
    num_classes: Count
    dense_channels: Count = 0
    dims: Literal[2, 3] = 2
    ordinal: bool = False


class Preprocessing(_Open):
    """How images become the network's input, see `medduet.data.reading.core.ReadOptions`."""

    size: list[Side] = Field(min_length=2, max_length=3, strict=False)
    channels: Count
    fit: Fit = "stretch"
    window: Annotated[tuple[Finite, Finite], Field(strict=False)] | Literal["zscore"] | None = None
    patch: list[Side] | None = Field(None, min_length=2, max_length=3, strict=False)
    spacing: list[Finite] | None = Field(None, min_length=2, max_length=3, strict=False)

    @property
    def options(self) -> ReadOptions:
        """What files are read to."""
        spacing = None if self.spacing is None else tuple(self.spacing)
        return ReadOptions(tuple(self.size), self.fit, self.channels, self.window, spacing)


class DataRecord(_Open):
    """What is recorded of the images of the training, see `describe_data`."""

    name: Name = ""
    fingerprint: str | None = None
    splits: dict[str, Count] = {}
    size: list[Side] = []
    info: dict[str, Any] = {}
    folds: int | None = None
    """Of an ensemble over folds, how many; its members were trained on val, too."""


class Export(_Open):
    """An exported network; `size` is that of images, such as height and width, if it is fixed."""

    precision: Literal["float32"]
    outputs: list[Literal["probability", "mask", "reconstruction"]] = Field(min_length=1)
    size: list[Side] | None = Field(None, min_length=2, max_length=3)
    min_side: Count = 1
    sha256: str


class BundleConfig(BaseModel):
    """What a bundle says of its network; masks have the background first.

    `layout` and `preprocessing` are ``None`` for networks that were saved without their task.
    """

    model_config = ConfigDict(strict=True, extra="forbid", validate_assignment=True)

    format: str = "medduet-bundle"
    version: int = 2
    weights_sha256: str | None = None
    network: NetworkArguments
    class_names: list[Name] = Field([], max_length=10_000)
    mask_names: list[Name] = Field([], max_length=64)
    multi_label: bool = False
    layout: Layout | None = None
    preprocessing: Preprocessing | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    calibration: Calibration | None = None
    calibration_missing: str | None = None
    calibrated_on: dict[str, Any] | None = None
    ood: OODDetector | None = None
    metrics: dict[str, Any] = {}
    data: DataRecord | None = None
    members: list[str] | None = None
    versions: dict[str, Any] = {}
    export: Export | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        layout, network, calibration = self.layout, self.network, self.calibration
        counts: list[tuple[str, int, int]] = []  # of what, how many, and how many there should be
        if self.preprocessing is not None:
            counts.append(("channels", self.preprocessing.channels, network.in_channels))
            for name in ("size", "patch"):
                if sides := getattr(self.preprocessing, name):
                    counts.append((f"sides of the {name}", len(sides), network.dims))
        if layout is not None:  # else the outputs have no names either
            counts.append(("dense channels of the layout", layout.channels, network.dense_channels))
            if layout.image_channels < 0:
                raise ValueError(f"expected image channels, given {layout.image_channels}")
            if network.num_classes:
                counts.append(("class_names", len(self.class_names), network.num_classes))
            if layout.mask_classes:
                counts.append(("mask_names", len(self.mask_names), layout.mask_classes))
        for names in (self.class_names, self.mask_names):
            if len({*names}) < len(names):
                raise ValueError(f"expected different names, given {', '.join(names[:20])}")
        for name, count, expected in counts:
            if count != expected:
                raise ValueError(f"expected {expected} {name}, given {count}")
        if calibration is not None:
            kind, classes = (len(calibration.counts), calibration.multi_label), network.num_classes
            if kind != (classes, self.multi_label):
                raise ValueError(f"the calibration is not that of a network with {classes} classes")
        return self

    @classmethod
    def check(cls, values: Any, path: Path) -> Self:
        """Return the content `values` of the file at `path`; ModelError for other content."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ModelError(f"{path}: {describe(error, cls)}") from error

    @property
    def temperature(self) -> float:
        """By which the class logits are divided; 1 if the network is not calibrated."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    def usable(self, path: str | Path) -> tuple[DenseLayout, Preprocessing]:
        """Return what it takes to use the network on images; ModelError if it is not recorded."""
        if self.layout is None or self.preprocessing is None:
            raise ModelError(f"{path} does not say what its outputs mean: give a finished run")
        return self.layout, self.preprocessing

    def to_json(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return self.model_dump(mode="json")
