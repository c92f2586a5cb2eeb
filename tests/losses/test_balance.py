"""Each rule against numbers worked out by hand, or against TorchJD's own."""

from __future__ import annotations

import importlib.util
import math
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torchjd import aggregation

from medduet import ConfigError
from medduet.config import Balance as Names
from medduet.losses.balance import BALANCES, Balance, cosines

BOTH = torch.tensor([True, True])
FIRST = torch.tensor([True, False])
CONFLICT = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])


def coefficients(balance: Balance, *losses: float, known: Tensor = BOTH) -> list[float]:
    return balance.coefficients(torch.tensor(losses), known, 0.1).tolist()


def test_every_name_has_a_rule() -> None:
    assert ["sum", *BALANCES] == list(get_args(Names))


def test_one_task_is_always_the_sum() -> None:
    for name in BALANCES:
        balance = Balance(name, 1)
        assert balance.aggregator is None
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


def test_famo() -> None:
    balance = Balance("famo", 2)
    # The weights 1/2 and 1/2 over the losses, made to sum to one.
    assert coefficients(balance, 1.0, 3.0) == pytest.approx([0.75, 0.25])
    balance.look_again(torch.tensor([0.5, 3.0]), BOTH)
    # The first loss fell, so its logit goes down by one step of Adam, the other one's up.
    z = 1 / (1 + math.exp(2 * 0.025))
    expected = torch.tensor([z / 1.0, (1 - z) / 3.0])
    assert coefficients(balance, 1.0, 3.0) == pytest.approx((expected / expected.sum()).tolist())


def test_geometric_mean_and_stch() -> None:
    mean = math.sqrt(2 * 8)
    found = coefficients(Balance("geometric_mean", 2), 2.0, 8.0)
    assert found == pytest.approx([mean / 2 / 2, mean / 2 / 8])
    share = torch.tensor([2.0, 2.2]).div(2 * 0.1).softmax(dim=0) / 2
    assert coefficients(Balance("stch", 2), 2.0, 2.2) == pytest.approx(share.tolist())


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "famo", "geometric_mean", "imtl_l", "stch"])
def test_an_unknown_task_enters_with_its_last_loss(name: str) -> None:
    known, unknown = Balance(name, 2), Balance(name, 2)
    for balance, losses, mask in ((known, (2.0, 3.0), BOTH), (unknown, (2.0, 0.0), FIRST)):
        coefficients(balance, 1.0, 3.0)
        assert coefficients(balance, *losses, known=mask)
        balance.look_again(torch.tensor([losses[0] / 2, losses[1]]), mask)
        balance.end_epoch()
    assert coefficients(known, 2.0, 3.0) == coefficients(unknown, 2.0, 3.0)


@pytest.mark.parametrize("name", list(BALANCES)[:7])
def test_a_task_that_was_never_known_does_no_harm(name: str) -> None:
    balance = Balance(name, 2)
    for _ in range(3):
        found = coefficients(balance, 2.0, 0.0, known=FIRST)
        assert all(math.isfinite(share) for share in found)
        assert found[0] > 0


def test_pcgrad_and_upgrad() -> None:
    # Each row less its part against the other one: (1/2, 1/2) and (0, 1).
    vector, weights = Balance("pcgrad", 2).aggregate(CONFLICT, BOTH)
    assert vector.tolist() == [0.5, 1.5]
    assert weights is not None
    assert weights.tolist() == [2.0, 1.5]
    vector, weights = Balance("upgrad", 2).aggregate(CONFLICT, BOTH)
    # TorchJD regularises by 1e-4.
    torch.testing.assert_close(vector, torch.tensor([0.25, 0.75]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.75]), rtol=1e-3, atol=1e-4)


def test_upgrad_does_not_depend_on_the_scale() -> None:
    vector = Balance("upgrad", 2).aggregate(CONFLICT * 1e-6, BOTH)[0]
    torch.testing.assert_close(vector * 1e6, torch.tensor([0.25, 0.75]), rtol=1e-3, atol=1e-4)


AGGREGATORS: dict[str, Any] = {
    "pcgrad": aggregation.PCGrad,
    "mgda": aggregation.MGDA,
    "imtl_g": aggregation.IMTLG,
    "aligned_mtl": aggregation.AlignedMTL,
    "fairgrad": partial(aggregation.FairGrad, alpha=1.0),
    "graddrop": aggregation.GradDrop,
    "config": aggregation.ConFIG,
}
if importlib.util.find_spec("quadprog"):
    AGGREGATORS |= {"upgrad": aggregation.UPGrad, "dualproj": aggregation.DualProj}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregators_are_torchjds(name: str) -> None:
    matrix = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        expected = AGGREGATORS[name]()(matrix)
        torch.manual_seed(2)
        vector, weights = Balance(name, 3).aggregate(matrix, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(vector, expected)
    assert (weights is None) == (name in ("graddrop", "config"))
    if weights is not None:
        torch.testing.assert_close(weights @ matrix, vector)


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "config", "upgrad"])
def test_unknown_rows_are_left_out(name: str) -> None:
    zero = torch.zeros(1, 2)
    vector, weights = Balance(name, 3).aggregate(
        torch.cat([CONFLICT[:1], zero, CONFLICT[1:]]), torch.tensor([True, False, True])
    )
    expected, shares = Balance(name, 2).aggregate(CONFLICT, BOTH)
    assert torch.equal(vector, expected)
    if weights is not None and shares is not None:
        assert weights.tolist() == [shares[0].item(), 0.0, shares[1].item()]
    alone, share = Balance(name, 2).aggregate(CONFLICT, FIRST)
    assert alone.tolist() == [1.0, 0.0]
    assert share is not None
    assert share.tolist() == [1.0, 0.0]


def test_cosines() -> None:
    found = cosines(torch.tensor([[3.0, 4.0], [0.0, 0.0], [4.0, -3.0], [-3.0, -4.0]]))
    expected = torch.tensor([math.nan, 0.0, -1.0, math.nan, math.nan, 0.0])
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_cagrad_finds_the_step_of_least_conflict() -> None:
    """With c = 0.5 it maximises the worst improvement within half the mean's norm of the mean."""
    pytest.importorskip("cvxpy", reason="needs cvxpy: pip install 'medduet[balance]'")
    vector, shares = Balance("cagrad", 2).aggregate(CONFLICT, BOTH)
    assert shares is not None
    torch.testing.assert_close(shares @ CONFLICT, vector)
    mean = CONFLICT.mean(dim=0)
    angle = torch.linspace(0, 2 * math.pi, 20_001)
    around = torch.stack([angle.cos(), angle.sin()], dim=1) * 0.5 * mean.norm()
    worst = ((mean + around) @ CONFLICT.T).min(dim=1).values.max()
    assert (CONFLICT @ vector).min().item() == pytest.approx(worst.item(), abs=1e-3)


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(tasks: int) -> None:
        raise ImportError("cvxpy")

    monkeypatch.setitem(BALANCES, "cagrad", missing)
    with pytest.raises(ConfigError, match=r"--balance cagrad .*pip install 'medduet\[balance\]'"):
        Balance("cagrad", 2)
