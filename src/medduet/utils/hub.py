"""Bundles in repositories of the Hugging Face hub.

Tokens, the cache and ``HF_ENDPOINT`` are those of huggingface_hub.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medduet._version import __version__
from medduet.errors import ConfigError, DownloadError, MedDuetError, MissingFileError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
"""All that a bundle has, so all that is fetched and sent."""
_ADDRESS = re.compile(r"hf:/{1,2}(?P<name>[^@]+)(@(?P<revision>.+))?")  # Path makes one / of two
_LOGIN = "log in by 'hf auth login', or set HF_TOKEN"


def bundle_folder(path: str | Path) -> Path:
    """Return the folder `path`, or that to which ``hf://OWNER/NAME[@REVISION]`` was downloaded."""
    address = _ADDRESS.fullmatch(str(path))
    if address is None:
        return Path(path)
    from huggingface_hub import snapshot_download

    with asking_hub(address["name"]):
        folder = snapshot_download(
            address["name"],
            revision=address["revision"],
            allow_patterns=[WEIGHTS, CONFIG, CARD],
            library_name="medduet",
            library_version=__version__,
        )
    for file in (CONFIG, WEIGHTS):
        if not Path(folder, file).is_file():
            raise MissingFileError(
                f"expected a bundle of MedDuet in {path}, but the repository has no {file}: "
                "give another name or @REVISION"
            )
    return Path(folder)


@contextmanager
def asking_hub(name: str) -> Iterator[None]:
    """Turn the errors of the hub, asked for the repository `name`, into one line."""
    from huggingface_hub import constants, errors

    # It gets the versions of MedDuet, huggingface_hub and Python, and nothing else of this machine.
    telemetry, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    try:
        yield
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:  # type: ignore[attr-defined]
        cause = error.__cause__  # what kept the library from asking, or from sending
        is_wrapper = isinstance(error, errors.LocalEntryNotFoundError | RuntimeError)
        raise _explained(name, cause if is_wrapper and cause is not None else error) from error
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry


def _explained(name: str, error: BaseException) -> MedDuetError:
    from huggingface_hub import errors

    hub, reason = "the Hugging Face hub", " ".join(str(error).split())[:300]
    code = getattr(getattr(error, "response", None), "status_code", None)
    match error:
        case errors.HFValidationError():
            return MissingFileError(f"expected a repository user/name, but got {name}: {reason}")
        case errors.GatedRepoError():
            return DownloadError(f"hf://{name} is gated: ask for access on its page, then {_LOGIN}")
        case errors.RepositoryNotFoundError() | errors.RevisionNotFoundError():
            return MissingFileError(f"{hub} has no repository {name}, or revision of it: {_LOGIN}")
        case errors.HfHubHTTPError() if code in (401, 403):
            return DownloadError(f"{hub} does not allow that for {name} ({code}): {_LOGIN}")
        case ValueError() if not isinstance(error, OSError):
            return ConfigError(f"{hub} refuses what was sent to {name}: {reason}")
    return DownloadError(f"{hub} can't be reached for {name}: {reason}; connect, or give a folder")
