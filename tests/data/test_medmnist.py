from __future__ import annotations

import subprocess
import sys

from medduet.data.medmnist import medmnist_sets


def test_the_index_is_read_without_importing_the_package() -> None:
    code = (
        "import sys\nfrom medduet.data.medmnist import medmnist_sets\nmedmnist_sets()\n"
        "assert 'medmnist' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    info = medmnist_sets()["bloodmnist"]
    assert len(medmnist_sets()) == 12
    assert not any(flag.endswith("3d") for flag in medmnist_sets())
    assert info.samples == (11_959, 1_712, 3_421)
    assert info.class_names[:2] == ("basophil", "eosinophil")
    assert (info.in_channels, info.task, info.licence) == (3, "multi-class", "CC BY 4.0")
    assert list(info.files) == [28, 64, 128, 224]
    assert info.files[28].md5 == "7053d0359d879ad8a5505303e11de1dc"
    assert info.files[64].name == "bloodmnist_64.npz"
