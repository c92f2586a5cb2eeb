"""Pictures that wait together are computed together, and each gets its own answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest

from medduet.data.reading.images import Picture
from medduet.inference.prediction import Prediction
from medduet.serve.batcher import Batcher


def picture(number: int) -> Picture:
    value = np.full((2, 2), number, np.uint8)
    return Picture(value, value)


class Network:
    """Answers with the value of the picture, notes its batches, and can be made to wait."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], bool]] = []
        self.started, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, pictures: Sequence[Picture], explain: bool) -> list[Prediction]:
        numbers = [int(each.whole[0, 0]) for each in pictures]
        self.batches.append((numbers, explain))
        self.started.set()
        self.go.wait()
        if 13 in numbers:
            raise ValueError("unlucky")
        return cast(list[Prediction], numbers)

    def block(self, batcher: Batcher) -> Any:
        """Start a first picture, which is computed until `go` is set."""
        self.go.clear()
        self.started.clear()
        first = batcher.submit(picture(0))
        assert self.started.wait(10)
        return first


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.go.set()


def test_what_comes_meanwhile_is_one_batch_and_each_gets_its_own(network: Network) -> None:
    batcher = Batcher(network, batch_size=4)
    first = network.block(batcher)
    futures = [batcher.submit(picture(number)) for number in range(1, 7)]
    assert batcher.waiting() == 6
    network.go.set()
    assert [future.result(10) for future in [first, *futures]] == list(range(7))
    assert [numbers for numbers, _ in network.batches] == [[0], [1, 2, 3, 4], [5, 6]]
    batcher.close()


def test_what_is_explained_is_computed_apart(network: Network) -> None:
    batcher = Batcher(network, batch_size=8)
    network.block(batcher)
    futures = [batcher.submit(picture(number), explain=number % 2 == 0) for number in range(1, 5)]
    network.go.set()
    assert [future.result(10) for future in futures] == [1, 2, 3, 4]
    assert network.batches[1:] == [([1, 3], False), ([2, 4], True)]
    batcher.close()


def test_nobody_waits_for_the_cancelled_and_the_late(network: Network) -> None:
    batcher = Batcher(network, batch_size=8)
    network.block(batcher)
    gone = batcher.submit(picture(1))
    late = batcher.submit(picture(2), deadline=time.monotonic())
    wanted = batcher.submit(picture(3))
    assert gone.cancel()
    network.go.set()
    assert wanted.result(10) == 3
    with pytest.raises(TimeoutError):
        late.result(10)
    assert network.batches[1:] == [([3], False)]
    batcher.close()


def test_an_error_meets_only_its_own_picture(network: Network) -> None:
    batcher = Batcher(network, batch_size=8)
    network.block(batcher)
    futures = [batcher.submit(picture(number)) for number in (12, 13, 14)]
    network.go.set()
    assert futures[0].result(10) == 12
    with pytest.raises(ValueError, match="unlucky"):
        futures[1].result(10)
    assert futures[2].result(10) == 14
    assert batcher.alive
    batcher.close()
