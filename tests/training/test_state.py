from __future__ import annotations

from medduet.training.state import Best


def test_the_first_of_the_best_epochs_is_kept() -> None:
    best = Best()
    scores = [0.25, 0.75, 0.5, 0.75, 0.9]
    taken = [best.beaten_by(epoch, score) for epoch, score in enumerate(scores, start=1)]
    assert taken == [True, True, False, False, True]
    assert (best.epoch, best.score) == (5, 0.9)


def test_some_epoch_is_always_kept() -> None:
    best = Best()
    assert best.beaten_by(1, float("nan"))
    assert best.beaten_by(2, float("nan")), "where no score is known, the last epoch counts"
    assert best.beaten_by(3, 0.5)
    assert not best.beaten_by(4, float("nan"))
    assert (best.epoch, best.score) == (3, 0.5)
