"""The supervisor: a process in its own user namespace that starts guests. Run as a program, by itself.

It imports a few standard modules and nothing of this package: it is started for every task, and each guest
begins as its fork. Four kinds of processes run this file, and its sections follow their order::

    supervisor    one per user namespace, with the binfmt_misc table of that namespace (Linux 6.7 or newer)
      helper      one per guest: makes its control groups and its PID namespace, and waits
        init      PID 1 of that, in the guest's other namespaces: mounts the root, enforces limits, reaps
          guest   in one more user namespace, until its execve(2)

If one of them dies, or the other end of a socket is closed, everything below it ends: init has a parent-death
signal, helper and init poll a pipe that the supervisor holds open, and a PID namespace ends with its PID 1.
Mounts end with their namespaces, and helpers remove the control groups.

Wire protocol
-------------
Messages are JSON objects on SOCK_SEQPACKET sockets; descriptors come along by SCM_RIGHTS. The other end is
``supervisor.py``. Wherever a reply is due, ``{"refused": STAGE, "errno": NUMBER}`` says that the kernel has
refused STAGE instead.

The channel is the socket whose descriptor is the only argument. Closing it ends the supervisor.

=============  =============================  ==============================  =============================
direction      message                        descriptors                     then
=============  =============================  ==============================  =============================
to client      ``{"unshared": true}``                                         the client writes the id maps
to supervisor  ``mapped`` (not JSON)                                          it enters its mount namespace
to client      ``{"ready": true}``                                            it serves requests
to supervisor  ``{"handler": REGISTRATION}``  emulator                        reply ``{"registered": true}``
to supervisor  ``{"run": true}``              spec, stdout, stderr, control   reply on the control socket
=============  =============================  ==============================  =============================

The id maps are written from outside, as user_namespaces(7) requires. REGISTRATION is a line for
binfmt_misc's ``register`` with ``@`` as the interpreter's path.

The control socket belongs to one guest; closing it kills the guest. It carries one message, when the guest
has ended: ``{"exit": STATUS}`` or ``{"signal": NUMBER}``, with ``seconds`` (how long it ran) and ``limit``
(which limit it exceeded, as text, or empty). The kernel may kill init for its guest's memory; then the helper
sends the message, without ``seconds``.

The spec is a file with one JSON object:

===============================  ======================================================================
key                              value
===============================  ======================================================================
``root``                         the directory that becomes the guest's root, read-only
``candidates``, ``argv``,        the paths to try with execve(2), its arguments and its environment
``env``
``working_dir``                  the directory in which it starts
``uid``, ``gid``, ``groups``     its ids in its user namespace
``id_maps``                      ``uid`` and ``gid``: the lines for its uid_map and gid_map
``is_single_id``                 true if the maps have one id only; then there is no setgroups(2)
``cpus``                         the processors that it may use; empty for all
``memory``, ``processes``        limits of the guest and its children together: bytes, number
``tmp``                          size of /tmp and of /dev/shm in bytes
``cgroups``                      the control groups to create: pairs of a path, to which the helper's PID
                                 is appended, and of its files' contents by their names. Without a group
                                 init counts the guest's memory as far as it can
``filter``                       the filter of system calls: instructions of BPF, in hexadecimal digits
``keyctl``                       the number of keyctl(2); 0 if unknown
===============================  ======================================================================
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
if TYPE_CHECKING:  # importing typing takes as long as everything above
    from typing import Any, NoReturn

assert sys.platform == "linux"  # noqa: S101 - type checkers for other systems, whose os has less, stop here

_MAX_MESSAGE = 1 << 16  # bytes
_MAX_STAGE_CHARS = 300
_MAX_FDS = 4

# sched.h, sys/mount.h, linux/mount.h, linux/prctl.h, linux/capability.h, linux/sockios.h
_CLONE_NEWUSER, _CLONE_NEWNS, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x00020000, 0x20000000, 0x40000000
_CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWCGROUP = 0x04000000, 0x08000000, 0x02000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 4096, 16384, 1 << 18, 2
_AT_FDCWD = -100
_SYS_OPENAT2, _SYS_MOUNT_SETATTR = 437, 442  # the same on every architecture
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS = 1, 2  # include/uapi/linux/openat2.h
_KEYCTL_JOIN_SESSION_KEYRING = 1
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 1, 4, 24
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_BPF_INSTRUCTION_SIZE = 8
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_FD_LINKS = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}
# What Docker masks by default; not all of it is in every kernel.
_MASKED = (
    "acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "scsi", "sched_debug", "timer_list",
    "timer_stats",
)  # fmt: skip
_KERNEL_DIRECTORIES = ("/dev", "/proc", "/sys")
_BINFMT_MISC = "/proc/sys/fs/binfmt_misc"
# Not needed otherwise in the supervisor's mount namespace; /sys may be empty in a chroot.
_EMULATOR_DIRECTORY = "/sys/kernel" if os.path.isdir("/sys/kernel") else "/sys"
_EMPTY_DIRECTORY = "empty"  # beside the image's root
_EXEC_FAILED = 127
# Limits are checked every 5 ms at first, since a fork bomb is quick, and every 50 ms after half a second.
_FAST_POLL_SECONDS, _SLOW_POLL_SECONDS, _FAST_POLLS = 0.005, 0.05, 100
_INIT_NAME = b"init"
_TMPFS = ("/dev/shm", "/tmp")  # noqa: S108 - the guest's own
_BYTES_PER_INODE = 4096  # an empty file takes some 1 KiB of the kernel's memory
# Of all processes of a guest without a control group. A socket buffers up to some 400 KiB.
_MAX_OPEN_FILES, _MAX_SOCKETS = 16384, 2048
_OPEN_FILES = (1024, 16384)  # of a process, soft and hard
_STAT_BLOCK_SIZE = 512  # stat(3type)


# Supervisor


def main() -> None:
    """Serve requests until the other end of the channel is closed."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started us
    try:
        _enter_namespaces(channel)
    except _KernelRefusal as refusal:
        _send_reply(channel, refused=refusal.stage, errno=refusal.errno)
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # helpers are not waited for
    lifeline = os.pipe()  # only the supervisor keeps the write end: readers see a hang-up when it dies
    while True:
        data, fds = _receive_message(channel)
        if not data:
            os.close(lifeline[1])
            _wait_for_helpers()
            os._exit(0)  # the interpreter would take longer
        message = json.loads(data)
        if "handler" in message:
            _send_reply(channel, **_register_handler(message["handler"], fds[0]))
        else:
            _fork_helper(channel, lifeline, fds)
        for each in fds:
            os.close(each)


