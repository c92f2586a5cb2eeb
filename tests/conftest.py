"""What all tests share."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from filelock import FileLock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medduet import RunConfig, RunRecord

# Two test processes share two cores; torch's own threads would only wait for each other. Set
# before torch is imported, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow",
        choices=("none", "fifth", "all"),
        default="fifth",
        help="which tests marked slow run: another fifth with each commit (default), none, or all",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the slow tests of this commit."""
    choice = config.getoption("--slow")
    if choice == "fifth" and any("::" in word for word in config.args):
        choice = "all"  # somebody named the test
    turn = _commits() % 5
    skipped = []
    for item in items:
        slow = item.get_closest_marker("slow") is not None
        if slow and (choice == "none" or (choice == "fifth" and _hash(item) % 5 != turn)):
            skipped.append(item)
    if skipped:
        config.hook.pytest_deselected(items=skipped)
        items[:] = [item for item in items if item not in set(skipped)]


def _hash(item: pytest.Item) -> int:
    return zlib.crc32(item.nodeid.encode())


def _commits() -> int:
    words = ["git", "-C", str(HERE), "rev-list", "--count", "HEAD"]
    with contextlib.suppress(OSError):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return int(done.stdout) if done.returncode == 0 else 0
    return 0


def _of_all_processes(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all processes of this session of pytest share."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the fork server, if there is one."""
    if "PYTEST_XDIST_WORKER" not in os.environ and hasattr(session.config, "_tmp_path_factory"):
        note = session.config._tmp_path_factory.getbasetemp() / "forkserver.pid"
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(note.read_text()), signal.SIGTERM)


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The first words of a process that starts within 0.1 s, see `tests/forkserver.py`."""
    folder = _of_all_processes(tmp_path_factory)
    script, path = str(HERE / "forkserver.py"), folder / "forkserver"
    with FileLock(folder / "forkserver.lock"):
        if not (folder / "forkserver.pid").exists():
            environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
            words = [sys.executable, script, "serve", str(path)]
            process = os.posix_spawn(sys.executable, words, environment)
            (folder / "forkserver.pid").write_text(str(process))
            while not path.exists():
                assert os.waitpid(process, os.WNOHANG) == (0, 0), "the fork server ended"
                time.sleep(0.05)
    return [sys.executable, "-I", "-S", script, str(path)]


@pytest.fixture(scope="session")
def medduet_command(fork_server: list[str]) -> list[str]:
    """The first words of `medduet` as a process: ``[*medduet_command, "train", "auto"]``."""
    return [*fork_server, "medduet"]


@pytest.fixture(scope="session")
def python_command(fork_server: list[str]) -> list[str]:
    """What starts Python with torch already there: ``[*python_command, "-c", code]``."""
    return [*fork_server, "python"]


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tests out of the user's cache."""
    os.environ["MEDDUET_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images; a test that wants it is skipped where it is missing."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEDDUET_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}")
    return folder


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    """Settings of a run of about a second: small phantoms, all three tasks, a network of width 2.

    Each section is changed by keyword: ``make_config(out, train={"epochs": 1})``.
    """
    from medduet.config import RunConfig, validate

    def make(out: Path, **changes: dict[str, Any]) -> RunConfig:
        sections: dict[str, dict[str, Any]] = {
            "data": {"name": "phantom", "size": 16, "count": 40},
            "model": {"width": 2},
            "objective": {"tasks": ["classify", "segment", "reconstruct"]},
            "train": {
                "epochs": 2,
                "batch_size": 8,
                "learning_rate": 1e-3,
                "precision": "32-true",  # and not what this machine is best at
            },
            "evaluate": {},
        }
        values = {name: section | changes.pop(name, {}) for name, section in sections.items()}
        assert not changes, f"no such section: {list(changes)}"
        return validate(RunConfig, values | {"out": out}, "a test")

    return make


