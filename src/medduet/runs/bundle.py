"""A trained network with all that is needed to use it, in a folder without pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medduet.models.base import DuetNetwork
from medduet.models.weights import load_network, save_network
from medduet.runs.card import model_card
from medduet.runs.config import BundleConfig
from medduet.types import DenseLayout
from medduet.utils.files import atomic_folder, finite, write_text
from medduet.utils.hub import CARD, CONFIG, bundle_folder


@dataclass(frozen=True)
class ModelBundle:
    """A network and its record.

    Attributes:
        network: the module, in evaluation mode, on the CPU.
        config: the content of ``config.json``.
    """

    network: DuetNetwork
    config: BundleConfig

    @property
    def layout(self) -> DenseLayout:
        """Which channels of the dense output belong to which task; none if it is not recorded."""
        layout = self.config.layout
        return DenseLayout(0, 0) if layout is None else DenseLayout(**layout.model_dump())


def save_bundle(path: Path, network: DuetNetwork, config: BundleConfig | Mapping[str, Any]) -> None:
    """Write ``model.safetensors``, ``config.json`` and the model card ``README.md`` to `path`.

    The folder appears whole or not at all; an older bundle there is replaced.

    Args:
        path: of the folder.
        network: whose weights and arguments are saved.
        config: the other fields of `BundleConfig`.

    Raises:
        ModelError: the fields don't fit the network.
    """
    fields = config.to_json() if isinstance(config, BundleConfig) else finite(dict(config))
    checked = BundleConfig.check(fields | {"network": network.arguments}, path / CONFIG)
    with atomic_folder(path) as folder:
        save_network(folder, network, checked.to_json())
        write_text(folder / CARD, model_card(checked))


def load_bundle(path: str | Path) -> ModelBundle:
    """Read the bundle in the folder `path`, or in the run folder `path`, or at ``hf://OWNER/NAME``.

    Raises:
        MissingFileError: there is no bundle.
        DownloadError: the Hugging Face hub can't be reached, or asks for a token.
        ModelError: the bundle is damaged, of another version, or its weights don't fit.
    """
    folder = bundle_folder(path)
    network, config = load_network(folder)
    return ModelBundle(network, BundleConfig.check(config, folder / CONFIG))


def load(path: str | Path) -> DuetNetwork:
    """Return the trained network of a bundle or run folder, ready for use.

    Args:
        path: ``RUN/bundle`` or ``RUN``, or ``hf://OWNER/NAME[@REVISION]`` of the Hugging Face hub.

    Returns:
        The module in evaluation mode on the CPU. It takes ``(N, C, H, W)`` images, uint8 or float
        in [0, 1], and gives `Outputs`.

    Raises:
        MissingFileError: there is no bundle.
        DownloadError: the Hugging Face hub can't be reached, or asks for a token.
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
