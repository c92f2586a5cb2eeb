"""What ``import medduet`` promises."""

import inspect
import subprocess
import sys

import pytest

import medduet


def test_all_is_what_can_be_imported() -> None:
    assert len(set(medduet.__all__)) == len(medduet.__all__)
    for name in medduet.__all__:
        assert getattr(medduet, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = medduet.nothing


def test_every_public_name_is_explained() -> None:
    for name in medduet.__all__:
        value = getattr(medduet, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            lines = (value.__doc__ or "").strip().splitlines()
            assert lines, f"{name} has no docstring"
            generated = f"{name}("  # what NamedTuple and dataclass write by themselves
            assert not lines[0].startswith(generated), f"{name} has no docstring of its own"
            for method, function in vars(value).items() if inspect.isclass(value) else ():
                if inspect.isfunction(function) and not method.startswith("_"):
                    assert function.__doc__, f"{name}.{method} has no docstring"


def test_importing_and_helping_load_no_torch() -> None:
    code = """
import sys
import medduet
assert not {"torch", "numpy", "pydantic"} & set(sys.modules), "import medduet"
from medduet.cli import main
assert main(["--help"]) == 0
assert main(["--version"]) == 0
try:
    main(["train", "auto", "--help"])
except SystemExit as stop:
    assert not stop.code
heavy = {"torch", "lightning", "monai", "kornia", "timm", "medmnist", "matplotlib", "scipy"}
print("loaded:", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage: medduet COMMAND" in done.stdout
    assert f"medduet {medduet.__version__}\n" in done.stdout
    assert "--batch-size" in done.stdout
    assert done.stdout.endswith("loaded: []\n")


def test_errors_are_also_the_builtin_kind() -> None:
    kinds = {
        medduet.ConfigError: ValueError,
        medduet.DataError: ValueError,
        medduet.DownloadError: OSError,
        medduet.MissingFileError: FileNotFoundError,
        medduet.ModelError: ValueError,
        medduet.StorageError: OSError,
        medduet.TrainingError: RuntimeError,
    }
    for error, builtin in kinds.items():
        assert issubclass(error, medduet.MedDuetError)
        assert issubclass(error, builtin)
    assert {error.__name__ for error in kinds} == {
        name for name in medduet.__all__ if name.endswith("Error") and name != "MedDuetError"
    }
