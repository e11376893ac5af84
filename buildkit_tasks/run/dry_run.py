"""What a dry run shows of a run: commands that do the same by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.host.emulation.binfmt import handler_line
from buildkit_tasks.oci.image import config_of, manifest_of, platform_manifests
from buildkit_tasks.platforms import native_platform
from buildkit_tasks.report.model import RunReport
from buildkit_tasks.run.docker.container import as_command
from buildkit_tasks.system.command import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.oci.model import ImageConfig
    from buildkit_tasks.run.backend import GuestTask, OpenImage
    from buildkit_tasks.run.service import RunRequest
    from buildkit_tasks.system.command import Runner

__all__ = ["show_containers", "show_sandbox"]

_NAMESPACES = ("map-root-user", "fork", "kill-child", "mount", "pid", "net", "ipc", "uts", "cgroup")


def show_containers(request: RunRequest, engine: Engine, run: Runner) -> RunReport:
    """The commands of the Docker runner; the image is loaded without a name, and so is IMAGE."""
    transport, _, place = request.image.partition(":")
    image = place if transport == "docker-daemon" else "IMAGE"
    if image == "IMAGE":
        run.run([*engine.tools.docker, "load", f"--input={place}"], engine.call(), mutates=True)
    for task in request.tasks(request.plans, request.platforms):
        argv = [*engine.tools.docker, *as_command(task.platform, image, task.words, task.cpu)]
        run.run(argv, engine.call(), mutates=True)
    return RunReport(subject=request.image, results=())


def show_sandbox(request: RunRequest, open_image: OpenImage, run: Runner) -> RunReport:
    """The commands of the sandbox, for util-linux 2.40 or newer; ROOT is where the image was unpacked to."""
    with open_image(request.image) as source:
        configs = {
            platform: config_of(source, manifest_of(source, entry))
            for platform, entry in platform_manifests(source)
        }
    for task in request.tasks(request.plans, tuple(configs)):
        if task.platform in configs:
            env = {"QEMU_CPU": task.cpu} if task.cpu else {}
            run.run(_unshare(task, configs[task.platform]), Call(env=env), mutates=True)
    return RunReport(subject=request.image, results=())


def _unshare(task: GuestTask, config: ImageConfig) -> Sequence[str]:
    words = config.entrypoint + (task.words or config.cmd)
    place = [f"--root=ROOT/{task.platform.slug}", f"--wd={config.working_dir or '/'}"]
    return ["unshare", *(f"--{name}" for name in _NAMESPACES), *_handler(task), *place, "--", *words]


def _handler(task: GuestTask) -> list[str]:
    """The emulator, in the form of the kernel's ``register``."""
    machine = task.platform.machine
    if machine.architecture == native_platform().architecture and not task.cpu:
        return []
    return [f"--load-interp={handler_line(machine, f'/usr/bin/qemu-{machine.qemu}-static')}"]
