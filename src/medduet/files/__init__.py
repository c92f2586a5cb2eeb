"""Files: written whole, read within bounds, locked."""

from medduet.files.atomic import (
    atomic_folder,
    atomic_path,
    finite,
    storage_faults_told,
    sweep,
    sweep_beside,
    sync,
    write_json,
    write_text,
)
from medduet.files.locks import exclusive, holder, is_held
from medduet.files.parsing import (
    MOST_JSON,
    as_text,
    csv_rows,
    misread,
    parse_json,
    read_json,
    read_object,
    read_objects,
    read_text,
    sha256,
)

__all__ = [
    "MOST_JSON",
    "as_text",
    "atomic_folder",
    "atomic_path",
    "csv_rows",
    "exclusive",
    "finite",
    "holder",
    "is_held",
    "misread",
    "parse_json",
    "read_json",
    "read_object",
    "read_objects",
    "read_text",
    "sha256",
    "storage_faults_told",
    "sweep",
    "sweep_beside",
    "sync",
    "write_json",
    "write_text",
]
