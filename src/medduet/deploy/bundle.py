"""A trained network with all that is needed to use it, in a folder without pickles."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medduet.errors import MissingFileError, ModelError
from medduet.files import atomic_path, read_json, write_json, write_text
from medduet.models import DuetNetwork, create_model
from medduet.types import DenseLayout

FORMAT = "medduet-bundle"
VERSION = 1


@dataclass(frozen=True)
class ModelBundle:
    """A network and what is known of it.

    Attributes:
        network: the module, in evaluation mode, on the CPU.
        config: the content of ``config.json``: ``network``, ``class_names``, ``mask_names``,
            ``multi_label``, ``layout``, ``preprocessing``, ``metrics``, ``data``, ``versions``.
    """

    network: DuetNetwork
    config: dict[str, Any]

    @property
    def layout(self) -> DenseLayout:
        """Which channels of the dense output belong to which task."""
        return DenseLayout(**self.config["layout"])


def save_bundle(path: Path, network: DuetNetwork, config: dict[str, Any]) -> None:
    """Write ``model.safetensors``, ``config.json`` and the model card ``README.md`` to `path`.

    The folder appears whole or not at all; an older bundle there is replaced.

    Args:
        path: of the folder.
        network: whose weights are saved.
        config: see `ModelBundle`; ``network`` holds the arguments of `medduet.create_model`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        weights = {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in network.state_dict().items()
        }
        with atomic_path(temporary / "model.safetensors") as file:  # readable by others too
            save_file(weights, file, metadata={"format": "pt"})
        digest = _sha256(temporary / "model.safetensors")
        header = {"format": FORMAT, "version": VERSION, "weights_sha256": digest}
        write_json(temporary / "config.json", header | config)
        write_text(temporary / "README.md", model_card(config))
        temporary.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.rename(old / path.name)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_bundle(path: str | Path) -> ModelBundle:
    """Read the bundle in the folder `path`, or in the run folder `path`.

    Raises:
        MissingFileError: there is no bundle.
        ModelError: the bundle is damaged, of another version, or its weights don't fit.
    """
    folder = Path(path)
    if (folder / "bundle" / "config.json").is_file():
        folder = folder / "bundle"
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise MissingFileError(
                f"expected a bundle or a finished run at {path}, but there is no {name}: give the "
                "folder RUN/bundle of a finished run"
            )
    try:
        config = read_json(folder / "config.json")
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(f"expected a {FORMAT} at {folder}, but config.json is something else")
    if config.get("version") != VERSION:
        raise ModelError(
            f"{folder} has bundle version {config.get('version')}, but this MedDuet reads version "
            f"{VERSION}: install the MedDuet that wrote it"
        )
    if missing := {"network", "weights_sha256"} - set(config):
        raise ModelError(
            f"{folder / 'config.json'} lacks {' and '.join(sorted(missing))}: copy the whole "
            "folder again"
        )
    if _sha256(folder / "model.safetensors") != config["weights_sha256"]:
        raise ModelError(
            f"{folder / 'model.safetensors'} is not the file that config.json describes: its "
            "SHA-256 differs; copy the whole folder again"
        )
    with torch.random.fork_rng(devices=[]):  # the first weights are replaced at once
        network = create_model(**config["network"])
    try:
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the weights in {folder} don't fit the network: {reason}") from error
    return ModelBundle(network.eval(), config)


def load(path: str | Path) -> DuetNetwork:
    """Return the trained network of a bundle or run folder, ready for use.

    Args:
        path: ``RUN/bundle`` or ``RUN``.

    Returns:
        The module in evaluation mode on the CPU. It takes ``(N, C, H, W)`` images, uint8 or float
        in [0, 1], and gives `Outputs`.

    Raises:
        MissingFileError: there is no bundle.
        ModelError: the bundle is damaged, of another version, or its weights don't fit.

    Example:
        >>> import tempfile
        >>> from medduet.deploy.bundle import save_bundle
        >>> arguments = dict(name="vovunet_var", in_channels=1, num_classes=2, width=2)
        >>> folder = Path(tempfile.mkdtemp()) / "bundle"
        >>> save_bundle(folder, create_model(**arguments), {"network": arguments})
        >>> load(folder)(torch.zeros(1, 1, 16, 16)).class_logits.shape
        torch.Size([1, 2])
    """
    return load_bundle(path).network


def model_card(config: dict[str, Any]) -> str:
    """Return the Markdown model card of a bundle, in the form that the Hugging Face hub reads."""
    network, data = config["network"], config.get("data", {})
    lines = ["---", "library_name: medduet", "tags: [medical-imaging, multi-task]", "---", ""]
    lines += [f"# {network['name']} trained on {data.get('name', 'unknown data')}", ""]
    if names := config.get("class_names"):
        lines += [f"Classes: {', '.join(names)}.", ""]
    if names := config.get("mask_names"):
        lines += [f"Mask: {', '.join(names)}.", ""]
    lines += [
        "For research. Not a medical device, not for diagnosis.",
        "",
        "```python",
        "import medduet",
        'network = medduet.load("path/of/this/folder")',
        f"# image: (N, {network['in_channels']}, H, W), uint8 or float in [0, 1]",
        "class_logits, dense = network(image)",
        "```",
        "",
    ]
    if metrics := config.get("metrics"):
        lines += [
            f"Epoch {metrics['selected_epoch']}, {metrics['selection']}, seed {metrics['seed']}.",
            "",
            "| split | n | metric | value | 95% interval |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {split} | {row['n']} | {name} | {row[name]:.4f} | {_interval(row, name)} |"
            for split in ("val", "test")
            for row in [metrics[split]]
            for name in ("accuracy", "auc", "dice", "dice_lesion", "iou", "mse")
            if isinstance(row.get(name), float)
        ]
        lines.append("")
    if data:
        splits = ", ".join(f"{name} {count}" for name, count in data["splits"].items())
        licence = data.get("info", {}).get("licence") or "not recorded"
        lines += [
            f"Trained on {data['name']} ({splits}; {data['size'][0]} x {data['size'][1]} pixels; "
            f"licence: {licence}; SHA-256 `{data['fingerprint']}`).",
            "",
        ]
    return "\n".join(lines)


def _interval(row: dict[str, Any], name: str) -> str:
    interval = row.get(f"{name}_interval")
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval and None not in interval else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
