"""The warden: a process in a user namespace of its own that starts guests. Run as a program, by itself.

It imports nothing but a few of the standard library's modules, since it is started for every task and
each guest begins as its fork. Its argument is the descriptor of a socket, the other end of which is
held by whoever started it:

* the warden makes its user namespace and says so; its ids are mapped from outside, as
  user_namespaces(7) wants it;
* ``handler`` messages register an emulator, whose file comes along, in the binfmt_misc table of that
  namespace (Linux 6.7: one for each user namespace), which nobody else sees;
* ``run`` messages start a guest, described by a JSON file that comes along with its standard output,
  its standard error and a control socket.

A guest has three processes of ours around it: one that waits, so that there is a pid namespace to be
in; its PID 1, which makes the root, watches the caps and collects orphans; and the guest itself, from
its fork to its ``execve``. Whichever of them dies, or whoever hangs up the control socket, the kernel
ends all that is in the pid namespace. No mount outlives its namespace, and so nothing is left behind.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing alone would cost as much as everything above
    from typing import Any, NoReturn

_MAX_MESSAGE = 1 << 16
_WORDS = 300  # letters of a message
_MAX_FILES = 4

# sched.h, sys/mount.h, linux/mount.h, linux/prctl.h, linux/capability.h
_NEW_USER, _NEW_MOUNTS, _NEW_PIDS, _NEW_NET = 0x10000000, 0x00020000, 0x20000000, 0x40000000
_NEW_UTS, _NEW_IPC, _NEW_CGROUP = 0x04000000, 0x08000000, 0x02000000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_PROGRAMS = 1, 2, 4, 8
_BIND, _RECURSIVE, _PRIVATE, _DETACH = 4096, 16384, 1 << 18, 2
_HERE = -100  # AT_FDCWD
_MOUNT_SETATTR = 442  # its number is the same on every architecture
_DEATH_SIGNAL, _DUMPABLE, _DROP_BOUND, _NO_NEW_PRIVILEGES, _AMBIENT = 1, 4, 24, 38, 47
_CLEAR_ALL = 4
_CAPABILITIES_V3 = 0x20080522
_FLAGS_OF_INTERFACE, _SET_FLAGS_OF_INTERFACE, _UP = 0x8913, 0x8914, 1

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_STREAMS = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}
_TABLE = "/proc/sys/fs/binfmt_misc"
_EMULATORS = "/sys"  # nothing here needs what is there
_EXEC_FAILED = 127
_QUICK, _SLOW, _LOOKS = 0.005, 0.05, 100  # seconds between looks at the caps; how many are quick
_PAGE = os.sysconf("SC_PAGE_SIZE")

_libc = ctypes.CDLL(None, use_errno=True)


class _Refused(Exception):
    """Something that the kernel did not let us do; ``stage`` says what."""

    def __init__(self, stage: str, number: int) -> None:
        super().__init__(stage)
        self.stage = stage
        self.number = number


def _call(stage: str, name: str, *arguments: Any) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        raise _Refused(stage, ctypes.get_errno())
    return result


def _mount(source: str, place: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    words = (os.fsencode(source), os.fsencode(place), kind.encode() or None)
    more = (ctypes.c_ulong(flags), options.encode() or None)
    _call(f"mount {kind or source} on {place}", "mount", *words, *more)


# The warden


def main() -> None:
    """Serve until the other end is closed."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for whoever started us
    try:
        _enter(channel)
    except _Refused as refused:
        _say(channel, refused=refused.stage, errno=refused.number)
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a guest's helper
    life = os.pipe()  # of which we alone hold the end to write to: it hangs up when we die
    while True:
        data, files = _receive(channel)
        if not data:
            return
        message = json.loads(data)
        if "handler" in message:
            _say(channel, **_register(message["handler"], files[0]))
        else:
            _start(channel, life, files)
        for each in files:
            os.close(each)


def _enter(channel: socket.socket) -> None:
    """A user namespace, the ids of which are mapped from outside, and in it a table of handlers."""
    _call("unshare user namespace", "unshare", _NEW_USER)
    _say(channel, unshared=True)
    if not channel.recv(_MAX_MESSAGE):
        sys.exit()
    _call("unshare mount namespace", "unshare", _NEW_MOUNTS)
    _mount("none", "/", flags=_RECURSIVE | _PRIVATE)
    # The folder comes with the kernel's module, which the mount itself may load.
    place = _TABLE if os.path.isdir(_TABLE) else os.path.dirname(_TABLE)
    _mount("binfmt_misc", place, "binfmt_misc")
    os.chdir(place)
    _mount("tmpfs", _EMULATORS, "tmpfs", _NO_SUID | _NO_DEVICES)
    _rehearse()
    _say(channel, ready=True)


