"""Requests that come at the same time are computed together."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from medduet.data.reading.images import Picture
from medduet.inference.prediction import Prediction

_log = logging.getLogger(__name__)


class _Job(NamedTuple):
    picture: Picture
    explain: bool
    deadline: float
    future: Future[Prediction]


class Batcher:
    """Answers about pictures in a thread of its own, those that wait together.

    What comes while a batch is computed makes the next one. Pictures that nobody waits for any
    more, because the future was cancelled or the time is over, are not computed. An error meets
    only the picture that caused it.

    Args:
        answer: from pictures, and whether to explain, to answers in the same order.
        batch_size: at most so many pictures are computed together.
        room: at most so many wait.
        linger_s: so long a first picture waits for others.
        watch: called with the size of each batch and the seconds that it took.

    Example:
        >>> import numpy as np
        >>> def answer(pictures, explain):
        ...     return [picture.whole.sum() for picture in pictures]
        >>> batcher = Batcher(answer, batch_size=8)
        >>> picture = Picture(np.ones((2, 2), np.uint8), np.ones((3, 3), np.uint8))
        >>> int(batcher.submit(picture).result())
        9
        >>> batcher.close()
    """

    def __init__(
        self,
        answer: Callable[..., list[Prediction]],
        *,
        batch_size: int,
        room: int = 64,
        linger_s: float = 0.002,
        watch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._compute, self._batch_size, self._linger_s = answer, batch_size, linger_s
        self._watch = watch
        self._jobs: queue.Queue[_Job] = queue.Queue(room)
        self._closing, self._one_at_a_time = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._work, name="medduet-batcher", daemon=True)
        self._thread.start()

    def waiting(self) -> int:
        """Return how many pictures wait to be computed."""
        return self._jobs.qsize()

    @property
    def alive(self) -> bool:
        """Whether pictures are being answered."""
        return self._thread.is_alive() and not self._closing.is_set()

    def submit(
        self, picture: Picture, *, explain: bool = False, deadline: float = float("inf")
    ) -> Future[Prediction]:
        """Let a picture wait for its answer.

        Args:
            picture: what to answer about.
            explain: whether to draw what spoke for the class.
            deadline: a time of `time.monotonic`; if the computation has not started by then, the
                future's error is a `TimeoutError`.

        Raises:
            queue.Full: there is no room, or the batcher is closed.
        """
        future: Future[Prediction] = Future()
        with self._one_at_a_time:
            if self._closing.is_set():
                raise queue.Full
            self._jobs.put_nowait(_Job(picture, explain, deadline, future))
        return future

    def close(self) -> None:
        """Prediction all that wait, take no more, and end the thread."""
        with self._one_at_a_time:
            self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                # The time is only how long `close` may go unnoticed by an idle thread.
                batch = [self._jobs.get(timeout=0.1)]
            except queue.Empty:
                if self._closing.is_set():
                    return
                continue
            until = time.monotonic() + self._linger_s
            while len(batch) < self._batch_size:
                try:
                    batch.append(self._jobs.get(timeout=max(0.0, until - time.monotonic())))
                except queue.Empty:
                    break
            waiting = [job for job in batch if _is_waiting(job)]
            for explain in (False, True):
                self._answer([job for job in waiting if job.explain == explain], explain)
            # While the thread waits for the next picture it holds none of these in memory.
            del batch, waiting

    def _answer(self, jobs: list[_Job], explain: bool) -> None:
        if not jobs:
            return
        start = time.perf_counter()
        try:
            answers = self._compute([job.picture for job in jobs], explain=explain)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            _log.warning("a batch of %d failed and is computed one by one", len(jobs))
            for job in jobs:
                self._answer([job], explain)
            return
        self._watch(len(jobs), time.perf_counter() - start)
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(answer)


def _is_waiting(job: _Job) -> bool:
    if not job.future.set_running_or_notify_cancel():
        return False
    if job.deadline < time.monotonic():
        job.future.set_exception(TimeoutError())
        return False
    return True
