"""Where images come from: phantoms, MedMNIST, MedSegBench and any ``.npz`` of one's own.

`open_images` is the one way in and `ImageSet` is what comes out. Names are imported when they are
first used, so that listing data sets does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medduet.data.cache import ProgressFactory, cache_folder
    from medduet.data.imageset import ImageSet, Split
    from medduet.data.medmnist import cached_sizes, medmnist_sets
    from medduet.data.npz import open_npz
    from medduet.data.phantom import phantom_images
    from medduet.data.sources import open_images

_HOME = {
    "ProgressFactory": "cache",
    "cache_folder": "cache",
    "ImageSet": "imageset",
    "Split": "imageset",
    "cached_sizes": "medmnist",
    "medmnist_sets": "medmnist",
    "open_npz": "npz",
    "phantom_images": "phantom",
    "open_images": "sources",
}

__all__ = [
    "ImageSet",
    "ProgressFactory",
    "Split",
    "cache_folder",
    "cached_sizes",
    "medmnist_sets",
    "open_images",
    "open_npz",
    "phantom_images",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
