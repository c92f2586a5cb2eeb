"""What `medduet doctor` finds, and that shells complete what `medduet completion` prints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from medduet.cli import COMMANDS, main
from medduet.cli.doctor import Finding, examine


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_it_names_what_is_missing_and_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = metadata.version

    def version(name: str) -> str:
        if name in ("openvino", "cvxpy"):
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "kornia" else plain(name)

    assert "kornia" not in by_name(examine())
    monkeypatch.setattr(metadata, "version", version)
    found = by_name(examine())
    assert found["extra export"].state == "missing"
    assert found["extra export"].text == "without openvino: pip install 'medduet[export]'"
    assert found["extra balance"].text == "without cvxpy: pip install 'medduet[balance]'"
    assert found["kornia"] == Finding("kornia", "bad", "expected kornia>=0.8, given 0.1")
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "pip install 'medduet[export]'" in printed


def test_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDDUET_CACHE", str(tmp_path / "cache"))
    found = by_name(examine())
    assert found["cache folder"].text == str(tmp_path / "cache")
    assert not (tmp_path / "cache").exists(), "looking changes nothing"
    assert re.fullmatch(r"--precision auto means \S+ here", found["precision"].text)
    free = shutil.disk_usage(tmp_path).free / 2**30
    assert float(found["free disk, cache"].text.split()[0]) == pytest.approx(free, abs=0.5)
    assert {"extra medical", "extra serve", "extra ray"} <= set(found)
    assert "extra test" not in found


def test_a_cache_that_can_not_be_written() -> None:
    found = by_name(examine(Path("/proc/cache")))["cache folder"]
    assert found.state == "bad"
    assert "set MEDDUET_CACHE to another folder" in found.text


COMPLETED = """
source "$1"
COMP_WORDS=($2) COMP_CWORD=$3
_medduet
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["medduet", "ca"], ["calibrate"]),
        (["medduet", "train", "hon"], ["honest"]),
        (["medduet", "train", "honest", "--train.on-not"], ["--train.on-not-finite"]),
        (["medduet", "predict", "--cov"], ["--coverage"]),
    ],
)
def test_bash_completes(
    typed: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "medduet.bash"
    script.write_text(capsys.readouterr().out)
    words = [bash, "-c", COMPLETED, "-", str(script), " ".join(typed), str(len(typed) - 1)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, cwd=tmp_path, env={"PATH": os.defpath}
    )
    assert done.stdout.split() == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_know_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(re.search(rf"\b{command}\b", script) for command in COMMANDS)
    assert "--train.on-not-finite" in script
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True)


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bsh"]) == 2
    assert "expected a shell, given 'bsh': did you mean bash" in capsys.readouterr().err
