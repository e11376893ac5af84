"""What can be said of one program of an image: it is there, may be run, and fits the platform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import MACHINES, Machine, Platform
from buildkit_tasks.platforms.elf.reader import ELF_MAGIC, EXECUTABLE_TYPES, read_elf_header
from buildkit_tasks.report.model import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.layers.entrypoint import Program
    from buildkit_tasks.oci.layers.rootfs import ResolvedPath
    from buildkit_tasks.platforms.elf.model import ElfHeader

__all__ = ["check_program", "describe_mismatch", "find_machine"]

_MACHINES = {machine.architecture: machine for machine in MACHINES}


def find_machine(platform: Platform) -> Machine | None:
    """The architecture table's row for a platform whose programs are ELF files, if there is one."""
    return _MACHINES.get(platform.architecture) if platform.os == "linux" else None


def check_program(platform: Platform, program: Program) -> Iterator[Check]:
    """The checks of one program; none for a script, whose interpreters are programs of their own."""
    machine = find_machine(platform)
    if program.resolved is None:
        yield _failed_check(platform, program.command, program.problem)
    elif not program.resolved.node.mode & 0o111:
        mode = f"{program.resolved.node.mode:04o}"
        yield _failed_check(
            platform, program.resolved.path, f"{program.resolved.path} is not executable (mode {mode})"
        )
    elif machine is None:
        message = (
            f"which machine {platform} means is not known here: {program.resolved.path} was not compared"
        )
        yield _failed_check(platform, program.resolved.path, message)
    elif not program.resolved.node.head.startswith(b"#!"):
        yield _check_architecture(platform, machine, program.resolved)


def _check_architecture(platform: Platform, machine: Machine, file: ResolvedPath) -> Check:
    path, node = file
    if not node.head.startswith(ELF_MAGIC):
        content_text = f"it starts {node.head.hex(' ', 1)}" if node.head else "it is empty"
        content_text = "" if node.size and not node.head else f": {content_text}"
        return _failed_check(
            platform, path, f"{path} is no program, neither ELF nor a #! script{content_text}"
        )
    try:
        header = read_elf_header(node.head)
    except MalformedImage as error:
        return _failed_check(platform, path, f"{path}: {error.message}")
    if header.e_type not in EXECUTABLE_TYPES:
        return _failed_check(
            platform, path, f"{path} is an ELF file of type {header.e_type}: it cannot be started"
        )
    message = describe_mismatch(platform, machine, header, path)
    return Check(
        name="entrypoint-arch", ok=not message, expected=_describe_machine(machine), actual=header.describe(),
        path=path, layer=node.layer, message=message,
    )  # fmt: skip


def describe_mismatch(platform: Platform, machine: Machine, header: ElfHeader, path: str) -> str:
    """Why a file made for the machine of ``header`` is wrong in the platform; empty if it is right."""
    if header.machine is machine:
        return ""
    message = f"{platform}: {path} is made for {header.machine_name}, not for {machine.architecture}"
    return f"{message} (it is {header.describe()}; {_describe_machine(machine)} is needed)"


def _failed_check(platform: Platform, path: str, message: str) -> Check:
    return Check(name="entrypoint-arch", ok=False, path=path, message=f"{platform}: {message}")


def _describe_machine(machine: Machine) -> str:
    return (
        f"ELF {machine.bits}-bit {machine.byte_order}-endian, "
        f"machine {machine.e_machine} ({machine.architecture})"
    )
