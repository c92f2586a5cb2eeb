"""Commands and Python code in processes that start in 0.05 s instead of 10 CPU seconds.

A server imports torch and what the commands need once, and forks for each request. A client
(``python -I -S forkserver.py SOCKET medduet WORDS`` or ``... python -c CODE ARGUMENTS``) hands its
working folder, environment and standard streams to the fork and ends as it ends; signals reach the
fork, and so does the client's death. To a test it is a process like any other.
"""

import array
import contextlib
import json
import os
import signal
import socket
import sys
from typing import Any

PRELOAD = (
    "torch",
    "torchvision",
    "lightning.fabric",
    "timm",
    "segmentation_models_pytorch",
    "monai.losses",
    "kornia.augmentation",
    "sklearn.metrics",
    "statsmodels.stats.proportion",
    "matplotlib.figure",
    "pandas",
    "medduet.cli",
    "medduet.experiments.run",
)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def serve(path: str) -> None:
    """Fork for each client of the socket at `path`, until this process is ended."""
    import gc
    import importlib
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOAD:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    server = socket.socket(socket.AF_UNIX)
    server.bind(path + ".new")
    server.listen(64)
    os.rename(path + ".new", path)  # noqa: PTH104  (there when it answers)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            _handle(connection)
            os._exit(0)
        connection.close()


def _handle(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    fds = array.array("i")
    content, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(3 * fds.itemsize))
    for _, _, data in ancillary:
        fds.frombytes(data)
    while not content.endswith(b"\n"):
        content += connection.recv(1 << 20)
    process = os.fork()
    if process == 0:
        connection.close()
        _become(json.loads(content), list(fds))
    for fd in fds:
        os.close(fd)
    watcher = os.fork()
    if watcher == 0:  # the client's signals, and its death
        while word := connection.recv(1):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, word[0])
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    os.kill(watcher, signal.SIGKILL)
    with contextlib.suppress(OSError):
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))


def _become(request: dict[str, Any], fds: list[int]) -> None:
    """Be the process that the client asked for; does not return."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    kind, *words = request["words"]
    code = 1
    try:
        if kind == "medduet":
            from medduet.cli import main

            sys.argv = ["medduet", *words]
            code = main()
        else:
            is_code = words[0] == "-c"
            sys.path[0] = "" if is_code else os.path.dirname(os.path.abspath(words[0]))  # noqa: PTH100, PTH120
            sys.argv = ["-c", *words[2:]] if is_code else words
            text = words[1] if is_code else open(words[0]).read()  # noqa: PTH123, SIM115
            exec(compile(text, sys.argv[0], "exec"), {"__name__": "__main__"})
            code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
            sys.stderr.flush()
    _run_exit_functions()
    os._exit(code or 0)


def _run_exit_functions() -> None:
    import atexit
    import threading

    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


def ask(path: str, words: list[str]) -> int:
    """Let the server run `words`; return the exit code, or die of the signal that it died of."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    request = {"cwd": os.getcwd(), "environment": dict(os.environ), "words": words}  # noqa: PTH109
    streams = array.array("i", [0, 1, 2])
    content = json.dumps(request).encode() + b"\n"
    first = connection.sendmsg(
        [content], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams.tobytes())]
    )
    connection.sendall(content[first:])
    for number in FORWARDED:
        signal.signal(number, lambda received, _: connection.sendall(bytes([received])))
    answer = b""
    while len(answer) < 4:
        part = connection.recv(4 - len(answer))
        if not part:
            return 1
        answer += part
    code = int.from_bytes(answer, "big", signed=True)
    if code < 0:
        if -code != signal.SIGKILL:  # which has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