@pytest.fixture(scope="session")
def finished_run(
    make_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> RunRecord:
    """A run of the paper's protocol with all three tasks; look, don't touch."""
    import medduet

    folder = _of_all_processes(tmp_path_factory)
    out = folder / "finished-run"
    # At this rate the best epochs of validation and test differ.
    train = {"epochs": 4, "augment": "flip", "learning_rate": 0.02}
    config = make_config(out, train=train, evaluate={"protocol": "paper"})
    with FileLock(folder / "finished-run.lock"):
        if not (folder / "finished-run.done").exists():
            medduet.train(config)
            (folder / "finished-run.done").touch()
    metrics = json.loads((out / "metrics.json").read_text())
    return medduet.RunRecord(out, config.model_copy(update={"out": out}), metrics)


def patterns(n: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return coarse patterns ``(N, 1, H, W)``, each with another share of bright pixels."""
    rng = np.random.default_rng(0)
    coarse = rng.random((n, 1, 13, 13)) ** (3 * rng.random((n, 1, 1, 1)) + 0.2)
    pixels = coarse.repeat(8, axis=2).repeat(8, axis=3)[..., :height, :width]
    return (255 * pixels).astype(np.uint8)


def write_bundle(
    folder: Path,
    name: str = "vovunet_var",
    *,
    classes: int = 3,
    layout: tuple[int, int] = (2, 0),
    size: tuple[int, int] = (32, 32),
    fit: str = "pad",
    **config: Any,
) -> Path:
    """Write a network that has learnt what is bright: which image, and which pixels."""
    import torch
    from torch.nn import functional as F

    import medduet
    from medduet.runs.bundle import save_bundle

    torch.manual_seed(0)
    own = medduet.DenseLayout(*layout)
    options = {} if ":" in name else {"width": 4}
    network = medduet.create_model(
        name, in_channels=1, num_classes=classes, dense_channels=own.channels, **options
    )
    pixels = torch.from_numpy(patterns(32, *size))
    bright = (pixels > 127).float()
    label = ((classes - 0.01) * bright.mean(dim=(1, 2, 3))).long()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(30):
        class_logits, dense = network(pixels)
        loss = F.cross_entropy(class_logits, label) if classes else 0
        if dense is not None:
            loss = loss + F.binary_cross_entropy_with_logits(dense[:, :1], bright)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fields = {
        "class_names": [f"class {number}" for number in range(classes)],
        "mask_names": ["background", "lesion", "cyst", "vessel"][: own.mask_classes],
        "layout": own._asdict(),
        "preprocessing": {"size": list(size), "channels": 1, "fit": fit, "window": None},
    }
    save_bundle(folder, network.eval(), fields | config)
    return folder


def write_series(folder: Path, volume: np.ndarray, **changes: Any) -> list[Path]:
    """Write a slice per file, whose names say nothing of their order."""
    pydicom = pytest.importorskip("pydicom")
    folder.mkdir(parents=True)
    paths = []
    names = np.random.default_rng(0).permutation(len(volume))
    for number, values in enumerate(volume):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = "1.2", "1.2.3", "CT"
        data.Rows, data.Columns = values.shape
        data.PixelSpacing, data.ImageOrientationPatient = [0.5, 0.5], [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [-7, 3, 11 + 3 * number]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.PixelData = values.astype("<i2").tobytes()
        data.FrameOfReferenceUID, data.PatientID, data.InstanceNumber = "1.9", "x", number + 1
        for name, change in changes.items():
            setattr(data, name, change(number))
        data.save_as(path := folder / f"{names[number]}.dcm", enforce_file_format=True)
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def save_series() -> Callable[..., list[Path]]:
    """Return `write_series`."""
    return write_series


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Path]:
    """A function that writes a small network whose predictions differ from image to image."""
    return write_bundle


@pytest.fixture(scope="session")
def images() -> Callable[[int, int, int], NDArray[np.uint8]]:
    return patterns


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three classes and a lesion; look, don't touch."""
    return write_bundle(tmp_path_factory.mktemp("network") / "bundle")


class FolderServer(http.server.ThreadingHTTPServer):
    """Serves a folder on loopback, keeps what was asked for, and fails when told to.

    Attributes:
        asked: the name of each file that was asked for, in order.
        failures: how the next requests are answered: with a status, or a file that is cut, wrong
            (all zeros), or comes too late.
        dead: whether every request is answered with 503.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()
        self.failures, self.dead = list[int | str](), False
        super().__init__(("127.0.0.1", 0), _FolderHandler)

    @property
    def address(self) -> str:
        """The URL of the folder."""
        return f"http://127.0.0.1:{self.server_port}"


class _FolderHandler(http.server.SimpleHTTPRequestHandler):
    server: FolderServer

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=str(arguments[2].folder))

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.path.lstrip("/"))
        self.failure = 503 if server.dead else server.failures.pop(0) if server.failures else 200
        if isinstance(self.failure, int) and self.failure != 200:
            self.send_error(self.failure)
        else:
            super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        content = source.read()
        if self.failure == "late":
            time.sleep(2)
        if self.failure == "wrong":
            content = bytes(len(content))
        outputfile.write(content[: len(content) // 2] if self.failure == "cut" else content)

    def log_message(self, *arguments: Any) -> None: ...


@contextlib.contextmanager
def _running(server: http.server.HTTPServer) -> Iterator[None]:
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield
        server.shutdown()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], FolderServer]]:
    """A function that serves a folder on loopback until the test is over."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path) -> FolderServer:
            server = FolderServer(folder)
            stack.enter_context(_running(server))
            return server

        yield start


class HubServer(http.server.ThreadingHTTPServer):
    """Speaks as much of the Hugging Face hub as reading and writing models takes; on loopback.

    The token ``writer`` may write and see all, ``reader`` may see all.

    Attributes:
        root: of the repositories, one folder ``OWNER/NAME`` each.
        private: the names of those that only a token may see.
        asked: method and path of each request, in order.
        agents: what the callers say they are.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "hub"
        self.root.mkdir()
        self.private, self.asked, self.agents = set[str](), list[str](), set[str]()
        self.uploads = dict[str, bytes]()
        super().__init__(("127.0.0.1", 0), _HubHandler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str) -> str:
        """Return the only commit of a repository, which its files make."""
        files = sorted((self.root / name).iterdir())
        content = b"".join(file.name.encode() + file.read_bytes() for file in files)
        return hashlib.sha1(content).hexdigest()

    def run(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python that takes this for the hub, whose address is read on import."""
        own = {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",  # another protocol, with another server
            "MEDDUET_CACHE": str(self.folder / "cache"),
        }
        cleared = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        return subprocess.run(
            [sys.executable, "-c", code],
            env=cleared | own | environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            cwd=self.folder,
        )


class _HubHandler(http.server.BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self.answer()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815

    def answer(self) -> None:
        hub, path = self.server, unquote(self.path.partition("?")[0])
        hub.asked.append(f"{self.command} {path}")
        hub.agents.add(self.headers.get("User-Agent", ""))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match path.strip("/").split("/"):
            case ["upload", oid]:
                hub.uploads[oid] = self.body
                self.send(200)
            case ["api", "validate-yaml"]:
                content = json.loads(self.body)["content"]
                good = isinstance(yaml.safe_load(content.split("\n---\n")[0].strip("-")), dict)
                self.send(200 if good else 400, {"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self.create(json.loads(self.body))
            case ["api", "models", owner, name, *rest]:
                if self.may_see(f"{owner}/{name}"):
                    self.model(f"{owner}/{name}", rest)
            case [owner, git, "info", "lfs", "objects", "batch"] if git.endswith(".git"):
                self.send(
                    200, {"objects": [self.place(x) for x in json.loads(self.body)["objects"]]}
                )
            case [owner, name, "resolve", revision, file]:
                if self.may_see(f"{owner}/{name}"):
                    self.resolve(f"{owner}/{name}", revision, file)
            case _:
                self.send(404)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self) -> bool:
        if self.token != "writer":
            self.send(403 if self.token else 401, {"error": "no permission to write"})
        return self.token == "writer"

    def may_see(self, name: str) -> bool:
        seen = (self.server.root / name).is_dir()
        seen = seen and (name not in self.server.private or bool(self.token))
        if not seen:  # as there: not even whether there is such a repository
            self.send(
                404 if self.token else 401, {"error": "no"}, **{"X-Error-Code": "RepoNotFound"}
            )
        return seen

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if not self.may_write():
            return
        if (self.server.root / name).is_dir():
            self.send(409, {"error": "there already", "url": f"{self.server.address}/{name}"})
            return
        (self.server.root / name).mkdir(parents=True)
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        self.send(200, {"url": f"{self.server.address}/{name}", "name": name})

    def model(self, name: str, rest: list[str]) -> None:
        folder, commit = self.server.root / name, self.server.commit(name)
        about = {"id": name, "modelId": name, "sha": commit, "siblings": [], "tags": []}
        match rest:
            case [] | ["revision", _]:
                if rest and rest[1] not in ("main", "v1", commit):
                    self.send(404, {"error": "no"}, **{"X-Error-Code": "RevisionNotFound"})
                else:
                    self.send(200, about | {"private": name in self.server.private, "downloads": 0})
            case ["tree", _]:
                files = [file for file in folder.iterdir() if file.is_file()]
                row = {"type": "file", "oid": "0" * 40}
                self.send(200, [row | {"path": x.name, "size": x.stat().st_size} for x in files])
            case ["preupload", _] if self.may_write():
                files = json.loads(self.body)["files"]
                for file in files:
                    large = file["path"].endswith(".safetensors")
                    file |= {"shouldIgnore": False, "uploadMode": "lfs" if large else "regular"}
                self.send(200, {"files": files})
            case ["commit", _] if self.may_write():
                for line in self.body.splitlines():
                    step = json.loads(line)
                    value = step["value"]
                    if step["key"] == "file":
                        (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
                    elif step["key"] == "lfsFile":
                        (folder / value["path"]).write_bytes(self.server.uploads[value["oid"]])
                commit = self.server.commit(name)
                url = f"{self.server.address}/{name}/commit/{commit}"
                self.send(200, {"commitUrl": url, "commitOid": commit})

    def place(self, asked: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.server.address}/upload/{asked['oid']}"
        return asked | {"actions": {"upload": {"href": href, "header": {}}}}

    def resolve(self, name: str, revision: str, file: str) -> None:
        path, commit = self.server.root / name / file, self.server.commit(name)
        if revision not in ("main", "v1", commit):
            self.send(404, **{"X-Error-Code": "RevisionNotFound"})
        elif not path.is_file():
            self.send(404, **{"X-Error-Code": "EntryNotFound"})
        else:
            content = path.read_bytes()
            tag = hashlib.sha256(content).hexdigest()
            self.send(200, content, **{"ETag": f'"{tag}"', "X-Repo-Commit": commit})

    def send(self, status: int, content: Any = b"", **headers: str) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A Hugging Face hub on loopback, until the test is over."""
    server = HubServer(tmp_path)
    with _running(server):
        yield server
