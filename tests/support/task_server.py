"""Run tasks without importing them each time: a process that has imported them forks one for each task.

A forked process has a session, environment, directory and output of its own, and ends as a program does. Only
what an interpreter reads when it starts, such as ``PYTHON*`` variables, is that of the server.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import buildkit_tasks

_ROOT = Path(__file__).parent.parent.parent
_STARTUP_VARIABLES = ("LANG", "LC_", "LD_", "PYTHON")
_HEAVY_MODULES = ("docker", "filelock", "invoke.program", "isal.igzip", "msgspec", "requests")
_MAX_FDS = 4


@dataclass(frozen=True, kw_only=True)
class CompletedCommand:
    """The result of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """Return the JSON document on standard output."""
        return json.loads(self.stdout)


class TaskServer:
    """The client of a server process, which is started at the first task and ends with this process."""

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self, argv: Sequence[str], folder: Path, env: Mapping[str, str], timeout: float
    ) -> CompletedCommand:
        """Run ``buildkit-tasks ARGV`` in a directory and wait for its end.

        Raise :class:`TimeoutError` after ``timeout`` seconds.
        """
        with contextlib.ExitStack() as stack:
            request, stdout, stderr = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            reply, server_end = map(stack.enter_context, socket.socketpair())
            document = {"argv": list(argv), "folder": os.fspath(folder), "env": dict(env)}
            request.write(json.dumps(document).encode())
            request.seek(0)
            files = (request, stdout, stderr, server_end)
            socket.send_fds(self._connect(), [b"\0"], [each.fileno() for each in files])
            server_end.close()
            reply.settimeout(timeout)
            code = _wait_for_end(stack.enter_context(reply.makefile("rb")))
            output, error_output = map(_read_from_start, (stdout, stderr))
        return CompletedCommand(code=code, stdout=output, stderr=error_output)

    def close(self) -> None:
        """End the server."""
        if self._channel is not None and self._process is not None:
            self._channel.close()
            self._process.wait()

    def _connect(self) -> socket.socket:
        if self._channel is None:
            self._channel, server_end = socket.socketpair()
            # Background jobs of a shell ignore SIGINT, and their children inherit that.
            argv = ["/usr/bin/env", "--default-signal=INT", sys.executable, "-m", __name__]
            with server_end:
                self._process = subprocess.Popen(
                    [*argv, str(server_end.fileno())],
                    cwd=_ROOT,
                    pass_fds=[server_end.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        return self._channel


def needs_new_interpreter(env: Mapping[str, str]) -> bool:
    """Return whether a variable has an effect only when an interpreter starts."""
    return any(name.startswith(_STARTUP_VARIABLES) for name in env)


def _wait_for_end(reply: BinaryIO) -> int:
    """Return the exit status; end the task if that cannot be waited for."""
    pid = int(reply.readline())
    try:
        return int(reply.readline())
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)
        raise


def _read_from_start(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()


# In the server


def main() -> None:
    """Fork for each request until the client closes the channel."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    _import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forked processes are not waited for
    while True:
        _, fds, _, _ = socket.recv_fds(channel, 1, _MAX_FDS)
        if not fds:
            return
        if os.fork() == 0:
            channel.close()
            _fork_task(*fds)
            break
        for fd in fds:
            os.close(fd)
    # Only the process of a task comes here, and ends as ``python -m buildkit_tasks`` does.
    from buildkit_tasks import __main__ as program

    sys.modules["__main__"] = program
    program.main()


def _import_all() -> None:
    for name in _HEAVY_MODULES:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(buildkit_tasks.__path__, "buildkit_tasks."):
        if not module.name.endswith(("__main__", "_main", "pytest_plugin", "nox_sessions")):
            importlib.import_module(module.name)
    gc.freeze()


def _fork_task(request: int, stdout: int, stderr: int, reply: int) -> None:
    """Return in a new process with the request's arguments; this process reports its PID and status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        for fd in (request, stdout, stderr):
            os.close(fd)
        os.write(reply, b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(reply, b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    os.close(reply)
    os.setsid()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    with os.fdopen(request, "rb") as file:
        document = json.load(file)
    for fd in (stdout, stderr):
        os.close(fd)
    os.environ.clear()
    os.environ.update(document["env"])
    os.chdir(document["folder"])
    sys.path[0] = document["folder"]
    sys.argv = [str(Path(buildkit_tasks.__file__).with_name("__main__.py")), *document["argv"]]


if __name__ == "__main__":
    main()
