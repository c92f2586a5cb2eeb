"""What the routes share: networks, threads and processes, and the way of a request."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from medduet.data.reading.opening import kind_of
from medduet.data.workers import WorkerPool
from medduet.inference.predictor import Prediction, Predictor
from medduet.serve.batcher import Batcher
from medduet.serve.counters import Counters
from medduet.serve.limits import Limits, Room
from medduet.serve.uploads import decode, read_upload

CLIENT_GONE = 499
T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """A network that is served, whether it can draw heat maps, and its model card, Markdown."""

    predictor: Predictor
    explains: bool = False
    card: str = ""


class Service:
    """The networks and what computes on them, see `medduet.serve.app.create_app`."""

    def __init__(self, served: Mapping[str, Served], limits: Limits) -> None:
        self.served, self.limits = served, limits
        self.room, self.counters = Room(limits), Counters()
        self.counters.in_progress.set_function(lambda: len(self.room.seats))
        self.batchers: dict[str, Batcher] = {}
        self._readers: WorkerPool

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Run threads and processes while the service does."""
        # Decoding is for the processor: more processes would only take memory.
        workers = min(8, os.cpu_count() or 1)
        with WorkerPool(workers, seconds=self.limits.timeout_s) as self._readers:
            await asyncio.to_thread(self._readers.call, kind_of, b"")  # starts the processes
            for name, each in self.served.items():
                batcher = self.batchers[name] = Batcher(
                    each.predictor.predict_pictures,
                    each.predictor.batch_size,
                    partial(self.counters.add_batch, name),
                )
                self.counters.queue.labels(name).set_function(batcher.waiting)
            yield
            for batcher in self.batchers.values():
                batcher.close()

    async def answer(
        self, request: Request, name: str, explain: bool, encode: Callable[[Prediction], str]
    ) -> Response:
        """Read an upload and answer it by the network called `name`; `encode` makes the JSON."""
        limit, content, answer = f"{self.limits.timeout_s:g} seconds", b"", None
        with self.room.seat() as seat:

            async def work() -> str:
                options = self.served[name].predictor.options
                picture = await decode(content, options, seat, self._readers)
                prediction = await self.batchers[name].predict(picture, explain)
                return await asyncio.to_thread(encode, prediction)

            arrived = False
            try:
                async with asyncio.timeout(self.limits.timeout_s):
                    content = await read_upload(request, seat)
                    arrived = True
                    answer = await _unless_gone(request, work())
            except TimeoutError as error:
                if arrived:
                    raise HTTPException(504, f"the answer was not ready after {limit}") from error
                raise HTTPException(408, f"expected the whole image within {limit}") from error
            except ClientDisconnect:
                pass
        if answer is None:
            return Response(status_code=CLIENT_GONE)
        return Response(answer, media_type="application/json")


async def _unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """Return the result of `work`, or None if the client disconnects, which ends the work."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
