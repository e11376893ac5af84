"""Faults of binaries: another architecture, or an instruction set above the baseline."""

from __future__ import annotations

import struct

from buildkit_tasks.platforms.elf.reader import read_elf_header
from tests.planted_faults.bases import Samples
from tests.planted_faults.index_faults import AMD64, ARM64, V6, V7
from tests.planted_faults.planting import (
    Finding,
    PlantedImage,
    VerifyRequest,
    declare_fault,
    declare_valid_image,
)
from tests.support import edits
from tests.support.oci import MemoryImage

RISCV, PPC, MIPS = "linux/riscv64", "linux/ppc64le", "linux/mips64le"
HELLO = "/usr/local/bin/hello"
_E_FLAGS_OFFSETS = {32: 36, 64: 48}


def _with_file(samples: Samples, platform: str, path: str, wrong: bytes, right: bytes) -> PlantedImage:
    """Add the wrong file to examples/hello, and the right one to the control."""
    valid = edits.select_platforms(samples.hello, platform)
    return PlantedImage(
        edits.add_files(valid, platform, {path[1:]: wrong}),
        edits.add_files(valid, platform, {path[1:]: right}),
    )


def _with_program(samples: Samples, platform: str, program: bytes) -> PlantedImage:
    """Replace the program of examples/hello."""
    valid = edits.select_platforms(samples.hello, platform)
    return PlantedImage(edits.replace_file(valid, platform, HELLO[1:], program), valid)


def _with_variant(image: MemoryImage, platform: str, variant: str) -> MemoryImage:
    """Set the variant of a platform in the index and the config."""
    platform_entry = {**edits.find_entry(image, platform)["platform"], "variant": variant}
    changed = edits.change_config(image, platform, lambda config: config.update(variant=variant))
    entry = {**edits.find_entry(changed, platform), "platform": platform_entry}
    return edits.change_index(changed, lambda index: index.update(manifests=[entry]))


def _with_e_flags(program: bytes, flags: int) -> bytes:
    """Return the program with other e_flags (System V gABI, ELF header)."""
    header = read_elf_header(program)
    changed = bytearray(program)
    struct.pack_into(
        "<I" if header.byte_order == "little" else ">I", changed, _E_FLAGS_OFFSETS[header.bits], flags
    )
    return bytes(changed)


# Another architecture.


@declare_fault(
    "a helper below /opt is made for another architecture",
    Finding("binaries", ARM64, "/opt/vendor/1.2/libexec/helper"),
    message="/opt/vendor/1.2/libexec/helper is made for amd64, not for arm64",
    layer=4,
    exit_status=1,
)
def helper_in_opt(samples: Samples) -> PlantedImage:
    path = "/opt/vendor/1.2/libexec/helper"
    return _with_file(samples, ARM64, path, samples.go["amd64"], samples.go["arm64-v8.0"])


@declare_fault(
    "a library is made for another architecture",
    Finding("binaries", ARM64, "/usr/lib/aarch64-linux-gnu/libz.so.1"),
    message="libz.so.1 is made for amd64, not for arm64",
    layer=1,
)
def library_of_another_architecture(samples: Samples) -> PlantedImage:
    valid, path = edits.select_platforms(samples.glibc, ARM64), "usr/lib/aarch64-linux-gnu/libz.so.1"
    wrong, right = (samples.library(debian, "libacl.so.1.*") for debian in ("amd64", "arm64"))
    return PlantedImage(
        edits.add_files(valid, ARM64, {path: wrong}), edits.add_files(valid, ARM64, {path: right})
    )


@declare_fault(
    "an x32 library (ILP32) in linux/amd64",
    Finding("binaries", AMD64, "/opt/libc.so.6"),
    message="is made for x32, ILP32 on x86-64",
)
def x32_library_in_amd64(samples: Samples) -> PlantedImage:
    wrong = next(samples.debian["amd64"].glob("usr/libx32/libc.so.6")).read_bytes()
    right = next(samples.debian["amd64"].glob("usr/lib/x86_64-linux-gnu/libc.so.6")).read_bytes()
    return _with_file(samples, AMD64, "/opt/libc.so.6", wrong, right)


@declare_fault(
    "a big-endian program in linux/mips64le",
    Finding("binaries", MIPS, "/opt/tool"),
    message="is made for mips64, big-endian",
)
def big_endian_in_mips64le(samples: Samples) -> PlantedImage:
    return _with_file(samples, MIPS, "/opt/tool", samples.go["mips64"], samples.go["mips64le"])