def _rehearse() -> None:
    """What every guest needs, tried once: in a container, say, /proc may not be mounted anew."""
    said, saying = os.pipe()
    if os.fork() == 0:
        try:
            _unshare_all()
            if os.fork() == 0:
                _mount("proc", "/proc", "proc")
        except _Refused as refused:
            os.write(saying, json.dumps([refused.stage, refused.number]).encode())
        finally:
            os._exit(0)
    os.close(saying)
    failure = os.read(said, _MAX_MESSAGE)  # all who could write have ended
    os.close(said)
    os.wait()
    if failure:
        raise _Refused(*json.loads(failure))


def _unshare_all() -> None:
    namespaces = _NEW_MOUNTS | _NEW_PIDS | _NEW_NET | _NEW_IPC | _NEW_UTS | _NEW_CGROUP
    _call("unshare the guest's namespaces", "unshare", namespaces)


def _words(error: Exception, stage: str) -> dict[str, object]:
    """What went wrong, for who asked; not at such length as an image may name a file."""
    if isinstance(error, _Refused):
        return {"refused": error.stage, "errno": error.number}
    if isinstance(error, OSError):
        return {"refused": f"{stage} {error.filename or ''}".strip()[:_WORDS], "errno": error.errno}
    return {"refused": f"{stage}: {error}"[:_WORDS], "errno": errno.EINVAL}  # a NUL in a word, say


def _say(channel: socket.socket, **words: object) -> None:
    channel.send(json.dumps(words).encode())


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    data, extra, _, _ = channel.recvmsg(_MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FILES * 4))
    files = array.array("i")
    for level, kind, content in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(content[: len(content) - len(content) % files.itemsize])
    for each in files:
        os.set_inheritable(each, False)
    return data, list(files)


def _register(handler: str, program: int) -> dict[str, object]:
    """Add a handler. The kernel opens the interpreter at once (flag F), of which only the name stays."""
    name = handler.split(":")[1]
    try:
        os.symlink(f"/proc/self/fd/{program}", f"{_EMULATORS}/{name}")
        _write("register", handler.replace("@", f"{_EMULATORS}/{name}"))
    except OSError as error:
        return {"refused": "register the emulator", "errno": error.errno}
    return {"registered": True}


def _start(channel: socket.socket, life: tuple[int, int], files: list[int]) -> None:
    """Fork a guest's helper; it leads nothing back here."""
    if os.fork():
        return
    try:
        channel.close()
        os.close(life[1])
        _follow_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _helper(life[0], *files)
    finally:
        os._exit(1)


def _follow_parent() -> None:
    """Be ended with the parent. It may have died just before: what hangs up is looked at as well."""
    _call("be ended with the parent", "prctl", _DEATH_SIGNAL, signal.SIGKILL)


def _helper(life: int, spec: int, out: int, err: int, control: int) -> None:
    answer = socket.socket(fileno=control)
    try:
        _unshare_all()
    except _Refused as refused:
        _say(answer, refused=refused.stage, errno=refused.number)
        return
    first = os.fork()
    if first == 0:
        try:
            _follow_parent()
            with open(spec, "rb") as file:
                _PidOne(json.load(file), (out, err), (answer, life)).run()
        except Exception as error:  # noqa: BLE001 - whatever it is: silence would be taken for a guest's end
            _say(answer, **_words(error, "prepare the guest:"))
        finally:
            os._exit(0)
    for each in (spec, out, err):
        os.close(each)
    answer.close()
    os.waitpid(first, 0)


# A guest's PID 1


