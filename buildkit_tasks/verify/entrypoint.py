"""Check one program of an image: it exists, is executable and is made for the platform."""

from __future__ import annotations

import codecs
import contextlib
from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.layers.entrypoint import quoted_basename
from buildkit_tasks.oci.layers.tar import is_tar_header
from buildkit_tasks.platforms import MACHINES, Machine, Platform
from buildkit_tasks.platforms.elf.reader import ELF_MAGIC, EXECUTABLE_TYPES, read_elf_header
from buildkit_tasks.platforms.elf.segments import ElfFile
from buildkit_tasks.platforms.elf.view import PartialFile
from buildkit_tasks.report.model import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.layers.entrypoint import Program
    from buildkit_tasks.oci.layers.rootfs import FileNode, ResolvedPath
    from buildkit_tasks.platforms.elf.model import ElfHeader

__all__ = [
    "BUILD_HINT",
    "check_completeness",
    "check_program",
    "describe_mismatch",
    "find_machine",
    "is_wrong_machine",
]

_MACHINES = {machine.architecture: machine for machine in MACHINES}
# The starts of foreign programs: Mach-O of 64 and 32 bits (<mach-o/loader.h>), and PE after MS-DOS's header.
_FOREIGN_FORMATS = {
    b"\xcf\xfa\xed\xfe": "macOS",
    b"\xce\xfa\xed\xfe": "macOS",
    b"MZ": "Windows",
}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GIT_LFS_POINTER = b"version https://git-lfs"  # docs/spec.md of git-lfs
_PACKED_FORMATS = {
    b"\x1f\x8b": "gzip",  # RFC 1952
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",  # RFC 8878
    b"BZh": "bzip2",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
}
_NOT_EXECUTABLE = "is not executable by the kernel (exec format error)"
_ET_REL = 1
_OBJECT_FILE_HINT = "link it: an object file, as of gcc -c, is a part of a program"
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


def check_completeness(platform: Platform, program: Program) -> Iterator[Check]:
    """Yield a failing check for a program whose end is missing; a kernel starts it all the same."""
    file = program.resolved
    if file is None or not file.node.head.startswith(ELF_MAGIC):
        return
    with contextlib.suppress(MalformedImage):
        header = read_elf_header(file.node.head)
        end, size = _find_segments_end(file.node, header), file.node.size
        if end > size:
            message = f"{file.path} is incomplete: its segments end at byte {end}, the file has {size} bytes"
            yield _failed_check(platform, file.path, message, _damage_hint(file.path))


def _check_architecture(platform: Platform, machine: Machine, file: ResolvedPath) -> Check:
    path, node = file
    if not node.head.startswith(ELF_MAGIC):
        return _check_other_format(platform, machine, file)
    try:
        header = read_elf_header(node.head)
    except MalformedImage as error:
        message, hint = f"{path} {_NOT_EXECUTABLE}: {error.message}", _damage_hint(path)
        return _failed_check(platform, path, message, hint)
    if header.e_type not in EXECUTABLE_TYPES:
        message = f"{path} is an ELF file of type {header.e_type}: it cannot be started (exec format error)"
        hint = _OBJECT_FILE_HINT if header.e_type == _ET_REL else _damage_hint(path)
        return _failed_check(platform, path, message, hint)
    message = describe_mismatch(platform, machine, header, path)
    return Check(
        name="entrypoint-arch", ok=not message, expected=_describe_machine(machine), actual=header.describe(),
        path=path, layer=node.layer, message=message, hint=BUILD_HINT if message else "",
    )  # fmt: skip


def _find_segments_end(node: FileNode, header: ElfHeader) -> int:
    """Return where the last PT_LOAD segment ends in the file, of those whose headers are in the head."""
    segments = ElfFile(PartialFile(node.size, ((0, node.head),)), header).load_segments
    return max((each.offset + each.file_size for each in segments if each.file_size), default=0)


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
    reason, hint = _explain_data(node, path)
    return _failed_check(platform, path, f"{path} {_NOT_EXECUTABLE}: {reason}", hint)


def _explain_data(node: FileNode, path: str) -> tuple[str, str]:
    """Return why a file that is no program cannot be started, and what helps."""
    if not node.size:
        return "it is empty", "copy the file after the step that writes it"
    if node.head.startswith(_BYTE_ORDER_MARK):
        return "it begins with a byte order mark", f"dos2unix --remove-bom {quoted_basename(path)}"
    if node.head.startswith(_GIT_LFS_POINTER):
        return "it is a pointer of Git LFS, not the file itself", "git lfs pull"
    packed_by = next((name for magic, name in _PACKED_FORMATS.items() if node.head.startswith(magic)), "")
    if is_tar_header(node.head):
        packed_by = "tar"
    if packed_by:
        return f"it is packed by {packed_by}", "unpack it in the Dockerfile, and start the program in it"
    if not _is_text(node.head):
        return "it is binary data without an ELF header", _damage_hint(path)
    return "no ELF header and no '#!' line", f"sed -i '1i #!/bin/sh' {quoted_basename(path)}"


def _is_text(head: bytes) -> bool:
    """Return True for UTF-8 without control characters; the last character may be cut off."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _damage_hint(path: str) -> str:
    return f"build {quoted_basename(path)} again, or copy it completely: it is damaged, or another file"


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
