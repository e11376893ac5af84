"""Check a requested CPU model before anything is built or run: QEMU itself is asked whether it has it."""

from __future__ import annotations

import difflib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuildkitTasksError, UsageError
from buildkit_tasks.platforms.elf.probe import build_probe_program
from buildkit_tasks.run.outcomes import ProcessResult
from buildkit_tasks.run.qemu_env import explain_cpu_refusal, is_invalid_cpu_model
from buildkit_tasks.system.command import CommandOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.platforms import Machine, Platform
    from buildkit_tasks.system.command import CommandRunner

__all__ = ["CPU_CHOICES", "check_cpu_model"]

CPU_CHOICES = ("max", "floor", "both")  # every platform has these
_PROBE_SECONDS = 10.0


def check_cpu_model(
    settings: Settings,
    platforms: Iterable[Platform],
    find_qemu: Callable[[Machine], Path | None],
    commands: CommandRunner,
) -> None:
    """Raise :class:`UsageError` if QEMU does not know the settings' CPU model, or a feature, on a platform.

    ``find_qemu`` returns the QEMU that would run an architecture. Where there is none, or it cannot be
    started here, the run itself fails, as it does on a model that QEMU knows but cannot emulate.
    """
    cpu = settings.cpu
    if not cpu or cpu in CPU_CHOICES:
        return
    problems: dict[Platform, str] = {}
    for platform in dict.fromkeys(each for each in platforms if each.is_known):
        program = find_qemu(platform.machine)
        problems[platform] = _explain_invalid_model(cpu, platform, program, commands) if program else ""
    refusals = {platform: problem for platform, problem in problems.items() if problem}
    if refusals:
        first, *others = refusals
        also = f"; nor for {', '.join(map(str, others))}" if others else ""
        usable = [str(platform) for platform in problems if platform not in refusals]
        message = f"{settings.describe('cpu')}: {refusals[first]}{also}"
        raise UsageError(message, hint=_suggest(settings, usable))


def _suggest(settings: Settings, usable: Sequence[str]) -> str:
    """Return the choice that resembles the model, or the platforms that have it."""
    similar = difflib.get_close_matches(settings.cpu.lower(), CPU_CHOICES, n=1)
    if similar or not usable:
        return settings.suggest("cpu", similar[0] if similar else "floor")
    return f"--platform={','.join(usable)}"


def _explain_invalid_model(cpu: str, platform: Platform, program: Path, commands: CommandRunner) -> str:
    """Start a minimal program on the CPU model; return why QEMU refuses the model, empty if it does not."""
    with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
        probe = Path(folder) / "probe"
        probe.write_bytes(build_probe_program(platform.machine))
        argv = [str(program), "-cpu", cpu, str(probe)]
        try:
            result = commands.run(argv, CommandOptions(timeout=_PROBE_SECONDS))
        except BuildkitTasksError:
            return ""
    ended = ProcessResult(
        exit_code=result.returncode, stdout=result.stdout, stderr=result.stderr, emulated=True, cpu=cpu
    )
    is_invalid = is_invalid_cpu_model(result.stderr)
    return explain_cpu_refusal(ended, platform, str(program)) if is_invalid else ""
