"""Labels of runs: what distinguishes several runs of one platform, by command and CPU."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.report.model import RunResult

__all__ = [
    "DEFAULT_CPU",
    "IMAGE_COMMAND",
    "command_label",
    "cpu_label",
    "describe_cpu_differences",
    "describe_seconds",
    "distinguishing_columns",
    "runner_label",
    "unique_labels",
]

DEFAULT_CPU = "max"  # QEMU's default model, or the host's own CPU
IMAGE_COMMAND = "(the image's own)"


def cpu_label(result: RunResult) -> str:
    """Return the CPU model of a run, as ``--cpu`` spells it."""
    return result.cpu or (result.emulator.cpu if result.emulator else "") or DEFAULT_CPU


def runner_label(result: RunResult) -> str:
    """Return what the program ran through: the emulator, ``native``, or "" if it was not started."""
    if result.emulator is not None:
        return f"{result.emulator.path.rpartition('/')[2]} {result.emulator.version}"
    if not result.has_started:
        return ""
    return "emulated" if result.emulated else "native"


def command_label(result: RunResult) -> str:
    """Return the command of a run as it was written."""
    return result.command or IMAGE_COMMAND


def distinguishing_columns(cpus: Iterable[str], commands: Iterable[str]) -> tuple[str, ...]:
    """Return "CPU" if a run had another than the default one, and "Command" if commands differ."""
    cpu_column = ("CPU",) if _differ([DEFAULT_CPU, *cpus]) else ()
    return (*cpu_column, "Command") if _differ(commands) else cpu_column


def unique_labels(results: Sequence[RunResult]) -> tuple[str, ...]:
    """Return a unique name for each run: its platform, and with several runs of one what differs.

    ``linux/arm/v6``, ``linux/arm/v6: uname -m``, ``linux/arm/v6 on arm1176``.
    """
    groups = _group_by_platform(results)
    used_labels = {platform for platform, runs in groups.items() if len(runs) == 1}
    return tuple(_make_label(result, groups[result.platform], used_labels) for result in results)


def _group_by_platform(results: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.platform, []).append(result)
    return groups


def _make_label(result: RunResult, runs: Sequence[RunResult], used_labels: set[str]) -> str:
    if len(runs) == 1:
        return result.platform
    cpu_text = f" on {cpu_label(result)}" if _differ(map(cpu_label, runs)) else ""
    has_command = result.command and _differ(run.command for run in runs)
    label = f"{result.platform}{cpu_text}{f': {result.command}' if has_command else ''}"
    candidates = itertools.chain([label], (f"{label} ({number})" for number in itertools.count(2)))
    unique = next(candidate for candidate in candidates if candidate not in used_labels)
    used_labels.add(unique)
    return unique


def _differ(values: Iterable[str]) -> bool:
    return len(set(values)) > 1


def describe_cpu_differences(results: Iterable[RunResult]) -> Iterator[str]:
    """Yield a note for each command that passed on one CPU of a platform and not on another."""
    for platform, runs in _group_by_platform(results).items():
        for command in dict.fromkeys(run.command for run in runs):
            same_command = [run for run in runs if run.command == command]
            passing_cpus = {cpu_label(run) for run in same_command if run.ok}
            if passing_cpus and {cpu_label(run) for run in same_command} - passing_cpus:
                outcomes = ", ".join(f"{run.outcome.value} on {cpu_label(run)}" for run in same_command)
                yield f"{platform}{f': {command}' if command else ''}: {outcomes}"


def describe_seconds(results: Iterable[RunResult]) -> Iterator[str]:
    """Yield the seconds of each platform if one has several runs: no line of the table has its sum."""
    groups = _group_by_platform(results)
    if any(len(runs) > 1 for runs in groups.values()):
        totals = (f"{platform} {sum(run.seconds for run in runs):.2f}" for platform, runs in groups.items())
        yield f"seconds for each platform: {', '.join(totals)}"
