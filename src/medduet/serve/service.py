"""What the routes share: networks, threads and processes, and the way of a request."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from medduet.data.reading.images import kind_of
from medduet.data.workers import WorkerPool
from medduet.inference.predictor import Prediction, Predictor
from medduet.serve.batcher import Batcher
from medduet.serve.uploads import Limits, Room, decode, read_upload

CLIENT_GONE = 499
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Served:
    """A network that is served, whether it can draw heat maps, and its model card, Markdown."""

    predictor: Predictor
    explains: bool = False
    card: str = ""


class Counters:
    """Counts for Prometheus, in a registry of their own; no names of files or clients."""

    def __init__(self) -> None:
        self.registry = all_of = CollectorRegistry()
        ProcessCollector(registry=all_of)
        times = partial(Histogram, buckets=_SECONDS, registry=all_of)
        sizes = partial(Histogram, buckets=_IMAGES, registry=all_of)
        gauge = partial(Gauge, registry=all_of)
        self.requests = Counter(
            "medduet_requests", "Predictions by status.", ["status"], registry=all_of
        )
        self.seconds = times("medduet_request_seconds", "From the start of a request to its end.")
        self.in_progress = gauge("medduet_requests_in_progress", "Requests that are not answered.")
        self.queue = gauge("medduet_queue_images", "Images that wait.", ["model"])
        self.batch_images = sizes("medduet_batch_images", "Images per batch.", ["model"])


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
                watch = self.counters.batch_images.labels(name).observe
                predict, most = each.predictor.predict_pictures, each.predictor.batch_size
                batcher = Batcher(predict, most, watch)
                self.batchers[name] = batcher
                self.counters.queue.labels(name).set_function(batcher.jobs.qsize)
            yield
            for batcher in self.batchers.values():
                batcher.close()

    async def answer(
        self, request: Request, name: str, explain: bool, encode: Callable[[Prediction], str]
    ) -> Response:
        """Read an upload and answer it by the network called `name`; `encode` makes the JSON."""

        async def work(content: bytes) -> str:
            options = self.served[name].predictor.options
            picture = await decode(content, options, seat, self._readers)
            prediction = await self.batchers[name].predict(picture, explain)
            return await asyncio.to_thread(encode, prediction)

        limit, arrived = f"{self.limits.timeout_s:g} seconds", False
        try:
            with self.room.seat() as seat:
                async with asyncio.timeout(self.limits.timeout_s):
                    content = await read_upload(request, seat)
                    arrived = True
                    answer = await _unless_gone(request, work(content))
        except TimeoutError as error:
            if arrived:
                raise HTTPException(504, f"the answer was not ready after {limit}") from error
            raise HTTPException(408, f"expected the whole image within {limit}") from error
        except ClientDisconnect:
            answer = None
        if answer is None:
            return Response(status_code=CLIENT_GONE)
        return Response(answer, media_type="application/json")


async def _unless_gone(request: Request, work: Awaitable[str]) -> str | None:
    """Return the result of `work`, or None if the client disconnects, which ends the work."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()
