"""A wrong value of any option of any command is one line on stderr, and exit code 2."""

import re
from pathlib import Path

import pytest

from medduet.cli import main
from medduet.cli.commands import COMMANDS

Capture = pytest.CaptureFixture[str]
WORDS = {
    "train": "auto --data nothing.npz",
    "demo": "--data nothing.npz",
    "pretrain": "nothing.npz",
    "benchmark": "paper",
    "compare": "nothing nowhere",
    "predict": "nothing nothing.png --out OUT",
    "export": "nothing --out OUT",
    "calibrate": "nothing --data nothing.npz --out OUT",
    "ensemble": "nothing --out OUT",
    "push": "nothing owner/name",
    "audit": "nothing.npz",
    "preview": "nothing.npz",
    "zarr": "nothing.npz --out OUT.zarr",
    "attach-masks": "nothing.npz --data nothing.npz --out OUT",
    "datasets": "",
    "models": "",
    "doctor": "",
}
"""What each command needs at least; of the others a path. Nothing of it is there."""


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_values(
    command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")  # in one column
    words = [command, *WORDS.get(command, "nothing").split()]
    with pytest.raises(SystemExit):
        main([*words[: 2 if command in ("train", "benchmark") else 1], "--help"])
    options = re.findall(r"(--[a-z][\w.-]*) ([{\[A-Z].*?)(?=,|  |│|\n)", capsys.readouterr().out)
    for name, kind in options:
        if name.startswith("--run."):
            continue  # as of train
        if re.search("INT|FLOAT", kind):
            wrong = "-1"
        elif name.endswith("device") or not re.search("STR|PATH", kind):
            wrong = "nonsense"
        else:
            continue  # every text is one
        assert main([*words, name, wrong]) == 2, name
        shown = capsys.readouterr()
        assert shown.err.startswith("medduet: "), name
        assert (shown.err.count("\n"), shown.out) == (1, ""), shown.err
    assert not list(tmp_path.iterdir()), "something was written"
