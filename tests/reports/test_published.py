"""Published numbers, as the paper and its rivals give them."""

from __future__ import annotations

import pytest

from medduet.data.medmnist import medmnist_sets
from medduet.reports.published import all_published, notes_for, published_for

# Of VovUnet_Var, as two decimals of percent.
INTERVALS = {
    "bloodmnist": "98.34-99.09",
    "breastmnist": "82.50-92.57",
    "dermamnist": "75.17-78.85",
    "organamnist": "95.91-96.47",
    "organcmnist": "92.84-93.92",
    "organsmnist": "81.00-82.61",
    "pathmnist": "94.47-95.48",
    "pneumoniamnist": "93.22-96.61",
    "retinamnist": "52.36-62.01",
}


@pytest.mark.parametrize("name", INTERVALS)
def test_intervals_follow_from_the_size_of_the_test_split(name: str) -> None:
    row = published_for(name, 224)[0]
    assert row.network == "vovunet_var"
    assert "{:.2f}-{:.2f}".format(*row.interval) == INTERVALS[name]


def test_sets_are_as_medmnist_knows_them() -> None:
    official = medmnist_sets()
    for row in all_published():
        assert row.splits == tuple(official[row.dataset].samples)


def test_both_tables_are_whole() -> None:
    counts: dict[tuple[str, str], int] = {}
    for row in all_published():
        key = (row.network, row.source.split()[0])
        counts[key] = counts.get(key, 0) + 1
        low, high = row.interval
        assert low < row.accuracy < high
    assert sorted(counts.values()) == [1, 2, 4, 9, 9, 9, 9, 9]
    best = {row.network: row.accuracy for row in published_for("retinamnist", 224)}
    assert best == {
        "vovunet_var": 57.25,
        "unet_var": 58.25,
        "resnet18": 61.5,
        "best of ten": 64.17,
        "medvitv2_l": 57.8,
        "constant guess": 43.5,
    }


def test_every_number_says_how_it_was_selected() -> None:
    protocols = {(row.source.split()[0], row.protocol) for row in all_published()}
    assert all("selected" in protocol or protocol == "no training" for _, protocol in protocols)
    for row in published_for("bloodmnist", 224)[:2]:
        assert row.protocol.startswith("test-selected")


def test_nothing_for_other_sets_and_sizes() -> None:
    for name, size in (("bloodmnist", 28), ("phantom", 224)):
        assert published_for(name, size) == []
        assert notes_for(name, size) == []
    assert any("74.2%" in note for note in notes_for("pneumoniamnist", 224))
    assert not any("74.2%" in note for note in notes_for("bloodmnist", 224))