def _enter_namespaces(channel: socket.socket) -> None:
    """Enter a user namespace, and in it a mount namespace with its own binfmt_misc table."""
    _call_libc("unshare user namespace", "unshare", _CLONE_NEWUSER)
    _send_reply(channel, unshared=True)
    if not channel.recv(_MAX_MESSAGE):
        sys.exit()
    _call_libc("unshare mount namespace", "unshare", _CLONE_NEWNS)
    _mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
    # The directory appears when the kernel module is loaded; mounting elsewhere loads it.
    mount_point = _BINFMT_MISC if os.path.isdir(_BINFMT_MISC) else os.path.dirname(_BINFMT_MISC)
    _mount("binfmt_misc", mount_point, "binfmt_misc")
    os.chdir(mount_point)
    _mount("tmpfs", _EMULATOR_DIRECTORY, "tmpfs", _MS_NOSUID | _MS_NODEV)
    _probe_guest_setup()
    _send_reply(channel, ready=True)


def _probe_guest_setup() -> None:
    """Try once what every guest needs; in a container, for example, /proc may not be mounted again."""
    read_fd, write_fd = os.pipe()
    if os.fork() == 0:
        try:
            _unshare_pid_namespace()
            if os.fork() == 0:
                _unshare_guest_namespaces()
                _mount("proc", "/proc", "proc")
        except _KernelRefusal as refusal:
            os.write(write_fd, json.dumps([refusal.stage, refusal.errno]).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    failure = os.read(read_fd, _MAX_MESSAGE)  # returns when both children have ended
    os.close(read_fd)
    os.wait()
    if failure:
        raise _KernelRefusal(*json.loads(failure))


def _register_handler(handler: str, emulator_fd: int) -> dict[str, object]:
    """Register an emulator in binfmt_misc.

    With flag F the kernel opens the interpreter now and keeps it open, so its path need not be visible to
    guests.
    """
    path = f"{_EMULATOR_DIRECTORY}/{handler.split(':')[1]}"
    try:
        _bind_read_only(emulator_fd, path)
        _write_file("register", handler.replace("@", path))
    except (OSError, _KernelRefusal) as error:
        return {"refused": "register the emulator", "errno": error.errno}
    return {"registered": True}


def _bind_read_only(fd: int, path: str) -> None:
    """Mount an open file on a new file, read-only.

    A guest finds it as ``/proc/PID/exe``; on another mount it could change the mode of a file of its user.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    _mount(os.readlink(f"/proc/self/fd/{fd}"), path, flags=_MS_BIND)
    _set_read_only(path)
    if not os.path.samestat(os.stat(path), os.fstat(fd)):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def _fork_helper(channel: socket.socket, lifeline: tuple[int, int], fds: list[int]) -> None:
    if os.fork():
        return
    try:
        channel.close()
        os.close(lifeline[1])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _run_helper(lifeline[0], *fds)
    finally:
        os._exit(1)


def _wait_for_helpers() -> None:
    """Wait until all have ended, which the kernel reaps: SIGCHLD is ignored."""
    try:
        os.wait()
    except ChildProcessError:
        pass


# Helper


def _run_helper(lifeline_fd: int, spec_fd: int, stdout_fd: int, stderr_fd: int, control_fd: int) -> None:
    """Make the guest's control groups and namespaces, wait for its init, and remove the groups."""
    control_socket = socket.socket(fileno=control_fd)
    with open(spec_fd, "rb") as file:
        spec = json.load(file)
    cgroups = _create_cgroups(spec["cgroups"])
    oom_fds = _open_oom_counters(cgroups)
    try:
        _unshare_pid_namespace()
        init_pid = os.fork()
        if init_pid == 0:
            init = _GuestInit(spec, (stdout_fd, stderr_fd), (control_socket, lifeline_fd), oom_fds)
            _run_init(init, cgroups, control_socket)
        for each in (stdout_fd, stderr_fd):
            os.close(each)
        if _wait_for_init(init_pid, lifeline_fd) != 0 and _count_oom_kills(oom_fds):
            _send_reply(control_socket, signal=signal.SIGKILL, limit=_describe_memory(spec["memory"]))
    except _KernelRefusal as refusal:
        _send_reply(control_socket, refused=refusal.stage, errno=refusal.errno)
    finally:
        _remove_cgroups(cgroups)


def _run_init(init: _GuestInit, cgroups: list[str], control_socket: socket.socket) -> NoReturn:
    try:
        _set_parent_death_signal()
        is_counted = _enter_cgroups(cgroups)
        _unshare_guest_namespaces()
        init.run(counts_memory=not is_counted)
    except Exception as error:  # noqa: BLE001 - without a reply the guest would seem to have ended
        _send_reply(control_socket, **_describe_error(error, "prepare the guest:"))
    finally:
        os._exit(0)


def _wait_for_init(pid: int, lifeline_fd: int) -> int:
    """Return the wait status of a guest's init, which is killed if the supervisor ends."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(lifeline_fd, select.POLLHUP)
    if pidfd not in dict(poll.poll()):
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _unshare_pid_namespace() -> None:
    """Make a PID namespace for the next child."""
    _call_libc("unshare the PID namespace", "unshare", _CLONE_NEWPID)


# Control groups


def _create_cgroups(groups: list[tuple[str, dict[str, str]]]) -> list[str]:
    """Create the control groups and return their directories; none if the kernel refuses one."""
    directories = [f"{prefix}{os.getpid()}" for prefix, _ in groups]
    try:
        for directory, (_, files) in zip(directories, groups, strict=True):
            os.mkdir(directory)
            for name, content in files.items():
                if os.path.exists(f"{directory}/{name}"):
                    _write_file(f"{directory}/{name}", content)
    except OSError:  # for example more groups than cgroup.max.descendants
        _remove_cgroups(directories)
        return []
    return directories


def _enter_cgroups(directories: list[str]) -> bool:
    """Enter the guest's control groups. Return False if there are none."""
    try:
        for each in directories:
            _write_file(f"{each}/cgroup.procs", "0")
    except OSError:  # for example a real-time process, which version 2 does not move
        return False
    return bool(directories)


def _open_oom_counters(directories: list[str]) -> list[int]:
    names = ("memory.events", "memory.oom_control")  # of version 2 and 1
    paths = [f"{directory}/{name}" for directory in directories for name in names]
    return [os.open(path, os.O_RDONLY) for path in paths if os.path.exists(path)]


def _count_oom_kills(fds: list[int]) -> int:
    """Return how many processes the kernel has killed because their group has all the memory it may have."""
    lines = [line for fd in fds for line in os.pread(fd, _MAX_MESSAGE, 0).splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith(b"oom_kill "))


def _remove_cgroups(directories: list[str]) -> None:
    for each in directories:
        try:
            os.rmdir(each)
        except OSError:  # it does not exist, or has processes that the kernel is ending
            pass


# Init: PID 1 of the guest's PID namespace


def _unshare_guest_namespaces() -> None:
    namespaces = _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWCGROUP
    _call_libc("unshare the guest's namespaces", "unshare", namespaces)


class _GuestInit:
    """Sets up the guest's namespaces, starts the guest, enforces its limits and reports how it ended."""

    def __init__(
        self,
        spec: dict[str, Any],
        streams: tuple[int, int],
        channels: tuple[socket.socket, int],
        oom_fds: list[int],
    ) -> None:
        self._spec = spec
        self._streams = streams
        self._control, self._lifeline_fd = channels
        self._oom_fds = oom_fds

    def run(self, *, counts_memory: bool) -> None:
        """Return when the guest has ended. ``counts_memory`` if it has no control group that does."""
        os.setsid()
        _hide_arguments()
        _mount_root(self._spec["root"], self._spec["tmp"])
        _bring_up_loopback()
        socket.sethostname("guest")
        _become_namespace_root()
        started = time.monotonic()
        guest_pid, error_fd = self._fork_guest()
        for each in self._streams:
            os.close(each)
        _drop_bounding_set()
        _drop_capabilities()
        limit_exceeded = self._wait_for_guest(guest_pid, self._spec["memory"] if counts_memory else 0)
        status = _decode_status(os.waitpid(guest_pid, os.WNOHANG if limit_exceeded else 0))
        failure = os.read(error_fd, _MAX_MESSAGE)
        if _count_oom_kills(self._oom_fds):
            limit_exceeded = _describe_memory(self._spec["memory"])
        message = {"seconds": time.monotonic() - started, "limit": limit_exceeded, **status}
        self._control.send(failure or json.dumps(message).encode())

    def _fork_guest(self) -> tuple[int, int]:
        """Start the guest. Return its PID, and the pipe on which it would report why it could not start.

        The guest writes to ``unshared`` when it is in its user namespace, and reads from ``mapped`` until
        its ids are mapped from here.
        """
        error_read, error_write = os.pipe()
        mapped_read, mapped_write = os.pipe()
        unshared_read, unshared_write = os.pipe()
        guest_pid = os.fork()
        if guest_pid == 0:
            for each in (error_read, mapped_write, unshared_read):
                os.close(each)
            _exec_guest(self._spec, self._streams, unshared_write, mapped_read, error_write)
        for each in (error_write, mapped_read, unshared_write):
            os.close(each)
        if os.read(unshared_read, 1):
            _map_guest_ids(guest_pid, self._spec["id_maps"], deny_setgroups=self._spec["is_single_id"])
            # The guest may not look at init, whose program is the host's Python.
            _call_libc("clear the dumpable flag", "prctl", _PR_SET_DUMPABLE, 0)
            os.write(mapped_write, b"1")
        os.close(mapped_write)
        return guest_pid, error_read

    def _wait_for_guest(self, guest_pid: int, max_memory: int) -> str:
        """Wait until the guest ends or exceeds a limit; return the limit. End everything on a hang-up."""
        pidfd = os.pidfd_open(guest_pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._control, select.POLLHUP | select.POLLRDHUP)
        poll.register(self._lifeline_fd, select.POLLHUP)
        polls = 0
        while True:
            seconds = _FAST_POLL_SECONDS if polls < _FAST_POLLS else _SLOW_POLL_SECONDS
            polls += 1
            for fd, _ in poll.poll(seconds * 1000):
                if fd != pidfd:
                    os._exit(0)
                return ""
            _reap_orphans(guest_pid)
            limit_exceeded = _check_limits(max_memory, self._spec["processes"])
            if limit_exceeded:
                return limit_exceeded


def _hide_arguments() -> None:
    """Overwrite the arguments of this process, which are the host's paths of Python and of this file.

    The guest may read them, in ``/proc/1/cmdline``, and the name in ``/proc/1/comm``.
    """
    with open("/proc/self/stat", "rb") as file:
        start, end = map(
            int, file.read().rpartition(b")")[2].split()[45:47]
        )  # proc_pid_stat(5), from state on
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, _INIT_NAME, min(len(_INIT_NAME), end - start))
    _call_libc("name init", "prctl", _PR_SET_NAME, _INIT_NAME, 0, 0, 0)


