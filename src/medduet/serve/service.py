"""What the routes share: networks, threads and processes, and the way of a request."""

from __future__ import annotations

import asyncio
import os
import queue
import time
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
from medduet.inference.prediction import Prediction
from medduet.inference.predictor import Predictor
from medduet.serve.batcher import Batcher
from medduet.serve.counters import Counters
from medduet.serve.limits import LEAST_SIDE, Limits, Room, Seat, busy
from medduet.serve.schemas import MaskColour, Model, Models, PredictionResponse
from medduet.serve.uploads import decode, read_upload
from medduet.utils.palette import mask_colors

CLIENT_GONE = 499
T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """A network that is served.

    Attributes:
        predictor: the network.
        explains: whether it can draw heat maps.
        card: its model card, Markdown.
    """

    predictor: Predictor
    explains: bool = False
    card: str = ""


class Service:
    """The networks and what computes on them, see `medduet.serve.app.create_app`."""

    def __init__(self, served: Mapping[str, Served], limits: Limits) -> None:
        self.served, self.limits = served, limits
        self.room, self.counters = Room(limits), Counters()
        self.counters.in_progress.set_function(lambda: self.room.requests)
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
                batcher = Batcher(
                    each.predictor.predict_pictures,
                    batch_size=each.predictor.batch_size,
                    room=self.limits.queue,
                    watch=partial(self.counters.add_batch, name),
                )
                self.batchers[name] = batcher
                self.counters.queue.labels(name).set_function(batcher.waiting)
            try:
                yield
            finally:
                for batcher in self.batchers.values():
                    await asyncio.to_thread(batcher.close)

    async def predict(
        self,
        request: Request,
        name: str,
        explain: bool,
        encode: Callable[[Prediction], PredictionResponse],
    ) -> Response:
        """Read an upload and answer it, within the time of a request.

        Args:
            request: with the image.
            name: of the network.
            explain: whether to draw a heat map.
            encode: makes what is sent of a prediction.
        """
        limit = f"{self.limits.timeout_s:g} seconds"
        deadline = time.monotonic() + self.limits.timeout_s
        with self.room.seat() as seat:
            try:
                content = await _until(deadline, read_upload(request, seat))
            except TimeoutError as error:
                raise HTTPException(408, f"expected the whole image within {limit}") from error
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            work = self._answer(content, seat, name, explain, deadline, encode)
            del content
            try:
                answer = await _until(deadline, _unless_gone(request, work))
            except TimeoutError as error:
                raise HTTPException(504, f"the answer was not ready after {limit}") from error
            if answer is None:
                return Response(status_code=CLIENT_GONE)
            return Response(answer, media_type="application/json")

    async def _answer(
        self,
        content: bytes,
        seat: Seat,
        name: str,
        explain: bool,
        deadline: float,
        encode: Callable[[Prediction], PredictionResponse],
    ) -> str:
        picture = await decode(content, self.served[name].predictor.options, seat, self._readers)
        del content
        try:
            future = self.batchers[name].submit(picture, explain=explain, deadline=deadline)
        except queue.Full as error:
            raise busy(f"{self.limits.queue} images are waiting already") from error
        prediction = await asyncio.wrap_future(future)
        return await asyncio.to_thread(lambda: encode(prediction).model_dump_json())

    def models(self) -> Models:
        """Return the networks and limits."""
        return Models(
            models=[_describe(name, each) for name, each in self.served.items()],
            max_bytes=self.limits.max_bytes,
            max_pixels=self.limits.max_pixels,
            least_side=LEAST_SIDE,
            timeout_s=self.limits.timeout_s,
        )


def _describe(name: str, each: Served) -> Model:
    names = each.predictor.mask_names
    colours = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in mask_colors(len(names))]
    return Model(
        name=name,
        class_names=each.predictor.class_names,
        multi_label=each.predictor.multi_label,
        masks=[
            MaskColour(name=mask, colour=colour)
            for mask, colour in zip(names, colours, strict=False)
        ],
        size=each.predictor.options.sides,
        explains=each.explains,
        card=each.card,
    )


async def _until(deadline: float, work: Awaitable[T]) -> T:
    async with asyncio.timeout(deadline - time.monotonic()):
        return await work


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
