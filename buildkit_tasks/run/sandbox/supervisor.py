"""Start the warden, give it emulators, and have it run guests: the outer side of ``supervisor_main.py``."""

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
from buildkit_tasks.host.emulation.binfmt import handler_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from buildkit_tasks.platforms import Machine

__all__ = ["CONFINED", "SHIFT", "Confines", "Ended", "Guest", "Refused", "Warden", "shift_of"]

SHIFT = 0x3A000000
"""The host's id of a guest's root, where the host's root runs it: 65,536 ids that nobody else has.

It lies in the range that systemd keeps for containers (systemd.io/UIDS-GIDS).
"""
_IDS = 1 << 16
_INSIDE = Path(__file__).with_name("supervisor_main.py")
_START_SECONDS = 10.0
_MESSAGE = 1 << 16
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Confines:
    """What a guest and all that it starts may take together; sizes are bytes, output for each stream."""

    memory: int = 1 << 30
    processes: int = 256
    output: int = 1 << 20
    tmp: int = 64 << 20


CONFINED = Confines()


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What to start: ``candidates`` are the paths that are tried, ``argv[0]`` what it is called by.

    ``root`` is the folder that it sees as ``/``, ``processors`` those that it may run on.
    """

    root: Path
    candidates: tuple[str, ...]
    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    processors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a guest ended: a signal counts as 128 and its number, as a shell has it.

    ``limit`` are the words of a cap that it passed, ``timed_out`` says that its time was up.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    seconds: float
    limit: str = ""
    timed_out: bool = False


class Refused(Exception):
    """The kernel did not let us do something; ``number`` is its errno."""

    def __init__(self, stage: str, number: int) -> None:
        super().__init__(f"could not {stage}" + (f": {os.strerror(number)}" if number else ""))
        self.stage = stage
        self.number = number


def shift_of(user: int, own: Path = Path("/proc/self")) -> int | None:
    """Where a guest's ids begin among the host's; None for who has but one.

    That is an ordinary user, and a root that was given no such ids, as in a container.
    """
    has_all = user == 0 and all(
        _has_ids((own / name).read_text(encoding="ascii")) for name in ("uid_map", "gid_map")
    )
    return SHIFT if has_all else None


def _has_ids(ids: str) -> bool:
    """Whether a map of user_namespaces(7) holds the guests' ids."""
    rows = (map(int, line.split()) for line in ids.splitlines())
    return any(first <= SHIFT and first + count >= SHIFT + _IDS for first, _, count in rows)


