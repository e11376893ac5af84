"""The sandbox runner's backend: unpack a platform's image, check its program, run it under a supervisor."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import create_cache_folder
from buildkit_tasks.errors import CheckFailed, EmulatorError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.rootfs import DEFAULT_PATH
from buildkit_tasks.report.model import Outcome
from buildkit_tasks.run.backend import explain_missing_loader, explain_unstartable
from buildkit_tasks.run.outcomes import MISSING_PROGRAM_STATUSES, ProcessResult
from buildkit_tasks.run.qemu_env import QEMU_ENV_VARS
from buildkit_tasks.run.sandbox.availability import SandboxUnavailable, explain_unavailable
from buildkit_tasks.run.sandbox.rootfs_cache import CachedRootfs, RootfsCache
from buildkit_tasks.run.sandbox.rootfs_files import RootfsFiles
from buildkit_tasks.run.sandbox.supervisor import KernelRefusal, SandboxRun, Supervisor, id_offset
from buildkit_tasks.run.sandbox.supervisor_pool import SupervisorPool
from buildkit_tasks.run.sandbox.user import User, resolve_user

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from buildkit_tasks.host.emulation.qemu import QemuFinder
    from buildkit_tasks.oci.image import Image
    from buildkit_tasks.oci.model import Descriptor, ImageConfig
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import RunResult
    from buildkit_tasks.run.backend import ImageOpener, RunTask

__all__ = ["SandboxUnavailable", "open_sandbox_backend"]

_MEGABYTE = 1_000_000


@contextlib.contextmanager
def open_sandbox_backend(
    name: str, supervisor_future: Future[Supervisor], open_image: ImageOpener, qemu: QemuFinder
) -> Iterator[SandboxBackend]:
    """Yield the backend for the image that ``open_image`` reads by its name.

    ``supervisor_future`` is the default supervisor, which is closed afterwards. Raises
    :class:`SandboxUnavailable` if the kernel does not allow this user to create one.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(_close_supervisor, supervisor_future)
        image = stack.enter_context(open_image(name))
        manifests = dict(image.platform_manifests)
        try:
            pool = SupervisorPool(supervisor_future.result(), qemu)
        except KernelRefusal as refusal:
            raise SandboxUnavailable(explain_unavailable(refusal)) from refusal
        stack.callback(pool.close)
        max_bytes = qemu.settings.root_cache * _MEGABYTE
        folder = create_cache_folder(qemu.settings) / "roots"
        rootfs_cache = RootfsCache(folder, max_bytes, id_offset(os.geteuid()))
        yield SandboxBackend(
            image=image, manifests=manifests, supervisor_pool=pool, rootfs_cache=rootfs_cache
        )


def _close_supervisor(supervisor_future: Future[Supervisor]) -> None:
    with contextlib.suppress(KernelRefusal):
        supervisor_future.result().close()