@declare_fault(
    "a big-endian program in linux/ppc64le",
    Finding("entrypoint-arch", PPC, HELLO),
    message="is made for ppc64, big-endian",
)
def big_endian_in_ppc64le(samples: Samples) -> PlantedImage:
    return _with_program(samples, PPC, samples.go["ppc64"])


@declare_fault(
    "a program for arm64 in linux/arm/v7, which 64-bit kernels run",
    Finding("binaries", V7, "/opt/tool"),
    message="is made for arm64, not for arm",
)
def arm64_program_in_arm(samples: Samples) -> PlantedImage:
    return _with_file(samples, V7, "/opt/tool", samples.go["arm64-v8.0"], samples.go["arm-v7"])


@declare_valid_image("a helper for another architecture that `--allow-foreign` allows")
def allowed_foreign_helper(samples: Samples) -> PlantedImage:
    planted = helper_in_opt(samples)
    request = VerifyRequest(allow_foreign=["/opt/vendor/*"])
    return PlantedImage(planted.image, planted.control, request=request)


# Instruction sets above the baseline of the platform.


@declare_fault(
    "GOARM=7 in linux/arm/v6: a Dockerfile that forgets GOARM",
    Finding("instruction-set", V6, "/root/main"),
    message=[
        "needs ARMv7 (Go build info: GOARM=7)",
        "the baseline of linux/arm/v6 is ARMv6: build it with GOARM=6",
    ],
    exit_status=1,
)
def goarm_7_in_v6(samples: Samples) -> PlantedImage:
    control = edits.replace_file(samples.classic, V6, "root/main", samples.go["arm-v6"])
    return PlantedImage(samples.classic, control, request=VerifyRequest(platforms=[V6]))


@declare_valid_image("GOARM=6 in linux/arm/v7 needs less than the baseline")
def goarm_6_in_v7(samples: Samples) -> PlantedImage:
    return _with_program(samples, V7, samples.go["arm-v6"])


@declare_fault(
    "GOARM=6 in linux/arm/v5", Finding("instruction-set", "linux/arm/v5", HELLO), message="needs ARMv6"
)
def goarm_6_in_v5(samples: Samples) -> PlantedImage:
    # The base needs no change: Debian's armel is made for ARMv5.
    valid = edits.replace_file(edits.select_platforms(samples.hello, V6), V6, HELLO[1:], samples.go["arm-v5"])
    image = edits.replace_file(valid, V6, HELLO[1:], samples.go["arm-v6"])
    return PlantedImage(_with_variant(image, V6, "v5"), _with_variant(valid, V6, "v5"))


@declare_fault(
    "GOAMD64=v3 in linux/amd64",
    Finding("instruction-set", AMD64, HELLO),
    message="needs x86-64-v3 (Go build info: GOAMD64=v3); the baseline of linux/amd64 is x86-64 (baseline)",
    exit_status=1,
)
def goamd64_v3(samples: Samples) -> PlantedImage:
    return _with_program(samples, AMD64, samples.go["amd64-v3"])


@declare_valid_image("GOAMD64=v3 in linux/amd64/v3")
def goamd64_v3_in_v3(samples: Samples) -> PlantedImage:
    planted = goamd64_v3(samples)
    return PlantedImage(
        _with_variant(planted.image, AMD64, "v3"), _with_variant(planted.control, AMD64, "v3")
    )


@declare_valid_image("GO386=softfloat in linux/386 needs less than the baseline")
def go386_softfloat(samples: Samples) -> PlantedImage:
    return _with_program(samples, "linux/386", samples.go["386-softfloat"])


@declare_fault(
    "GOARM64=v9.0 in linux/arm64",
    Finding("instruction-set", ARM64, HELLO),
    message="the baseline of linux/arm64 is Armv8.0-A",
)
def goarm64_v9(samples: Samples) -> PlantedImage:
    return _with_program(samples, ARM64, samples.go["arm64-v9"])


@declare_fault(
    "GOARM64=v8.1 in linux/arm64", Finding("instruction-set", ARM64, HELLO), message="needs Armv8.1-A"
)
def goarm64_v8_1(samples: Samples) -> PlantedImage:
    return _with_program(samples, ARM64, samples.go["arm64-v8.1"])


@declare_fault(
    "GOARM64=v8.0,lse in linux/arm64",
    Finding("instruction-set", ARM64, HELLO),
    message="needs the atomics of Armv8.1-A (LSE)",
)
def goarm64_lse(samples: Samples) -> PlantedImage:
    return _with_program(samples, ARM64, samples.go["arm64-lse"])