class _PidOne:
    """Makes the guest's world, starts it, watches it, and says how it ended."""

    def __init__(
        self, spec: dict[str, Any], streams: tuple[int, int], outside: tuple[socket.socket, int]
    ) -> None:
        self._spec = spec
        self._streams = streams
        self._answer, self._life = outside

    def run(self) -> None:
        os.setsid()
        _make_root(self._spec["root"], self._spec["tmp"])
        _raise_loopback()
        socket.sethostname("guest")
        if os.geteuid() != 0:  # root of the host, who is mapped beside the guest's ids
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            _follow_parent()  # a change of user forgets it
        started = time.monotonic()
        guest, said = self._fork_guest()
        for each in self._streams:
            os.close(each)
        _drop_bounds()
        _drop_capabilities()
        _call("be private", "prctl", _DUMPABLE, 0)
        limit = self._watch(guest)
        ended = _status(os.waitpid(guest, os.WNOHANG)) if limit else _status(os.waitpid(guest, 0))
        failure = os.read(said, _MAX_MESSAGE)
        message = {"seconds": time.monotonic() - started, "limit": limit, **ended}
        self._answer.send(failure or json.dumps(message).encode())

    def _fork_guest(self) -> tuple[int, int]:
        """Start the guest; gives its pid, and where it would say why it could not be."""
        said, saying = os.pipe()
        mapped, mapping = os.pipe()
        unshared, unsharing = os.pipe()
        guest = os.fork()
        if guest == 0:
            for each in (said, mapping, unshared):
                os.close(each)
            _be_guest(self._spec, self._streams, unsharing, mapped, saying)
        for each in (saying, mapped, unsharing):
            os.close(each)
        if os.read(unshared, 1):
            _map_ids(guest, self._spec["ids"], denied=self._spec["alone"])
            os.write(mapping, b"1")
        os.close(mapping)
        return guest, said

    def _watch(self, guest: int) -> str:
        """Wait for the guest's end, a cap that is passed, or a hang-up; gives the words of the cap."""
        ending = os.pidfd_open(guest)
        poll = select.poll()
        poll.register(ending, select.POLLIN)
        poll.register(self._answer, select.POLLHUP | select.POLLRDHUP)
        poll.register(self._life, select.POLLHUP)
        looks = 0
        while True:
            pause = _QUICK if looks < _LOOKS else _SLOW
            looks += 1
            for descriptor, _ in poll.poll(pause * 1000):
                if descriptor != ending:
                    os._exit(0)
                return ""
            _collect_orphans(guest)
            limit = _passed(self._spec["memory"], self._spec["processes"])
            if limit:
                return limit


def _status(waited: tuple[int, int]) -> dict[str, int]:
    pid, status = waited
    if pid == 0:  # a cap was passed: it is ended with us
        return {"signal": int(signal.SIGKILL)}
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status)}
    return {"exit": os.WEXITSTATUS(status)}


def _collect_orphans(guest: int) -> None:
    """Wait for whatever the guest's ended children left; the guest itself is looked at elsewhere."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == guest:
            return
        os.waitpid(found.si_pid, 0)


def _passed(memory: int, processes: int) -> str:
    """The words of a cap that everything in this pid namespace together has passed."""
    pages = threads = 0
    there = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    if len(there) > processes:  # a fork bomb: looking at each would take too long
        return f"more than {processes} processes and threads"
    for name in there:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            with open(f"/proc/{name}/statm", "rb") as file:
                _, resident, shared, *_ = file.read().split()
        except (OSError, ValueError):  # it has just ended
            continue
        threads += int(fields[17])
        pages += int(resident) - int(shared)
    if threads > processes:
        return f"more than {processes} processes and threads"
    if pages * _PAGE > memory:
        return f"more than {memory >> 20} MiB of memory"
    return ""


def _make_root(root: str, tmp: int) -> None:
    """The image's files read-only, with a minimal /dev, /proc and a /tmp; nothing else is reached."""
    for name in ("dev", "proc", "tmp"):
        if not stat.S_ISDIR(os.lstat(f"{root}/{name}").st_mode):
            raise _Refused(f"mount on /{name}, which is no folder in the image", errno.ENOTDIR)
    _mount(root, root, flags=_BIND | _RECURSIVE)
    _close_off(root)
    _mount("tmpfs", f"{root}/dev", "tmpfs", _NO_SUID | _NO_PROGRAMS, "mode=755,size=64k")
    for name in _DEVICES:
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT | os.O_WRONLY))
        _mount(f"/dev/{name}", f"{root}/dev/{name}", flags=_BIND)
    for name, rest in _STREAMS.items():
        os.symlink(f"/proc/self/fd{rest}", f"{root}/dev/{name}")
    os.mkdir(f"{root}/dev/shm")  # noqa: S108 - the guest's own
    for place in ("dev/shm", "tmp"):
        _mount("tmpfs", f"{root}/{place}", "tmpfs", _NO_SUID | _NO_DEVICES, f"mode=1777,size={tmp}")
    _mount("proc", f"{root}/proc", "proc", _NO_SUID | _NO_DEVICES | _NO_PROGRAMS)
    os.chdir(root)
    # The old root is put under the new one's own place and taken off from there (pivot_root(2)).
    _call("pivot_root", "pivot_root", b".", b".")
    _call("detach the old root", "umount2", b".", _DETACH)
    os.chdir("/")


