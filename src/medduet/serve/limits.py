"""Limits of the service; each refusal has its status."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.exceptions import HTTPException

LEAST_SIDE = 8
"""The smallest side in pixels of an image."""


@dataclass(frozen=True)
class Limits:
    """Limits of one service.

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


@dataclass
class Seat:
    """What one request holds in memory."""

    bytes: int = 0
    pixels: int = 0
    closed: bool = False


class Room:
    """What all requests hold together: at most `Limits.queue`, and eight of the largest.

    So the memory of a service is bounded, however many clients send large images.

    Example:
        >>> room = Room(Limits(queue=1))
        >>> with room.seat(), room.seat():
        ...     pass
        Traceback (most recent call last):
        starlette.exceptions.HTTPException: 429: 1 requests are waiting already: try again soon
    """

    LARGEST = 8

    def __init__(self, limits: Limits) -> None:
        self._limits, self._lock = limits, threading.Lock()
        self._seats = list[Seat]()

    @property
    def requests(self) -> int:
        """The number of requests that have a seat."""
        return len(self._seats)

    @contextmanager
    def seat(self) -> Iterator[Seat]:
        """Give a request a seat while the body runs.

        Raises:
            HTTPException: 429, all are taken.
        """
        seat = Seat()
        with self._lock:
            if self.requests >= self._limits.queue:
                raise busy(f"{self.requests} requests are waiting already")
            self._seats.append(seat)
        try:
            yield seat
        finally:
            with self._lock:
                seat.closed = True  # a thread may still be reading what nobody waits for
                self._seats = [each for each in self._seats if each is not seat]

    def hold(self, seat: Seat, *, bytes: int = 0, pixels: int = 0) -> None:  # noqa: A002
        """Note that a request holds more.

        Raises:
            HTTPException: 429, all requests together would hold too much.
        """
        with self._lock:
            if seat.closed:
                raise HTTPException(504, "the request has ended")
            held_bytes = sum(each.bytes for each in self._seats) + bytes
            held_pixels = sum(each.pixels for each in self._seats) + pixels
            if (
                held_bytes > self.LARGEST * self._limits.max_bytes
                or held_pixels > self.LARGEST * self._limits.max_pixels
            ):
                raise busy("other large images are waiting")
            seat.bytes += bytes
            seat.pixels += pixels


def busy(reason: str) -> HTTPException:
    """Return the refusal of a request for which there is no room now."""
    return HTTPException(429, f"{reason}: try again soon", {"Retry-After": "1"})
