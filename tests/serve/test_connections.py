"""Clients that are slow, silent or many, against a server that may open 64 files."""

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from medduet.serve.connections import is_first

SERVER = """
import asyncio, resource, socket, uvicorn
from medduet.serve import connections
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
connections._HEADER_S = 1.5

async def app(scope, receive, send):
    while scope["method"] == "POST" and (await receive()).get("more_body"):
        pass
    await asyncio.sleep(3 * (scope["path"] == "/slow"))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for more in range(40 if scope["path"] == "/large" else 1, 0, -1):
        await send({"type": "http.response.body", "body": b"ok" * (1 << 20) ** (more > 1),
            "more_body": more > 1})

listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
config = uvicorn.Config(app, http=connections.Connection, ws="none", log_level="error",
    lifespan="off", backlog=connections.ACCEPT_AT_ONCE)
connections.Server(config).run([listening])
"""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    log = tmp_path_factory.mktemp("log") / "log"
    with log.open("w") as errors:
        command = [sys.executable, "-c", SERVER]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server:
            assert server.stdout is not None
            yield int(server.stdout.readline())
            server.terminate()
    assert len(log.read_text().splitlines()) < 5


def connect(port: int, content: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(content)
    return client


def ask(port: int, path: str = "/") -> bytes:
    with connect(port, f"GET {path} HTTP/1.0\r\n\r\n".encode()) as client:
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n" * 3,
        b"nonsense\r\n\r\n",
    ],
)
def test_clients_that_wait_keep_nobody_out(port: int, content: bytes) -> None:
    with ExitStack() as clients:
        for _ in range(80):
            client = clients.enter_context(connect(port, content))
            if b"/large" in content:
                assert client.recv(1)
        start = time.monotonic()
        assert ask(port).endswith(b"\r\n\r\nok")
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_a_header_must_be_complete_in_time(port: int, before: bytes) -> None:
    start = time.monotonic()
    with (
        connect(port, before + b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ") as client,
        suppress(ConnectionError),
    ):
        while time.monotonic() - start < 20:
            client.sendall(b"x")
            time.sleep(0.2)
    assert 1 < time.monotonic() - start < 10
    assert ask(port, "/slow").endswith(b"ok")  # an answer may take longer


def test_a_message_is_logged_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now, logged = 6e8, list[tuple[str, float]]()
    monkeypatch.setattr(time, "time", lambda: now)
    for now in (6e8, 6e8 + 30, 6e8 + 61):
        for message in ("accept() failed\nof socket 1", "accept() failed\nof socket 2", "other"):
            if is_first(logging.makeLogRecord({"msg": message})):
                logged.append((message[-1], now))
    assert logged == [("1", 6e8), ("r", 6e8), ("1", 6e8 + 61), ("r", 6e8 + 61)]
