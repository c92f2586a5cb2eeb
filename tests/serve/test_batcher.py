"""Pictures that wait together are computed together, and each gets its own answer."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from medduet.data.reading.images import Picture
from medduet.inference.predictor import Prediction
from medduet.serve.service import Batcher


class Network:
    """Answers with the value of the picture, notes its batches, and waits with the first one."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], bool]] = []
        self.started, self.go = threading.Event(), threading.Event()

    def __call__(self, pictures: Sequence[Picture], explain: bool) -> list[Prediction]:
        numbers = [int(each.whole[0, 0]) for each in pictures]
        self.batches.append((numbers, explain))
        self.started.set()
        self.go.wait(20)
        if 13 in numbers:
            raise ValueError("unlucky")
        return cast(list[Prediction], numbers)


async def ask(network: Network, *wanted: Any, size: int = 8, gone: int | None = None) -> list[Any]:
    """Ask for pictures (number, explain), while another is computed; `gone` is cancelled."""
    batcher = Batcher(network, size)

    def start(number: int, explain: bool) -> asyncio.Task[Any]:
        value = np.full((2, 2), number, np.uint8)
        return asyncio.create_task(batcher.predict(Picture(value, value), explain))

    first = start(0, False)
    await asyncio.to_thread(network.started.wait, 20)
    tasks = [start(*each) for each in wanted]
    await asyncio.sleep(0)
    assert batcher.jobs.qsize() == len(wanted)
    if gone is not None:
        tasks[gone].cancel()
    network.go.set()
    answers = await asyncio.gather(first, *tasks, return_exceptions=True)
    batcher.close()
    return answers[1:]


def test_what_comes_meanwhile_is_one_batch_and_each_gets_its_own() -> None:
    network = Network()
    answers = asyncio.run(ask(network, *((number, False) for number in range(1, 7)), size=4))
    assert answers == [1, 2, 3, 4, 5, 6]
    assert [numbers for numbers, _ in network.batches] == [[0], [1, 2, 3, 4], [5, 6]]


def test_what_is_explained_is_computed_apart_and_what_nobody_waits_for_not_at_all() -> None:
    network = Network()
    wanted = [(1, False), (2, True), (3, False), (4, True), (5, False)]
    answers = asyncio.run(ask(network, *wanted, gone=4))
    assert answers[:4] == [1, 2, 3, 4]
    assert isinstance(answers[4], asyncio.CancelledError)
    assert network.batches[1:] == [([1, 3], False), ([2, 4], True)]


def test_an_error_meets_only_its_own_picture() -> None:
    answers = asyncio.run(ask(Network(), (12, False), (13, False), (14, False)))
    assert (answers[0], answers[2]) == (12, 14)
    with pytest.raises(ValueError, match="unlucky"):
        raise answers[1]
