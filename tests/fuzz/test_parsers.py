"""Files of every kind, changed, made or said to be huge, are read or refused in one line."""

from collections import Counter

import pytest
from fuzz_bombs import BOMBS, GB, read_bomb
from fuzz_parsers import PARSERS, REGRESSIONS, attempt, contents, warm
from hypothesis import HealthCheck, Phase, given, settings

from medduet.data.workers import WorkerPool

SHORT = settings(
    max_examples=30,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_files_are_read_or_refused(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    parser, counts = PARSERS[name], Counter[str]()
    warm(parser)
    for content in parser.seeds():
        assert attempt(parser, tmp_path_factory.mktemp("valid"), content) == "accepted"
    for path in REGRESSIONS.glob(f"{name}/*"):
        attempt(parser, tmp_path_factory.mktemp("once"), path.read_bytes())

    @SHORT
    @given(content=contents(parser))
    def one(content: bytes) -> None:
        counts[attempt(parser, tmp_path_factory.mktemp("one"), content)] += 1

    one()
    assert counts["refused"]  # what is changed so much is not all valid


@pytest.mark.slow
def test_bombs_are_refused() -> None:
    with WorkerPool(1, memory=16 * GB) as pool:
        for name, result in zip(BOMBS, pool.map(read_bomb, BOMBS), strict=True):
            assert not isinstance(result, str), (name, result)
            reason, megabytes, seconds = result
            kind = reason.partition(": ")[0]
            assert kind in ("DataError", "ModelError", "ConfigError", "MissingFileError"), result
            assert reason.isprintable(), result
            assert megabytes < 200, (name, result)
            assert seconds < 20, (name, result)
