"""Limits of the service; each refusal has its status. Used in the event loop alone."""

from __future__ import annotations

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
        self.limits = limits
        self.requests = self.bytes = self.pixels = 0

    @contextmanager
    def seat(self) -> Iterator[Seat]:
        """Give a request a seat while the body runs.

        Raises:
            HTTPException: 429, all are taken.
        """
        if self.requests >= self.limits.queue:
            raise busy(f"{self.requests} requests are waiting already")
        self.requests += 1
        seat = Seat(self)
        try:
            yield seat
        finally:
            self.requests -= 1
            self.bytes -= seat.bytes
            self.pixels -= seat.pixels


class Seat:
    """What one request holds in memory."""

    def __init__(self, room: Room) -> None:
        self.room, self.limits = room, room.limits
        self.bytes = self.pixels = 0

    def hold(self, *, bytes: int = 0, pixels: int = 0) -> None:  # noqa: A002
        """Note that the request holds more.

        Raises:
            HTTPException: 429, all requests together would hold too much.
        """
        room, largest = self.room, Room.LARGEST
        if (
            room.bytes + bytes > largest * self.limits.max_bytes
            or room.pixels + pixels > largest * self.limits.max_pixels
        ):
            raise busy("other large images are waiting")
        for each in (self, room):
            each.bytes += bytes
            each.pixels += pixels


def busy(reason: str) -> HTTPException:
    """Return the refusal of a request for which there is no room now."""
    return HTTPException(429, f"{reason}: try again soon", {"Retry-After": "1"})