def _mount_root(root: str, tmp_size: int) -> None:
    """Make the image's files the root, read-only, with a minimal /dev, /proc and /tmp and nothing else."""
    for name in ("dev", "proc", "tmp"):
        if not stat.S_ISDIR(os.lstat(f"{root}/{name}").st_mode):
            raise _KernelRefusal(f"mount on /{name}, which is not a directory in the image", errno.ENOTDIR)
    _mount_image(root)
    _mount("tmpfs", f"{root}/dev", "tmpfs", _MS_NOSUID | _MS_NOEXEC, "mode=755,size=64k,nr_inodes=64")
    for name in _DEVICES:
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT | os.O_WRONLY))
        _mount(f"/dev/{name}", f"{root}/dev/{name}", flags=_MS_BIND)
    for name, suffix in _FD_LINKS.items():
        os.symlink(f"/proc/self/fd{suffix}", f"{root}/dev/{name}")
    os.mkdir(f"{root}/dev/shm")  # noqa: S108 - likewise
    for mount_point in _TMPFS:
        options = f"mode=1777,size={tmp_size},nr_inodes={tmp_size // _BYTES_PER_INODE}"
        _mount("tmpfs", f"{root}{mount_point}", "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    _mount("proc", f"{root}/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    for name in _MASKED:
        _mask(f"{root}/proc/{name}")
    os.chdir(root)
    # The old root is stacked on the new one's mount point and unmounted from there: pivot_root(2), NOTES.
    _call_libc("pivot_root", "pivot_root", b".", b".")
    _call_libc("detach the old root", "umount2", b".", _MNT_DETACH)
    os.chdir("/")


def _mount_image(root: str) -> None:
    """Mount the image's files on themselves, read-only, and do not tell the guest their path on the host.

    ``/proc/self/mountinfo`` has the root of a bind mount, but of an overlay its options only. An overlay
    needs two directories (docs.kernel.org/filesystems/overlayfs.html, "Multiple lower layers").
    """
    os.chdir(root)
    try:
        # On the same file system: otherwise files and directories would be on different devices.
        os.makedirs(f"../{_EMPTY_DIRECTORY}", 0o700, exist_ok=True)
        _mount("overlay", root, "overlay", _MS_RDONLY, f"lowerdir=.:../{_EMPTY_DIRECTORY},xino=off")
    except (OSError, _KernelRefusal):  # no overlays in the kernel, or not on this file system
        _mount(root, root, flags=_MS_BIND | _MS_REC)
    _set_read_only(root)


def _mask(path: str) -> None:
    """Hide a file or directory of the kernel, as Docker does it."""
    if os.path.isdir(path):
        _mount("tmpfs", path, "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "size=4k")
    elif os.path.exists(path):
        _mount("/dev/null", path, flags=_MS_BIND)


def _set_read_only(path: str) -> None:
    """Add read-only, nosuid and nodev to the flags of a mount, which keeps those that it has."""
    mount_attr = struct.pack("QQQQ", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, 0, 0, 0)
    args = (_SYS_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), 0, mount_attr, ctypes.c_size_t(len(mount_attr)))
    _call_libc(f"make {path} read-only", "syscall", *args)


def _bring_up_loopback() -> None:
    """Bring up lo, the only interface of the guest's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def _become_namespace_root() -> None:
    """Become root of the supervisor's user namespace.

    The host's root, whose own id is mapped next to the guest's ids, is not; an ordinary user is already.
    """
    if os.geteuid() != 0:
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        _set_parent_death_signal()  # it is cleared when ids change: prctl(2)


def _map_guest_ids(guest_pid: int, id_maps: dict[str, str], *, deny_setgroups: bool) -> None:
    if deny_setgroups:  # required of an unprivileged user: user_namespaces(7)
        _write_file(f"/proc/{guest_pid}/setgroups", "deny")
    _write_file(f"/proc/{guest_pid}/gid_map", id_maps["gid"])
    _write_file(f"/proc/{guest_pid}/uid_map", id_maps["uid"])


def _check_limits(memory: int, processes: int) -> str:
    """Return which limit the processes of this PID namespace together exceed, as text; empty for none.

    ``memory`` is 0 if the kernel limits it.
    """
    pids = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    if len(pids) > processes:  # a fork bomb: reading each would take too long
        return f"more than {processes} processes and threads"
    statuses = [status for status in map(_read_status, pids) if status]
    if sum(int(status[b"Threads"]) for status in statuses) > processes:
        return f"more than {processes} processes and threads"
    return _check_memory(pids, statuses, memory) if memory else ""


def _read_status(pid: str) -> dict[bytes, bytes]:
    """Return the fields of proc_pid_status(5); empty if the process has just ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            fields = dict(line.split(b":\t", 1) for line in file)
    except (OSError, ValueError):
        return {}
    return fields if b"RssAnon" in fields else {}  # without memory: a zombie


def _check_memory(pids: list[str], statuses: list[dict[bytes, bytes]], limit: int) -> str:
    """Return which limit the guest's memory exceeds, as far as it can be seen without a control group.

    Shared pages are counted once for each process at first, which costs little, and exactly if that is too
    much. Not seen are files in memory that no process has open: mapped and not resident, on their way through
    a socket, or in a table of files that a thread does not share.
    """
    private = sum(_read_kib(status, b"RssAnon") + _read_kib(status, b"VmPTE") for status in statuses)
    mapped = sum(_read_kib(status, b"RssShmem") for status in statuses)
    files = _count_open_files(pids)
    if files is None:
        return f"more than {_MAX_OPEN_FILES} open files"
    if _count_sockets() > _MAX_SOCKETS:
        return f"more than {_MAX_SOCKETS} sockets"
    unmapped = files + _count_ipc() + _count_tmpfs()
    if private + mapped + unmapped > limit:
        mapped = sum(map(_read_proportional_shmem, pids))
        if private + max(mapped, unmapped) > limit:
            return _describe_memory(limit)
    return ""


def _describe_memory(limit: int) -> str:
    return f"more than {limit >> 20} MiB of memory"


def _read_kib(fields: dict[bytes, bytes], name: bytes) -> int:
    """Return a size of ``/proc/PID/status`` or ``smaps_rollup`` in bytes."""
    return int(fields[name].split()[0]) << 10


def _count_open_files(pids: list[str]) -> int | None:
    """Return the bytes of all files of memfd_create(2) that are open; None if too many files are."""
    count = 0
    sizes = {}
    for pid in pids:
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        count += len(names)
        if count > _MAX_OPEN_FILES:
            return None
        for name in names:
            try:
                status = os.stat(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if status.st_dev == _MEMFD_DEVICE:
                sizes[status.st_ino] = status.st_blocks * _STAT_BLOCK_SIZE
    return sum(sizes.values())


def _find_memfd_device() -> int:
    fd = os.memfd_create("")
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


_MEMFD_DEVICE = _find_memfd_device()  # that of the kernel's own tmpfs


def _count_sockets() -> int:
    """Return how many sockets the guest's network namespace has, also those on their way in messages."""
    with open("/proc/net/sockstat", "rb") as file:
        return int(file.readline().split()[2])


def _count_ipc() -> int:
    """Return the bytes of System V shared memory and messages in the guest's IPC namespace."""
    return _sum_column("/proc/sysvipc/shm", b"rss") + _sum_column("/proc/sysvipc/msg", b"cbytes")


def _sum_column(path: str, name: bytes) -> int:
    try:
        with open(path, "rb") as file:
            column = file.readline().split().index(name)
            return sum(int(line.split()[column]) for line in file)
    except FileNotFoundError:  # a kernel without System V IPC
        return 0


def _count_tmpfs() -> int:
    file_systems = map(os.statvfs, _TMPFS)
    return sum((each.f_blocks - each.f_bfree) * each.f_frsize for each in file_systems)


def _read_proportional_shmem(pid: str) -> int:
    """Return the shared memory that a process has mapped, divided by the number of processes that have it."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file if b":" in line)
            return _read_kib(fields, b"Pss_Shmem")
    except (OSError, KeyError):  # it has just ended
        return 0


def _reap_orphans(guest_pid: int) -> None:
    """Reap ended processes that were reparented to PID 1, but not the guest itself."""
    while True:
        try:
            child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if child is None or child.si_pid == guest_pid:
            return
        os.waitpid(child.si_pid, 0)


def _decode_status(wait_result: tuple[int, int]) -> dict[str, int]:
    pid, status = wait_result
    if pid == 0:  # still running after a limit was exceeded: the kernel kills it when PID 1 ends
        return {"signal": int(signal.SIGKILL)}
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status)}
    return {"exit": os.WEXITSTATUS(status)}


# Guest, until its execve(2)


def _exec_guest(
    spec: dict[str, Any], streams: tuple[int, int], unshared_fd: int, mapped_fd: int, error_fd: int
) -> NoReturn:
    """Give up every privilege and start the program; report to ``error_fd`` if that fails."""
    try:
        os.setsid()
        _call_libc("unshare the guest's user namespace", "unshare", _CLONE_NEWUSER)
        os.write(unshared_fd, b"1")
        os.read(mapped_fd, 1)
        _drop_bounding_set()
        _set_user(spec)
        _redirect_streams(streams)
        _set_resource_limits(spec)
        _drop_capabilities()
        _leave_session_keyring(spec["keyctl"])
        _exec_program(spec)
    except Exception as error:  # noqa: BLE001 - any error means that the guest does not run
        os.write(error_fd, json.dumps(_describe_error(error, "start")).encode())
    finally:
        os._exit(_EXEC_FAILED)


def _set_user(spec: dict[str, Any]) -> None:
    """Become the image's user, who may not create user namespaces."""
    if not spec["is_single_id"]:
        os.setgroups(spec["groups"])
    os.setresgid(spec["gid"], spec["gid"], spec["gid"])
    _write_file("/proc/sys/user/max_user_namespaces", "0")
    os.setresuid(spec["uid"], spec["uid"], spec["uid"])


def _redirect_streams(streams: tuple[int, int]) -> None:
    null_fd = os.open("/dev/null", os.O_RDONLY)
    for target_fd, source_fd in enumerate((null_fd, *streams)):
        os.dup2(source_fd, target_fd)


def _set_resource_limits(spec: dict[str, Any]) -> None:
    """Bound each process well above the limits that init enforces: a stop between two of its checks."""
    process_limit = 16 * spec["processes"]
    resource.setrlimit(resource.RLIMIT_NPROC, (process_limit, process_limit))
    data_limit = 2 * spec["memory"] + (512 << 20)
    for number in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE):
        resource.setrlimit(number, (data_limit, data_limit))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, _OPEN_FILES[0]), min(hard, _OPEN_FILES[1])))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if spec["cpus"]:
        os.sched_setaffinity(0, spec["cpus"])


