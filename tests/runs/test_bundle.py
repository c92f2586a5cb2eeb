"""What was trained comes back as it was, or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import medduet
from medduet import ModelError, RunRecord, create_model, load
from medduet.runs.bundle import save_bundle
from medduet.runs.folder import open_run
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

ARGUMENTS = {"name": "vovunet_var", "in_channels": 3, "num_classes": 2, "dense_channels": 1}
ARGUMENTS |= {"width": 2, "upsampling": "bilinear"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = create_model(**ARGUMENTS)
    network(torch.rand(4, 3, 16, 16))  # moves the running means
    save_bundle(tmp_path / "bundle", network, {"class_names": ["a", "b"]})
    return tmp_path / "bundle"


def test_a_run_and_its_bundle_are_the_same_network(finished_run: RunRecord) -> None:
    image = medduet.open_images("phantom", size=16, count=40).test.batch(torch.arange(8).numpy())
    paths = (finished_run.path, str(finished_run.path), finished_run.path / "bundle")
    outputs = [load(path)(image.image) for path in paths]
    assert torch.equal(outputs[0].class_logits, outputs[1].class_logits)
    assert torch.equal(outputs[0].dense, outputs[2].dense)
    # They are what predictions/test.csv says, of the epoch that validation selected.
    metrics = finished_run.metrics
    assert metrics["selected_epoch"] != metrics["validation_selected"]["selected_epoch"]
    recorded = open_run(finished_run.path).predictions("test").probability
    probability = outputs[0].class_logits.softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(probability, recorded, atol=1e-6)
    card = (finished_run.path / "bundle" / "README.md").read_text()
    code = card.split("```python")[1].split("```")[0]
    code = code.replace("path/of/this/folder", str(finished_run.path / "bundle"))
    names = {"image": torch.zeros(2, 1, 16, 16)}
    exec(compile(code, "card", "exec"), names)
    assert names["class_logits"].shape == (2, 4)


def test_the_card_of_a_network_for_volumes(tmp_path: Path) -> None:
    network = create_model("unet_var", in_channels=1, num_classes=2, width=2, dims=3)
    data = {"name": "ct", "splits": {"train": 3}, "size": [16, 20, 24], "info": {"licence": "MIT"}}
    save_bundle(tmp_path / "bundle", network, {"class_names": ["a", "b"], "data": data})
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "# image: (N, 1, D, H, W)" in card
    assert "ct (train 3; 16 x 20 x 24 voxels; licence: MIT; " in card


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_damaged_weights(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    refused(bundle, "SHA-256 differs")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 99}, "version 2 of bundles, given 99"),
        ({"network": ARGUMENTS | {"width": 4}}, "don't fit the network"),
        ({"network": ARGUMENTS | {"name": "os.system"}}, r"unknown network 'os\.system'"),
        ({"network": ["vovunet_var"]}, "arguments of the network can't be used"),
        ({"network": ARGUMENTS | {"pretrained": True}}, "can't ask for other weights"),
    ],
)
def test_config_that_cannot_be_used(bundle: Path, changes: dict[str, Any], words: str) -> None:
    write_json(bundle / "config.json", read_json(bundle / "config.json") | changes)
    refused(bundle, words)


def test_saving_again_replaces_and_failing_leaves(bundle: Path) -> None:
    network = create_model(**ARGUMENTS)
    before = load_file(bundle / "model.safetensors")["stem.0.weight"]
    with pytest.raises(ModelError, match=r"class_names\.0: Input should be a valid string"):
        save_bundle(bundle, network, {"class_names": [object()]})
    assert torch.equal(load(bundle).state_dict()["stem.0.weight"], before)
    save_bundle(bundle, network, {})
    assert network.training, "saving changed the network"
    after = load(bundle).state_dict()["stem.0.weight"]
    assert torch.equal(after, network.state_dict()["stem.0.weight"])
    assert not torch.equal(after, before)
    assert [file.name for file in bundle.parent.iterdir()] == ["bundle"]


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    network = create_model(**ARGUMENTS)
    network.up[0].upsample[1].bias = network.up[1].upsample[1].weight  # any two that share
    save_bundle(tmp_path / "bundle", network, {})
