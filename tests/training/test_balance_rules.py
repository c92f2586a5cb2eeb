"""Each rule against numbers worked out by hand, or against TorchJD's own."""

import importlib.util
import math
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torchjd import aggregation

from medduet.config import Balance as Names
from medduet.training.balance import AGGREGATORS, Balance

BOTH = torch.tensor([True, True])
FIRST = torch.tensor([True, False])
CONFLICT = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])


def coefficients(balance: Balance, *losses: float, known: Tensor = BOTH) -> list[float]:
    return balance.coefficients(torch.tensor(losses), known, 0.1).tolist()


@pytest.mark.parametrize("name", get_args(Names))
def test_one_task_is_always_the_sum(name: str) -> None:
    balance = Balance(name, 1)
    assert balance.is_sum
    assert balance.coefficients(torch.tensor([3.0]), BOTH[:1], 0.1).tolist() == [1.0]


def test_uncertainty() -> None:
    balance = Balance("uncertainty", 2, partial(torch.optim.SGD, lr=9.0))
    expected, losses = [0.0, 0.0], [2.0, 0.5]
    for _ in range(3):
        # s = sum of exp(-v) L / 2 + v / 2, and v takes a step of the rate that is given.
        shares = [0.5 * math.exp(-v) for v in expected]
        assert coefficients(balance, *losses) == pytest.approx(shares)
        pairs = zip(shares, losses, expected, strict=True)
        expected = [v - 0.1 * (0.5 - share * loss) for share, loss, v in pairs]


def test_dwa() -> None:
    balance = Balance("dwa", 2)
    for losses in ([(4.0, 2.0), (6.0, 2.0)], [(4.0, 1.0)]):
        for pair in losses:
            assert coefficients(balance, *pair) == [1.0, 1.0]
        balance.end_epoch()
    # Epochs of (5, 2) and (4, 1): rates of 0.8 and 0.5, a temperature of 2.
    first, second = math.exp(0.8 / 2), math.exp(0.5 / 2)
    expected = [2 * first / (first + second), 2 * second / (first + second)]
    assert coefficients(balance, 7.0, 7.0) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["uncertainty", "dwa"])
def test_an_unknown_task_enters_with_its_last_loss(name: str) -> None:
    known, unknown = Balance(name, 2), Balance(name, 2)
    for balance, losses, mask in ((known, (2.0, 3.0), BOTH), (unknown, (2.0, 0.0), FIRST)):
        coefficients(balance, 1.0, 3.0)
        assert coefficients(balance, *losses, known=mask)
        balance.end_epoch()
    assert coefficients(known, 2.0, 3.0) == coefficients(unknown, 2.0, 3.0)


def test_pcgrad_and_upgrad() -> None:
    # Each row less its part against the other one: (1/2, 1/2) and (0, 1).
    vector, weights = Balance("pcgrad", 2).aggregate(CONFLICT, BOTH)
    assert vector.tolist() == [0.5, 1.5]
    assert weights.tolist() == [2.0, 1.5]
    vector, weights = Balance("upgrad", 2).aggregate(CONFLICT, BOTH)
    # TorchJD regularises by 1e-4.
    torch.testing.assert_close(vector, torch.tensor([0.25, 0.75]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.75]), rtol=1e-3, atol=1e-4)


TORCHJD: dict[str, Any] = {"pcgrad": aggregation.PCGrad, "mgda": aggregation.MGDA}
if importlib.util.find_spec("quadprog"):
    TORCHJD["upgrad"] = aggregation.UPGrad


@pytest.mark.parametrize("name", TORCHJD)
def test_aggregators_are_torchjds(name: str) -> None:
    matrix = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        expected = TORCHJD[name]()(matrix)
        torch.manual_seed(2)
        vector, weights = Balance(name, 3).aggregate(matrix, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(vector, expected)
    torch.testing.assert_close(weights @ matrix, vector)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_unknown_rows_are_left_out(name: str) -> None:
    zero = torch.zeros(1, 2)
    vector, weights = Balance(name, 3).aggregate(
        torch.cat([CONFLICT[:1], zero, CONFLICT[1:]]), torch.tensor([True, False, True])
    )
    expected, shares = Balance(name, 2).aggregate(CONFLICT, BOTH)
    assert torch.equal(vector, expected)
    assert weights.tolist() == [shares[0].item(), 0.0, shares[1].item()]
    alone, share = Balance(name, 2).aggregate(CONFLICT, FIRST)
    assert alone.tolist() == [1.0, 0.0]
    assert share.tolist() == [1.0, 0.0]
