"""A wrong value of any option of any command is one line on stderr, and exit code 2."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medduet.cli import main
from medduet.cli.commands import COMMANDS

Capture = pytest.CaptureFixture[str]
WORDS = {
    "train": "honest --data nothing.npz",
    "demo": "--data nothing.npz",
    "search": "adares --data nothing.npz",
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


def options(command: str, capsys: Capture) -> dict[str, str]:
    """Return the options that take a value, as the help of the command lists them."""
    words = WORDS.get(command, "nothing").split()
    recipe = words[:1] if command in ("train", "search", "benchmark") else []
    with pytest.raises(SystemExit):
        main([command, *recipe, "--help"])
    text = capsys.readouterr().out
    found = re.findall(r"(--[a-z][\w.-]*) ([{\[A-Z].*?)(?=,|  |│|\n)", text)
    return {name: kind for name, kind in found if not name.startswith("--run.")}  # as of train


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_values(
    command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")  # in one column
    words = [command, *WORDS.get(command, "nothing").split()]
    for name, kind in options(command, capsys).items():
        if re.search("INT|FLOAT", kind):
            wrong = "-1"
        elif name.endswith("device") or not re.search("STR|PATH", kind):
            wrong = "nonsense"
        else:
            continue  # every text is one
        assert main([*words, name, wrong]) == 2, name
        shown = capsys.readouterr()
        assert shown.err.startswith("medduet: "), name
        assert shown.err.count("\n") == 1, shown.err
        assert not shown.out, name
    assert not list(tmp_path.iterdir()), "something was written"
