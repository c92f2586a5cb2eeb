"""Grids on a Ray cluster of this machine, whose nodes come and go."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medduet import GridRecord, benchmark
from medduet.cli import main
from medduet.experiments.cells import GridFolder
from medduet.experiments.config import EngineConfig

ray = pytest.importorskip("ray", reason="needs ray: pip install 'medduet[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

# Ray leaves sockets and processes to the end, and warns of changes to come.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),
]
ON_RAY = EngineConfig(engine="ray")
NETWORKS = {"networks": ["vovunet_var", "unet_var"]}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with a core each; the driver is on the first."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_lost_node_loses_and_doubles_no_cell(
    grids: SimpleNamespace, uninterrupted: Path, tmp_path: Path, cluster: Any
) -> None:
    node = cluster.add_node(num_cpus=1)
    out = tmp_path / "grid"
    long = grids.small(out, **NETWORKS)
    ended: list[GridRecord] = []
    work = threading.Thread(target=lambda: ended.append(benchmark(long, where=ON_RAY)))
    work.start()
    folder = GridFolder(out)
    cells = [cell.name for cell in long.cells(out)]
    # Two at once: one of them on the node that goes.
    grids.wait_until(lambda: sum(folder.busy(name) for name in cells) == 2)
    cluster.remove_node(node, allow_graceful=False)
    work.join(timeout=400)
    assert ended
    assert ended[0].count("finished") == 4
    assert grids.results(out) == grids.results(uninterrupted)
    starts = grids.starts(out)
    assert sorted(starts) == sorted(cells)
    assert sum(starts.values()) == 5, starts


def test_by_command_with_failures_and_no_cluster(
    grids: SimpleNamespace,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "grid.yaml"
    networks = {"vovunet_var": {}, "timm:resnet18": {"model.width": 4}}
    config = grids.small(tmp_path, networks=networks, seeds=[0])
    recipe.write_text(json.dumps(config.model_dump(mode="json", exclude={"out"})))
    words = ["benchmark", str(recipe), "--engine", "ray", "--out", "grid"]
    assert main([*words, "--cpus-per-cell", "4000"]) == 2
    assert "lower --cpus-per-cell" in capsys.readouterr().err
    assert main([*words, "--address", "127.0.0.1:1"]) == 2
    assert "there is no Ray cluster at 127.0.0.1:1" in capsys.readouterr().err
    assert main(words) == 1
    text = capsys.readouterr()
    assert "1 of 2 cells finished" in text.out
    assert "width" in text.err
    name = "phantom-vovunet_var-seed0"
    assert grids.results(tmp_path / "grid")[name] == grids.results(uninterrupted)[name]
