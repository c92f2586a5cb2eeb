"""Limits of connections, which uvicorn lacks: in number, and in time without a request."""

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import count
from pathlib import Path
from typing import cast

import uvicorn
from h11 import SEND_BODY
from uvicorn.protocols.http.h11_impl import H11Protocol

ACCEPT_AT_ONCE = 4  # so that descriptors don't run out before the first of them is closed
_BACKLOG = 2048  # connections that wait to be accepted
_HEADER_S = 10  # until the header of a request is complete
_SEND_S = 120  # until an answer has been read
_SPARE = 16  # descriptors for the pipes of readers, and what is being accepted or closed


class Connection(H11Protocol):
    """A connection that is closed if its client is too slow, or the slowest of too many."""

    since = 0.0  # the time of the last step
    timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close another one that waits for its client, or else this, if there are too many."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._close_in(_HEADER_S)
        if len(self.connections) > most_connections():
            connections = [cast(Connection, each) for each in self.connections]
            waiting = [each for each in connections if each.waits_for_client]
            oldest = min(waiting, key=lambda each: each.since, default=self)
            oldest.transport.abort()

    @property
    def waits_for_client(self) -> bool:
        """Whether the rest of a request is to come, or the answer to be read."""
        asks = self.cycle is None or self.conn.their_state is SEND_BODY
        return (asks or self.cycle.response_started) and not self.transport.is_closing()

    def handle_events(self) -> None:
        """Give a request that has begun the time that the service takes."""
        last = self.cycle
        super().handle_events()
        if self.cycle is not last:
            self._close_in((self.config.timeout_graceful_shutdown or 0) + _SEND_S)

    def on_response_complete(self) -> None:
        """Give the rest of the answer, or of an upload that is refused, its time; or a request."""
        busy = self.transport.get_write_buffer_size() or self.conn.their_state is SEND_BODY
        self._close_in(_SEND_S if busy else _HEADER_S)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the limit."""
        self.timer.cancel()
        super().connection_lost(exc)

    def _close_in(self, seconds: float) -> None:
        if self.since:
            self.timer.cancel()
        self.since = self.loop.time()
        self.timer = self.loop.call_later(seconds, self.transport.abort)


@cache
def most_connections() -> int:
    """Return how many connections may be open; each may need a descriptor for a file, too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (soft if soft > 0 else 1 << 16) - len([*Path("/dev/fd").iterdir()]) - _SPARE
    return max(4, free // 2)


class Server(uvicorn.Server):
    """Accepts a few connections at a time, while many may wait, and logs nothing without end."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        for name in ("asyncio", "uvicorn.error", "medduet.serve.service"):
            logging.getLogger(name).addFilter(is_first)
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(_BACKLOG)


def is_first(record: logging.LogRecord) -> bool:
    """Return whether a message is the first in this minute: clients may cause any number."""
    error = repr(record.exc_info and record.exc_info[1])
    return next(_counts(str(record.msg).partition("\n")[0], error, time.time() // 60)) == 0


@lru_cache(64)
def _counts(message: str, error: str, minute: float) -> Iterator[int]:
    return count()
