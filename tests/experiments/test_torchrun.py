"""One run over two machines, as docs/cluster.md starts it under SLURM; both are this one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from medduet.config import RunConfig, validate


@pytest.mark.slow
def test_two_nodes_under_slurm_train_one_run(tmp_path: Path) -> None:
    config = validate(
        RunConfig,
        {
            "data": {"name": "phantom", "size": 16, "count": 40},
            "model": {"width": 2},
            "train": {"epochs": 1, "batch_size": 8},
        },
        "a test",
    )
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"out"})))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = []
    for node in range(2):
        slurm = {"JOB_ID": "7", "JOB_NAME": "run", "NTASKS": "2", "NNODES": "2", "LOCALID": "0"}
        slurm |= {"PROCID": str(node), "NODEID": str(node), "JOB_NODELIST": "localhost"}
        words = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "7"]
        words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
        words += ["-m", "medduet", "train", str(recipe), "--out", str(run)]
        nodes.append(
            subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *words],
                env=os.environ | {f"SLURM_{name}": value for name, value in slurm.items()},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    environment = json.loads((run / "environment.json").read_text())
    assert environment["machine"]["processes"] == 2
    assert json.loads((run / "metrics.json").read_text())["test"]["n"] == 8
