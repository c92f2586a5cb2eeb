"""A trained network with all that is needed to use it, in a folder without pickles."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medduet.files import write_text
from medduet.models import DuetNetwork
from medduet.models.weights import load_network, save_network
from medduet.types import DenseLayout


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
        network: whose weights and arguments are saved.
        config: see `ModelBundle`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        save_network(temporary, network, config)
        card = model_card({"network": network.arguments} | config)
        write_text(temporary / "README.md", card)
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
    return ModelBundle(*load_network(Path(path)))


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
        >>> import tempfile, torch
        >>> from medduet import create_model
        >>> arguments = dict(name="vovunet_var", in_channels=1, num_classes=2, width=2)
        >>> folder = Path(tempfile.mkdtemp()) / "bundle"
        >>> save_bundle(folder, create_model(**arguments), {})
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
            f"| {split} | {_count(row, name)} | {name} | {row[name]:.4f} | {_interval(row, name)} |"
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


def _count(row: dict[str, Any], name: str) -> int:
    """Return the number of images of a metric; masks may be known of others than labels."""
    count: int = row.get("dice_n", row["n"]) if name.startswith(("dice", "iou")) else row["n"]
    return count


def _interval(row: dict[str, Any], name: str) -> str:
    interval = row.get(f"{name}_interval")
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval and None not in interval else ""