def _close_off(root: str) -> None:
    """Read-only, without devices and set-user-id programs, added to whatever the mount has already."""
    wanted = struct.pack("QQQQ", _READ_ONLY | _NO_SUID | _NO_DEVICES, 0, 0, 0)
    words = (_MOUNT_SETATTR, _HERE, os.fsencode(root), 0, wanted, ctypes.c_size_t(len(wanted)))
    _call("make the root read-only", "syscall", *words)


def _raise_loopback() -> None:
    """Let the guest talk to itself: its network has nothing but this interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _FLAGS_OF_INTERFACE, asked))[1]
        fcntl.ioctl(any_socket, _SET_FLAGS_OF_INTERFACE, struct.pack("16sh14x", b"lo", flags | _UP))


def _map_ids(guest: int, ids: dict[str, str], *, denied: bool) -> None:
    if denied:  # an ordinary user may map an own group only without groups to drop
        _write(f"/proc/{guest}/setgroups", "deny")
    _write(f"/proc/{guest}/gid_map", ids["gid"])
    _write(f"/proc/{guest}/uid_map", ids["uid"])


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


# The guest, until it is itself


def _be_guest(
    spec: dict[str, Any], streams: tuple[int, int], unsharing: int, mapped: int, saying: int
) -> NoReturn:
    try:
        os.setsid()
        _call("unshare the guest's user namespace", "unshare", _NEW_USER)
        os.write(unsharing, b"1")
        os.read(mapped, 1)
        _drop_bounds()
        _become(spec)
        _attach(streams)
        _cap(spec)
        _drop_capabilities()
        _start_program(spec)
    except Exception as error:  # noqa: BLE001 - whatever it is, no guest runs
        os.write(saying, json.dumps(_words(error, "start")).encode())
    finally:
        os._exit(_EXEC_FAILED)


def _become(spec: dict[str, Any]) -> None:
    """The user that the image names, who may make no user namespace of his own."""
    if not spec["alone"]:
        os.setgroups(spec["groups"])
    os.setresgid(spec["gid"], spec["gid"], spec["gid"])
    _write("/proc/sys/user/max_user_namespaces", "0")
    os.setresuid(spec["uid"], spec["uid"], spec["uid"])


def _attach(streams: tuple[int, int]) -> None:
    nothing = os.open("/dev/null", os.O_RDONLY)
    for number, descriptor in enumerate((nothing, *streams)):
        os.dup2(descriptor, number)


def _cap(spec: dict[str, Any]) -> None:
    """What one process may take; what all of them take together, PID 1 watches."""
    # Past the caps that PID 1 watches there is room until its next look, and then nothing.
    spare = 16 * spec["processes"]
    resource.setrlimit(resource.RLIMIT_NPROC, (spare, spare))
    data = 2 * spec["memory"] + (512 << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if spec["cpus"]:
        os.sched_setaffinity(0, spec["cpus"])


def _drop_bounds() -> None:
    """No program that is started gains a capability."""
    capability = 0
    while _libc.prctl(_DROP_BOUND, capability, 0, 0, 0) == 0:
        capability += 1
    _call("drop ambient capabilities", "prctl", _AMBIENT, _CLEAR_ALL, 0, 0, 0)
    _call("gain no privileges", "prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _drop_capabilities() -> None:
    header = struct.pack("Ii", _CAPABILITIES_V3, 0)
    _call("drop capabilities", "capset", header, struct.pack("6I", *[0] * 6))


def _start_program(spec: dict[str, Any]) -> None:
    """Replace this process; of several candidates (PATH) the first that can be started counts."""
    os.chdir(spec["folder"])
    os.umask(0o022)
    for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    failure: OSError | None = None
    for path in spec["candidates"]:
        try:
            os.execve(path, spec["argv"], spec["env"])  # noqa: S606 - that is what it is for
        except OSError as error:
            if failure is None or error.errno not in (errno.ENOENT, errno.ENOTDIR):
                failure = error
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                break
    if failure is not None:
        failure.filename = spec["argv"][0]
        raise failure


if __name__ == "__main__":
    main()
