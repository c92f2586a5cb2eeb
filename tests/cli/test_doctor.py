"""What `medduet doctor` finds."""

import shutil
from importlib import metadata
from pathlib import Path

import pytest

from medduet.cli import main
from medduet.cli.doctor import examine


def by_name(findings: list[tuple[str, str, str]]) -> dict[str, tuple[str, str]]:
    return {name: (state, text) for name, state, text in findings}


def test_it_names_what_is_missing_and_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = metadata.version

    def version(name: str) -> str:
        if name == "openvino":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "kornia" else plain(name)

    monkeypatch.setattr(metadata, "version", version)
    found = by_name(examine())
    assert found["extra export"][1] == "without openvino: pip install 'medduet[export]'"
    assert found["kornia"] == ("bad", "expected kornia>=0.8, given 0.1")
    assert main(["doctor"]) == 1


def test_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDDUET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # of which torch can use none
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = by_name(examine())
    assert found["device"] == ("bad", "torch can't use the 2 GPU(s) here: check the driver")
    assert found["cache folder"][1] == str(tmp_path / "cache")
    assert not (tmp_path / "cache").exists(), "looking changes nothing"
    free = shutil.disk_usage(tmp_path).free / 2**30
    assert float(found["free disk, cache"][1].split()[0]) == pytest.approx(free, abs=0.5)
    monkeypatch.setenv("MEDDUET_CACHE", "/proc/cache")
    found = by_name(examine())
    assert found["cache folder"][0] == "bad"
    assert "set MEDDUET_CACHE to another folder" in found["cache folder"][1]
