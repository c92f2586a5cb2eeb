"""Nothing in MedDuet runs what a file says, and no file that it writes could be made to run."""

from __future__ import annotations

import ast
import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import medduet
from medduet import RunRecord

SOURCE = Path(medduet.__file__).parent
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNNING = {"eval", "exec", "compile", "__import__"}
LOADERS = {"SafeLoader", "CSafeLoader"}
YAML = {"load", "load_all", "full_load", "unsafe_load", "full_load_all", "unsafe_load_all"}
ALLOWED = {
    # The error of torch.load(weights_only=True).
    "training/state.py: from pickle import UnpicklingError",
    # Signatures of the package's own functions, read from its own source.
    "cli/signature.py: compile(ast.Module(future + kept, []), str(spec.origin), 'exec')",
    "cli/signature.py: exec(compile(ast.Module(future + kept, []), str(spec.origin), 'exec'), "
    "space)",
    # Pages are escaped, and with them the texts of text.txt that they show.
    "reports/page.py: jinja2.Environment(loader=jinja2.PackageLoader('medduet.reports'), "
    "autoescape=jinja2.select_autoescape(['html']), undefined=jinja2.StrictUndefined, "
    "trim_blocks=True, lstrip_blocks=True)",
}
"""Exceptions, with the reason of each."""


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((each.value for each in call.keywords if each.arg == name), None)


def constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def faults_in(source: str) -> Iterator[str]:
    """Give what in a module could run what a file says."""
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node)
        if isinstance(node, ast.Import):
            if any(alias.name.partition(".")[0] in PICKLES for alias in node.names):
                yield text
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            first = (node.module or "").partition(".")[0]
            if first in PICKLES or names & (PICKLES | {"Pickler", "Unpickler", "ForkingPickler"}):
                yield text
        elif isinstance(node, ast.Call) and is_dangerous(node):
            yield text


def is_dangerous(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    owner, _, last = name.rpartition(".")
    first = owner.partition(".")[0]
    if name in RUNNING or name in ("os.system", "os.popen") or last in ("extract", "extractall"):
        return True
    if first == "yaml" and last in YAML:
        given = keyword(call, "Loader") or (call.args[1] if len(call.args) > 1 else None)
        return given is None or ast.unparse(given).rpartition(".")[2] not in LOADERS
    if owner in ("torch", "torch.hub", "torch.export", "torch.jit") and last.startswith("load"):
        return constant(keyword(call, "weights_only")) is not True
    if owner in ("np", "numpy", "np.lib.format") and last in ("load", "read_array", "open_memmap"):
        return constant(keyword(call, "allow_pickle")) is not False
    if first in ("pd", "pandas") and "pickle" in last:
        return True
    if first == "subprocess" or last == "Popen":
        return constant(keyword(call, "shell")) not in (None, False)
    if last == "import_module" and not call.args:
        return True
    if last == "Environment" or name == "Template":
        return constant(keyword(call, "autoescape")) is not True
    return False


def test_the_source_runs_nothing_that_a_file_says() -> None:
    found = {
        f"{path.relative_to(SOURCE).as_posix()}: {fault}"
        for path in SOURCE.rglob("*.py")
        for fault in faults_in(path.read_text("utf-8"))
    }
    assert found == ALLOWED


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