def _exec_program(spec: dict[str, Any]) -> None:
    """Execute the first candidate (of PATH) that can be started. Raise the most telling error if none can."""
    _enter_working_dir(spec["working_dir"])
    os.umask(0o022)
    for signum in (signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)
    _filter_system_calls(bytes.fromhex(spec["filter"]))
    failure: OSError | None = None
    for path in spec["candidates"]:
        try:
            # Nothing else runs yet that could change the path meanwhile.
            os.close(_open_in_image(path, os.O_PATH, _RESOLVE_NO_XDEV))
            os.execve(path, spec["argv"], spec["env"])  # noqa: S606 - a program of the image
        except OSError as error:
            if failure is None or error.errno not in (errno.ENOENT, errno.ENOTDIR):
                failure = error
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                break
    if failure is not None:
        failure.filename = spec["argv"][0]
        raise failure


def _enter_working_dir(path: str) -> None:
    fd = _open_in_image(path, os.O_PATH | os.O_DIRECTORY)
    os.fchdir(fd)
    os.close(fd)
    if f"/{os.getcwd().split('/')[1]}" in _KERNEL_DIRECTORIES:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def _open_in_image(path: str, flags: int, resolve: int = 0) -> int:
    """Open a path without following magic links, which lead to the host; raise :class:`OSError`."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve | _RESOLVE_NO_MAGICLINKS)
    fd: int = _libc.syscall(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), how, ctypes.c_size_t(len(how)))
    if fd < 0:
        # A path that leaves the image is no more than one that may not be used.
        number = errno.EACCES if ctypes.get_errno() == errno.EXDEV else ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


# Privileges, for init and guest


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter_system_calls(instructions: bytes) -> None:
    if instructions:
        program = _FilterProgram(len(instructions) // _BPF_INSTRUCTION_SIZE, instructions)
        mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
        _call_libc("filter system calls", "prctl", _PR_SET_SECCOMP, mode, ctypes.byref(program))


def _leave_session_keyring(number: int) -> None:
    """Join a new session keyring: without it the guest has that of whoever runs it."""
    if not number or _libc.syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None) >= 0:
        return
    # Without keys in the kernel, or in a container that denies the call, the guest cannot use them either.
    if ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
        raise _KernelRefusal("join a session keyring", ctypes.get_errno())


def _drop_bounding_set() -> None:
    """Prevent execve(2) from granting capabilities."""
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    _call_libc("drop ambient capabilities", "prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _call_libc("set no_new_privs", "prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _drop_capabilities() -> None:
    header = struct.pack("Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    _call_libc("drop capabilities", "capset", header, struct.pack("6I", *[0] * 6))


def _set_parent_death_signal() -> None:
    """Be killed when the parent dies; as it may have died already, init also polls the lifeline."""
    _call_libc("set the parent-death signal", "prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)


# Messages


def _send_reply(channel: socket.socket, **reply: object) -> None:
    channel.send(json.dumps(reply).encode())


def _receive_message(channel: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = channel.recvmsg(_MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * 4))
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    for each in fds:
        os.set_inheritable(each, False)
    return data, list(fds)


def _describe_error(error: Exception, stage: str) -> dict[str, object]:
    """Return an error as a reply, shortened: an image chooses the names of its files."""
    if isinstance(error, _KernelRefusal):
        return {"refused": error.stage, "errno": error.errno}
    if isinstance(error, OSError):
        text, number = f"{stage} {error.filename or ''}".strip(" :"), error.errno
    else:  # for example a NUL in an argument
        text, number = f"{stage.rstrip(':')}: {error}", errno.EINVAL
    return {"refused": text[:_MAX_STAGE_CHARS], "errno": number}


# System calls

_libc = ctypes.CDLL(None, use_errno=True)


class _KernelRefusal(Exception):
    """The kernel did not allow ``stage``."""

    def __init__(self, stage: str, error_number: int) -> None:
        super().__init__(stage)
        self.stage = stage
        self.errno = error_number


def _call_libc(stage: str, name: str, *args: Any) -> int:
    result = int(getattr(_libc, name)(*args))
    if result < 0:
        raise _KernelRefusal(stage, ctypes.get_errno())
    return result


def _mount(source: str, target: str, fstype: str = "", flags: int = 0, options: str = "") -> None:
    mount_args = (os.fsencode(source), os.fsencode(target), fstype.encode() or None)
    flag_args = (ctypes.c_ulong(flags), options.encode() or None)
    _call_libc(f"mount {fstype or source} on {target}", "mount", *mount_args, *flag_args)


def _write_file(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


if __name__ == "__main__":
    main()
