"""Published numbers, as the paper and its rivals give them."""

from medduet.data.medmnist import medmnist_sets
from medduet.reports.sections import all_published

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


def test_intervals_follow_from_the_size_of_the_test_split() -> None:
    ours = all_published().query("network == 'vovunet_var'").set_index("dataset")
    found = {row.Index: f"{row.low:.2f}-{row.high:.2f}" for row in ours.itertuples()}
    assert found == INTERVALS
    official = medmnist_sets()
    for row in all_published().itertuples():
        assert row.splits == list(official[row.dataset].samples)
        assert row.low < row.accuracy < row.high


def test_all_tables_say_how_epochs_were_selected() -> None:
    protocols = all_published().set_index("dataset")["protocol"]
    assert (protocols.str.contains("selected") | (protocols == "no training")).all()
    assert protocols["bloodmnist"].iloc[:2].str.startswith("test-selected").all()
    notes = all_published().groupby("dataset")["notes"].first().map(" ".join)
    assert "74.2%" in notes["pneumoniamnist"]
    assert "74.2%" not in notes["bloodmnist"]
