"""Checks of this machine: the first thing to run when something is odd."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from packaging.requirements import Requirement

from medduet._version import __version__
from medduet.data.cache import cache_folder
from medduet.utils.devices import best_precision

State = Literal["good", "missing", "bad"]
_GB = 1 << 30
_LITTLE_ROOM = 2 * _GB
_NOT_FOR_USERS = {"all", "test", "docs"}


class Check(NamedTuple):
    """One check: ``"missing"`` is an extra that is not installed; `text` says what to type."""

    name: str
    state: State
    text: str


def examine(cache: Path | None = None) -> list[Check]:
    """Check versions, devices, the cache, the disk and extras; nothing is downloaded or changed.

    Args:
        cache: Folder of downloads and unpacked sets; default: the one that would be used.

    Example:
        >>> [check.name for check in examine()][:3]
        ['MedDuet', 'torch', 'device']
    """
    python = f"Python {platform.python_version()} on {platform.platform()}"
    return [
        Check("MedDuet", "good", f"{__version__}, {python}"),
        Check("torch", "good", f"{torch.__version__}, threads: {torch.get_num_threads()}"),
        *_devices(),
        *_packages(),
        *_folders(cache_folder(cache)),
    ]


def _devices() -> Iterator[Check]:
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if gpus and kind == "cpu":
        yield Check("device", "bad", f"torch can't use the GPU {gpus[0]}: check its driver")
    else:
        cores = f"{os.cpu_count()} CPU cores; torch sees no GPU"
        yield Check("device", "good", ", ".join(gpus) or cores)
    yield Check("precision", "good", f"--precision auto means {best_precision(kind)} here")


def _packages() -> Iterator[Check]:
    """Check that required packages have the versions asked for, and which extras are complete."""
    for requirement in _wrong("medduet", ""):
        given = _version(requirement.name) or "none"
        yield Check(requirement.name, "bad", f"expected {requirement}, given {given}")
    for extra in metadata.metadata("medduet").get_all("Provides-Extra") or []:
        if extra not in _NOT_FOR_USERS:
            wrong = [requirement.name for requirement in _wrong("medduet", extra)]
            text = f"without {', '.join(wrong)}: pip install 'medduet[{extra}]'"
            state: State = "missing" if wrong else "good"
            yield Check(f"extra {extra}", state, text if wrong else "installed")


def _wrong(package: str, extra: str) -> list[Requirement]:
    """Return the requirements of a package, or of its extra alone, that are not met."""
    wrong = []
    for text in metadata.requires(package) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if extra and (marker is None or marker.evaluate({"extra": ""})):
            continue
        if marker is not None and not marker.evaluate({"extra": extra}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(requirement)
        else:
            wrong += [
                each for name in requirement.extras for each in _wrong(requirement.name, name)
            ]
    return wrong


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _folders(cache: Path) -> Iterator[Check]:
    existing = next(each for each in (cache, *cache.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            yield Check("cache folder", "good", str(cache))
    except OSError as error:
        text = f"{cache} can't be written ({error.strerror}): set MEDDUET_CACHE to another folder"
        yield Check("cache folder", "bad", text)
    for name, folder in (("free disk, cache", existing), ("free disk, here", Path.cwd())):
        free = shutil.disk_usage(folder).free
        state: State = "good" if free > _LITTLE_ROOM else "bad"
        advice = "" if state == "good" else ": make room, or large sets won't fit"
        yield Check(name, state, f"{free / _GB:.1f} GB{advice}")
