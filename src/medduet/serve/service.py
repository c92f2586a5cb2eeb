"""What the routes share: networks, threads and processes, and the way of a request.

Requests that come at the same time are computed together.
"""

import asyncio
import io
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from medduet.data.reading.core import kind_of
from medduet.data.reading.images import Picture, picture_of
from medduet.data.workers import WorkerPool
from medduet.errors import ConfigError, ModelError
from medduet.inference.predictor import Prediction, Predictor
from medduet.serve.uploads import Limits, Room, decode, read_upload
from medduet.utils.hub import bundle_folder

_LINGER_S = 0.002  # so long a first picture waits for others
_RECENT_S = 10  # so long a prediction shows that a network works
_Encode = Callable[[bytes, list[Prediction]], Response]
_log = logging.getLogger(__name__)


class _Job(NamedTuple):
    picture: Picture
    explain: bool
    future: asyncio.Future[Prediction]


class Batcher:
    """Predicts pictures in a thread of its own, in batches of those that came meanwhile."""

    def __init__(
        self,
        predict: Callable[..., list[Prediction]],
        batch_size: int,
        watch: Callable[[float], None] = lambda size: None,
    ) -> None:
        self._predict, self._batch_size, self._watch = predict, batch_size, watch
        self.jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "medduet-batcher")
        self._succeeded = -math.inf
        self._task = asyncio.create_task(self._work())

    async def predict(self, picture: Picture, explain: bool = False) -> Prediction:
        """Wait for the prediction of a picture, with a heat map if asked to `explain`."""
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self.jobs.put_nowait(_Job(picture, explain, future))
        return await future

    async def check(self, picture: Picture) -> None:
        """Predict `picture` for a try, if the last prediction failed or is not recent."""
        if self._task.done():
            raise RuntimeError("no pictures are being predicted")
        if time.monotonic() - self._succeeded > _RECENT_S:
            compute = partial(self._predict, [picture], explain=False)
            await asyncio.wrap_future(self._thread.submit(compute))
            self._succeeded = time.monotonic()

    def close(self) -> None:
        """Take no more pictures, and end the thread."""
        self._task.cancel()
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        while True:
            batch = [await self.jobs.get()]
            await asyncio.sleep(_LINGER_S)
            while len(batch) < self._batch_size and not self.jobs.empty():
                batch.append(self.jobs.get_nowait())
            for explain in (False, True):
                await self._compute([job for job in batch if job.explain == explain], explain)
            del batch  # so that no picture is held in memory while none comes

    async def _compute(self, jobs: list[_Job], explain: bool) -> None:
        jobs = [job for job in jobs if not job.future.done()]
        if not jobs:
            return
        compute = partial(self._predict, [job.picture for job in jobs], explain=explain)
        try:
            predictions = await asyncio.wrap_future(self._thread.submit(compute))
        except Exception as error:
            self._succeeded = -math.inf
            if len(jobs) > 1:
                _log.warning("a batch of %d failed and is computed one by one", len(jobs))
                for job in jobs:
                    await self._compute([job], explain)
            elif not jobs[0].future.done():
                jobs[0].future.set_exception(error)
            return
        self._succeeded = time.monotonic()
        self._watch(len(jobs))
        for job, prediction in zip(jobs, predictions, strict=True):
            if not job.future.done():
                job.future.set_result(prediction)


CLIENT_GONE = 499
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Served:
    """A network that is served, whether it can draw heat maps, and its model card, Markdown."""

    predictor: Predictor
    explains: bool = False
    card: str = ""


def open_network(path: Path, explain: bool, **options: Any) -> Served:
    """Return a network, with heat maps if `explain` and it can."""
    try:
        predictor = Predictor(path, explain=explain, **options)
    except (ConfigError, ModelError):
        if not explain:
            raise
        explain, predictor = False, Predictor(path, **options)
    if len(predictor.options.sides) == 3 and predictor.options.channels > 1:
        expected = "expected a network for one file, as uploads are"
        raise ConfigError(f"{expected}, given {path} for several channels: medduet predict {path}")
    folder = bundle_folder(path)
    cards = [folder / "bundle" / "README.md", folder / "README.md"]
    card = next((card.read_text("utf-8", "replace") for card in cards if card.is_file()), "")
    return Served(predictor, explain, card)


class Counters:
    """Counts for Prometheus, in a registry of their own; no names of files or clients."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        times = partial(Histogram, buckets=_SECONDS, registry=registry)
        sizes = partial(Histogram, buckets=_IMAGES, registry=registry)
        self.requests = counter("medduet_requests", "Predictions by status.", ["status"])
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
        self.readers: WorkerPool
        options = {name: network.predictor.options for name, network in served.items()}
        self._probes = {
            name: picture_of(np.zeros((64,) * len(each.sides), np.uint8), each)
            for name, each in options.items()
        }

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Run threads and processes while the service does."""
        # Decoding is for the processor: more processes would only take memory.
        workers = min(8, os.cpu_count() or 1)
        with WorkerPool(workers, seconds=self.limits.timeout_s) as self.readers:
            # Starts the processes.
            await asyncio.to_thread(self.readers.call, kind_of, io.BytesIO())
            for name, network in self.served.items():
                watch = self.counters.batch_images.labels(name).observe
                predictor = network.predictor
                batcher = Batcher(predictor.predict_pictures, predictor.batch_size, watch)
                self.batchers[name] = batcher
                self.counters.queue.labels(name).set_function(batcher.jobs.qsize)
            await self.failed()  # which logs them
            yield
            for batcher in self.batchers.values():
                batcher.close()

    async def failed(self) -> list[str]:
        """Return the names of the networks that don't predict."""
        failed = []
        for name, batcher in self.batchers.items():
            try:
                async with asyncio.timeout(self.limits.timeout_s):
                    await batcher.check(self._probes[name])
            except Exception as error:  # whatever a network raises
                _log.error("%s doesn't predict: %r", name, error)
                failed.append(name)
        return failed

    async def answer(self, request: Request, name: str, explain: bool, encode: _Encode) -> Response:
        """Read an upload and answer it by the network called `name`."""

        async def work(content: bytes) -> Response:
            options, predict = self.served[name].predictor.options, self.batchers[name].predict
            pictures = await decode(content, options, seat, self.readers)
            predictions = await asyncio.gather(*(predict(each, explain) for each in pictures))
            return await asyncio.to_thread(encode, content, predictions)

        seconds, arrived = self.limits.timeout_s, False
        try:
            with self.room.seat() as seat:
                async with asyncio.timeout(seconds):
                    content = await read_upload(request, seat)
                    arrived = True
                    response = await _unless_gone(request, work(content))
        except TimeoutError as error:
            if arrived:
                raise HTTPException(504, f"no answer within {seconds:g} seconds") from error
            raise HTTPException(408, f"no complete image within {seconds:g} seconds") from error
        except ClientDisconnect:
            response = None
        return response or Response(status_code=CLIENT_GONE)


async def _unless_gone(request: Request, work: Awaitable[Response]) -> Response | None:
    """Return the result of `work`, or None if the client disconnects, which ends the work."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()
