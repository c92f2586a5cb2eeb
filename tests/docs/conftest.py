"""The built site, once for all tests of this folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages; a warning of the build is an error."""
    for needed in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(needed, reason="the documentation needs pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    words = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(out / "trees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words, str(ROOT / "docs"), str(out / "html")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=os.environ | {"FORCE_COLOR": "1"},  # which the help of commands must not heed
    )
    assert done.returncode == 0, done.stderr
    return out / "html"
