"""Check one program of an image: it exists, is executable and is made for the platform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.layers.entrypoint import quoted_basename
from buildkit_tasks.platforms import MACHINES, Machine, Platform
from buildkit_tasks.platforms.elf.reader import ELF_MAGIC, EXECUTABLE_TYPES, read_elf_header
from buildkit_tasks.report.model import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.layers.entrypoint import Program
    from buildkit_tasks.oci.layers.rootfs import ResolvedPath
    from buildkit_tasks.platforms.elf.model import ElfHeader

__all__ = ["BUILD_HINT", "check_program", "describe_mismatch", "find_machine", "is_wrong_machine"]

_MACHINES = {machine.architecture: machine for machine in MACHINES}
# The starts of foreign programs: Mach-O of 64 and 32 bits (<mach-o/loader.h>), and PE after MS-DOS's header.
_FOREIGN_FORMATS = {
    b"\xcf\xfa\xed\xfe": "macOS",
    b"\xce\xfa\xed\xfe": "macOS",
    b"MZ": "Windows",
}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BUILD_HINT = (
    "compile it for the platform of the build: GOOS=$TARGETOS GOARCH=$TARGETARCH (Go), after "
    "ARG TARGETOS TARGETARCH; and no --platform in the last FROM of the Dockerfile"
)


def find_machine(platform: Platform) -> Machine | None:
    """Return the machine of a platform whose programs are ELF files, if it is known."""
    return _MACHINES.get(platform.architecture) if platform.os == "linux" else None


def check_program(platform: Platform, program: Program) -> Iterator[Check]:
    """Yield the check of one program; none for a script, whose interpreter is a program of its own."""
    machine, file = find_machine(platform), program.resolved
    if file is None:
        yield _failed_check(platform, program.command, program.problem, program.hint)
    elif not file.is_executable:
        message = f"{file.path} is not executable (mode {file.node.mode:04o})"
        yield _failed_check(platform, file.path, message, f"chmod +x {quoted_basename(file.path)}")
    elif machine is None:
        message = f"the machine of this platform is not known: {file.path} was not compared"
        yield _failed_check(platform, file.path, message)
    elif not file.node.head.startswith(b"#!"):
        yield _check_architecture(platform, machine, file)


def _check_architecture(platform: Platform, machine: Machine, file: ResolvedPath) -> Check:
    path, node = file
    if not node.head.startswith(ELF_MAGIC):
        return _check_other_format(platform, machine, file)
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
        path=path, layer=node.layer, message=message, hint=BUILD_HINT if message else "",
    )  # fmt: skip


def _check_other_format(platform: Platform, machine: Machine, file: ResolvedPath) -> Check:
    """Return the failing check of a file that the kernel cannot start (execve(2), ENOEXEC)."""
    path, node = file
    system = next((name for magic, name in _FOREIGN_FORMATS.items() if node.head.startswith(magic)), "")
    if system:
        return Check(
            name="entrypoint-arch", ok=False, expected=_describe_machine(machine),
            actual=f"a program for {system}", path=path, layer=node.layer, hint=BUILD_HINT,
            message=f"{platform}: {path} is made for {system}, not for {platform.os}",
        )  # fmt: skip
    reason, hint = "no ELF header and no '#!' line", f"sed -i '1i #!/bin/sh' {quoted_basename(path)}"
    if not node.size:
        reason, hint = "it is empty", "copy the file after the step that writes it"
    elif node.head.startswith(_BYTE_ORDER_MARK):
        reason, hint = "it begins with a byte order mark", f"dos2unix --remove-bom {quoted_basename(path)}"
    message = f"{path} is not executable by the kernel (exec format error): {reason}"
    return _failed_check(platform, path, message, hint)


def is_wrong_machine(check: Check) -> bool:
    """Return True for a program of another machine or system; other programs are missing or damaged."""
    return not check.ok and bool(check.actual)


def describe_mismatch(platform: Platform, machine: Machine, header: ElfHeader, path: str) -> str:
    """Return why a file with this ELF header is wrong for the platform; empty if it is right."""
    if header.machine is machine:
        return ""
    message = f"{platform}: {path} is made for {header.machine_name}, not for {machine.architecture}"
    return f"{message} (it is {header.describe()}; {_describe_machine(machine)} is needed)"


def _failed_check(platform: Platform, path: str, message: str, hint: str = "") -> Check:
    return Check(name="entrypoint-arch", ok=False, path=path, message=f"{platform}: {message}", hint=hint)


def _describe_machine(machine: Machine) -> str:
    return (
        f"ELF {machine.bits}-bit {machine.byte_order}-endian, "
        f"machine {machine.e_machine} ({machine.architecture})"
    )
