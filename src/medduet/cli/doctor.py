"""Checks of this machine: the first thing to run when something is odd."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement

from medduet._version import __version__
from medduet.data.cache import cache_folder
from medduet.utils.devices import best_precision

_LITTLE_ROOM = 2.0  # GB
_NOT_FOR_USERS = {"all", "test", "docs"}


class Check(NamedTuple):
    """One check: good, bad, or missing, an extra that is not installed; `text` says what to do."""

    name: str
    state: str
    text: str


def examine(cache: Path | None = None) -> list[Check]:
    """Check versions, devices, the cache, the disk and extras; nothing is downloaded or changed.

    Args:
        cache: Folder of downloads and unpacked sets; default: the one that would be used.
    """
    python = f"Python {platform.python_version()} on {platform.platform()}"
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    device = Check("device", "good", ", ".join(gpus) or f"{os.cpu_count()} CPU cores, no GPU")
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if gpus and kind == "cpu":
        device = Check("device", "bad", f"torch can't use the GPU {gpus[0]}: check its driver")
    return [
        Check("MedDuet", "good", f"{__version__}, {python}"),
        Check("torch", "good", f"{torch.__version__}, threads: {torch.get_num_threads()}"),
        device,
        Check("precision", "good", f"--precision auto means {best_precision(kind)} here"),
        *_packages(),
        *_folders(cache_folder(cache)),
    ]


def _packages() -> Iterator[Check]:
    for requirement in _wrong(""):
        given = _version(requirement.name) or "none"
        yield Check(requirement.name, "bad", f"expected {requirement}, given {given}")
    for extra in metadata.metadata("medduet").get_all("Provides-Extra") or []:
        wrong = ", ".join(requirement.name for requirement in _wrong(extra))
        if extra not in _NOT_FOR_USERS:
            text = f"without {wrong}: pip install 'medduet[{extra}]'" if wrong else "installed"
            yield Check(f"extra {extra}", "missing" if wrong else "good", text)


def _wrong(extra: str) -> list[Requirement]:
    found = []  # of the package itself without an extra
    for requirement in map(Requirement, metadata.requires("medduet") or []):
        marker, version = requirement.marker, _version(requirement.name)
        extras = [
            each for each in ("", extra) if marker is None or marker.evaluate({"extra": each})
        ]
        asked = extras[:1] == [extra]  # and not of the package itself
        if asked and (version is None or not requirement.specifier.contains(version, True)):
            found.append(requirement)
    return found


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
        free = shutil.disk_usage(folder).free / 2**30
        advice = "" if free > _LITTLE_ROOM else ": make room, or large sets won't fit"
        yield Check(name, "bad" if advice else "good", f"{free:.1f} GB{advice}")
