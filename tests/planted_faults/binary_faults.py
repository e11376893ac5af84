"""Faults of binaries: another architecture, or an instruction set beyond the baseline."""

from __future__ import annotations

import struct

from buildkit_tasks.platforms.elf.reader import read_elf_header
from tests.planted_faults.bases import Parts
from tests.planted_faults.index_faults import AMD64, ARM64, V6, V7
from tests.planted_faults.planting import Catch, Planted, Question, fault, sound_image
from tests.support import edits
from tests.support.oci import MemoryImage

RISCV, PPC, MIPS = "linux/riscv64", "linux/ppc64le", "linux/mips64le"
HELLO = "/usr/local/bin/hello"
_FLAGS = {32: 36, 64: 48}  # where e_flags stands in an ELF header


def _holding(parts: Parts, platform: str, path: str, wrong: bytes, right: bytes) -> Planted:
    """The example with one more file, wrong or right."""
    sound = edits.select_platforms(parts.hello, platform)
    return Planted(
        image=edits.add_files(sound, platform, {path[1:]: wrong}),
        control=edits.add_files(sound, platform, {path[1:]: right}),
    )


def _started(parts: Parts, platform: str, program: bytes) -> Planted:
    """The example with another program in the place of its own."""
    sound = edits.select_platforms(parts.hello, platform)
    return Planted(image=edits.replace_file(sound, platform, HELLO[1:], program), control=sound)


def _renamed(image: MemoryImage, platform: str, variant: str) -> MemoryImage:
    """The image as one of another variant, in its index and its config."""
    kind = {**edits.find_entry(image, platform)["platform"], "variant": variant}
    changed = edits.change_config(image, platform, lambda config: config.update(variant=variant))
    entry = {**edits.find_entry(changed, platform), "platform": kind}
    return edits.change_index(changed, lambda index: index.update(manifests=[entry]))


def with_flags(program: bytes, flags: int) -> bytes:
    """The program with other e_flags."""
    header = read_elf_header(program)
    changed = bytearray(program)
    struct.pack_into("<I" if header.byte_order == "little" else ">I", changed, _FLAGS[header.bits], flags)
    return bytes(changed)


# Another architecture's.


@fault(
    "a helper deep in /opt is another architecture's",
    Catch("binaries", ARM64, "/opt/vendor/1.2/libexec/helper"),
    says="/opt/vendor/1.2/libexec/helper is made for amd64, not for arm64",
    layer=4,
    task=1,
)
def helper_in_opt(parts: Parts) -> Planted:
    path = "/opt/vendor/1.2/libexec/helper"
    return _holding(parts, ARM64, path, parts.go["amd64"], parts.go["arm64-v8.0"])


@fault(
    "a library is another architecture's",
    Catch("binaries", ARM64, "/usr/lib/aarch64-linux-gnu/libz.so.1"),
    says="libz.so.1 is made for amd64, not for arm64",
    layer=1,
)
def library_of_another_architecture(parts: Parts) -> Planted:
    sound, path = edits.select_platforms(parts.glibc, ARM64), "usr/lib/aarch64-linux-gnu/libz.so.1"
    wrong, right = (parts.library(debian, "libacl.so.1.*") for debian in ("amd64", "arm64"))
    return Planted(
        image=edits.add_files(sound, ARM64, {path: wrong}),
        control=edits.add_files(sound, ARM64, {path: right}),
    )


@fault(
    "an x32 library (ILP32) in linux/amd64",
    Catch("binaries", AMD64, "/opt/libc.so.6"),
    says="is made for x32, ILP32 on x86-64",
)
def x32_in_amd64(parts: Parts) -> Planted:
    wrong = next(parts.debian["amd64"].glob("usr/libx32/libc.so.6")).read_bytes()
    right = next(parts.debian["amd64"].glob("usr/lib/x86_64-linux-gnu/libc.so.6")).read_bytes()
    return _holding(parts, AMD64, "/opt/libc.so.6", wrong, right)


@fault(
    "a big-endian program in linux/mips64le",
    Catch("binaries", MIPS, "/opt/tool"),
    says="is made for mips64, big-endian",
)
def big_endian_in_mips64le(parts: Parts) -> Planted:
    return _holding(parts, MIPS, "/opt/tool", parts.go["mips64"], parts.go["mips64le"])


