"""A bundle goes to a hub and comes back as it was; on loopback, through the library itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medduet import RunRecord, load, load_bundle
from medduet.runs.bundle import save_bundle
from medduet.utils.parsing import read_json, sha256

FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture
def bundle(finished_run: RunRecord, tmp_path: Path) -> Path:
    """A bundle that knows where its images were, with names of a stranger."""
    found = load_bundle(finished_run.path)
    config = found.config.to_json()
    data = config["data"] | {
        "name": "set | <img src=x> [a](https://e)",
        "info": {"source": "/home/me/ward-7/set.npz", "skipped": ["Jane Doe.png"]},
    }
    classes = ["a\n---\nb", "**c**", "key: [value", "'d'"]
    save_bundle(tmp_path / "bundle", found.network, config | {"data": data, "class_names": classes})
    return tmp_path / "bundle"


@pytest.mark.slow
def test_there_and_back(hub: Any, bundle: Path) -> None:
    notes = bundle.parent / "notes.md"
    notes.write_text("## From the authors\n\nOf one ward, 2019 to 2023.\n")
    code = f"""
import medduet
from medduet.cli import main
told = ["push", {str(bundle)!r}, "me/net", "--private", "--licence", "cc-by-nc-4.0", "--notes"]
assert main([*told, {str(notes.with_name("none.md"))!r}]) == 2
assert main([*told, {str(notes)!r}]) == 0
network = medduet.load("hf://me/net")
from medduet.models.weights import save_network
save_network("again", network)
assert medduet.load_bundle("hf://me/net@v1").config.class_names[1] == "**c**"
assert main("evaluate hf://me/net --data phantom --size 16 --split val --out judged".split()) == 0
assert main("ensemble hf://me/net --tta flip --out ensemble".split()) == 0
"""
    done = hub.run(code, HF_TOKEN="writer")
    assert done.returncode == 0, done.stderr
    assert "expected a file at" in done.stderr
    repository = hub.root / "me" / "net"
    card = (repository / "README.md").read_text()
    assert card.endswith("\n\n## From the authors\n\nOf one ward, 2019 to 2023.\n")
    assert {file.name for file in repository.iterdir()} == FILES
    assert f"medduet.load('hf://me/net@{hub.commit('me/net')}')" in done.stdout
    assert hub.private == {"me/net"}
    assert sha256(repository / "model.safetensors") == sha256(bundle / "model.safetensors")
    image = torch.rand(2, 1, 16, 16)
    found, expected = load(bundle.parent / "again")(image), load(bundle)(image)
    assert torch.equal(found.class_logits, expected.class_logits)
    assert torch.equal(found.dense, expected.dense)
    assert (bundle.parent / "judged" / "metrics.json").is_file()
    assert load(bundle.parent / "ensemble").arguments["test_time"] == "flip"
    # Nothing but the network is told.
    config = (repository / "config.json").read_text()
    for secret in ("/home/me", "ward-7", "Jane"):
        assert secret not in config + card
    assert json.loads(config)["data"]["info"] == {"source": "set.npz"}
    assert not any("telemetry" in path for path in hub.asked)


@pytest.mark.slow
def test_only_the_files_of_a_bundle_are_fetched(hub: Any, bundle: Path) -> None:
    folder = hub.root / "someone" / "net"
    folder.mkdir(parents=True)
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name in ("pytorch_model.bin", "modeling.py", "large.safetensors"):
        (folder / name).write_bytes(b"x")
    for name in ("someone/else", "someone/secret", "me/public"):
        (hub.root / name).mkdir(parents=True)
    hub.private.add("someone/secret")
    code = f"""
import medduet, os
medduet.load("hf://someone/net")
bundle = {str(bundle)!r}
for token, error, words, call, *given in (
    ("", "MissingFileError", "has no config.json", medduet.load, "hf://someone/else"),
    ("", "MissingFileError", "no repository someone/secret", medduet.load, "hf://someone/secret"),
    ("", "MissingFileError", "repository user/name", medduet.load, "hf://a/b/c/d"),
    ("", "DownloadError", "does not allow that for me/new (401)", medduet.push, bundle, "me/new"),
    ("reader", "DownloadError", "for me/new (403)", medduet.push, bundle, "me/new"),
    ("writer", "MissingFileError", "no such folder", medduet.push, "nothing", "me/new"),
    ("writer", "ConfigError", "is public", medduet.push, bundle, "me/public", True),
):
    os.environ["HF_TOKEN"] = token
    try:
        call(*given[:2], **{{"private": True}} if given[2:] else {{}})
    except getattr(medduet, error) as found:
        assert words in str(found) and "\\n" not in str(found), (words, str(found))
    else:
        raise AssertionError(words)
"""
    done = hub.run(code)
    assert done.returncode == 0, done.stderr
    asked = {path.split("/")[-1] for path in hub.asked if "/someone/net/resolve/" in path}
    assert asked == FILES
    assert not any("commit" in path or "upload" in path for path in hub.asked)


def test_the_card_shows_names_as_they_are(bundle: Path) -> None:
    _, front, text = (bundle / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["datasets"] == ["set-img-src-x-a-https-e"]
    test = read_json(bundle / "config.json")["metrics"]["test"]
    assert f"| test | 8 | accuracy | {test['accuracy']:.4f} |" in text
    for shown in (
        r"set \| \<img src=x\> \[a\](https\://e)",
        r"Classes: a --- b, \*\*c\*\*, key\: \[value, 'd'.",
    ):
        assert shown in text
    assert "<img" not in text.replace(r"\<img", "")
