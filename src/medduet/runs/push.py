"""Sending a bundle to the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medduet._version import __version__
from medduet.errors import ConfigError
from medduet.runs.bundle import load_bundle
from medduet.runs.card import model_card
from medduet.runs.config import BundleConfig
from medduet.utils.hub import CARD, CONFIG, WEIGHTS, asking_hub
from medduet.utils.parsing import read_text


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
        licence: of the weights, in the hub's terms, such as ``"cc-by-nc-4.0"``; the licence of the
            data may leave you no choice.
        notes: a Markdown file with which the card ends: images, population, how the truth was made.

    Returns:
        The address, with the commit, that `medduet.load` takes.

    Raises:
        MissingFileError: there is no bundle, or no such notes.
        ModelError: the bundle is damaged.
        ConfigError: the repository exists and is public though `private` was asked for, or the hub
            refuses the card.
        DownloadError: the hub can't be reached, or does not allow it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(path)
    config = load_bundle(folder).config
    if (folder / "bundle" / CONFIG).is_file():
        folder = folder / "bundle"
    values = _without_paths(config.to_json())
    card = model_card(BundleConfig.check(values, folder / CONFIG), f"hf://{name}", licence)
    if notes is not None:
        card = f"{card}\n{read_text(Path(notes))}"
    api = HfApi(library_name="medduet", library_version=__version__)
    with asking_hub(name):
        api.create_repo(name, private=private or None, exist_ok=True)
        is_public = not api.model_info(name).private
    if private and is_public:
        raise ConfigError(
            f"{name} exists and is public, but --private was given: change that on its page, or "
            "give another name"
        )
    files: dict[str, Path | bytes] = {
        WEIGHTS: folder / WEIGHTS,
        CONFIG: json.dumps(values, indent=2).encode(),
        CARD: card.encode(),
    }
    with asking_hub(name):
        commit = api.create_commit(
            name,
            [CommitOperationAdd(file, content) for file, content in files.items()],
            commit_message=f"{' '.join(config.network.name.split())} of MedDuet",
        )
    return f"hf://{name}@{commit.oid}"


def _without_paths(value: Any) -> Any:
    """Return `value` with the last part alone of every path, and without names of single files.

    Example:
        >>> _without_paths({"source": "/home/me/set.npz", "from": ["https://host/set.npz", 3]})
        {'source': 'set.npz', 'from': ['https://host/set.npz', 3]}
    """
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if key != "skipped"}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~", "./", "../")):
        return Path(value).name
    return value
