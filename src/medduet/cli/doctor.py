"""Checks of this machine: the first thing to run when something is odd."""

import os
import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

from medduet._version import __version__
from medduet.data.cache import cache_folder
from medduet.utils.devices import best_precision

_LITTLE_ROOM = 2.0  # GB
_EXTRAS = ("ray", "export", "medical", "serve")
Check = tuple[str, str, str]
"""What is checked; good, bad, or missing (an extra that is not installed); and what to do."""


def examine() -> list[Check]:
    """Check versions, devices, the cache, the disk and extras; nothing is downloaded or changed."""
    python = f"Python {platform.python_version()} on {platform.platform()}"
    gpus, kind = torch.cuda.device_count(), "cuda" if torch.cuda.is_available() else "cpu"
    device = ("device", "good", f"{os.cpu_count()} CPU cores, no GPU")
    if kind == "cuda":
        device = ("device", "good", ", ".join(map(torch.cuda.get_device_name, range(gpus))))
    elif gpus:  # whose names torch can't ask for
        device = ("device", "bad", f"torch can't use the {gpus} GPU(s) here: check the driver")
    checks = [
        ("MedDuet", "good", f"{__version__}, {python}"),
        ("torch", "good", f"{torch.__version__}, threads: {torch.get_num_threads()}"),
        device,
        ("precision", "good", f"--precision auto means {best_precision(kind)} here"),
    ]
    checks += [(name, "bad", text) for name, text in _unmet("").items()]
    for extra in _EXTRAS:
        wrong = ", ".join(_unmet(extra).keys() - _unmet(""))
        text = f"without {wrong}: pip install 'medduet[{extra}]'" if wrong else "installed"
        checks.append((f"extra {extra}", "missing" if wrong else "good", text))
    cache = cache_folder()
    existing = next(each for each in (cache, *cache.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            checks.append(("cache folder", "good", str(cache)))
    except OSError:
        text = f"{cache} can't be written: set MEDDUET_CACHE to another folder"
        checks.append(("cache folder", "bad", text))
    for name, folder in (("free disk, cache", existing), ("free disk, here", Path.cwd())):
        free = shutil.disk_usage(folder).free / 2**30
        advice = "" if free > _LITTLE_ROOM else ": make room, or large sets won't fit"
        checks.append((name, "bad" if advice else "good", f"{free:.1f} GB{advice}"))
    return checks


def _unmet(extra: str) -> dict[str, str]:
    """Return what the package, with an extra, requires and does not find, by its name."""
    unmet = {}
    for each in map(Requirement, metadata.requires("medduet") or []):
        if each.marker is None or each.marker.evaluate({"extra": extra}):
            try:
                version = metadata.version(each.name)
            except metadata.PackageNotFoundError:
                version = "none"
            if version == "none" or not each.specifier.contains(version, prereleases=True):
                unmet[each.name] = f"expected {each}, given {version}"
    return unmet
