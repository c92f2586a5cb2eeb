"""Bundles in repositories of the Hugging Face hub.

Tokens, the cache and ``HF_ENDPOINT`` are those of huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medduet._version import __version__
from medduet.errors import ConfigError, DownloadError, MedDuetError, MissingFileError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
"""All that a bundle has, so all that is fetched and sent."""
_ADDRESS = re.compile(r"hf:/{1,2}(?P<name>[^@]+)(@(?P<revision>.+))?")  # Path makes one / of two


def is_on_hub(path: str | Path) -> bool:
    """Return whether `path` is ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``.

    Example:
        >>> is_on_hub("hf://someone/net@v1"), is_on_hub(Path("hf://someone/net")), is_on_hub("net")
        (True, True, False)
    """
    return _ADDRESS.fullmatch(str(path)) is not None


def bundle_folder(path: str | Path) -> Path:
    """Return the folder `path`, or the one to which ``hf://OWNER/NAME[@REVISION]`` was downloaded.

    Raises:
        MissingFileError: there is no such repository, or it is not a bundle.
        DownloadError: the hub can't be reached, or asks for a token.

    Example:
        >>> bundle_folder("runs/a")
        PosixPath('runs/a')
    """
    found = _ADDRESS.fullmatch(str(path))
    return fetch_network(found["name"], found["revision"]) if found else Path(path)


def fetch_network(
    name: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
) -> Path:
    """Return the folder to which a repository of the hub was downloaded; only a bundle's files are.

    Raises:
        MissingFileError: `name` is no repository that can be read, or not a bundle.
        DownloadError: the hub can't be reached, or asks for a token.
    """
    from huggingface_hub import snapshot_download

    with asking_hub(name):
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                allow_patterns=list(FILES),
                library_name="medduet",
                library_version=__version__,
            )
        )
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise MissingFileError(
                f"expected a bundle of MedDuet in hf://{name}, but the repository has no {file}: "
                "look at its page, and give another name or @REVISION"
            )
    return folder


@contextmanager
def asking_hub(name: str) -> Iterator[None]:
    """Say in one line what the hub, asked for the repository `name`, has against it.

    It is told the versions of MedDuet, huggingface_hub and Python, and nothing else of this
    machine.

    Raises:
        ConfigError: `name` can't be the name of a repository, or the hub refuses what was sent.
        MissingFileError: there is no such repository or revision, or one that may not be seen.
        DownloadError: the hub can't be reached, or does not allow it.
    """
    from huggingface_hub import constants, errors

    told, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    known = (errors.HTTPError, OSError, RuntimeError, ValueError)  # type: ignore[attr-defined]
    try:
        yield
    except known as error:
        cause = error.__cause__  # what kept the library from looking, or from sending
        if isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and cause is not None:
            raise _told(name, cause) from error
        raise _told(name, error) from error
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = told


def _told(name: str, error: BaseException) -> MedDuetError:
    from huggingface_hub import errors

    reason = " ".join(str(error).split())[:300]
    login = "log in by 'hf auth login', or set HF_TOKEN"
    if isinstance(error, errors.HFValidationError):
        return MissingFileError(
            f"expected a repository user/name of the Hugging Face hub, but got {name}: {reason}"
        )
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"hf://{name} is open only to those who ask on its page: ask there, then {login}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return MissingFileError(
            f"the Hugging Face hub has no repository {name}, or none that you may see: check the "
            f"name, or {login}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return MissingFileError(
            f"hf://{name} has no such revision: give a branch, a tag or a commit after the @"
        )
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return DownloadError(
            f"the Hugging Face hub does not allow that for {name} ({error.response.status_code}): "
            f"{login}, with a token that has the permission"
        )
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return ConfigError(f"the Hugging Face hub refuses what was sent to {name}: {reason}")
    return DownloadError(
        f"the Hugging Face hub could not be asked for {name}: {reason}; connect, or give a folder"
    )
