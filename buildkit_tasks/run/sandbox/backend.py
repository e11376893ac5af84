"""Run an image without an engine: its layers unpacked, its guests in namespaces of their own."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import cache_folder
from buildkit_tasks.errors import CheckFailed, EmulatorError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import platform_manifests
from buildkit_tasks.oci.layers.rootfs import DEFAULT_PATH
from buildkit_tasks.report.model import Outcome
from buildkit_tasks.run.backend import wrong_program
from buildkit_tasks.run.outcomes import Ending
from buildkit_tasks.run.qemu_env import STEERING
from buildkit_tasks.run.sandbox.availability import SandboxClosed, why_closed
from buildkit_tasks.run.sandbox.rootfs_cache import Root, Roots
from buildkit_tasks.run.sandbox.rootfs_files import RootFiles
from buildkit_tasks.run.sandbox.supervisor import Guest, Refused, Warden, shift_of
from buildkit_tasks.run.sandbox.supervisor_pool import Wardens
from buildkit_tasks.run.sandbox.user import User, user_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from buildkit_tasks.host.emulation.qemu import Qemu
    from buildkit_tasks.oci.model import Descriptor, ImageConfig
    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import RunResult
    from buildkit_tasks.run.backend import GuestTask, OpenImage

__all__ = ["SandboxClosed", "sandbox_guests"]

_MEGABYTE = 1_000_000


@contextlib.contextmanager
def sandbox_guests(
    name: str, started: Future[Warden], open_image: OpenImage, qemu: Qemu
) -> Iterator[SandboxGuests]:
    """An image that ``open_image`` reads, its platforms ready to be run without an engine.

    ``started`` is the warden, which is ended with it. Raises :class:`SandboxClosed` if the kernel does
    not let this user have one.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(_ended, started)
        source = stack.enter_context(open_image(name))
        manifests = dict(platform_manifests(source))
        try:
            wardens = Wardens(started.result(), qemu)
        except Refused as refused:
            raise SandboxClosed(why_closed(refused)) from refused
        stack.callback(wardens.close)
        cap = qemu.settings.root_cache * _MEGABYTE
        roots = Roots(cache_folder(qemu.settings) / "roots", cap, shift_of(os.geteuid()))
        yield SandboxGuests(source=source, manifests=manifests, wardens=wardens, roots=roots)


def _ended(started: Future[Warden]) -> None:
    with contextlib.suppress(Refused):
        started.result().close()


@dataclass(frozen=True, kw_only=True)
class SandboxGuests:
    """The platforms of one image in the sandbox."""

    source: Source
    manifests: dict[Platform, Descriptor]
    wardens: Wardens
    roots: Roots
    _unpacking: Lock = field(default_factory=Lock)
    _turns: Iterator[int] = field(default_factory=itertools.count)
    runner: str = "sandbox"

    @property
    def platforms(self) -> Sequence[Platform]:
        """The platforms that the image holds."""
        return tuple(self.manifests)

    def run(self, task: GuestTask) -> RunResult:
        """Unpack the platform's image, if it is not kept, look at its program, and run it."""
        entry = self.manifests[task.platform]
        return replace(self._tried(task, entry), runner=self.runner, digest=str(entry.digest))

    def _tried(self, task: GuestTask, entry: Descriptor) -> RunResult:
        try:
            with contextlib.ExitStack() as stack:
                with self._unpacking:  # a stream has one reader; meanwhile others run
                    root = stack.enter_context(self.roots.root(self.source, entry))
                return self._run_in(root, task)
        except LimitExceeded as error:
            return task.result(Outcome.FAILED, str(error), limited=True)
        except (CheckFailed, MalformedImage) as error:
            return task.result(Outcome.FAILED, str(error))

    def stop(self) -> None:
        """End whatever runs."""
        self.wardens.close()

    def _run_in(self, root: Root, task: GuestTask) -> RunResult:
        config = _with_words(root.config, task.words)
        wrong = wrong_program(config, RootFiles(root.path), task.platform)
        if wrong:
            return task.result(Outcome.WRONG_ARCH, wrong)
        try:
            warden, program = self.wardens.ready(task.platform.machine, task.cpu)
            ended = warden.run(self._guest(root, config, task), task.timeout)
        except EmulatorError as error:
            return task.result(Outcome.NOT_REGISTERED, str(error))
        except Refused as refused:
            return task.result(*_not_started(refused, task.platform))
        emulator = self.wardens.summary(program, task.cpu)
        ending = Ending(
            exit_code=ended.exit_code,
            stdout=ended.stdout.decode(errors="replace"),
            stderr=ended.stderr.decode(errors="replace"),
            emulated=emulator is not None,
            cpu=task.cpu,
            limit=ended.limit,
            timed_out=task.timeout if ended.timed_out else 0.0,
        )
        return task.judged(ending, emulator=emulator, seconds=ended.seconds)

    def _guest(self, root: Root, config: ImageConfig, task: GuestTask) -> Guest:
        user = user_of(config.user, root.path)
        env = _environment(config, user, task.cpu)
        words = config.entrypoint + config.cmd
        return Guest(
            root=root.path,
            candidates=_candidates(words[0], env["PATH"]),
            argv=words,
            env=env,
            folder=config.working_dir or "/",
            uid=user.uid,
            gid=user.gid,
            groups=user.groups,
            processors=self._processor(),
        )

    def _processor(self) -> tuple[int, ...]:
        """One processor for each guest, taking turns."""
        ours = sorted(os.sched_getaffinity(0))
        return (ours[next(self._turns) % len(ours)],)


def _with_words(config: ImageConfig, words: tuple[str, ...]) -> ImageConfig:
    """The configuration with other words for CMD, as ``docker run`` replaces it."""
    changed = replace(config, cmd=words) if words else config
    if not changed.entrypoint + changed.cmd:
        raise CheckFailed("the image has no ENTRYPOINT and no CMD", hint="name a --command")
    return changed


def _environment(config: ImageConfig, user: User, cpu: str) -> dict[str, str]:
    """The guest's environment, as Docker makes it; what would steer the emulator is ours alone."""
    stated = dict(item.partition("=")[::2] for item in config.env)
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": "guest", "HOME": user.home, **stated}
    env = {name: value for name, value in env.items() if name and name not in STEERING}
    return env | ({"QEMU_CPU": cpu} if cpu else {})


def _candidates(command: str, path: str) -> tuple[str, ...]:
    if "/" in command:
        return (command,)
    return tuple(f"{folder or '.'}/{command}" for folder in path.split(":"))


def _not_started(refused: Refused, platform: Platform) -> tuple[Outcome, str]:
    if refused.number == errno.ENOEXEC:
        return Outcome.NOT_REGISTERED, f"the kernel has no handler for {platform}: exec format error"
    if refused.number == errno.ENOSPC:
        raise LimitExceeded(f"a namespace is refused: {refused}", platform=platform)
    return Outcome.FAILED, str(refused)
