"""Opens networks and runs the service."""

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import Field
from tyro.conf import UseAppendAction

from medduet.config import Device
from medduet.errors import ConfigError

_NEEDED = ("fastapi", "fastapi_offline", "uvicorn", "python_multipart", "prometheus_client")
_LOCAL = ("127.0.0.1", "::1", "localhost")
_GRACE_S = 5  # after the time of a request is over, to send its answer
Positive = Annotated[float, Field(gt=0)]
HostName = Annotated[str, Field(pattern=r"^(\*|[\w.-]+)$")]
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]


def serve(
    networks: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Field(ge=0, le=65535)] = 8000,
    max_mb: Positive = 32,
    max_megapixels: Positive = 40,
    queue: Annotated[int, Field(ge=1)] = 64,
    timeout_s: Positive = 30,
    host_name: Annotated[Sequence[HostName], UseAppendAction] = (),
    cors: Annotated[Sequence[Origin], UseAppendAction] = (),
    explain: bool = True,
    coverage: float | None = None,
    min_confidence: float | None = None,
    device: Device = "auto",
) -> None:
    """Serve networks over HTTP until SIGINT or SIGTERM: a page for people, JSON for programs.

    Nothing is stored. Requests that have begun are answered before the end.

    Args:
        networks: Paths of bundles, runs or exports, each as PATH or NAME=PATH.
        host: Address to listen at; there is no authentication.
        port: Port to listen at; 0: a free one.
        max_mb: Largest file in MB.
        max_megapixels: Largest image in millions of pixels, each of which takes 32 bytes.
        queue: Requests that may wait at the same time.
        timeout_s: Seconds until a request is given up.
        host_name: Name by which others call the service, such as a proxy's; * for any.
        cors: Origin, as https://pacs.example.org, whose pages may use the service; * for any.
        explain: Offer heat maps (Grad-CAM), where the network can.
        coverage: Share of images whose true class is to be in the prediction set; default: 0.9,
            if the network is calibrated.
        min_confidence: Confidence below which the network abstains.
        device: auto, cpu, cuda or cuda:1.
    """
    check_packages()
    import uvicorn

    from medduet.serve.app import create_app
    from medduet.serve.connections import ACCEPT_AT_ONCE, Connection, Server
    from medduet.serve.service import open_network
    from medduet.serve.uploads import Limits

    options = {"coverage": coverage, "min_confidence": min_confidence, "device": device}
    paths = network_paths(networks)
    limits = Limits(int(max_mb * 2**20), int(max_megapixels * 1e6), queue, timeout_s)
    with _listen(host, port) as listening:
        served = {name: open_network(path, explain, **options) for name, path in paths.items()}
        config = uvicorn.Config(
            create_app(served, limits, {host, socket.gethostname(), *host_name}, cors),
            http=Connection,
            ws="none",
            backlog=ACCEPT_AT_ONCE,
            log_level="warning",
            access_log=False,  # it would name files of patients, where clients put them into URLs
            server_header=False,
            timeout_graceful_shutdown=int(timeout_s) + _GRACE_S,
        )
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listening.getsockname()[1]}"
        sys.stdout.write(f"serving {', '.join(served)} at {address} (API: {address}/docs)\n")
        if host not in _LOCAL:
            sys.stdout.write(f"warning: anyone who can reach {host} can use it\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):  # raised by uvicorn again once all requests are answered
            Server(config).run([listening])


def check_packages() -> None:
    """Raise ConfigError if a package is missing, or Pillow is unfit for files of strangers."""
    import PIL

    missing = [module for module in _NEEDED if find_spec(module) is None]
    if int(PIL.__version__.partition(".")[0]) < 13:
        missing.append("Pillow 13 or newer")
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}: pip install 'medduet[serve]'")


def network_paths(networks: Sequence[str]) -> dict[str, Path]:
    """Return the paths of networks by their names; ConfigError for none, or two of one name."""
    paths: dict[str, Path] = {}
    for network in networks:
        name, equals, path = network.partition("=")
        if not equals or Path(network).exists():
            path, folder = network, Path(network).resolve()
            name = folder.parent.name if folder.name == "bundle" else folder.name
        if not name or name in paths:
            raise ConfigError(f"expected a new name, given '{name}': medduet serve NAME={path}")
        paths[name] = Path(path)
    if not paths:
        raise ConfigError("expected one network or more: medduet serve BUNDLE")
    return paths


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = f"can't listen at {host}, port {port} ({os.strerror(error.errno or 0)})"
        raise ConfigError(f"{reason}: give another --host or --port") from error
