"""Nothing in MedDuet runs what a file says, and no file that it writes could be made to run."""

import pickle
import pickletools
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

import medduet
from medduet import RunRecord

SOURCE = Path(medduet.__file__).parent
FORBIDDEN = (
    r"^\s*(import|from) (pickle|dill|cloudpickle|joblib|marshal)\b(?! import UnpicklingError)",
    r"(?<![\w.\"'`])(eval|exec|__import__)\(",
    r"yaml\.(load|full_load|unsafe_load)(_all)?\((?![^()]*SafeLoader)",
    r"torch\.load\((?![^()]*weights_only=True)",
    r"allow_pickle=True|shell=True|\.extract(all)?\(|os\.(system|popen)\(",
)
ALLOWED = {"cli/parse.py"}
"""Runs signatures of the package's own functions, read from its own source."""


def test_the_source_runs_nothing_that_a_file_says() -> None:
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for pattern in FORBIDDEN
        if re.search(pattern, path.read_text("utf-8"), re.MULTILINE)
    }
    assert found <= ALLOWED


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
