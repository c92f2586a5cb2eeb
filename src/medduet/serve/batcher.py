"""Requests that come at the same time are computed together."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from medduet.data.reading.images import Picture
from medduet.inference.predictor import Prediction

_LINGER_S = 0.002  # so long a first picture waits for others
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
        self._task = asyncio.create_task(self._work())

    @property
    def alive(self) -> bool:
        """Whether pictures are being predicted."""
        return not self._task.done() and not self._task.cancelling()

    async def predict(self, picture: Picture, explain: bool = False) -> Prediction:
        """Wait for the prediction of a picture, with a heat map if asked to `explain`."""
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self.jobs.put_nowait(_Job(picture, explain, future))
        return await future

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
            # While the next picture is waited for, none of these is held in memory.
            del batch

    async def _compute(self, jobs: list[_Job], explain: bool) -> None:
        jobs = [job for job in jobs if not job.future.done()]
        if not jobs:
            return
        compute = partial(self._predict, [job.picture for job in jobs], explain=explain)
        try:
            predictions = await asyncio.wrap_future(self._thread.submit(compute))
        except Exception as error:
            if len(jobs) > 1:
                _log.warning("a batch of %d failed and is computed one by one", len(jobs))
                for job in jobs:
                    await self._compute([job], explain)
            elif not jobs[0].future.done():
                jobs[0].future.set_exception(error)
            return
        self._watch(len(jobs))
        for job, prediction in zip(jobs, predictions, strict=True):
            if not job.future.done():
                job.future.set_result(prediction)