@dataclass(frozen=True, kw_only=True)
class SandboxBackend:
    """The platforms of one image in the sandbox."""

    image: Image
    manifests: dict[Platform, Descriptor]
    supervisor_pool: SupervisorPool
    rootfs_cache: RootfsCache
    _unpack_lock: Lock = field(default_factory=Lock)
    _turn_counter: Iterator[int] = field(default_factory=itertools.count)
    runner: str = "sandbox"

    @property
    def platforms(self) -> Sequence[Platform]:
        """The platforms of the image."""
        return tuple(self.manifests)

    def run(self, task: RunTask) -> RunResult:
        """Unpack the platform's image unless it is cached, check its program, and run it."""
        descriptor = self.manifests[task.platform]
        return replace(
            self._unpack_and_run(task, descriptor), runner=self.runner, digest=str(descriptor.digest)
        )

    def _unpack_and_run(self, task: RunTask, descriptor: Descriptor) -> RunResult:
        try:
            with contextlib.ExitStack() as stack:
                with self._unpack_lock:  # a streamed image has one reader; guests run meanwhile
                    rootfs = stack.enter_context(self.rootfs_cache.acquire(self.image, descriptor))
                return self._run_in_rootfs(rootfs, task)
        except LimitExceeded as error:
            return task.make_result(Outcome.FAILED, str(error), limited=True)
        except (CheckFailed, MalformedImage) as error:
            return task.make_result(Outcome.FAILED, str(error))

    def stop(self) -> None:
        """Kill all running guests."""
        self.supervisor_pool.close()

    def _run_in_rootfs(self, rootfs: CachedRootfs, task: RunTask) -> RunResult:
        config = _override_cmd(rootfs.config, task.args)
        files = RootfsFiles(rootfs.path)
        problem = explain_unstartable(config, files, task.platform)
        if problem:
            return task.make_result(*problem)
        try:
            supervisor, emulator_path = self.supervisor_pool.get_supervisor(task.platform.machine, task.cpu)
            guest_exit = supervisor.run(self._make_run(rootfs, config, task), task.timeout)
        except EmulatorError as error:
            return task.make_result(Outcome.NOT_REGISTERED, str(error))
        except KernelRefusal as refusal:
            missing_loader = explain_missing_loader(config, files, task.platform)
            return task.make_result(*_classify_refusal(refusal, task.platform, missing_loader))
        missing_loader = ""
        if guest_exit.exit_code in MISSING_PROGRAM_STATUSES:
            missing_loader = explain_missing_loader(config, files, task.platform)
        emulator = self.supervisor_pool.summarize_emulator(emulator_path, task.cpu)
        process_result = ProcessResult(
            exit_code=guest_exit.exit_code,
            stdout=guest_exit.stdout.decode(errors="replace"),
            stderr=guest_exit.stderr.decode(errors="replace"),
            emulated=emulator is not None,
            cpu=task.cpu,
            missing_loader=missing_loader,
            limit_exceeded=guest_exit.limit_exceeded,
            timeout_exceeded=task.timeout if guest_exit.timed_out else 0.0,
        )
        return task.classify_result(process_result, emulator=emulator, seconds=guest_exit.seconds)

    def _make_run(self, rootfs: CachedRootfs, config: ImageConfig, task: RunTask) -> SandboxRun:
        user = resolve_user(config.user, rootfs.path)
        env = _build_environment(config, user, task.cpu)
        argv = config.entrypoint + config.cmd
        return SandboxRun(
            root=rootfs.path,
            candidates=_list_candidates(argv[0], env["PATH"]),
            argv=argv,
            env=env,
            working_dir=config.working_dir or "/",
            uid=user.uid,
            gid=user.gid,
            groups=user.groups,
            processors=self._assign_processor(),
        )

    def _assign_processor(self) -> tuple[int, ...]:
        """Assign one processor to each guest, in rotation."""
        available = sorted(os.sched_getaffinity(0))  # type: ignore[attr-defined,unused-ignore]  # Linux only
        return (available[next(self._turn_counter) % len(available)],)


def _override_cmd(config: ImageConfig, args: tuple[str, ...]) -> ImageConfig:
    """Replace CMD by ``args``, if there are any, as ``docker run`` does."""
    overridden = replace(config, cmd=args) if args else config
    if not overridden.entrypoint + overridden.cmd:
        raise CheckFailed("the image has no ENTRYPOINT and no CMD", hint="pass --command")
    return overridden


def _build_environment(config: ImageConfig, user: User, cpu: str) -> dict[str, str]:
    """Return the guest's environment as Docker sets it; QEMU's variables are not taken from the image."""
    image_env = dict(item.partition("=")[::2] for item in config.env)
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": "guest", "HOME": user.home, **image_env}
    env = {name: value for name, value in env.items() if name and name not in QEMU_ENV_VARS}
    return env | ({"QEMU_CPU": cpu} if cpu else {})


def _list_candidates(command: str, search_path: str) -> tuple[str, ...]:
    if "/" in command:
        return (command,)
    return tuple(f"{directory or '.'}/{command}" for directory in search_path.split(":"))


def _classify_refusal(refusal: KernelRefusal, platform: Platform, missing_loader: str) -> tuple[Outcome, str]:
    """Return why a program that is made for the platform, and whose emulator is registered, did not start."""
    if refusal.errno == errno.ENOEXEC:
        message = (
            f"{refusal}: it is made for {platform}, and damaged or of a kind that the kernel does not start"
        )
        return Outcome.FAILED, message
    if refusal.errno == errno.ENOENT and refusal.stage.startswith("start "):
        return Outcome.FAILED, f"{refusal}: {missing_loader or 'it is in the image, its loader is not'}"
    if refusal.errno == errno.ENOSPC:
        raise LimitExceeded(f"the kernel refuses another namespace: {refusal}", platform=platform)
    return Outcome.FAILED, str(refusal)
