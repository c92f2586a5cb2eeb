"""What a run records of its data, its machine and its versions."""

import logging
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric

from medduet._version import __version__
from medduet.config import DataConfig
from medduet.data.imageset import SPLITS, ImageSet
from medduet.data.pixels import for_each_axis
from medduet.data.sources import is_files
from medduet.errors import ConfigError
from medduet.models.base import Cost
from medduet.runs.config import Preprocessing
from medduet.types import UNKNOWN_LABEL

_LIBRARIES = ("torch", "lightning", "timm", "monai", "medmnist", "numpy", "scipy")
_LOG = logging.getLogger(__name__)


def describe_environment(
    data: ImageSet, cost: Cost, fabric: Fabric, training: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of ``environment.json``; `training` has what ``auto`` was resolved to."""
    device, cpuinfo = fabric.device, Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8", errors="replace") if cpuinfo.is_file() else ""
    processor = re.search(r"^model name\s*:\s*(.*)", text, re.MULTILINE)
    return {
        "medduet": __version__,
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES}
        | {"torch": torch.__version__},
        "machine": {
            "system": platform.platform(),
            "processor": processor[1].strip() if processor else platform.processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(device),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "processes": fabric.world_size,
        },
        "training": dict(training),
        "network": cost._asdict(),
        "data": describe_data(data),
    }


def describe_data(data: ImageSet) -> dict[str, Any]:
    """Return what a run or a bundle records of its data, ready for JSON."""
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "splits": {name: len(data.split(name)) for name in SPLITS},
        "size": list(data.size),
        "channels": data.in_channels,
        "class_names": list(data.class_names),
        "mask_names": list(data.mask_names),
        "multi_label": data.multi_label,
        "info": dict(data.info),
    }


def prepared_as(config: DataConfig, preprocessing: Preprocessing) -> DataConfig:
    """Return `config`, completed by how a network's training images were prepared.

    Raises:
        ConfigError: it has another fit, window or spacing.
    """
    sides = dict.fromkeys(preprocessing.size)  # one number where all are equal, whatever the axes
    size = tuple(sides) if len(sides) == 1 else tuple(preprocessing.size)
    settings: dict[str, Any] = {"size": config.size or size}
    if is_files(config):
        window, spacing = preprocessing.window or "own", preprocessing.options.spacing
        fit, dims = preprocessing.fit, len(preprocessing.size)
        settings |= {"fit": fit, "window": window, "spacing": spacing, "dims": dims}
        if dims == 2:
            settings["channels"] = config.channels or preprocessing.channels
        typed = config.spacing and for_each_axis(config.spacing, dims, "spacing")
        fit_typed = None if config.fit == "pad" else config.fit  # which is the default
        for name, given in (("fit", fit_typed), ("window", config.window), ("spacing", typed)):
            if given not in (None, settings[name]):
                expected = f"expected the {name} of the training, {settings[name]}, given {given}"
                raise ConfigError(f"{expected}: omit --data.{name}")
    return config.model_copy(update=settings)


def in_classes_of(images: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """Return the set with its labels numbered as in `class_names`, if these hold all its classes.

    Sets that name none of them are taken by number.
    """
    names, expected = images.class_names, tuple(class_names)
    if names == expected:
        return images
    if not set(names) & set(expected):
        if expected and names:
            _LOG.warning("classes %s of %s are read as %s, in order", names, images.name, expected)
        return images
    if unexpected := sorted(set(names) - set(expected)):
        raise ConfigError(
            f"expected the classes {', '.join(expected)}, given also {', '.join(unexpected)} in "
            f"{images.name}"
        )
    place = np.array([expected.index(name) for name in names], dtype=np.int64)
    splits: dict[str, Any] = {}
    for split in SPLITS:
        labels = images.split(split).labels
        if images.multi_label:
            renumbered = np.full((len(labels), len(expected)), UNKNOWN_LABEL)
            renumbered[:, place] = labels
        else:
            renumbered = np.where(labels == UNKNOWN_LABEL, UNKNOWN_LABEL, place[labels])
        splits[split] = replace(images.split(split), labels=renumbered)
    return replace(images, class_names=expected, **splits)
