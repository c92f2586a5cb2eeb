"""Weights in files: whole networks in folders, and starting points for training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv

from medduet.errors import MissingFileError, ModelError
from medduet.models.base import DuetNetwork, NumbersOnCPU
from medduet.models.ensemble import build_network
from medduet.utils.files import atomic_path, write_json
from medduet.utils.hub import CONFIG, WEIGHTS, bundle_folder
from medduet.utils.parsing import read_json, sha256

_MOST_HEADER = 4 << 20  # bytes; those of large networks have 0.2 MB
FORMAT = "medduet-bundle"
VERSION = 2
_DAMAGE = (OSError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Raised by safetensors beside `SafetensorError`, as for types that torch doesn't have."""
_PREFIXES = ("", "encoder.", "model.encoder.", "model.encoder.model.", "model.")


@dataclass(frozen=True)
class WeightsReport:
    """Names of tensors: taken as they are, adapted from RGB, or not taken."""

    path: str
    matched: list[str]
    adapted: list[str]
    other_shape: list[str]
    not_in_file: list[str]
    not_in_network: list[str]

    def summary(self) -> str:
        """Return the counts in one line, with the first names of what was not taken."""
        taken = len(self.matched) + len(self.adapted)
        total = taken + len(self.other_shape) + len(self.not_in_file)
        parts = [f"{self.path}: {taken} of {total} tensors taken"]
        for title in ("adapted", "other_shape", "not_in_file", "not_in_network"):
            if names := getattr(self, title):
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                parts.append(f"{title.replace('_', ' ')}: {', '.join(names[:3])}{more}")
        return "; ".join(parts)


def load_weights(network: DuetNetwork, path: str | Path) -> WeightsReport:
    """Let `network` start from the weights in a file, as far as names and shapes agree.

    If the file has no normalisation of ours, that of the encoder's published weights is taken.

    Args:
        network: is changed in place.
        path: a ``.safetensors`` file, of ours, timm or segmentation-models-pytorch; or the folder
            of a bundle or run; or ``hf://OWNER/NAME``.

    Raises:
        MissingFileError: there is no such file.
        ModelError: it is not a safetensors file, or nothing in it fits.

    Example:
        >>> import tempfile
        >>> from medduet import create_model
        >>> network = create_model("unet_var", in_channels=1, num_classes=2, width=2)
        >>> save_network(folder := tempfile.mkdtemp(), network)
        >>> len(load_weights(network, folder).matched)
        64
    """
    folder = bundle_folder(path)
    places = (folder / "bundle" / WEIGHTS, folder / WEIGHTS, folder)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        expected = "a .safetensors file, a bundle or a finished run"
        raise MissingFileError(f"expected {expected}, given {folder}: change --model.weights")
    _check_header(file)
    try:
        tensors = load_file(file)
    except (SafetensorError, *_DAMAGE) as error:
        raise ModelError(f"{file} is not a safetensors file: {error}") from error
    state, channels = network.state_dict(), network.normalize.channels
    renamed = [{prefix + name: tensors[name] for name in tensors} for prefix in _PREFIXES]
    named = max(renamed, key=lambda names: len(state.keys() & names.keys()))
    shared = [name for name in state if name in named]
    taken = {name: named[name] for name in shared if named[name].shape == state[name].shape}
    matched = list(taken)
    others = {name: state[name].shape for name in shared if name not in taken}
    adapted = [  # kernels that are made for RGB
        name
        for name, shape in others.items()
        if len(shape) == 4 and shape[1] == channels
        if named[name].shape == (shape[0], 3, *shape[2:])
    ]
    taken |= {name: adapt_input_conv(channels, named[name]) for name in adapted}
    if not taken:
        raise ModelError(
            f"none of the {len(tensors)} tensors in {file} fits {network.arguments['name']}: "
            f"expected {', '.join(sorted(state)[:3])}, ..., given {', '.join(sorted(tensors)[:3])}"
        )
    network.load_state_dict(taken, strict=False)
    normalization = getattr(network, "pretrained_normalization", None)
    if normalization and "normalize.mean" not in taken:
        network.normalize.set(*normalization)
    return WeightsReport(
        path=str(path),
        matched=matched,
        adapted=adapted,
        other_shape=[name for name in shared if name not in taken],
        not_in_file=[name for name in state if name not in named],
        not_in_network=sorted(name for name in named if name not in state),
    )


def save_network(
    path: str | Path, network: DuetNetwork, config: Mapping[str, Any] | None = None
) -> None:
    """Write the weights, and a ``config.json`` that has all of `config`, too."""
    path = Path(path)
    weights = {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in network.state_dict().items()
    }
    with atomic_path(path / WEIGHTS) as file:  # readable by others too
        save_file(weights, file, metadata={"format": "pt"})
    fixed = {
        "format": FORMAT,
        "version": VERSION,
        "weights_sha256": sha256(path / WEIGHTS),
        "network": network.arguments,
    }
    # `config` may be that of another bundle.
    write_json(path / CONFIG, {**fixed, **(config or {}), **fixed})


def load_network(folder: Path) -> tuple[DuetNetwork, dict[str, Any]]:
    """Return the network in a folder, in evaluation mode, and the content of ``config.json``."""
    if (folder / "bundle" / CONFIG).is_file():
        folder = folder / "bundle"
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            expected = f"expected a run or a bundle at '{folder}'"
            if not folder.exists():
                raise MissingFileError(f"{expected}, but there is no such folder")
            if (folder / "checkpoints").is_dir():
                raise MissingFileError(f"{folder} is not finished: medduet train --resume {folder}")
            raise MissingFileError(f"{expected}, but it has no {name}")
    config, file = read_json(folder / CONFIG, ModelError), folder / WEIGHTS
    if config.get("format") != FORMAT or "network" not in config:
        raise ModelError(f"expected a {FORMAT} at {folder}, but config.json is something else")
    if config.get("version") != VERSION:
        versions = f"expected version {VERSION} of bundles, given {config.get('version')}"
        raise ModelError(f"{versions}: install the MedDuet that wrote {folder}")
    if sha256(file) != config.get("weights_sha256"):
        raise ModelError(f"{file} is damaged, its SHA-256 differs: copy the whole folder again")
    try:
        with torch.random.fork_rng(devices=[]):  # the first weights are replaced at once
            with torch.device("meta"), NumbersOnCPU():
                sketch = build_network(config["network"])
            _check_shapes(sketch, file)  # before sizes from elsewhere take any memory
            network = build_network(config["network"])
        network.load_state_dict(load_file(file))
    except (SafetensorError, *_DAMAGE) as error:
        raise ModelError(f"{file} can't be loaded: {error}") from error
    network.eval()
    return network, config


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > _MOST_HEADER:
            raise ModelError(
                f"{path} is not a safetensors file, or has a header of more than "
                f"{_MOST_HEADER >> 20} MB"
            )


def _check_shapes(network: DuetNetwork, path: Path) -> None:
    """Raise `ModelError` unless the file has the tensors of `network`, by its header alone."""
    _check_header(path)
    with safe_open(path, framework="pt") as file:
        in_file = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    expected = {name: list(value.shape) for name, value in network.state_dict().items()}
    for name in {**expected, **in_file}:
        if expected.get(name) != in_file.get(name):
            raise ModelError(
                f"the weights in {path.parent} don't fit the network: expected "
                f"{expected.get(name, 'no')} {name}, but the file has {in_file.get(name, 'none')}"
            )
