"""Weights from files, from a hub on loopback, and in the a folder."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from medduet import MissingFileError, ModelError, create_model, load, load_weights
from medduet.models.weights import save_network
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

ENCODER = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as timm saves them, made for three channels and 1000 classes."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "timm.safetensors"
    save_file(timm.create_model(ENCODER).state_dict(), path)
    return path


def test_a_bundle_s_weights_are_taken_where_names_and_shapes_agree(tmp_path: Path) -> None:
    torch.manual_seed(1)
    old = create_model("unet_var", in_channels=1, num_classes=3, dense_channels=1, width=2)
    save_network(tmp_path, old)
    new = create_model("sharp_unet", in_channels=1, num_classes=5, dense_channels=1, width=2)
    before = {key: value.clone() for key, value in new.state_dict().items()}
    for place in (tmp_path, tmp_path / "model.safetensors"):
        report = load_weights(new, place)
        assert report.other_shape == ["class_head.weight", "class_head.bias"]
        assert report.not_in_file == report.not_in_network == report.adapted == []
        assert len(report.matched) == len(before) - 2
    for key, value in new.state_dict().items():
        source = before if key.startswith("class_head") else old.state_dict()
        assert torch.equal(value, source[key]), key
    assert f"{len(before) - 2} of {len(before)} tensors taken" in report.summary()
    assert "other shape: class_head.weight, class_head.bias" in report.summary()


@pytest.mark.parametrize("name", [f"timm:{ENCODER}", f"smp:unet/tu-{ENCODER}"])
def test_timm_s_own_file_fits(name: str, timm_file: Path) -> None:
    network = create_model(name, in_channels=3, num_classes=2, dense_channels=1)
    report = load_weights(network, timm_file)
    tensors = load_file(timm_file)
    state = network.state_dict()
    prefix = "encoder." if name.startswith("timm") else "model.encoder.model."
    assert torch.equal(state[f"{prefix}conv_stem.weight"], tensors["conv_stem.weight"])
    taken = sum(f"{prefix}{key}" in report.matched for key in tensors)
    assert taken > 0.9 * len(tensors)
    left = "classifier.weight"
    assert left in " ".join([*report.other_shape, *report.not_in_network])
    assert any(key.startswith(("decoder", "model.decoder")) for key in report.not_in_file)
    # These weights were made for images normalised as ImageNet's.
    mean = timm.get_pretrained_cfg(ENCODER).mean
    assert state["normalize.mean"].flatten().tolist() == pytest.approx(mean)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_first_convolution_for_rgb_is_adapted(channels: int, timm_file: Path) -> None:
    network = create_model(f"timm:{ENCODER}", in_channels=channels, num_classes=2)
    report = load_weights(network, timm_file)
    assert report.adapted == ["encoder.conv_stem.weight"]
    kernel = load_file(timm_file)["conv_stem.weight"]
    found = network.state_dict()["encoder.conv_stem.weight"]
    assert found.shape[1] == channels
    if channels == 1:
        torch.testing.assert_close(found, kernel.sum(dim=1, keepdim=True))
    assert network.normalize.mean.flatten().tolist() == pytest.approx(
        [sum(timm.get_pretrained_cfg(ENCODER).mean) / 3] * channels
    )


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    network = create_model("unet", in_channels=1, num_classes=2, width=2)
    with pytest.raises(MissingFileError, match=r"nothing\.safetensors"):
        load_weights(network, tmp_path / "nothing.safetensors")
    with pytest.raises(MissingFileError, match=r"--model\.weights"):
        load_weights(network, tmp_path)
    (tmp_path / "pickle.pth").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ModelError, match=r"pickle\.pth is not a safetensors file"):
        load_weights(network, tmp_path / "pickle.pth")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="none of the 1 tensors"):
        load_weights(network, tmp_path / "other.safetensors")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    network = create_model("unet", in_channels=1, num_classes=2, width=2)
    with pytest.raises(MissingFileError, match=r"config\.json"):
        load(tmp_path)
    save_network(tmp_path / "a", network)
    config = read_json(tmp_path / "a" / "config.json")
    for change, words in (
        ({"network": config["network"] | {"name": "unt"}}, "closest are unet"),
        ({"network": config["network"] | {"width": 3}}, "don't fit"),
        ({"version": 99}, "given 99"),
        ({"format": "other"}, "something else"),
    ):
        write_json(tmp_path / "a" / "config.json", config | change)
        with pytest.raises(ModelError, match=words):
            load(tmp_path / "a")
    write_json(tmp_path / "a" / "config.json", config)
    with (tmp_path / "a" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    with pytest.raises(ModelError, match="SHA-256"):
        load(tmp_path / "a")


def test_pretrained_weights_come_from_the_hub(hub: Any, timm_file: Path, tmp_path: Path) -> None:
    root = hub.root
    repository = root / timm.get_pretrained_cfg(ENCODER).hf_hub_id
    repository.mkdir(parents=True)
    shutil.copy(timm_file, repository / "model.safetensors")
    code = f"""
import torch, medduet
from safetensors.torch import load_file
from medduet.cli import main
assert main("train auto --data phantom --data.count 40 --size 32 --epochs 1 --model "
            "timm:{ENCODER} --model.pretrained --model.freeze-encoder --out RUN".split()) == 0
file = load_file({str(timm_file)!r})
network = medduet.load("RUN")
kernel = network.state_dict()["encoder.blocks.1.0.conv_pw.weight"]
assert torch.equal(kernel, file["blocks.1.0.conv_pw.weight"])
mean = network.normalize.mean.item()
assert abs(mean - 0.449) < 1e-3, mean
smp = medduet.create_model("smp:fpn/tu-{ENCODER}", in_channels=3, num_classes=2, dense_channels=1,
                           pretrained=True)
kernel = smp.state_dict()["model.encoder.model.blocks.1.0.conv_pw.weight"]
assert torch.equal(kernel, file["blocks.1.0.conv_pw.weight"])
"""
    done = hub.run(code)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "RUN" / "config.json")["model"]["pretrained"]
    assert "pretrained" not in read_json(tmp_path / "RUN" / "bundle" / "config.json")["network"]


def test_without_a_network_the_error_is_one_line(hub: Any, tmp_path: Path) -> None:
    code = f"""
import sys
from medduet import DownloadError, load
from medduet.cli import main
try:
    load("hf://someone/net")
except DownloadError as error:
    assert "someone/net" in str(error) and "\\n" not in str(error)
else:
    raise AssertionError
sys.exit(main("train auto --data phantom --data.count 40 --size 32 --model timm:{ENCODER} "
              "--model.pretrained --out RUN".split()))
"""
    done = hub.run(code, HF_HUB_OFFLINE="1")
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("medduet:")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    for words in (f"timm:{ENCODER}", "could not be fetched", "--model.weights FILE.safetensors"):
        assert words in lines[0]
    assert not (tmp_path / "RUN").exists()
