"""Dry run: show commands that do by hand what a run would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.host.emulation.binfmt import format_registration
from buildkit_tasks.platforms import native_platform
from buildkit_tasks.report.model import RunReport
from buildkit_tasks.run.docker.container import build_run_args
from buildkit_tasks.system.command import CommandOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.oci.model import ImageConfig
    from buildkit_tasks.run.backend import ImageOpener, RunTask
    from buildkit_tasks.run.service import RunRequest
    from buildkit_tasks.system.command import CommandRunner

__all__ = ["show_docker_commands", "show_sandbox_commands"]

_UNSHARE_FLAGS = ("map-root-user", "fork", "kill-child", "mount", "pid", "net", "ipc", "uts", "cgroup")


def show_docker_commands(request: RunRequest, engine: Engine, commands: CommandRunner) -> RunReport:
    """Show the commands of the Docker runner; a loaded image has no name yet and is shown as IMAGE."""
    transport, _, location = request.image.partition(":")
    image = location if transport == "docker-daemon" else "IMAGE"
    if image == "IMAGE":
        commands.run(
            [*engine.tools.docker, "load", f"--input={location}"], engine.command_options(), mutates=True
        )
    for task in request.make_tasks(request.plans, request.platforms):
        argv = [*engine.tools.docker, *build_run_args(task.platform, image, task.args, task.cpu)]
        commands.run(argv, engine.command_options(), mutates=True)
    return RunReport(subject=request.image, results=())


def show_sandbox_commands(request: RunRequest, open_image: ImageOpener, commands: CommandRunner) -> RunReport:
    """Show unshare(1) commands (util-linux 2.40 or newer); ROOT stands for the unpacked image."""
    with open_image(request.image) as image:
        configs = {platform: image.config(entry) for platform, entry in image.platform_manifests}
    for task in request.make_tasks(request.plans, tuple(configs)):
        if task.platform in configs:
            env = {"QEMU_CPU": task.cpu} if task.cpu else {}
            commands.run(
                _build_unshare_argv(task, configs[task.platform]), CommandOptions(env=env), mutates=True
            )
    return RunReport(subject=request.image, results=())


def _build_unshare_argv(task: RunTask, config: ImageConfig) -> Sequence[str]:
    argv = config.entrypoint + (task.args or config.cmd)
    root_args = [f"--root=ROOT/{task.platform.slug}", f"--wd={config.working_dir or '/'}"]
    return [
        "unshare",
        *(f"--{flag}" for flag in _UNSHARE_FLAGS),
        *_build_handler_args(task),
        *root_args,
        "--",
        *argv,
    ]


def _build_handler_args(task: RunTask) -> list[str]:
    """Return the option that registers the emulator; it has the format of binfmt_misc's ``register``."""
    machine = task.platform.machine
    if machine.architecture == native_platform().architecture and not task.cpu:
        return []
    return [f"--load-interp={format_registration(machine, f'/usr/bin/qemu-{machine.qemu_suffix}-static')}"]
