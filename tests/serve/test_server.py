"""The command: names, ports, packages, and how it ends."""

import json
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest

from medduet import ConfigError, create_model
from medduet.cli import main
from medduet.runs.bundle import save_bundle
from medduet.serve.schemas import Options, encode_predictions
from medduet.serve.server import check_packages, network_paths
from medduet.serve.service import open_network


def test_networks_have_names(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    paths = network_paths([f"{tmp_path}/run/bundle/", f"{tmp_path}/a=b", f"x=y={tmp_path}"])
    assert list(paths) == ["run", "a=b", "x"]
    assert str(paths["x"]) == f"y={tmp_path}"
    for wrong in (["a/run", "b/run"], ["a=x", "a=y"], ["=x"], []):
        with pytest.raises(ConfigError, match="medduet serve"):
            network_paths(wrong)


def test_what_can_t_be_explained_is_served_without(own: Path, tmp_path: Path) -> None:
    network = create_model("vovunet_var", in_channels=1, num_classes=0, dense_channels=1, width=2)
    config = {
        "class_names": [],
        "mask_names": ["background", "lesion"],
        "layout": {"mask_classes": 2, "image_channels": 0},
        "preprocessing": {"size": [32, 32], "channels": 1, "fit": "pad"},
    }
    save_bundle(tmp_path / "run" / "bundle", network, config | {"multi_label": False})
    served = open_network(tmp_path / "run", True)
    assert not served.explains
    assert "# vovunet\\_var" in served.card
    answer = served.predictor(np.zeros((20, 30), np.uint8))
    said = json.loads(encode_predictions("run", served.predictor, Options(), [answer]))
    assert (said["label"], said["probabilities"], said["heat"]) == (None, {}, None)
    assert said["mask"]["png"]
    assert [open_network(own, explain).explains for explain in (True, False)] == [True, False]
    two = create_model("unet", in_channels=2, num_classes=0, dense_channels=1, width=2, dims=3)
    config["preprocessing"] = {"size": [16, 16, 16], "channels": 2, "fit": "pad"}
    save_bundle(tmp_path / "two" / "bundle", two, config | {"multi_label": False})
    with pytest.raises(ConfigError, match="for several channels: medduet predict"):
        open_network(tmp_path / "two", False)


def test_a_port_that_is_taken_is_one_line(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        assert main(["serve", str(own), "--port", str(used.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert "give another --host or --port" in error
    assert error.count("\n") == 1


def test_what_was_asked_before_the_end_is_answered(
    own: Path,
    picture: Callable[[int], np.ndarray],
    encoded: Callable[..., bytes],
    medduet_command: list[str],
) -> None:
    command = [*medduet_command, "serve", f"busi={own}", "--port", "0"]
    with subprocess.Popen(
        [*command, "--host", "0.0.0.0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        port = re.findall(r"serving busi at http://0.0.0.0:(\d+)", service.stdout.readline())[0]
        assert "anyone who can reach 0.0.0.0" in service.stdout.readline()
        content = encoded(picture(1))
        head = (
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", int(port)), timeout=60) as client:
            # Half of a request has come when the service is told to end.
            client.sendall(head.encode() + content[:100])
            in_progress = ""
            while "medduet_requests_in_progress 1.0" not in in_progress:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    in_progress = answer.read().decode()
            service.send_signal(signal.SIGINT)
            client.sendall(content[100:])
            said = b"".join(iter(lambda: client.recv(1 << 16), b""))
        assert said.startswith(b"HTTP/1.1 200")
        assert json.loads(said.partition(b"\r\n\r\n")[2])["model"] == "busi"
        assert service.wait(60) == 0
        assert service.stderr is not None
        assert service.stderr.read() == ""


def test_an_old_pillow_reads_no_files_of_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages()
    monkeypatch.setattr(PIL, "__version__", "12.3.0")
    with pytest.raises(ConfigError, match="Pillow 13"):
        check_packages()
