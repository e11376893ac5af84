"""Start a supervisor, register emulators with it and run guests: the client of ``supervisor_main.py``.

The wire protocol is described there.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from buildkit_tasks.errors import EmulatorError
from buildkit_tasks.host.emulation.binfmt import format_registration
from buildkit_tasks.run.sandbox.cgroups import find_cgroup_parents, remove_stale_cgroups
from buildkit_tasks.run.sandbox.seccomp import build_filter, native_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from buildkit_tasks.platforms import Machine

__all__ = [
    "DEFAULT_LIMITS",
    "ID_OFFSET",
    "GuestExit",
    "KernelRefusal",
    "ResourceLimits",
    "SandboxRun",
    "Supervisor",
    "id_offset",
]

ID_OFFSET = 0x3A000000
"""The first of 65,536 host ids for guests that root runs; the host id of a guest's root.

It is in the range that systemd reserves for containers (systemd.io/UIDS-GIDS).
"""
_ID_COUNT = 1 << 16
_SUPERVISOR_MAIN = Path(__file__).with_name("supervisor_main.py")
_START_TIMEOUT = 10.0  # seconds
_END_TIMEOUT = 5.0
_MAX_MESSAGE = 1 << 16
_CHUNK_SIZE = 1 << 16
_PROCESS_SLACK = 2  # how many more a control group allows than init, which says what it has killed for


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimits:
    """Limits of a guest and its children together. Sizes are in bytes; ``output`` is per stream."""

    memory: int = 1 << 30
    processes: int = 256
    output: int = 1 << 20
    tmp: int = 64 << 20


DEFAULT_LIMITS = ResourceLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRun:
    """The program to start: the first of ``candidates`` that can be executed, with ``argv``.

    ``root`` is the directory that becomes its ``/``; ``processors`` are those that it may use, empty for all.
    """

    root: Path
    candidates: tuple[str, ...]
    argv: tuple[str, ...]
    env: Mapping[str, str]
    working_dir: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    processors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestExit:
    """How a guest ended; ``exit_code`` is 128 plus the number for a signal, as in a shell.

    ``limit_exceeded`` says which limit it exceeded, and is empty for none.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    seconds: float
    limit_exceeded: str = ""
    timed_out: bool = False


class KernelRefusal(Exception):
    """The kernel did not allow ``stage``; ``errno`` is its error number, 0 if unknown."""

    def __init__(self, stage: str, error_number: int) -> None:
        super().__init__(f"could not {stage}" + (f": {os.strerror(error_number)}" if error_number else ""))
        self.stage = stage
        self.errno = error_number


def id_offset(uid: int, proc_self: Path = Path("/proc/self")) -> int | None:
    """Return the host id of a guest's id 0; None if guests have to share the user's only id.

    That is so for an ordinary user, and for root in a user namespace without these ids (rootless container).
    """
    has_ids = uid == 0 and all(
        _has_id_range((proc_self / name).read_text(encoding="ascii")) for name in ("uid_map", "gid_map")
    )
    return ID_OFFSET if has_ids else None


def _has_id_range(id_map: str) -> bool:
    """Return True if a uid_map or gid_map (user_namespaces(7)) contains all ids for guests."""
    rows = (map(int, line.split()) for line in id_map.splitlines())
    return any(first <= ID_OFFSET and first + count >= ID_OFFSET + _ID_COUNT for first, _, count in rows)