@fault(
    "a big-endian program in linux/ppc64le",
    Catch("entrypoint-arch", PPC, HELLO),
    says="is made for ppc64, big-endian",
)
def big_endian_in_ppc64le(parts: Parts) -> Planted:
    return _started(parts, PPC, parts.go["ppc64"])


@fault(
    "a program for arm64 in linux/arm/v7, whose kernels would often start it",
    Catch("binaries", V7, "/opt/tool"),
    says="is made for arm64, not for arm",
)
def arm64_in_arm(parts: Parts) -> Planted:
    return _holding(parts, V7, "/opt/tool", parts.go["arm64-v8.0"], parts.go["arm-v7"])


@sound_image("a foreign helper that is allowed by `--allow-foreign`")
def foreign_and_allowed(parts: Parts) -> Planted:
    planted = helper_in_opt(parts)
    question = Question(allow_foreign=["/opt/vendor/*"])
    return Planted(image=planted.image, control=planted.control, question=question)


# More of the instruction set than the platform's name promises.


@fault(
    "GOARM=7 in linux/arm/v6: a Dockerfile that forgets GOARM",
    Catch("instruction-set", V6, "/root/main"),
    says=[
        "needs ARMv7 (Go build info: GOARM=7)",
        "the baseline of linux/arm/v6 is ARMv6: build it with GOARM=6",
    ],
    task=1,
)
def goarm_7_in_v6(parts: Parts) -> Planted:
    control = edits.replace_file(parts.classic, V6, "root/main", parts.go["arm-v6"])
    return Planted(image=parts.classic, control=control, question=Question(platforms=[V6]))


@sound_image("GOARM=6 in linux/arm/v7 needs less than the baseline")
def goarm_6_in_v7(parts: Parts) -> Planted:
    return _started(parts, V7, parts.go["arm-v6"])


@fault("GOARM=6 in linux/arm/v5", Catch("instruction-set", "linux/arm/v5", HELLO), says="needs ARMv6")
def goarm_6_in_v5(parts: Parts) -> Planted:
    # Debian's armel is made for ARMv5, so that the base is right for v5 as it is.
    sound = edits.replace_file(edits.select_platforms(parts.hello, V6), V6, HELLO[1:], parts.go["arm-v5"])
    image = edits.replace_file(sound, V6, HELLO[1:], parts.go["arm-v6"])
    return Planted(image=_renamed(image, V6, "v5"), control=_renamed(sound, V6, "v5"))


@fault(
    "GOAMD64=v3 in linux/amd64",
    Catch("instruction-set", AMD64, HELLO),
    says="needs x86-64-v3 (Go build info: GOAMD64=v3); the baseline of linux/amd64 is x86-64 (baseline)",
    task=1,
)
def goamd64_v3(parts: Parts) -> Planted:
    return _started(parts, AMD64, parts.go["amd64-v3"])


@sound_image("GOAMD64=v3 in linux/amd64/v3")
def goamd64_v3_in_v3(parts: Parts) -> Planted:
    planted = goamd64_v3(parts)
    return Planted(image=_renamed(planted.image, AMD64, "v3"), control=_renamed(planted.control, AMD64, "v3"))


@sound_image("GO386=softfloat in linux/386 needs less than the baseline")
def go386_softfloat(parts: Parts) -> Planted:
    return _started(parts, "linux/386", parts.go["386-softfloat"])


@fault(
    "GOARM64=v9.0 in linux/arm64",
    Catch("instruction-set", ARM64, HELLO),
    says="the baseline of linux/arm64 is Armv8.0-A",
)
def goarm64_v9(parts: Parts) -> Planted:
    return _started(parts, ARM64, parts.go["arm64-v9"])


@fault("GOARM64=v8.1 in linux/arm64", Catch("instruction-set", ARM64, HELLO), says="needs Armv8.1-A")
def goarm64_v8_1(parts: Parts) -> Planted:
    return _started(parts, ARM64, parts.go["arm64-v8.1"])


@fault(
    "GOARM64=v8.0,lse in linux/arm64",
    Catch("instruction-set", ARM64, HELLO),
    says="needs the atomics of Armv8.1-A (LSE)",
)
def goarm64_lse(parts: Parts) -> Planted:
    return _started(parts, ARM64, parts.go["arm64-lse"])


