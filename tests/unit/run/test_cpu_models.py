from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import Settings, load_settings, override_settings
from buildkit_tasks.errors import EmulatorError, UsageError
from buildkit_tasks.platforms import Machine, Platform, parse_platforms
from buildkit_tasks.platforms.elf.probe import PROBE_STATUS
from buildkit_tasks.run.cpu_models import check_cpu_model
from tests.support.scripted import Scripted

UNKNOWN = "qemu: unable to find CPU model 'x'\n"
PLATFORMS = parse_platforms(["linux/amd64", "linux/arm/v6", "linux/arm/v7"])


def qemu(machine: Machine) -> Path:
    return Path(f"/q/qemu-{machine.qemu_suffix}")


def check(
    cpu: str,
    *,
    amd64: tuple[int, str] = (PROBE_STATUS, ""),
    arm: tuple[int, str] = (PROBE_STATUS, ""),
    find_qemu: Callable[[Machine], Path | None] = qemu,
) -> Scripted:
    commands = Scripted()
    for name, (status, stderr) in (("x86_64", amd64), ("arm", arm)):
        commands.expect(f"/q/qemu-{name} -cpu {cpu} *", returncode=status, stderr=stderr)
    settings = load_settings({"cpu": cpu}, flag_names={"cpu": "--cpu"}, environ={}, folder=Path("/nosuch"))
    check_cpu_model(settings, PLATFORMS, find_qemu, commands)
    return commands


@pytest.mark.parametrize("cpu", ["", "max", "floor", "both"])
def test_choices_start_nothing(cpu: str) -> None:
    assert check(cpu).calls == []


def test_known_model() -> None:
    assert len(check("cortex-a53,sve=off").calls) == len(PLATFORMS)


@pytest.mark.parametrize(
    ("cpu", "hint"),
    [("flor", "--cpu=floor"), ("MAX", "--cpu=max"), ("bot", "--cpu=both"), ("z80", "--cpu=floor")],
)
def test_unknown_model(cpu: str, hint: str) -> None:
    with pytest.raises(UsageError) as excinfo:
        check(cpu, amd64=(1, UNKNOWN), arm=(1, UNKNOWN))
    problem = f"linux/amd64: QEMU has no CPU model {cpu!r}; '/q/qemu-x86_64 -cpu help' lists the models"
    assert excinfo.value.message == f"--cpu={cpu}: {problem}; nor for linux/arm/v6, linux/arm/v7"
    assert (excinfo.value.hint, excinfo.value.exit_code) == (hint, 2)


def test_model_of_other_platforms() -> None:
    with pytest.raises(UsageError, match=r"linux/amd64: QEMU has no CPU model 'cortex-a53'") as excinfo:
        check("cortex-a53", amd64=(1, UNKNOWN))
    assert excinfo.value.hint == "--platform=linux/arm/v6,linux/arm/v7"


SOURCES = [
    pytest.param(load_settings({"cpu": "flor"}, environ={}), "command line: cpu = 'flor'", id="python"),
    pytest.param(
        load_settings(environ={"INVOKE_BUILDKIT_CPU": "flor"}), "INVOKE_BUILDKIT_CPU=flor", id="environment"
    ),
    pytest.param(
        load_settings(invoke={"cpu": "flor"}, environ={}),
        "Invoke's configuration: buildkit: cpu = 'flor'",
        id="invoke",
    ),
    pytest.param(
        override_settings(Settings(), {"cpu": "flor"}, "run_on_platform"),
        "run_on_platform: cpu = 'flor'",
        id="call",
    ),
]


@pytest.mark.parametrize(("settings", "label"), SOURCES)
def test_source_is_named(settings: Settings, label: str) -> None:
    commands = Scripted()
    commands.expect("*", returncode=1, stderr=UNKNOWN.replace("x", "flor"))
    with pytest.raises(UsageError) as excinfo:
        check_cpu_model(settings, PLATFORMS[:1], qemu, commands)
    assert excinfo.value.message.startswith(f"{label}: linux/amd64: ")
    assert "--cpu" not in str(excinfo.value)


def test_unknown_feature() -> None:
    with pytest.raises(UsageError, match=r"Property 'arm-cpu\.sse' not found"):
        check(
            "cortex-a53,sse=on", arm=(1, "qemu-arm: can't apply global: Property 'arm-cpu.sse' not found\n")
        )


@pytest.mark.parametrize(
    "stderr", ["qemu: Some features requested in the CPU model are not available", "cannot start", ""]
)
def test_other_failures_are_left_to_the_run(stderr: str) -> None:
    check("z13", amd64=(1, stderr), arm=(1, stderr))


def test_without_emulator() -> None:
    assert check("x", amd64=(1, UNKNOWN), find_qemu=lambda _: None).calls == []
    commands = Scripted()
    commands.expect("*", error=EmulatorError("no such program"))
    check_cpu_model(Settings(cpu="x"), PLATFORMS, qemu, commands)
    check_cpu_model(Settings(cpu="x"), [Platform("windows", "amd64")], qemu, Scripted())