@declare_fault(
    "GORISCV64=rva22u64 in linux/riscv64", Finding("instruction-set", RISCV, HELLO), message="needs RVA22U64"
)
def goriscv64_rva22(samples: Samples) -> PlantedImage:
    return _with_program(samples, RISCV, samples.go["riscv64-rva22"])


@declare_fault(
    "GORISCV64=rva23u64, with vectors, in linux/riscv64",
    Finding("instruction-set", RISCV, HELLO),
    message="needs RVA23U64",
)
def goriscv64_rva23(samples: Samples) -> PlantedImage:
    return _with_program(samples, RISCV, samples.go["riscv64-rva23"])


def _with_vectors(program: bytes) -> bytes:
    """Replace the compressed extension by the vector extension in the attributes of a program."""
    at = program.index(b"_c2p0_", program.rindex(b"rv64i2p1_"))
    return program[:at] + b"_v1p0_" + program[at + 6 :]


@declare_fault(
    "a C program with the RISC-V vector extension in linux/riscv64",
    Finding("instruction-set", RISCV, "/opt/tool"),
    message="needs the RISC-V extension v",
)
def riscv_vector(samples: Samples) -> PlantedImage:
    program = samples.program("riscv64", "dash")
    return _with_file(samples, RISCV, "/opt/tool", _with_vectors(program), program)


@declare_fault(
    "a C program with RISC-V vector code that it uses after run-time detection",
    Finding("instruction-set", RISCV, "/opt/tool", warning=True),
    message=["has code for the RISC-V extension v", "checks the CPU at run time"],
)
def riscv_vector_with_detection(samples: Samples) -> PlantedImage:
    program = samples.busybox("riscv64")
    return _with_file(samples, RISCV, "/opt/tool", _with_vectors(program), program)


@declare_fault(
    "GOPPC64=power9 in linux/ppc64le", Finding("instruction-set", PPC, HELLO), message="needs POWER9"
)
def goppc64_power9(samples: Samples) -> PlantedImage:
    return _with_program(samples, PPC, samples.go["ppc64le-power9"])


@declare_fault(
    "a program with the 64-bit PowerPC ELF ABI v1 in linux/ppc64le",
    Finding("instruction-set", PPC, "/opt/tool"),
    message="needs ELF ABI v1, and little-endian Linux has v2",
)
def ppc64_elf_v1(samples: Samples) -> PlantedImage:
    program = samples.busybox("ppc64el")
    return _with_file(samples, PPC, "/opt/tool", _with_e_flags(program, 1), program)


@declare_fault(
    "a program for MIPS release 6 in linux/mips64le",
    Finding("instruction-set", MIPS, "/opt/tool"),
    message="needs MIPS64 release 6",
)
def mips_release_6(samples: Samples) -> PlantedImage:
    program = samples.busybox("mips64el")
    flags = read_elf_header(program).e_flags & 0x0FFFFFFF | 0xA0000000
    return _with_file(samples, MIPS, "/opt/tool", _with_e_flags(program, flags), program)


@declare_fault(
    "a C program for ARMv7 (Debian's armhf busybox) in linux/arm/v6",
    Finding("instruction-set", V6, "/opt/busybox"),
    message="needs ARMv7 (.ARM.attributes: CPU architecture v7); the baseline of linux/arm/v6 is ARMv6",
)
def armhf_in_v6(samples: Samples) -> PlantedImage:
    return _with_file(samples, V6, "/opt/busybox", samples.busybox("armhf"), samples.busybox("armel"))


@declare_fault(
    "a softfp library (armel) in a hard-float image (armhf)",
    Finding("float-abi", V7, "/opt/lib/libc.so.6"),
    message="they cannot be loaded into one process",
    layer=1,
)
def softfp_in_hard_float(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.glibc, V7)
    wrong, right = (samples.library(debian, "libc.so.6") for debian in ("armel", "armhf"))
    return PlantedImage(
        edits.add_files(valid, V7, {"opt/lib/libc.so.6": wrong}),
        edits.add_files(valid, V7, {"opt/lib/libc.so.6": right}),
    )


@declare_fault(
    "a program for FreeBSD in linux/amd64", Finding("instruction-set", AMD64, HELLO), message="needs FreeBSD"
)
def program_for_freebsd(samples: Samples) -> PlantedImage:
    return _with_program(samples, AMD64, samples.go["freebsd"])
