"""What can be said of one program of an image: it is there, may be run, and fits the platform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import MACHINES, Machine, Platform
from buildkit_tasks.platforms.elf.reader import ELF_MAGIC, EXECUTABLE_TYPES, read_elf
from buildkit_tasks.report.model import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.layers.entrypoint import Program
    from buildkit_tasks.oci.layers.rootfs import Found
    from buildkit_tasks.platforms.elf.model import ElfHeader

__all__ = ["machine_of", "mismatch", "program_checks"]

_ROWS = {machine.architecture: machine for machine in MACHINES}


def machine_of(platform: Platform) -> Machine | None:
    """The architecture table's row for a platform whose programs are ELF files, if there is one."""
    return _ROWS.get(platform.architecture) if platform.os == "linux" else None


def program_checks(platform: Platform, program: Program) -> Iterator[Check]:
    """The checks of one program; none for a script, whose interpreters are programs of their own."""
    machine = machine_of(platform)
    if program.found is None:
        yield _failing(platform, program.command, program.problem)
    elif not program.found.node.mode & 0o111:
        mode = f"{program.found.node.mode:04o}"
        yield _failing(platform, program.found.path, f"{program.found.path} is not executable (mode {mode})")
    elif machine is None:
        unknown = f"which machine {platform} means is not known here: {program.found.path} was not compared"
        yield _failing(platform, program.found.path, unknown)
    elif not program.found.node.head.startswith(b"#!"):
        yield _arch_check(platform, machine, program.found)


def _arch_check(platform: Platform, machine: Machine, found: Found) -> Check:
    path, node = found
    if not node.head.startswith(ELF_MAGIC):
        start = f"it starts {node.head.hex(' ', 1)}" if node.head else "it is empty"
        start = "" if node.size and not node.head else f": {start}"
        return _failing(platform, path, f"{path} is no program, neither ELF nor a #! script{start}")
    try:
        header = read_elf(node.head)
    except MalformedImage as error:
        return _failing(platform, path, f"{path}: {error.message}")
    if header.type not in EXECUTABLE_TYPES:
        return _failing(platform, path, f"{path} is an ELF file of type {header.type}: it cannot be started")
    message = mismatch(platform, machine, header, path)
    return Check(
        name="entrypoint-arch", ok=not message, expected=_describe(machine), actual=header.describe(),
        path=path, layer=node.layer, message=message,
    )  # fmt: skip


def mismatch(platform: Platform, machine: Machine, header: ElfHeader, path: str) -> str:
    """Why a file made for the machine of ``header`` is wrong in the platform; empty if it is right."""
    if header.row is machine:
        return ""
    message = f"{platform}: {path} is made for {header.name}, not for {machine.architecture}"
    return f"{message} (it is {header.describe()}; {_describe(machine)} is needed)"


def _failing(platform: Platform, path: str, message: str) -> Check:
    return Check(name="entrypoint-arch", ok=False, path=path, message=f"{platform}: {message}")


def _describe(machine: Machine) -> str:
    return (
        f"ELF {machine.bits}-bit {machine.order}-endian, "
        f"machine {machine.elf_machine} ({machine.architecture})"
    )
