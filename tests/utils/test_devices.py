"""Device, precision, memory format and memory of a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import medduet
from medduet import ConfigError, TrainConfig
from medduet.cli import main
from medduet.config import parse_device
from medduet.utils import devices


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", ("auto", None)), ("cpu", ("cpu", None)), ("cuda:12", ("cuda", 12))],
)
def test_devices_are_parsed(text: str, expected: tuple[str, int | None]) -> None:
    assert parse_device(text) == expected
    assert TrainConfig(device=text).device == text


BAD = [("gpu", "did you mean cuda?"), ("cpu:3", "did you mean cpu?"), ("cuda:x", ""), ("", "")]


@pytest.mark.parametrize(("text", "hint"), BAD)
def test_other_devices_are_refused(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda, cuda:N or mps") as caught:
        devices.find_device(text)
    assert str(caught.value).endswith(hint)
    with pytest.raises(ValueError, match="expected auto, cpu, cuda, cuda:N or mps"):
        TrainConfig(device=text)


def test_a_device_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.find_device("auto") == torch.device("cuda")
    assert devices.find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="cuda:2: this machine has 2 GPUs, counted from cuda:0"):
        devices.find_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda:1: torch finds no such device here"):
        devices.find_device("cuda:1")


COMMANDS = {
    "evaluate": "evaluate RUN --out OUT",
    "stress": "stress RUN --out OUT",
    "calibrate": "calibrate RUN --data phantom --out OUT",
    "ensemble": "ensemble RUN --tta flip --out OUT",
    "predict": "predict RUN IMAGE --out OUT",
    "train": "train demo --out OUT",
    "search": "search adares --out OUT",
}


@pytest.mark.parametrize(("device", "hint"), BAD[:2])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_device_alike(
    command: str,
    device: str,
    hint: str,
    finished_run: medduet.RunRecord,
    shared_image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"RUN": str(finished_run.path), "OUT": str(tmp_path / "out"), "IMAGE": shared_image}
    words = [str(places.get(word, word)) for word in COMMANDS[command].split()]
    option = "--run.train.device" if command == "search" else "--device"
    assert main([*words, option, device]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert hint in line
    assert device in line


@pytest.fixture(scope="module")
def shared_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    path = tmp_path_factory.mktemp("image") / "a.png"
    Image.new("L", (16, 16)).save(path)
    return path


@pytest.mark.parametrize("command", ["evaluate", "stress", "calibrate", "ensemble", "train"])
def test_every_command_refuses_a_size_alike(
    command: str,
    finished_run: medduet.RunRecord,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"RUN": str(finished_run.path), "OUT": str(tmp_path / "out")}
    words = [places.get(word, word) for word in COMMANDS[command].split()]
    data = [] if command == "calibrate" else ["--data", "phantom"]
    assert main([*words, *data, "--size", "0"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "size" in line
    assert "greater than or equal to 1" in line


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": False, "avx2": True}, "32-true"),
    ],
)
def test_precision_of_a_processor(
    capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert devices.best_precision("cpu") == expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_of_a_gpu(native: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation
    )
    assert devices.best_precision("cuda") == expected


MEMORY = """
import torch, resource
from pathlib import Path
from medduet.utils.devices import keep_freed_memory, return_freed_memory, trim_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20
start = resident()
def held():
    for _ in range(2):
        x = torch.ones(64 << 20)
        del x
    return resident() - start
plain = held()
assert keep_freed_memory()
kept = held()
blocks = [torch.ones(1 << 20) for _ in range(64)]
del blocks[::2]  # what is left stands between them
trim_memory()
trimmed = resident() - start
del blocks
return_freed_memory()
print(plain, kept, trimmed, held())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_freed_memory_is_kept_and_returned() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    )
    plain, kept, trimmed, returned = map(int, done.stdout.split())
    assert max(plain, returned) < 48 < 240 < kept  # of 256 MB
    assert 120 < trimmed < 176  # of the 128 MB in use
