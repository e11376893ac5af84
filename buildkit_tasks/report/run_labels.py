"""Several runs of one platform told apart: by what was run, and on which CPU."""

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
    "group_by_platform",
    "has_distinct_values",
    "unique_labels",
]

DEFAULT_CPU = "max"  # of QEMU, or the host's own
IMAGE_COMMAND = "(the image's own)"


def group_by_platform(results: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    """Give the runs of each platform, in the order in which they first came up."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.platform, []).append(result)
    return groups


def cpu_label(result: RunResult) -> str:
    """Give the CPU that a run saw, as ``--cpu`` is told."""
    return (result.emulator.cpu if result.emulator else "") or DEFAULT_CPU


def command_label(result: RunResult) -> str:
    """Give what was run, as it was written."""
    return result.command or IMAGE_COMMAND


def unique_labels(results: Sequence[RunResult]) -> tuple[str, ...]:
    """Give each run a name that no other has: its platform, and with several of one what differs.

    ``linux/arm/v6``, ``linux/arm/v6: uname -m``, ``linux/arm/v6 on arm1176``.
    """
    groups = group_by_platform(results)
    used_labels = {platform for platform, runs in groups.items() if len(runs) == 1}
    return tuple(_make_label(result, groups[result.platform], used_labels) for result in results)


def _make_label(result: RunResult, runs: list[RunResult], used_labels: set[str]) -> str:
    if len(runs) == 1:
        return result.platform
    cpu_text = f" on {cpu_label(result)}" if has_distinct_values(cpu_label(each) for each in runs) else ""
    has_command = result.command and has_distinct_values(each.command for each in runs)
    label = f"{result.platform}{cpu_text}{f': {result.command}' if has_command else ''}"
    candidates = itertools.chain([label], (f"{label} ({number})" for number in itertools.count(2)))
    unique = next(each for each in candidates if each not in used_labels)
    used_labels.add(unique)
    return unique


def has_distinct_values(values: Iterable[str]) -> bool:
    """Notify whether there are two values that differ."""
    return len(set(values)) > 1


def describe_cpu_differences(results: Iterable[RunResult]) -> Iterator[str]:
    """Say of which platforms the same run passed on one CPU and not on another."""
    for platform, runs in group_by_platform(results).items():
        for command in dict.fromkeys(result.command for result in runs):
            same_command = [result for result in runs if result.command == command]
            passing_cpus = {cpu_label(result) for result in same_command if result.ok}
            if passing_cpus and any(cpu_label(result) not in passing_cpus for result in same_command):
                outcomes = ", ".join(
                    f"{result.outcome.value} on {cpu_label(result)}" for result in same_command
                )
                yield f"{platform}{f': {command}' if command else ''}: {outcomes}"


def describe_seconds(results: Iterable[RunResult]) -> Iterator[str]:
    """Say how long each platform took where that is in no row: where one has several runs."""
    groups = group_by_platform(results)
    if any(len(runs) > 1 for runs in groups.values()):
        totals = (f"{platform} {sum(each.seconds for each in runs):.2f}" for platform, runs in groups.items())
        yield f"seconds for each platform: {', '.join(totals)}"
