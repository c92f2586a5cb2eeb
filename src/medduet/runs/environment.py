"""What a run records of its data, its machine and its versions."""

import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from medduet._version import __version__
from medduet.data.imageset import SPLITS, ImageSet
from medduet.models.base import Cost

_LIBRARIES = ("torch", "lightning", "timm", "monai", "medmnist", "numpy", "scipy")


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
