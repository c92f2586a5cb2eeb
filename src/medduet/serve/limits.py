"""What a service takes, and what it refuses with which status."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.exceptions import HTTPException

LEAST_SIDE = 8
"""Fewer pixels than these on a side are no image that a network could say anything of."""


@dataclass(frozen=True)
class Limits:
    """What one service takes.

    Attributes:
        max_bytes: of one file.
        max_pixels: of one image, as its header says; nothing larger is decoded.
        queue: requests that are read, wait or are computed at the same time.
        timeout_s: seconds from the start of a request to its answer.
    """

    max_bytes: int = 32 << 20
    max_pixels: int = 40_000_000
    queue: int = 64
    timeout_s: float = 30.0


class Seat:
    """The place of one request, and what it holds in memory."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.bytes = self.pixels = 0
        self.closed = False

    def hold(self, *, bytes: int = 0, pixels: int = 0) -> None:  # noqa: A002
        """Note that the request holds more.

        Raises:
            HTTPException: 429, all requests together would hold too much.
        """
        self._room.hold(self, bytes, pixels)


class Room:
    """Counts what all requests hold together: at most `Limits.queue`, and eight of the largest.

    So the memory of a service has a bound, however many clients send large images.

    Example:
        >>> room = Room(Limits(queue=1))
        >>> with room.seat(), room.seat():
        ...     pass
        Traceback (most recent call last):
        starlette.exceptions.HTTPException: 429: 1 requests are waiting already: try again soon
    """

    LARGEST = 8

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self.requests = self._bytes = self._pixels = 0

    @contextmanager
    def seat(self) -> Iterator[Seat]:
        """Give a request a place while the body runs.

        Raises:
            HTTPException: 429, all are taken.
        """
        with self._lock:
            if self.requests >= self._limits.queue:
                raise busy(f"{self.requests} requests are waiting already")
            self.requests += 1
        seat = Seat(self)
        try:
            yield seat
        finally:
            with self._lock:
                seat.closed = True  # a thread may still be reading what nobody waits for
                self.requests -= 1
                self._bytes -= seat.bytes
                self._pixels -= seat.pixels

    def hold(self, seat: Seat, size: int, pixels: int) -> None:
        """Count what a request holds in addition."""
        with self._lock:
            if seat.closed:
                raise HTTPException(504, "nobody waits for this any more")
            too_many_bytes = self._bytes + size > self.LARGEST * self._limits.max_bytes
            if too_many_bytes or self._pixels + pixels > self.LARGEST * self._limits.max_pixels:
                raise busy("other large images are waiting")
            self._bytes += size
            self._pixels += pixels
            seat.bytes += size
            seat.pixels += pixels


def busy(reason: str) -> HTTPException:
    """Return the refusal of a request for which there is no room now."""
    return HTTPException(429, f"{reason}: try again soon", {"Retry-After": "1"})
