"""A trained network and its card, with all that is needed to use it, in a folder without pickle."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData

from medduet._version import __version__
from medduet.errors import ConfigError
from medduet.metrics.names import METRICS
from medduet.models.base import DuetNetwork
from medduet.models.weights import load_network, save_network
from medduet.runs.config import BundleConfig
from medduet.types import DenseLayout
from medduet.utils.files import atomic_folder, finite, write_text
from medduet.utils.hub import CARD, CONFIG, WEIGHTS, asking_hub, bundle_folder
from medduet.utils.parsing import misread, read_bytes


@dataclass(frozen=True)
class ModelBundle:
    """A network in evaluation mode on the CPU, and the content of its ``config.json``."""

    network: DuetNetwork
    config: BundleConfig

    @property
    def layout(self) -> DenseLayout:
        """Which channels of the dense output belong to which task; none if it is not recorded."""
        return self.config.layout or DenseLayout(0, 0)


def save_bundle(path: Path, network: DuetNetwork, config: BundleConfig | Mapping[str, Any]) -> None:
    """Write weights, ``config.json`` with the fields `config`, and card to `path`, as a whole."""
    fields = config.to_json() if isinstance(config, BundleConfig) else finite(dict(config))
    checked = BundleConfig.check(fields | {"network": network.arguments}, path / CONFIG)
    with atomic_folder(path) as folder:
        save_network(folder, network, checked.to_json())
        write_text(folder / CARD, model_card(checked))


def load_bundle(path: str | Path) -> ModelBundle:
    """Read the bundle in the folder or run folder `path`, or at ``hf://OWNER/NAME``; see `load`."""
    folder = bundle_folder(path)
    network, values = load_network(folder)
    config = BundleConfig.check(values, folder / CONFIG)
    if config.preprocessing is not None and config.preprocessing.patch is not None:
        network.patch = tuple(config.preprocessing.patch)
    return ModelBundle(network, config)


def load(path: str | Path) -> DuetNetwork:
    """Return the trained network of a bundle or run folder, in evaluation mode on the CPU.

    It takes ``(N, C, H, W)`` images, uint8 or float in [0, 1], and returns `Outputs`. `path` is
    ``RUN/bundle`` or ``RUN``, or ``hf://OWNER/NAME[@REVISION]`` of the Hugging Face hub.

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


def push(
    path: str | Path,
    name: str,
    *,
    private: bool = False,
    licence: str | None = None,
    notes: str | Path | None = None,
) -> str:
    """Send the bundle of a run to a repository of the Hugging Face hub, which is made if need be.

    The network, ``config.json`` and a model card are sent, and nothing else of the run; of paths
    in ``config.json`` only the last part, and no names of images.

    Args:
        path: a bundle or a finished run.
        name: of the repository, ``OWNER/NAME``.
        private: whether only you, or your organisation, may see it.
        licence: of the weights, in the hub's terms, such as ``"cc-by-nc-4.0"``.
        notes: a Markdown file to append to the card, on images, population and truth.

    Returns the address, with the commit, that `medduet.load` takes.

    Raises:
        MissingFileError: there is no bundle, or no such notes.
        ConfigError: it is public though `private` was asked for, or the hub refuses the card.
        DownloadError: the hub can't be reached, or does not allow it.
    """
    config, folder = load_bundle(path).config, Path(path)
    folder = folder / "bundle" if (folder / "bundle").is_dir() else folder
    values = _without_paths(config.to_json())
    card = model_card(BundleConfig.check(values, folder / CONFIG), f"hf://{name}", licence)
    if notes is not None:
        with misread(notes):
            card = f"{card}\n{read_bytes(Path(notes)).decode()}"
    api = HfApi(library_name="medduet", library_version=__version__)
    with asking_hub(name):
        api.create_repo(name, private=private or None, exist_ok=True)
        is_public = not api.model_info(name).private
    if private and is_public:
        raise ConfigError(f"{name} is public already: leave --private out, or give another name")
    message = f"{' '.join(config.network.name.split())} of MedDuet"
    files = [
        CommitOperationAdd(WEIGHTS, folder / WEIGHTS),
        CommitOperationAdd(CONFIG, json.dumps(values, indent=2).encode()),
        CommitOperationAdd(CARD, card.encode()),
    ]
    with asking_hub(name):
        commit = api.create_commit(name, files, commit_message=message)
    return f"hf://{name}@{commit.oid}"


def _without_paths(value: Any) -> Any:
    """Return `value` with every path cut to its last part, and without names of single files."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if key != "skipped"}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~", "./", "../")):
        return Path(value).name
    return value


_METRICS = ("accuracy", "auc", "dice", "dice_nonempty", "iou", "mse")


def model_card(
    config: BundleConfig, address: str = "path/of/this/folder", licence: str | None = None
) -> str:
    """Return the Markdown model card of a bundle, whose names may be a stranger's."""
    template = Path(__file__).parent / "templates" / "card.md"
    tags = ["medical-imaging", "multi-task"]
    tags += ["image-classification"] if config.class_names else []
    tags += ["image-segmentation"] if config.mask_names else []
    dataset = re.sub(r"[^\w.-]+", "-", config.data.name if config.data else "", flags=re.ASCII)
    about = ModelCardData(
        license=licence,
        library_name="medduet",
        tags=tags,
        datasets=[dataset.strip("-.")] if dataset.strip("-.") else None,
        ignore_metadata_errors=False,
    )
    card = ModelCard.from_template(
        about,
        template_str=template.read_text("utf-8"),
        config=config,
        address=address,
        rows=list(_rows(config)),
        escape=escape,
    )
    return f"{str(card).strip()}\n"


def escape(text: object) -> str:
    """Return any text as one line of Markdown that shows it as it is."""
    line = re.sub(r"([\\`*_\[\]<>&|~$#:@!])", r"\\\1", " ".join(str(text).split()))
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", line)


def _rows(config: BundleConfig) -> Iterator[dict[str, Any]]:
    for split in ("val", "test"):
        summary = config.metrics.get(split, {})
        for key in _METRICS:
            if isinstance(value := summary.get(key), float):
                n = summary["n"]
                if key.startswith(("dice", "iou")):  # masks may be known of other images
                    n = summary.get(f"{key}_n") or summary.get("dice_n") or n
                row = {"key": key, "name": METRICS[key].name, "split": split}
                yield row | {"n": n, "value": value}
