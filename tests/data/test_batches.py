"""Every image is trained on once per epoch and judged once, on any number of processes."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medduet.data.batches import (
    balanced_shares,
    evaluation_batches,
    train_batches,
)


@given(
    count=st.integers(2, 70),
    batch_size=st.integers(2, 20),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 5),
    epoch=st.integers(1, 5),
    smallest=st.integers(1, 2),
)
def test_each_training_image_comes_once(
    count: int, batch_size: int, world_size: int, seed: int, epoch: int, smallest: int
) -> None:
    deal = partial(train_batches, count, batch_size, seed=seed, epoch=epoch, smallest=smallest)
    alone = deal()
    shares = [deal(rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1, "a process would wait for ever"
    rest = count % batch_size
    rest = rest if rest >= smallest * world_size else 0
    assert len(shares[0]) == count // batch_size + (rest > 0)
    seen = np.concatenate([index for share in shares for index in share] or [np.array([])])
    assert len(set(seen.tolist())) == len(seen)
    assert len(seen) == count - count % batch_size + rest
    for step, parts in enumerate(zip(*shares, strict=True)):
        # The processes share the batch that one process alone would have had.
        assert sorted(np.concatenate(parts)) == alone[step].tolist()
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


RARE = np.array([0] * 900 + [1] * 80 + [2] * 20)


def test_each_class_is_drawn_as_often() -> None:
    shares = balanced_shares(RARE)
    drawn = np.concatenate(train_batches(1000, 16, seed=0, epoch=1, shares=shares))
    assert len(drawn) == 1000
    # Binomial with 1000 draws and p = 1/3: a standard deviation is 15.
    assert np.bincount(RARE[drawn]) == pytest.approx([333, 333, 333], abs=60)
    assert set(drawn[RARE[drawn] == 2].tolist()) == set(range(980, 1000)), "some never come"


def test_each_of_several_labels_is_drawn_as_often() -> None:
    # Nothing is usual; the second class is rare, the third has no image at all.
    labels = np.zeros((100, 3), dtype=np.int64)
    labels[:30, 0] = 1
    labels[28:32, 1] = 1
    labels[90:] = -1
    labels[89, 0] = -1  # a part of it is known
    shares = balanced_shares(labels)
    one, two, both = 0.9 / 3 / 30, 0.9 / 3 / 4, 0.9 / 3 * (1 / 30 + 1 / 4)
    none = 0.9 / 3 / 58
    expected = [one] * 28 + [both] * 2 + [two] * 2 + [none] * 58 + [0.01] * 10
    assert shares == pytest.approx(np.array(expected))


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 5))
def test_each_image_is_judged_once(count: int, batch_size: int, world_size: int) -> None:
    shares = [
        evaluation_batches(count, batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    seen = [int(i) for share in shares for index in share for i in index]
    assert sorted(seen) == list(range(count))
    assert all(0 < len(index) <= batch_size for share in shares for index in share)


@pytest.mark.parametrize("batch_size", [3, 60])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_image_of_shards_comes_once_over_all_ranks(batch_size: int, world_size: int) -> None:
    sizes = np.array([5] * 8 + [2])

    def epoch(number: int) -> list[list[list[int]]]:
        options = {"seed": 3, "epoch": number, "world_size": world_size, "shards": sizes}
        shares = [train_batches(42, batch_size, rank=r, **options) for r in range(world_size)]
        return [[index.tolist() for index in share] for share in shares]

    first = epoch(1)
    seen = [place for share in first for index in share for place in index]
    rest = 42 % batch_size
    assert len(seen) == len(set(seen)) == 42 - (rest if rest < 2 * world_size else 0)
    assert len({len(share) for share in first}) == 1
    for parts in zip(*first, strict=True):
        sizes_of_parts = [len(part) for part in parts]
        assert max(sizes_of_parts) - min(sizes_of_parts) <= 1
    assert epoch(1) == first
    assert epoch(2) != first