class Supervisor:
    """A supervisor process: a user namespace with its own binfmt_misc table, and the guests in it.

    Raises :class:`KernelRefusal` if the kernel does not allow this user to create one.
    """

    def __init__(self) -> None:
        self._channel, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._id_offset = id_offset(os.geteuid())
        argv = [sys.executable, "-I", "-S", "-B", str(_SUPERVISOR_MAIN), str(child_end.fileno())]
        with child_end:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                pass_fds=[child_end.fileno()],
                env={"LC_ALL": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        self._cgroup_parents = find_cgroup_parents()
        remove_stale_cgroups(self._cgroup_parents)
        self._channel.settimeout(_START_TIMEOUT)
        try:
            self._receive_reply()
            self._map_ids()
            self._channel.send(b"mapped")
            self._receive_reply()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the supervisor and its guests."""
        self._channel.close()
        try:
            self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def register(self, machine: Machine, emulator_path: Path) -> None:
        """Register an emulator for a machine. Raises :class:`EmulatorError` if the kernel refuses it."""
        with emulator_path.open("rb") as file:
            self._send_message({"handler": format_registration(machine, "@")}, [file.fileno()])
            try:
                self._receive_reply()
            except KernelRefusal as refusal:
                raise EmulatorError(
                    f"the kernel refuses {emulator_path}: {refusal}", platform=f"linux/{machine.architecture}"
                ) from refusal

    def run(self, guest: SandboxRun, timeout: float, limits: ResourceLimits = DEFAULT_LIMITS) -> GuestExit:
        """Run a guest; kill it with its children after ``timeout`` seconds or if it exceeds a limit.

        Several threads may call this at once. Raises :class:`KernelRefusal` if the guest cannot be started.
        """
        with contextlib.ExitStack() as stack:
            control, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(control)
            stdout, stderr = _Pipe(stack), _Pipe(stack)
            spec_fd = os.memfd_create("guest")  # type: ignore[attr-defined,unused-ignore]  # Linux only
            try:
                os.write(spec_fd, json.dumps(self._build_spec(guest, limits)).encode())
                os.lseek(spec_fd, 0, os.SEEK_SET)
                fds = [spec_fd, stdout.write_fd, stderr.write_fd, child_end.fileno()]
                self._send_message({"run": True}, fds)
            finally:
                os.close(spec_fd)
                child_end.close()
                stdout.close_write_end()
                stderr.close_write_end()
            return _collect_output(control, (stdout, stderr), timeout, limits)

    def _build_spec(self, guest: SandboxRun, limits: ResourceLimits) -> dict[str, Any]:
        return {
            "root": str(guest.root),
            "candidates": guest.candidates,
            "argv": guest.argv,
            "env": dict(guest.env),
            "working_dir": guest.working_dir,
            "uid": guest.uid,
            "gid": guest.gid,
            "groups": guest.groups,
            "cpus": guest.processors,
            "memory": limits.memory,
            "processes": limits.processes,
            "tmp": limits.tmp,
            "cgroups": [
                parent.describe_group(memory=limits.memory, processes=_PROCESS_SLACK * limits.processes)
                for parent in self._cgroup_parents
            ],
            "filter": build_filter().hex(),
            "keyctl": native_number("keyctl"),
            **self._build_id_map(guest),
        }

    def _build_id_map(self, guest: SandboxRun) -> dict[str, Any]:
        """Map all ids into the guest's user namespace, or only its own if the user has no more."""
        if self._id_offset is not None:
            return {"is_single_id": False, "id_maps": {"uid": f"0 0 {_ID_COUNT}", "gid": f"0 0 {_ID_COUNT}"}}
        return {"is_single_id": True, "id_maps": {"uid": f"{guest.uid} 0 1", "gid": f"{guest.gid} 0 1"}}

    def _map_ids(self) -> None:
        """Write the supervisor's id maps. Root's own id is mapped last, so that root's files can be read."""
        proc_path = Path(f"/proc/{self._process.pid}")
        if self._id_offset is not None:
            lines = f"0 {self._id_offset} {_ID_COUNT}\n{_ID_COUNT} 0 1"
            maps = {"gid_map": lines, "uid_map": lines}
        else:
            maps = {"setgroups": "deny", "gid_map": f"0 {os.getegid()} 1", "uid_map": f"0 {os.geteuid()} 1"}
        for name, text in maps.items():
            try:
                (proc_path / name).write_text(text, encoding="ascii")
            except OSError as error:
                raise KernelRefusal(f"write {name}", error.errno or 0) from error

    def _send_message(self, message: Mapping[str, object], fds: Sequence[int]) -> None:
        socket.send_fds(self._channel, [json.dumps(message).encode()], fds)

    def _receive_reply(self) -> None:
        data = self._channel.recv(_MAX_MESSAGE)
        message = json.loads(data or b"{}")
        if not data or "refused" in message:
            raise KernelRefusal(message.get("refused", "start the sandbox"), message.get("errno", 0))


class _Pipe:
    """One of a guest's output streams and what was read from it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.read_fd, self.write_fd = os.pipe()
        stack.callback(os.close, self.read_fd)
        self.data = bytearray()

    def close_write_end(self) -> None:
        os.close(self.write_fd)

    def read_chunk(self) -> bool:
        """Read what is available. Return False at the end."""
        chunk = os.read(self.read_fd, _CHUNK_SIZE)
        self.data += chunk
        return bool(chunk)


def _collect_output(
    control: socket.socket, pipes: tuple[_Pipe, _Pipe], timeout: float, limits: ResourceLimits
) -> GuestExit:
    """Collect a guest's output until it has ended, exceeds its output limit or runs out of time."""
    started = time.monotonic()
    deadline = started + timeout
    message: dict[str, Any] = {}
    limit_exceeded, timed_out = "", False
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        for pipe in pipes:
            selector.register(pipe.read_fd, selectors.EVENT_READ, pipe)
        while selector.get_map():
            ready = selector.select(max(deadline - time.monotonic(), 0.0))
            if time.monotonic() >= deadline:  # also of a guest that never stops writing
                timed_out = True
                break
            for key, _ in ready:
                if key.data is None:
                    message = json.loads(control.recv(_MAX_MESSAGE) or b"{}")
                    selector.unregister(control)
                elif not key.data.read_chunk():
                    selector.unregister(key.fd)
                elif len(key.data.data) > limits.output:
                    limit_exceeded = f"more than {limits.output >> 10} KiB of output"
            if limit_exceeded:
                break
    stdout, stderr = (bytes(pipe.data[: limits.output]) for pipe in pipes)
    # A guest's init that was killed, by us or for its memory, has not said how long it ran.
    message.setdefault("seconds", timeout if timed_out else time.monotonic() - started)
    return _parse_exit(message, stdout, stderr, limit_exceeded, timed_out=timed_out)


def _parse_exit(
    message: dict[str, Any], stdout: bytes, stderr: bytes, limit_exceeded: str, *, timed_out: bool
) -> GuestExit:
    if "refused" in message:
        raise KernelRefusal(message["refused"], message["errno"])
    killed_status = 128 + 9
    return GuestExit(
        exit_code=128 + message["signal"] if "signal" in message else message.get("exit", killed_status),
        stdout=stdout,
        stderr=stderr,
        seconds=round(message["seconds"], 3),
        limit_exceeded=limit_exceeded or message.get("limit", ""),
        timed_out=timed_out,
    )
