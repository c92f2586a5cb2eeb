"""What this machine has, and what is missing: the first thing to look at when something is odd."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from medduet._version import __version__
from medduet.data.cache import cache_folder
from medduet.utils.devices import best_precision

State = Literal["good", "missing", "bad"]
_GB = 1 << 30
_LITTLE_ROOM = 2 * _GB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        state: ``"good"``, ``"missing"`` (something that is not installed), or ``"bad"``.
        text: what was found, and if it is not good, what to type.
    """

    name: str
    state: State
    text: str


def examine(cache: Path | None = None) -> list[Finding]:
    """Return what is known of versions, devices, precision, the cache, the disk and extras.

    Nothing is downloaded or changed.

    Args:
        cache: the cache folder; ``None`` for the one that would be used.

    Example:
        >>> [finding.name for finding in examine()][:3]
        ['MedDuet', 'torch', 'device']
    """
    python = f"Python {platform.python_version()} on {platform.platform()}"
    return [
        Finding("MedDuet", "good", f"{__version__}, {python}"),
        Finding("torch", "good", f"{torch.__version__}, threads: {torch.get_num_threads()}"),
        *_devices(),
        *_requirements(),
        *_folders(cache_folder(cache)),
        *_extras(),
    ]


def _devices() -> list[Finding]:
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if gpus and kind == "cpu":
        told = Finding("device", "bad", f"a GPU is there ({gpus[0]}), but torch can't use it")
    elif kind == "cuda":
        told = Finding("device", "good", ", ".join(gpus))
    else:
        told = Finding("device", "good", f"{os.cpu_count()} CPU cores; torch sees no GPU")
    precision = best_precision(kind)
    return [told, Finding("precision", "good", f"--precision auto means {precision} here")]


def _requirements() -> list[Finding]:
    """Return what is installed in another version than MedDuet asks for."""
    wrong = []
    for each in _asked_for():
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        found = _version(each.name)
        if found is None or not each.specifier.contains(found, prereleases=True):
            wrong.append(Finding(each.name, "bad", f"expected {each}, given {found or 'none'}"))
    return wrong or [Finding("libraries", "good", "all as MedDuet asks for")]


def _folders(cache: Path) -> list[Finding]:
    there = next(each for each in (cache, *cache.parents) if each.exists())
    findings = []
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        findings.append(Finding("cache folder", "good", str(cache)))
    except OSError as error:
        text = f"{cache} can't be written ({error.strerror}): set MEDDUET_CACHE to another folder"
        findings.append(Finding("cache folder", "bad", text))
    for name, folder in (("free disk, cache", there), ("free disk, here", Path.cwd())):
        free = shutil.disk_usage(folder).free
        state: State = "good" if free > _LITTLE_ROOM else "bad"
        room = "" if state == "good" else ": make room, or large sets won't fit"
        findings.append(Finding(name, state, f"{free / _GB:.1f} GB{room}"))
    return findings


def _extras() -> list[Finding]:
    findings = []
    extras = metadata.metadata("medduet").get_all("Provides-Extra") or []
    for extra in sorted(set(extras) - {"all", "test", "docs"}):
        asked = _of_extra("medduet", extra)
        # Extras of others' packages, as in torchjd[cagrad].
        asked += [
            more for each in asked for name in each.extras for more in _of_extra(each.name, name)
        ]
        missing = [
            each.name
            for each in asked
            if (found := _version(each.name)) is None or not each.specifier.contains(found)
        ]
        if missing:
            text = f"without {', '.join(missing)}: pip install 'medduet[{extra}]'"
            findings.append(Finding(f"extra {extra}", "missing", text))
        else:
            findings.append(Finding(f"extra {extra}", "good", "installed"))
    return findings


def _asked_for(package: str = "medduet") -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires(package) or []]


def _of_extra(package: str, extra: str) -> list[Requirement]:
    """Return what an extra of a package that is installed asks for; nothing of another one."""
    return [
        each
        for each in (_asked_for(package) if _version(package) else [])
        if each.marker is not None
        and each.marker.evaluate({"extra": extra})
        and not each.marker.evaluate({"extra": ""})
    ]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
