"""An exported network predicts what the network does, for any number and size of images."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

import medduet
from medduet import (
    ConfigError,
    DataConfig,
    DuetNetwork,
    ExportedModel,
    MissingFileError,
    ModelError,
    RunRecord,
    create_model,
    export_bundle,
    load,
)
from medduet.cli import main
from medduet.inference.agreement import Agreement
from medduet.models.unet import UNet
from medduet.models.weights import save_network
from medduet.runs.bundle import save_bundle
from medduet.utils.files import write_json
from medduet.utils.parsing import read_json

PHANTOMS = DataConfig(name="phantom", size=32, count=40)


def make_bundle(
    folder: Path,
    name: str = "vovunet_var",
    *,
    classes: int = 4,
    masks: int = 2,
    image: int = 0,
    multi_label: bool = False,
) -> Path:
    torch.manual_seed(0)
    layout = medduet.DenseLayout(masks, image)
    options = {} if ":" in name else {"width": 4}
    network = create_model(
        name, in_channels=1, num_classes=classes, dense_channels=layout.channels, **options
    )
    learn(network)
    config = {
        "class_names": list("abcd")[:classes],
        "mask_names": list("klmn")[:masks],
        "layout": layout._asdict(),
        "preprocessing": {"size": [32, 32], "channels": 1},
        "multi_label": multi_label,
    }
    save_bundle(folder, network, config)
    return folder


def learn(network: DuetNetwork) -> None:
    """Teach a network what is brighter than half: which image, and which pixels."""
    pixels = torch.from_numpy(images(32, 32, 32))
    bright = (pixels > 127).float()
    label = (3.99 * bright.mean(dim=(1, 2, 3))).long()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(30):
        class_logits, dense = network(pixels)
        loss = torch.zeros(())
        if class_logits is not None:
            loss = loss + F.cross_entropy(class_logits, label)
        if dense is not None:
            loss = loss + F.binary_cross_entropy_with_logits(dense[:, :1], bright)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def images(n: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return coarse patterns, each with another share of bright pixels."""
    rng = np.random.default_rng(0)
    coarse = rng.random((n, 1, 13, 13)) ** (3 * rng.random((n, 1, 1, 1)) + 0.2)
    pixels = coarse.repeat(8, axis=2).repeat(8, axis=3)[..., :height, :width]
    return (255 * pixels).astype(np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture(scope="module")
def onnx(bundle: Path) -> Path:
    """An exported network; look, don't touch."""
    return export_bundle(bundle, bundle.parent / "onnx", count=4).path


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 40, 33), (2, 16, 97)])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_any_number_and_size(
    bundle: Path, onnx: Path, runtime: Any, shape: tuple[int, ...]
) -> None:
    image = images(*shape)
    with torch.inference_mode():
        expected = load(bundle)(torch.from_numpy(image))
    predicted = ExportedModel(onnx, runtime=runtime)(image)
    assert predicted.reconstruction is None
    probability = expected.class_logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(predicted.probability, probability, atol=1e-5)
    assert predicted.probability.dtype == np.float32
    assert predicted.mask.dtype == np.uint8
    assert predicted.mask.shape == shape
    wrong = predicted.mask != (expected.dense[:, 0] > 0).numpy()
    assert wrong.mean() < 0.001
    assert 0.1 < predicted.mask.mean() < 0.9, "a mask that can't be wrong"
    assert len(image) == 1 or predicted.probability.std(axis=0).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["adares_unet", "timm:convnextv2_atto", "smp:segformer/mit_b0"],
)
def test_other_networks(name: str, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", name)
    out = export_bundle(path, tmp_path / "onnx", count=2).path
    for shape in ((2, 32, 32), (1, 50, 33), (1, 96, 64)):
        image = images(*shape)
        with torch.inference_mode():
            expected = load(path)(torch.from_numpy(image))
        predicted = ExportedModel(out)(image)
        probability = expected.class_logits.softmax(dim=1).numpy()
        np.testing.assert_allclose(predicted.probability, probability, atol=1e-4)
        assert (predicted.mask != (expected.dense[:, 0] > 0).numpy()).mean() < 0.01


@pytest.mark.slow
def test_other_tasks(tmp_path: Path) -> None:
    image = images(2, 32, 48)
    several = make_bundle(tmp_path / "several", masks=4, multi_label=True)
    expected = load(several)(torch.from_numpy(image))
    predicted = ExportedModel(export_bundle(several, tmp_path / "a", count=2).path)(image)
    probability = expected.class_logits.sigmoid().detach().numpy()
    np.testing.assert_allclose(predicted.probability, probability, atol=1e-5)
    assert (predicted.mask == expected.dense.argmax(dim=1).numpy()).mean() > 0.999
    assert len(np.unique(predicted.mask)) > 1

    rebuilt = make_bundle(tmp_path / "rebuilt", classes=0, masks=0, image=1)
    predicted = ExportedModel(export_bundle(rebuilt, tmp_path / "b", count=2).path)(image)
    assert predicted.probability is predicted.mask is None
    network = load(rebuilt)
    pixels = network.normalize.invert(network(torch.from_numpy(image)).dense).detach().numpy()
    np.testing.assert_allclose(predicted.reconstruction, pixels, atol=1e-4)
    with pytest.raises(ConfigError, match="no class head"):
        export_bundle(rebuilt, tmp_path / "alone", classify_only=True)


def test_classes_alone(bundle: Path, onnx: Path, tmp_path: Path) -> None:
    alone = export_bundle(bundle, tmp_path / "alone", classify_only=True, count=2).path
    predicted = ExportedModel(alone)(images(2, 40, 48))
    assert predicted.mask is None
    expected = ExportedModel(onnx)(images(2, 40, 48)).probability
    np.testing.assert_allclose(predicted.probability, expected, atol=1e-5)
    sizes = [(folder / "model.onnx").stat().st_size for folder in (onnx, alone)]
    assert sizes[1] < sizes[0], "the decoder is not in the file"


@pytest.mark.slow
def test_one_size(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", "mobilevitv2_unet_var")
    with pytest.raises(ModelError, match="add --fixed-size"):
        export_bundle(path, tmp_path / "onnx")
    out = export_bundle(path, tmp_path / "onnx", fixed_size=True, count=2).path
    model = ExportedModel(out)
    image = images(3, 32, 32)
    with torch.inference_mode():
        expected = load(path)(torch.from_numpy(image)).class_logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(model(image).probability, expected, atol=1e-4)
    with pytest.raises(ModelError, match="32 x 32 pixels, but got 32 x 48"):
        model(images(1, 32, 48))


QUANTIZE = """
import sys
from medduet import DataConfig, export_bundle
data = DataConfig(name="phantom", size=32, count=40)
record = export_bundle(sys.argv[1], sys.argv[2], precision="int8", data=data, tolerance=1.0)
print(record.agreement.n, 0 < record.agreement.probability < 0.2)
"""


@pytest.mark.slow
def test_int8_and_no_use_is_reported_to_anybody(
    bundle: Path, tmp_path: Path, python_command: list[str]
) -> None:
    # OpenVINO and NNCF keep the identity that they report under in the user's home.
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    out = tmp_path / "int8"
    done = subprocess.run(
        [*python_command, "-c", QUANTIZE, str(bundle), str(out)],
        env=environment | {"HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "8 True"
    assert not (tmp_path / "home" / "intel").exists()
    image = images(2, 32, 32)
    one = ExportedModel(out)(image)
    two = ExportedModel(out, runtime="openvino", shape=(2, 32, 32))(image)
    assert (one.mask == two.mask).mean() > 0.95
    with pytest.raises(ModelError, match="tolerance is 0;"):
        export_bundle(bundle, tmp_path / "strict", precision="int8", data=PHANTOMS, tolerance=0.0)
    assert not (tmp_path / "strict").exists()
    with pytest.raises(ConfigError, match="give --data NAME"):
        export_bundle(bundle, tmp_path / "blind", precision="int8")


def test_a_run_is_compared_on_its_own_images(finished_run: RunRecord, tmp_path: Path) -> None:
    record = export_bundle(finished_run.path, tmp_path / "onnx", count=0)
    agreement = record.agreement
    assert (agreement.n, agreement.same_class) == (8, 8)
    assert agreement.reconstruction is not None
    assert agreement.reconstruction < 1e-4
    config = read_json(record.path / "config.json")
    assert config["class_names"] == ["normal", "smooth", "spiculated", "ring"]
    assert config["export"]["agreement"]["same_class"] == 8
    assert config["metrics"]["selection"] == "validation-selected"


def test_a_network_that_no_exporter_follows_is_one_line(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def branch(self: UNet, image: torch.Tensor) -> medduet.Outputs:
        return forward(self, image) if image.float().mean() > 1 else forward(self, image.flip(3))

    forward = UNet.forward
    monkeypatch.setattr(UNet, "forward", branch)
    with pytest.raises(ModelError, match=r"vovunet_var can't be exported: .*") as caught:
        export_bundle(bundle, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_difference_above_the_tolerance_is_refused(bundle: Path, tmp_path: Path) -> None:
    assert np.isnan(Agreement(2, probability=0.5, mask=0.0, reconstruction=np.nan).worst)
    with pytest.raises(ModelError, match=r"tolerance is 1e-09; .*--tolerance") as caught:
        export_bundle(bundle, tmp_path / "onnx", precision="float16", count=4, tolerance=1e-9)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


NO_TORCH = """
import sys

class Block:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("torch", "onnx", "lightning", "timm"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Block())
import numpy as np
import medduet

image = np.zeros((2, 1, 40, 33), np.uint8)
for runtime in ("onnxruntime", "openvino"):
    predicted = medduet.ExportedModel(sys.argv[1], runtime=runtime)(image)
    print(predicted.probability.shape, predicted.mask.shape)
print(medduet.Predictor(sys.argv[1])(image[0, 0]).label in "abcd", "torch" in sys.modules)
"""


def test_it_predicts_without_torch(onnx: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, str(onnx)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(2, 4) (2, 40, 33)"] * 2 + ["True False"]


def test_the_page_s_code_runs(onnx: Path) -> None:
    page = (onnx / "README.md").read_text()
    for text in ("Not a medical device", "Classes: a, b, c, d.", "class the same in 4"):
        assert text in page
    code = page.split("```python")[1].split("```")[0].replace("path/of/this/folder", str(onnx))
    names: dict[str, Any] = {}
    exec(compile(code, "page", "exec"), names)
    assert [tuple(value.shape) for value in names["outputs"]] == [(1, 4), (1, 32, 32)]


def test_images_that_do_not_fit(onnx: Path) -> None:
    model = ExportedModel(onnx)
    for image, words in [
        (np.zeros((1, 3, 32, 32), np.uint8), r"expected images \(N, 1, H, W\) of uint8"),
        (np.zeros((32, 32), np.uint8), "expected images"),
        (np.zeros((1, 1, 32, 32), np.float32), "of float32"),
        (np.zeros((1, 1, 15, 32), np.uint8), "at least 16 x 16"),
    ]:
        with pytest.raises(ModelError, match=words):
            model(image)
    with pytest.raises(ConfigError, match="runtime='openvino'"):
        ExportedModel(onnx, precision="bfloat16")
    with pytest.raises(ModelError, match="can't be used"):
        ExportedModel(onnx, runtime="openvino", shape=(2, 32, 48))(images(1, 32, 48))


def test_damaged_folders(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"medduet export BUNDLE --out DIR"):
        ExportedModel(tmp_path)
    with pytest.raises(ModelError, match=r"config\.json is something else"):
        ExportedModel(bundle)
    out = export_bundle(bundle, tmp_path / "out", count=2).path
    with (out / "model.onnx").open("ab") as file:
        file.write(b"1")
    with pytest.raises(ModelError, match="SHA-256 differs"):
        ExportedModel(out)
    (out / "model.onnx").unlink()
    with pytest.raises(MissingFileError, match=r"no model\.onnx"):
        ExportedModel(out)
    (out / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        ExportedModel(out)
    write_json(out / "config.json", [])
    with pytest.raises(ModelError, match="expected a JSON object"):
        ExportedModel(out)


def test_a_package_that_is_missing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript, .*pip install 'medduet\[export\]'"):
        export_bundle(bundle, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_settings_that_do_not_fit(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is there already"):
        export_bundle(bundle, tmp_path)
    with pytest.raises(ConfigError, match="given --count -1"):
        export_bundle(bundle, tmp_path / "out", count=-1)
    network = create_model("unet_var", in_channels=1, num_classes=2, width=2)
    save_network(tmp_path / "network", network)
    with pytest.raises(ModelError, match="does not say what its outputs mean"):
        export_bundle(tmp_path / "network", tmp_path / "out")
    rgb = DataConfig(name="phantom", size=32, count=20, channels=3)
    with pytest.raises(ConfigError, match=r"takes 1 channel\(s\), but phantom has 3"):
        export_bundle(bundle, tmp_path / "out", data=rgb)


def test_command_line(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["export", str(bundle), "--out", str(out), "--classify-only", "--count", "2"]
    assert main(words) == 0
    printed, errors = capfd.readouterr()
    first, last = printed.splitlines()
    assert first.startswith(
        "compared with torch on phantom: 2 images, class the same in 2, probabilities"
    )
    assert last == f"written: {out}"
    assert errors == ""
    assert main(["export", str(bundle)]) == 2
    assert main(["export", str(tmp_path / "nothing"), "--out", str(tmp_path / "new")]) == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "missing: --out" in errors[0]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_threads_can_share_it(onnx: Path, runtime: Any) -> None:
    model = ExportedModel(onnx, runtime=runtime)
    inputs = [images(8, 64, 64)[i : i + 1] for i in range(8)] * 8
    expected = [model(image).mask for image in inputs[:8]]
    assert len({mask.tobytes() for mask in expected}) == 8
    with ThreadPoolExecutor(8) as pool:
        for number, predicted in enumerate(pool.map(model, inputs)):
            assert np.array_equal(predicted.mask, expected[number % 8])
