"""Limits of the service; each refusal has its status. Used in the event loop alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.exceptions import HTTPException

LEAST_SIDE = 8  # of an image, in pixels
LARGEST = 8  # so many of the largest files and images all requests may hold together


@dataclass(frozen=True)
class Limits:
    """Limits of one service."""

    max_bytes: int = 32 << 20
    max_pixels: int = 40_000_000  # as the header says; nothing larger is decoded
    queue: int = 64  # requests that are read, wait or are computed at the same time
    timeout_s: float = 30.0  # from the start of a request to its answer


class Room:
    """A seat for each request: the memory of all is bounded, however many clients come."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.seats = limits, list[Seat]()

    @contextmanager
    def seat(self) -> Iterator[Seat]:
        """Give a request a seat while the body runs; HTTPException 429 if all are taken."""
        if len(self.seats) >= self.limits.queue:
            raise _busy(f"{len(self.seats)} requests are waiting already")
        self.seats.append(seat := Seat(self))
        try:
            yield seat
        finally:
            self.seats.remove(seat)


class Seat:
    """What one request holds in memory."""

    def __init__(self, room: Room) -> None:
        self.room, self.limits = room, room.limits
        self.bytes = self.pixels = 0

    def hold(self, *, bytes: int = 0, pixels: int = 0) -> None:  # noqa: A002
        """Note that the request holds more; HTTPException 429 if that is too much for all."""
        self.bytes += bytes
        self.pixels += pixels
        held = sum(each.bytes for each in self.room.seats) / self.limits.max_bytes
        decoded = sum(each.pixels for each in self.room.seats) / self.limits.max_pixels
        if max(held, decoded) > LARGEST:
            raise _busy("other large images are waiting")


def _busy(reason: str) -> HTTPException:
    return HTTPException(429, f"{reason}: try again soon", {"Retry-After": "1"})
