"""Several runs of one platform told apart: by what was run, and on which CPU."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.report.model import RunResult

__all__ = [
    "DEFAULT_CPU",
    "OWN_COMMAND",
    "by_platform",
    "command_of",
    "cpu_of",
    "differences",
    "names_of",
    "seconds_of",
    "varies",
]

DEFAULT_CPU = "max"  # of QEMU, or the host's own
OWN_COMMAND = "(the image's own)"


def by_platform(results: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    """Give the runs of each platform, in the order in which they first came up."""
    found: dict[str, list[RunResult]] = {}
    for result in results:
        found.setdefault(result.platform, []).append(result)
    return found


def cpu_of(result: RunResult) -> str:
    """Give the CPU that a run saw, as ``--cpu`` is told."""
    return (result.emulator.cpu if result.emulator else "") or DEFAULT_CPU


def command_of(result: RunResult) -> str:
    """Give what was run, as it was written."""
    return result.command or OWN_COMMAND


def names_of(results: Sequence[RunResult]) -> tuple[str, ...]:
    """Give each run a name that no other has: its platform, and with several of one what differs.

    ``linux/arm/v6``, ``linux/arm/v6: uname -m``, ``linux/arm/v6 on arm1176``.
    """
    groups = by_platform(results)
    taken = {platform for platform, mine in groups.items() if len(mine) == 1}
    return tuple(_name(result, groups[result.platform], taken) for result in results)


def _name(result: RunResult, mine: list[RunResult], taken: set[str]) -> str:
    if len(mine) == 1:
        return result.platform
    cpu = f" on {cpu_of(result)}" if varies(cpu_of(each) for each in mine) else ""
    told = result.command and varies(each.command for each in mine)
    name = f"{result.platform}{cpu}{f': {result.command}' if told else ''}"
    numbered = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
    free = next(each for each in numbered if each not in taken)
    taken.add(free)
    return free


def varies(values: Iterable[str]) -> bool:
    """Tell whether there are two values that differ."""
    return len(set(values)) > 1


def differences(results: Iterable[RunResult]) -> Iterator[str]:
    """Say of which platforms the same run passed on one CPU and not on another."""
    for platform, runs in by_platform(results).items():
        for command in dict.fromkeys(result.command for result in runs):
            same = [result for result in runs if result.command == command]
            cpus = {cpu_of(result) for result in same if result.ok}
            if cpus and any(cpu_of(result) not in cpus for result in same):
                ends = ", ".join(f"{result.outcome.value} on {cpu_of(result)}" for result in same)
                yield f"{platform}{f': {command}' if command else ''}: {ends}"


def seconds_of(results: Iterable[RunResult]) -> Iterator[str]:
    """Say how long each platform took where that is in no row: where one has several runs."""
    groups = by_platform(results)
    if any(len(mine) > 1 for mine in groups.values()):
        took = (f"{name} {sum(each.seconds for each in mine):.2f}" for name, mine in groups.items())
        yield f"seconds for each platform: {', '.join(took)}"
