"""Every block of the documentation that is marked as runnable runs, page by page."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Three marks: <!-- run -->; <!-- run with the block within the comment, which is not shown; and
# <!-- save FILE -->, whose block the reader is asked to save.
BLOCK = re.compile(
    r"^<!-- (?:run|save (\S+))(?: -->)?\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = [path for path in PAGES if BLOCK.search(path.read_text())]


@pytest.mark.slow
@pytest.mark.timeout(600)  # a page may take a minute, more on a busy machine
@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_the_page_says_to_type_works(
    path: Path, tmp_path: Path, medduet_command: list[str], python_command: list[str]
) -> None:
    home, work, programs = tmp_path / "home", tmp_path / "work", tmp_path / "programs"
    home.mkdir(), work.mkdir(), programs.mkdir()
    (programs / "medduet").write_text(f'#!/bin/sh\nexec {shlex.join(medduet_command)} "$@"\n')
    (programs / "medduet").chmod(0o755)
    own = {
        "HOME": str(home),
        "MEDDUET_CACHE": str(tmp_path / "cache"),
        "PATH": os.pathsep.join(
            [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        "CUDA_VISIBLE_DEVICES": "",
    }
    for number, (file, language, code) in enumerate(BLOCK.findall(path.read_text()), start=1):
        if file:
            (work / file).write_text(code)
            continue
        words = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [*python_command, "-c"]
        done = subprocess.run(
            [*words, code],
            cwd=work,
            env=os.environ | own,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        said = f"block {number} of {path.name}:\n{code}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, said
        print(said)