@fault("GORISCV64=rva22u64 in linux/riscv64", Catch("instruction-set", RISCV, HELLO), says="needs RVA22U64")
def goriscv64_rva22(parts: Parts) -> Planted:
    return _started(parts, RISCV, parts.go["riscv64-rva22"])


@fault(
    "GORISCV64=rva23u64, with vectors, in linux/riscv64",
    Catch("instruction-set", RISCV, HELLO),
    says="needs RVA23U64",
)
def goriscv64_rva23(parts: Parts) -> Planted:
    return _started(parts, RISCV, parts.go["riscv64-rva23"])


def _with_vectors(program: bytes) -> bytes:
    """The program, in whose attributes the compressed extension became the vector extension."""
    at = program.index(b"_c2p0_", program.rindex(b"rv64i2p1_"))
    return program[:at] + b"_v1p0_" + program[at + 6 :]


@fault(
    "a C program for RISC-V's vector extension in linux/riscv64",
    Catch("instruction-set", RISCV, "/opt/tool"),
    says="needs the RISC-V extension v",
)
def riscv_vector(parts: Parts) -> Planted:
    program = parts.program("riscv64", "dash")
    return _holding(parts, RISCV, "/opt/tool", _with_vectors(program), program)


@fault(
    "a C program that has vector code, and asks the machine when it runs",
    Catch("instruction-set", RISCV, "/opt/tool", warning=True),
    says=["has code for the RISC-V extension v", "checks the CPU at run time"],
)
def riscv_vector_by_choice(parts: Parts) -> Planted:
    program = parts.busybox("riscv64")
    return _holding(parts, RISCV, "/opt/tool", _with_vectors(program), program)


@fault("GOPPC64=power9 in linux/ppc64le", Catch("instruction-set", PPC, HELLO), says="needs POWER9")
def goppc64_power9(parts: Parts) -> Planted:
    return _started(parts, PPC, parts.go["ppc64le-power9"])


@fault(
    "a program of the old 64-bit PowerPC ABI (ELFv1) in linux/ppc64le",
    Catch("instruction-set", PPC, "/opt/tool"),
    says="needs ELF ABI v1, and little-endian Linux has v2",
)
def ppc64_elf_v1(parts: Parts) -> Planted:
    program = parts.busybox("ppc64el")
    return _holding(parts, PPC, "/opt/tool", with_flags(program, 1), program)


@fault(
    "a program for MIPS release 6 in linux/mips64le",
    Catch("instruction-set", MIPS, "/opt/tool"),
    says="needs MIPS64 release 6",
)
def mips_release_6(parts: Parts) -> Planted:
    program = parts.busybox("mips64el")
    flags = read_elf_header(program).e_flags & 0x0FFFFFFF | 0xA0000000
    return _holding(parts, MIPS, "/opt/tool", with_flags(program, flags), program)


@fault(
    "Debian's armhf busybox, a C program for ARMv7, in linux/arm/v6",
    Catch("instruction-set", V6, "/opt/busybox"),
    says="needs ARMv7 (.ARM.attributes: CPU architecture v7); the baseline of linux/arm/v6 is ARMv6",
)
def armhf_in_v6(parts: Parts) -> Planted:
    return _holding(parts, V6, "/opt/busybox", parts.busybox("armhf"), parts.busybox("armel"))


@fault(
    "a softfp library (armel) beside hard-float ones (armhf)",
    Catch("float-abi", V7, "/opt/lib/libc.so.6"),
    says="they cannot be loaded into one process",
    layer=1,
)
def softfp_beside_hard_float(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.glibc, V7)
    wrong, right = (parts.library(debian, "libc.so.6") for debian in ("armel", "armhf"))
    return Planted(
        image=edits.add_files(sound, V7, {"opt/lib/libc.so.6": wrong}),
        control=edits.add_files(sound, V7, {"opt/lib/libc.so.6": right}),
    )


@fault("a program for FreeBSD in linux/amd64", Catch("instruction-set", AMD64, HELLO), says="needs FreeBSD")
def program_for_freebsd(parts: Parts) -> Planted:
    return _started(parts, AMD64, parts.go["freebsd"])
