"""Check one program of an image: it exists, is executable and is made for the platform."""

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
    """Return the machine of a platform whose programs are ELF files, if it is known."""
    return _MACHINES.get(platform.architecture) if platform.os == "linux" else None


def check_program(platform: Platform, program: Program) -> Iterator[Check]:
    """Yield the check of one program; none for a script, whose interpreter is a program of its own."""
    machine, file = find_machine(platform), program.resolved
    if file is None:
        yield _failed_check(platform, program.command, program.problem)
    elif not file.node.mode & 0o111:
        yield _failed_check(platform, file.path, f"{file.path} is not executable (mode {file.node.mode:04o})")
    elif machine is None:
        message = f"the machine of this platform is not known: {file.path} was not compared"
        yield _failed_check(platform, file.path, message)
    elif not file.node.head.startswith(b"#!"):
        yield _check_architecture(platform, machine, file)


def _check_architecture(platform: Platform, machine: Machine, file: ResolvedPath) -> Check:
    path, node = file
    if not node.head.startswith(ELF_MAGIC):
        message = f"{path} is not a program, neither ELF nor a #! script{_describe_head(file)}"
        return _failed_check(platform, path, message)
    try:
        header = read_elf_header(node.head)
    except MalformedImage as error:
        return _failed_check(platform, path, f"{path}: {error.message}")
    if header.e_type not in EXECUTABLE_TYPES:
        message = f"{path} is an ELF file of type {header.e_type}: it cannot be started"
        return _failed_check(platform, path, message)
    message = describe_mismatch(platform, machine, header, path)
    return Check(
        name="entrypoint-arch", ok=not message, expected=_describe_machine(machine), actual=header.describe(),
        path=path, layer=node.layer, message=message,
    )  # fmt: skip


def _describe_head(file: ResolvedPath) -> str:
    """Return how the file begins; empty if that was not read."""
    if file.node.head:
        return f": it starts {file.node.head.hex(' ', 1)}"
    return "" if file.node.size else ": it is empty"


def describe_mismatch(platform: Platform, machine: Machine, header: ElfHeader, path: str) -> str:
    """Return why a file with this ELF header is wrong for the platform; empty if it is right."""
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
