"""Nothing in MedDuet runs what a file says, and no file that it writes could be made to run."""

import ast
import pickle
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import torch

import medduet
from medduet import RunRecord

SOURCE = Path(medduet.__file__).parent
MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal"}
CALLS = {"eval", "exec", "__import__", "os.system", "os.popen", "yaml.load", "yaml.full_load"}
CALLS |= {"yaml.unsafe_load", "yaml.load_all"}
ALLOWED = {"cli/parse.py: exec"}
"""Runs signatures of the package's own functions, read from its own source."""


def dangers_in(source: str) -> list[str]:
    """Return what in a source could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found += [name.name for name in node.names if name.name != "UnpicklingError"]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            unsafe_load = name == "torch.load" and words.get("weights_only") != "True"
            flags = {words.get("allow_pickle", "False"), words.get("shell", "False")} - {"False"}
            extracts = name.endswith((".extract", ".extractall"))
            if name in CALLS or unsafe_load or flags or extracts:
                found.append(name)
    return found


def test_the_source_runs_nothing_that_a_file_says() -> None:
    found = {
        f"{path.relative_to(SOURCE).as_posix()}: {name}"
        for path in SOURCE.rglob("*.py")
        for name in dangers_in(path.read_text("utf-8"))
    }
    assert found <= ALLOWED
    # A test that finds nothing finds something here.
    assert dangers_in("import pickle; load(path, allow_pickle=True)") == ["pickle", "load"]
    assert dangers_in("torch.load(path); zip.extractall()") == ["torch.load", "zip.extractall"]


def is_pickle(content: bytes) -> bool:
    """Whether a content is a pickle from its first byte to its end."""
    try:
        return sum(1 for _ in pickletools.genops(content)) > 1 and content[-1:] == b"."
    except Exception:  # whatever the disassembler says of what is none
        return False


def pickles_in(path: Path) -> list[str]:
    """Return what in a file is a pickle: itself, or members of it if it is an archive."""
    content = path.read_bytes()
    found = [path.name] if content[:1] == b"\x80" or is_pickle(content) else []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                member = archive.read(name)
                head = member[:128]
                objects = head.startswith(b"\x93NUMPY") and (b"'|O'" in head or b"object" in head)
                if name.endswith((".pkl", ".pickle")) or is_pickle(member) or objects:
                    found.append(f"{path.name}: {name}")
    return found


def test_what_a_run_writes_is_no_pickle(finished_run: RunRecord, tmp_path: Path) -> None:
    files = [path for path in finished_run.path.rglob("*") if path.is_file()]
    assert {".json", ".jsonl", ".csv", ".safetensors", ".npz", ".png"} <= {x.suffix for x in files}
    assert not [name for path in files for name in pickles_in(path)]
    # A test that finds nothing finds something here.
    (tmp_path / "a").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "b").write_bytes(pickle.dumps({"a": 1}, protocol=0))
    torch.save({"a": torch.ones(1)}, tmp_path / "c")
    np.savez(tmp_path / "d.npz", a=np.array([None]))
    assert all(pickles_in(path) for path in tmp_path.iterdir())
