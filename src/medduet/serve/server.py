"""Opens networks and runs the service."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medduet.config import Device
from medduet.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from medduet.serve.app import Served
    from medduet.serve.limits import Limits

_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
_GRACE_S = 5  # after the time of a request is over, to send its answer


def serve(
    words: Sequence[str],
    limits: Limits,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    explain: bool = True,
    coverage: float | None = None,
    abstain_below: float | None = None,
    accuracy: float | None = None,
    device: Device = "auto",
) -> None:
    """Serve networks until SIGINT or SIGTERM; what was asked until then is answered.

    Args:
        words: the paths of bundles, runs or exported networks, each as it is or as ``NAME=PATH``.
        limits: what is taken.
        host: the address to listen at.
        port: 0 for a free one.
        explain: whether to offer what spoke for the class.
        coverage: of prediction sets, see `medduet.Predictor`.
        abstain_below: confidence below which a network abstains.
        accuracy: instead, that of answers without abstention, as it was in calibration.
        device: of bundles.

    Raises:
        ConfigError: two networks of one name, a port that is in use, or a package is missing.
        MissingFileError: there is no network at a path.
        ModelError: it is damaged.
    """
    import uvicorn

    from medduet.serve.app import create_app

    how: dict[str, Any] = {
        "coverage": coverage,
        "abstain_below": abstain_below,
        "accuracy": accuracy,
        "device": device,
    }
    paths = named(words)
    listening = _listen(host, port)
    with listening:
        served = {name: opened(path, explain, **how) for name, path in paths.items()}
        config = uvicorn.Config(
            create_app(served, limits),
            log_level="warning",
            access_log=False,  # it would name files of patients, where clients put them into URLs
            server_header=False,
            timeout_graceful_shutdown=int(limits.timeout_s) + _GRACE_S,
        )
        where = f"[{host}]" if ":" in host else host
        address = f"http://{where}:{listening.getsockname()[1]}"
        sys.stdout.write(f"serving {', '.join(served)} at {address} (API: {address}/docs)\n")
        if not _is_local(host):
            sys.stdout.write(f"{host} can be reached by others, and nobody is asked who they are\n")
        sys.stdout.flush()
        uvicorn.Server(config).run([listening])


def check_packages() -> None:
    """See whether what serving needs is there.

    Raises:
        ConfigError: says what to type.
    """
    import PIL

    install = "pip install 'medduet[serve]'"
    for module in _NEEDED:
        try:
            import_module(module)
        except ImportError as error:
            raise ConfigError(f"serving needs {module}, which is missing: {install}") from error
    if int(PIL.__version__.partition(".")[0]) < 13:
        raise ConfigError(
            f"files of strangers need Pillow 13 or newer, given {PIL.__version__}: {install}"
        )


def named(words: Sequence[str]) -> dict[str, Path]:
    """Return the paths of networks by their names.

    Raises:
        ConfigError: there is none, or two have the same name.

    Example:
        >>> list(named(["runs/busi/bundle", "runs/blood", "old=runs/2"]))
        ['busi', 'blood', 'old']
    """
    paths: dict[str, Path] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        path = Path(rest)
        if not equals or Path(word).exists():
            path = Path(word)
            whole = path.resolve()
            name = whole.parent.name if whole.name == "bundle" else whole.name
        if not name or name in paths:
            raise ConfigError(
                f"expected a name of its own for each network, given '{name}' for {path}: "
                f"medduet serve NAME={path}"
            )
        paths[name] = path
    if not paths:
        raise ConfigError("expected one network or more: medduet serve BUNDLE")
    return paths


def opened(path: Path, explain: bool, **how: Any) -> Served:
    """Return a network that explains itself if it is asked to and can."""
    from medduet.inference.predictor import Predictor
    from medduet.serve.app import Served
    from medduet.utils.hub import bundle_folder

    try:
        predictor = Predictor(path, explain=explain, **how)
    except (ConfigError, ModelError):
        if not explain:
            raise
        explain, predictor = False, Predictor(path, **how)
    own = bundle_folder(path)
    cards = [folder / "README.md" for folder in (own / "bundle", own)]
    card = next((each.read_text("utf-8", "replace") for each in cards if each.is_file()), "")
    return Served(predictor, explain, card)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"expected --port from 0 to 65535, given {port}")
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"can't listen at {host}, port {port} ({os.strerror(error.errno or 0)}): give another "
            "--host or --port"
        ) from error


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