class Warden:
    """A user namespace with a table of emulators of its own, and the guests in it.

    Raises :class:`Refused` if the kernel does not let this user have one.
    """

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._shift = shift_of(os.geteuid())
        argv = [sys.executable, "-I", "-S", "-B", str(_INSIDE), str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"LC_ALL": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        self._channel.settimeout(_START_SECONDS)
        try:
            self._answer()
            self._map_ids()
            self._channel.send(b"mapped")
            self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the warden; every guest ends with it."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def register(self, machine: Machine, program: Path) -> None:
        """Let this emulator run the machine's programs. Raises :class:`EmulatorError`."""
        with program.open("rb") as file:
            self._send({"handler": handler_line(machine, "@")}, [file.fileno()])
            try:
                self._answer()
            except Refused as refused:
                raise EmulatorError(
                    f"the kernel refuses {program}: {refused}", platform=f"linux/{machine.architecture}"
                ) from refused

    def run(self, guest: Guest, timeout: float, confines: Confines = CONFINED) -> Ended:
        """Run a guest to its end; past ``timeout`` seconds, or a cap, it is killed with all its children.

        May be called by several threads at once. Raises :class:`Refused` if it could not be started.
        """
        with contextlib.ExitStack() as stack:
            control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(control)
            out, err = _Pipe(stack), _Pipe(stack)
            spec = os.memfd_create("guest")
            try:
                os.write(spec, json.dumps(self._described(guest, confines)).encode())
                os.lseek(spec, 0, os.SEEK_SET)
                self._send({"run": True}, [spec, out.writing, err.writing, theirs.fileno()])
            finally:
                os.close(spec)
                theirs.close()
                out.stop_writing()
                err.stop_writing()
            return _followed(control, (out, err), timeout, confines)

    def _described(self, guest: Guest, confines: Confines) -> dict[str, Any]:
        return {
            "root": str(guest.root),
            "candidates": guest.candidates,
            "argv": guest.argv,
            "env": dict(guest.env),
            "folder": guest.folder,
            "uid": guest.uid,
            "gid": guest.gid,
            "groups": guest.groups,
            "cpus": guest.processors,
            "memory": confines.memory,
            "processes": confines.processes,
            "tmp": confines.tmp,
            **self._ids_of(guest),
        }

    def _ids_of(self, guest: Guest) -> dict[str, Any]:
        """The ids of the guest's user namespace: all, or of an ordinary user just the guest's own."""
        if self._shift is not None:
            return {"alone": False, "ids": {"uid": f"0 0 {_IDS}", "gid": f"0 0 {_IDS}"}}
        return {"alone": True, "ids": {"uid": f"{guest.uid} 0 1", "gid": f"{guest.gid} 0 1"}}

    def _map_ids(self) -> None:
        """Map the warden's ids (user_namespaces(7)); root's own is added, so that it reads root's files."""
        place = Path(f"/proc/{self._process.pid}")
        if self._shift is not None:
            lines = f"0 {self._shift} {_IDS}\n{_IDS} 0 1"
            maps = {"gid_map": lines, "uid_map": lines}
        else:
            maps = {"setgroups": "deny", "gid_map": f"0 {os.getegid()} 1", "uid_map": f"0 {os.geteuid()} 1"}
        for name, text in maps.items():
            try:
                (place / name).write_text(text, encoding="ascii")
            except OSError as error:
                raise Refused(f"write {name}", error.errno or 0) from error

    def _send(self, message: Mapping[str, object], files: Sequence[int]) -> None:
        socket.send_fds(self._channel, [json.dumps(message).encode()], files)

    def _answer(self) -> None:
        data = self._channel.recv(_MESSAGE)
        message = json.loads(data or b"{}")
        if not data or "refused" in message:
            raise Refused(message.get("refused", "start the sandbox"), message.get("errno", 0))


class _Pipe:
    """One of a guest's output streams, as it is collected."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.reading, self.writing = os.pipe()
        stack.callback(os.close, self.reading)
        self.data = bytearray()

    def stop_writing(self) -> None:
        os.close(self.writing)

    def take(self) -> bool:
        """Read on; False at its end."""
        piece = os.read(self.reading, _PIECE)
        self.data += piece
        return bool(piece)


def _followed(
    control: socket.socket, pipes: tuple[_Pipe, _Pipe], timeout: float, confines: Confines
) -> Ended:
    """Collect what a guest writes until it has ended, or has to be."""
    deadline = time.monotonic() + timeout
    message, limit, timed_out = b"", "", False
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        for pipe in pipes:
            selector.register(pipe.reading, selectors.EVENT_READ, pipe)
        while selector.get_map():
            ready = selector.select(max(deadline - time.monotonic(), 0.0))
            if time.monotonic() >= deadline:  # also of one that never stops writing
                timed_out = True
                break
            for key, _ in ready:
                if key.data is None:
                    message = control.recv(_MESSAGE) or message
                    selector.unregister(control)
                elif not key.data.take():
                    selector.unregister(key.fd)
                elif len(key.data.data) > confines.output:
                    limit = f"more than {confines.output >> 10} KiB of output"
            if limit:
                break
    stdout, stderr = (bytes(pipe.data[: confines.output]) for pipe in pipes)
    return _ended(json.loads(message or b"{}"), stdout, stderr, limit, timeout if timed_out else 0.0)


def _ended(message: dict[str, Any], stdout: bytes, stderr: bytes, limit: str, timeout: float) -> Ended:
    if "refused" in message:
        raise Refused(message["refused"], message["errno"])
    killed = 128 + 9
    return Ended(
        exit_code=128 + message["signal"] if "signal" in message else message.get("exit", killed),
        stdout=stdout,
        stderr=stderr,
        seconds=round(message.get("seconds", timeout), 3),
        limit=limit or message.get("limit", ""),
        timed_out=bool(timeout),
    )
