"""Checkpoints without pickles: nested state in one safetensors file, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medduet.errors import MissingFileError, TrainingError
from medduet.utils.files import atomic_path
from medduet.utils.parsing import misread, parse_json

_TREE = "medduet"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts and lists of tensors and plain values to `path`, atomically.

    Tensors go into the body of the safetensors file, everything else as JSON into its header.

    Args:
        path: file to write.
        state: dicts (keys str or int), lists, tuples (read back as lists), tensors, and what JSON
            knows.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> save_state(path, {"epoch": 3, "optimizer": {0: torch.ones(2)}})
        >>> load_state(path)
        {'epoch': 3, 'optimizer': {0: tensor([1., 1.])}}
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_flatten(state, tensors, ""))
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={_TREE: tree})


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; tensors come to the CPU.

    Raises:
        MissingFileError: there is no such file.
        TrainingError: the file is damaged or no checkpoint.
    """
    if not path.is_file():
        raise MissingFileError(f"expected a checkpoint at {path}, but there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            tree = parse_json((file.metadata() or {})[_TREE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with misread(path, TrainingError):
            state: dict[str, Any] = _unflatten(tree, tensors)
            return {**state}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise TrainingError(f"{path} is not a MedDuet checkpoint: {error}") from error


def _flatten(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    if isinstance(value, Tensor):
        # A clone, since tied or sliced tensors may share memory, which safetensors refuses.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[k, _flatten(v, tensors, f"{name}/{k}")] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_flatten(v, tensors, f"{name}/{i}") for i, v in enumerate(value)]}
    return value


def _unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflatten(value, tensors) for key, value in content}
    return [_unflatten(value, tensors) for value in content]


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's generators on the CPU and on `device`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Set torch's generators to what `random_state` gave."""
    # A clone: torch 2.14 refuses a row of several states, which begins within its memory.
    torch.set_rng_state(state["cpu"].clone())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].clone(), device)
