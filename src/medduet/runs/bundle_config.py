"""Whether ``config.json`` of a bundle or an exported network says what can be true. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medduet.errors import ModelError

FILES = {
    "onnx": ("model.onnx",),
    "openvino": ("model.xml", "model.bin"),
    "torch": ("model.pt2",),
}
"""What a network is kept in, by format."""

_Name = Annotated[str, Field(max_length=1000)]
_Count = Annotated[int, Field(ge=0, le=1 << 20)]


class _Part(BaseModel):
    """A part that is looked at; what else it says is left as it is."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Network(_Part):
    name: _Name = ""
    in_channels: _Count
    num_classes: _Count
    dense_channels: _Count = 0


class _Layout(_Part):
    model_config = ConfigDict(strict=True, extra="forbid")
    mask_classes: int = Field(ge=0, le=64)
    image_channels: _Count


class _Data(_Part):
    name: _Name = ""
    info: dict[str, Any] = {}


class _Export(_Part):
    format: Literal["onnx", "openvino", "torch"]
    outputs: list[Literal["probability", "mask", "reconstruction"]]
    size: list[_Count] | None = Field(min_length=2, max_length=2)
    min_side: _Count
    sha256: dict[str, str]

    @model_validator(mode="after")
    def _names_its_files(self) -> _Export:
        if tuple(self.sha256) != FILES[self.format]:
            raise ValueError(f"expected sha256 of {' and '.join(FILES[self.format])}")
        if len(set(self.outputs)) < len(self.outputs):
            raise ValueError("expected different outputs")
        return self


class _Config(_Part):
    network: _Network
    class_names: list[_Name] = Field([], max_length=10_000)
    mask_names: list[_Name] = []
    multi_label: bool = False
    layout: _Layout | None = None
    data: _Data | None = None
    metrics: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    export: _Export | None = None

    @model_validator(mode="after")
    def _agrees(self) -> _Config:
        layout, classes = self.layout, self.network.num_classes
        if layout is None:  # what outputs mean is not said, so they are not named either
            return self
        if classes and len(self.class_names) != classes:
            raise ValueError(f"expected {classes} class_names, given {len(self.class_names)}")
        if layout.mask_classes and len(self.mask_names) != layout.mask_classes:
            raise ValueError(
                f"expected {layout.mask_classes} mask_names, given {len(self.mask_names)}"
            )
        masks = 1 if layout.mask_classes == 2 else layout.mask_classes
        if masks + layout.image_channels != self.network.dense_channels:
            raise ValueError(f"the layout is not that of {self.network.dense_channels} channels")
        return self


def check_said(path: Path, config: Mapping[str, Any]) -> None:
    """Raise a ModelError in one line unless the parts of a ``config.json`` fit together.

    Args:
        path: of the file.
        config: its content, which may be a stranger's.

    Example:
        >>> network = {"in_channels": 1, "num_classes": 2}
        >>> layout = {"mask_classes": 0, "image_channels": 0}
        >>> check_said(Path("config.json"), {"network": network, "class_names": ["a", "b"],
        ...                                  "layout": layout})
        >>> check_said(Path("config.json"), {"network": network, "layout": layout})
        Traceback (most recent call last):
        medduet.errors.ModelError: config.json: expected 2 class_names, given 0
    """
    try:
        _Config.model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "".join(f"{str(part)[:40]}: " for part in first["loc"][:3])
        message = first["msg"].removeprefix("Value error, ")
        raise ModelError(f"{path}: {place}{message}") from error
