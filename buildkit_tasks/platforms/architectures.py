"""The table of architectures: the names of each in OCI, Go, QEMU, Debian, ELF and the kernel.

No other module lists architectures. The baseline of each platform is here too; its sources are the
OCI image index specification ("Platform Variants"), Go's "Minimum Requirements"
(go.dev/wiki/MinimumRequirements) and the psABI of each architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

__all__ = ["DEVICE_MACHINES", "MACHINES", "IsaLevel", "Machine", "foreign_machine_name", "machine_from_elf"]

# qemu64 without the features that are not in the baseline of the x86-64 psABI.
_X86_64_BASELINE_CPU = "qemu64,-sse3,-cx16,-lahf-lm"

_EI_CLASS = {32: 1, 64: 2}
_EI_DATA = {"little": 1, "big": 2}
_ET_EXEC = 2
_ET_EXEC_OR_DYN_MASK = 0xFE


@dataclass(frozen=True, slots=True, kw_only=True)
class IsaLevel:
    """A level of an architecture's instruction set; a program for it runs on every later level too.

    ``name`` is the OCI variant if there is one, ``title`` the name in messages. ``aliases`` are other
    names of the architecture that imply this level, such as ``armhf``. ``go_value`` is the value of the
    machine's ``go_variable``, ``compiler_option`` limits GCC and Clang to this level, and
    ``evidence_values`` are its names, and those of levels below it that have no entry, in
    :mod:`buildkit_tasks.platforms.elf.isa_evidence`. ``extensions`` are those that a RISC-V profile
    adds to the one before it. ``debian_architecture`` and ``baseline_cpu`` are set only where they
    differ from the machine's.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    go_value: str = ""
    evidence_values: tuple[str, ...] = ()
    compiler_option: str = ""
    extensions: str = ""
    debian_architecture: str = ""
    baseline_cpu: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An architecture and its names.

    ``architecture`` is the OCI name and Go's GOARCH. ``aliases`` are its other names, those of
    containerd's ``platforms.Normalize`` and Debian's; a name that also means another machine is none.
    ``uname_machines`` are what ``uname -m`` prints, ``qemu_suffix`` the suffix of QEMU's user-mode binary.
    ``bits``, ``byte_order`` and ``e_machine`` are EI_CLASS, EI_DATA and e_machine of the ELF header
    (System V gABI, chapter 4), ``e_flags`` the flags of a program for the baseline (psABI supplements).
    ``baseline_cpu`` is the oldest QEMU CPU model with the baseline. ``default_variant`` is the variant of
    a platform written without one; ``implied_variant`` is dropped when a platform is normalised.

    ``variants`` are the levels that OCI variants name, oldest first, and ``extra_levels`` the later
    levels (without variants: all levels, and the first is the baseline). ``go_variable`` is the
    environment variable that selects a level in Go. ``elf_interpreters`` are the paths of the dynamic
    loaders of glibc and then musl, ``multiarch_triplets`` the names of Debian's library directories.

    ``exit_instructions`` is machine code for ``exit(STATUS)``
    (see :mod:`buildkit_tasks.platforms.elf.probe`).
    """

    architecture: str
    aliases: tuple[str, ...] = ()
    uname_machines: tuple[str, ...]
    qemu_suffix: str
    bits: int
    byte_order: str
    e_machine: int
    debian_architecture: str = ""
    e_flags: int = 0
    baseline_cpu: str = ""
    default_variant: str = ""
    implied_variant: str = ""
    variants: tuple[IsaLevel, ...] = ()
    extra_levels: tuple[IsaLevel, ...] = ()
    go_variable: str = ""
    elf_interpreters: tuple[str, ...] = ()
    multiarch_triplets: tuple[str, ...] = ()
    exit_instructions: str = ""

    @cached_property
    def magic(self) -> bytes:
        """The first 20 bytes of an executable, for a binfmt_misc handler.

        See the kernel's Documentation/admin-guide/binfmt-misc.rst.
        """
        ident = b"\x7fELF" + bytes([_EI_CLASS[self.bits], _EI_DATA[self.byte_order], 1])
        return ident.ljust(16, b"\0") + self._encode_half(_ET_EXEC) + self._encode_half(self.e_machine)

    @cached_property
    def mask(self) -> bytes:
        """The mask for :attr:`magic`: EI_OSABI and EI_ABIVERSION are ignored, ET_DYN matches as well."""
        ident = b"\xff" * 7 + b"\0" * 2 + b"\xff" * 7
        return ident + self._encode_half(0xFF00 | _ET_EXEC_OR_DYN_MASK) + b"\xff\xff"

    def _encode_half(self, value: int) -> bytes:
        return value.to_bytes(2, "little" if self.byte_order == "little" else "big")

    @cached_property
    def isa_levels(self) -> tuple[IsaLevel, ...]:
        """Every level, oldest first."""
        return self.variants + self.extra_levels

    @cached_property
    def has_isa_records(self) -> bool:
        """Return True if the ABI defines a record of the level in a file, whatever wrote the file."""
        return any(level.evidence_values or level.extensions for level in self.isa_levels)

    def baseline_of(self, variant: str) -> IsaLevel | None:
        """Return the baseline of a platform with this variant; the oldest level for an unknown one."""
        name = variant or self.implied_variant or self.default_variant
        matches = (level for level in self.isa_levels if level.name == name)
        return next(matches, self.isa_levels[0] if self.isa_levels else None)


MACHINES: tuple[Machine, ...] = (
    Machine(
        architecture="amd64",
        aliases=("x86_64", "x86-64"),
        uname_machines=("x86_64",),
        qemu_suffix="x86_64",
        bits=64,
        byte_order="little",
        e_machine=62,
        debian_architecture="amd64",
        baseline_cpu=_X86_64_BASELINE_CPU,
        implied_variant="v1",
        # x86-64 psABI, section "Processor Architecture" (micro-architecture levels).
        go_variable="GOAMD64",
        variants=(
            IsaLevel(
                name="v1",
                title="x86-64 (baseline)",
                go_value="v1",
                evidence_values=("x86-64 baseline",),
                compiler_option="-march=x86-64",
                baseline_cpu=_X86_64_BASELINE_CPU,
            ),
            IsaLevel(
                name="v2",
                title="x86-64-v2",
                go_value="v2",
                evidence_values=("x86-64-v2",),
                compiler_option="-march=x86-64-v2",
                baseline_cpu="Nehalem",
            ),
            IsaLevel(
                name="v3",
                title="x86-64-v3",
                go_value="v3",
                evidence_values=("x86-64-v3",),
                compiler_option="-march=x86-64-v3",
                baseline_cpu="Haswell-noTSX",
            ),
            IsaLevel(
                name="v4",
                title="x86-64-v4",
                go_value="v4",
                evidence_values=("x86-64-v4",),
                compiler_option="-march=x86-64-v4",
                baseline_cpu="max",  # QEMU does not emulate AVX-512
            ),
        ),
        elf_interpreters=("/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"),
        multiarch_triplets=("x86_64-linux-gnu",),
        # mov edi, STATUS; mov eax, 60 (exit); syscall
        exit_instructions="bf SS 00 00 00  b8 3c 00 00 00  0f 05",
    ),
    Machine(
        architecture="arm64",
        aliases=("aarch64",),
        uname_machines=("aarch64", "arm64"),
        qemu_suffix="aarch64",
        bits=64,
        byte_order="little",
        e_machine=183,
        debian_architecture="arm64",
        baseline_cpu="cortex-a53",  # Armv8.0-A
        implied_variant="v8",
        # OCI's v8 is Armv8.0-A. GOARM64 also has the levels between (v8.1 to v9.5): see elf/isa_check.py.
        go_variable="GOARM64",
        variants=(
            IsaLevel(name="v8", title="Armv8.0-A", go_value="v8.0", compiler_option="-march=armv8-a"),
            IsaLevel(
                name="v9",
                title="Armv9.0-A",
                go_value="v9.0",
                compiler_option="-march=armv9-a",
                baseline_cpu="cortex-a710",
            ),
        ),
        elf_interpreters=("/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-aarch64.so.1"),
        multiarch_triplets=("aarch64-linux-gnu",),
        # movz x0, #STATUS (bits 5..20: see probe.py); movz x8, #93 (exit); svc #0
        exit_instructions="I5:d2800000  a8 0b 80 d2  01 00 00 d4",
    ),
    Machine(
        architecture="arm",
        uname_machines=("armv7l", "armv6l", "armv5tel", "armv8l"),
        qemu_suffix="arm",
        bits=32,
        byte_order="little",
        e_machine=40,
        e_flags=0x05000000,
        debian_architecture="armhf",
        baseline_cpu="cortex-a8",  # the first ARMv7-A core, without integer division
        default_variant="v7",
        # "Build Attributes" of the Arm ABI, Tag_CPU_arch. The ARM1176 of the first Raspberry Pi is a
        # v6KZ, without the Thumb-2 of v6T2; v7 includes both.
        go_variable="GOARM",
        variants=(
            IsaLevel(
                name="v5",
                title="ARMv5",
                aliases=("armv5", "armv5tel"),
                go_value="5",
                evidence_values=("Pre-v4", "v4", "v4T", "v5T", "v5TE", "v5TEJ"),
                compiler_option="-march=armv5te",
                debian_architecture="armel",
                baseline_cpu="arm926",  # ARMv5TEJ, the level's last core that Linux still supports
            ),
            IsaLevel(
                name="v6",
                title="ARMv6",
                aliases=("armel", "armv6", "armv6l"),
                go_value="6",
                evidence_values=("v6", "v6K", "v6KZ"),
                compiler_option="-march=armv6",
                debian_architecture="armel",
                baseline_cpu="arm1176",  # ARMv6KZ, the core of the first Raspberry Pi and the Zero
            ),
            IsaLevel(
                name="v7",
                title="ARMv7",
                aliases=("armhf", "armv7", "armv7l"),
                go_value="7",
                evidence_values=("Thumb-2", "v6T2", "v6-M", "v6S-M", "v7", "v7E-M"),
                compiler_option="-march=armv7-a",
                debian_architecture="armhf",
                baseline_cpu="cortex-a8",
            ),
        ),
        extra_levels=(
            IsaLevel(
                name="v8",
                title="ARMv8",
                compiler_option="-march=armv8-a",
                evidence_values=(
                    "v8",
                    "v8-R",
                    "v8-M.baseline",
                    "v8-M.mainline",
                    "v8.1",
                    "v8.2",
                    "v8.3",
                    "v8.1-M.mainline",
                ),
            ),
            IsaLevel(name="v9", title="ARMv9", evidence_values=("v9",)),
        ),
        elf_interpreters=(
            "/lib/ld-linux-armhf.so.3",
            "/lib/ld-linux.so.3",
            "/lib/ld-musl-armhf.so.1",
            "/lib/ld-musl-arm.so.1",
        ),
        multiarch_triplets=("arm-linux-gnueabihf", "arm-linux-gnueabi"),
        # mov r0, #STATUS; mov r7, #1 (exit); svc #0
        exit_instructions="SS 00 a0 e3  01 70 a0 e3  00 00 00 ef",
    ),
    Machine(
        architecture="386",
        aliases=("i386", "i686"),
        uname_machines=("i686", "i386", "i586", "i486"),
        qemu_suffix="i386",
        bits=32,
        byte_order="little",
        e_machine=3,
        debian_architecture="i386",
        baseline_cpu="qemu32,-sse3",  # SSE2, as in the Pentium 4
        # Go's default has been SSE2 since 1.16, and every x86-64 CPU has what it needs.
        go_variable="GO386",
        extra_levels=(
            IsaLevel(
                name="sse2",
                title="x86 with SSE2",
                go_value="sse2",
                evidence_values=("softfloat", "387", "x86-64 baseline"),
                compiler_option="-march=pentium4",
            ),
            IsaLevel(name="x86-64-v2", title="x86-64-v2", evidence_values=("x86-64-v2",)),
            IsaLevel(name="x86-64-v3", title="x86-64-v3", evidence_values=("x86-64-v3",)),
            IsaLevel(name="x86-64-v4", title="x86-64-v4", evidence_values=("x86-64-v4",)),
        ),
        elf_interpreters=("/lib/ld-linux.so.2", "/lib/ld-musl-i386.so.1"),
        multiarch_triplets=("i386-linux-gnu",),
        # mov ebx, STATUS; mov eax, 1 (exit); int 0x80
        exit_instructions="bb SS 00 00 00  b8 01 00 00 00  cd 80",
    ),
    Machine(
        architecture="ppc64le",
        aliases=("ppc64el",),
        uname_machines=("ppc64le",),
        qemu_suffix="ppc64le",
        bits=64,
        byte_order="little",
        e_machine=21,
        e_flags=2,
        debian_architecture="ppc64el",
        baseline_cpu="power8",
        # 64-bit PowerPC ELF V2 ABI: little-endian Linux needs POWER8.
        go_variable="GOPPC64",
        extra_levels=(
            IsaLevel(name="power8", title="POWER8", go_value="power8", compiler_option="-mcpu=power8"),
            IsaLevel(name="power9", title="POWER9", go_value="power9", compiler_option="-mcpu=power9"),
            IsaLevel(name="power10", title="POWER10", go_value="power10", compiler_option="-mcpu=power10"),
        ),
        elf_interpreters=("/lib64/ld64.so.2", "/lib/ld-musl-powerpc64le.so.1"),
        multiarch_triplets=("powerpc64le-linux-gnu",),
        # li r3, STATUS; li r0, 1 (exit); sc
        exit_instructions="SS 00 60 38  01 00 00 38  02 00 00 44",
    ),
    Machine(
        architecture="s390x",
        uname_machines=("s390x",),
        qemu_suffix="s390x",
        bits=64,
        byte_order="big",
        e_machine=22,
        debian_architecture="s390x",
        baseline_cpu="qemu",  # named models, z13 included, need features that TCG lacks and do not start
        elf_interpreters=("/lib/ld64.so.1", "/lib/ld-musl-s390x.so.1"),
        multiarch_triplets=("s390x-linux-gnu",),
        # lghi %r2, STATUS; svc 1 (exit)
        exit_instructions="a7 29 00 SS  0a 01",
    ),
    Machine(
        architecture="riscv64",
        uname_machines=("riscv64",),
        qemu_suffix="riscv64",
        bits=64,
        byte_order="little",
        e_machine=243,
        e_flags=5,
        debian_architecture="riscv64",
        baseline_cpu="sifive-u54",  # rv64gc
        # RISC-V Profiles: RVA20U64 is rv64gc and what it implies. The counters (zihpm) and fence.i are
        # optional in it, but every Linux machine has them.
        go_variable="GORISCV64",
        extra_levels=(
            IsaLevel(
                name="rva20u64",
                title="RVA20U64 (rv64gc)",
                go_value="rva20u64",
                compiler_option="-march=rv64gc",
                extensions="i m a f d c zicsr zifencei zicntr zihpm ziccif ziccrse ziccamoa za128rs zicclsm"
                " zmmul zaamo zalrsc zca zcd",
            ),
            IsaLevel(
                name="rva22u64",
                title="RVA22U64",
                go_value="rva22u64",
                compiler_option="-march=rva22u64",
                extensions="b zba zbb zbs zic64b zicbom zicbop zicboz zfhmin zkt za64rs zihintpause",
            ),
            IsaLevel(
                name="rva23u64",
                title="RVA23U64",
                go_value="rva23u64",
                compiler_option="-march=rva23u64",
                extensions="v zvfhmin zvbb zvkb zvkt zihintntl zicond zimop zcmop zcb zfa zawrs supm"
                " zve32x zve32f zve64x zve64f zve64d zvl32b zvl64b zvl128b",
            ),
        ),
        elf_interpreters=("/lib/ld-linux-riscv64-lp64d.so.1", "/lib/ld-musl-riscv64.so.1"),
        multiarch_triplets=("riscv64-linux-gnu",),
        # addi a0, zero, STATUS (bits 20..31); addi a7, zero, 93 (exit); ecall
        exit_instructions="I20:00000513  93 08 d0 05  73 00 00 00",
    ),
    Machine(
        architecture="mips64le",
        aliases=("mips64el",),
        uname_machines=("mips64",),
        qemu_suffix="mips64el",
        bits=64,
        byte_order="little",
        e_machine=8,
        e_flags=0x80000006,
        debian_architecture="mips64el",
        baseline_cpu="MIPS64R2-generic",  # release 2, the target of Debian's and Go's ports
        # MIPS release 6 removed instructions: release 2 and release 6 cannot run each other's programs.
        extra_levels=(
            IsaLevel(
                name="mips64r2",
                title="MIPS64 release 2",
                compiler_option="-march=mips64r2",
                evidence_values=(
                    "mips1",
                    "mips2",
                    "mips3",
                    "mips4",
                    "mips5",
                    "mips32",
                    "mips64",
                    "mips32r2",
                    "mips64r2",
                ),
            ),
            IsaLevel(name="mips64r6", title="MIPS64 release 6", evidence_values=("mips32r6", "mips64r6")),
        ),
        elf_interpreters=("/lib64/ld.so.1", "/lib/ld-musl-mips64el.so.1"),
        multiarch_triplets=("mips64el-linux-gnuabi64",),
        # addiu $a0, $zero, STATUS; addiu $v0, $zero, 5058 (n64 exit); syscall
        exit_instructions="SS 00 04 24  c2 13 02 24  0c 00 00 00",
    ),
    Machine(
        architecture="loong64",
        aliases=("loongarch64",),
        uname_machines=("loongarch64",),
        qemu_suffix="loongarch64",
        bits=64,
        byte_order="little",
        e_machine=258,
        e_flags=0x43,
        debian_architecture="loong64",
        baseline_cpu="la464",  # the first LoongArch core
        elf_interpreters=("/lib64/ld-linux-loongarch-lp64d.so.1", "/lib/ld-musl-loongarch64.so.1"),
        multiarch_triplets=("loongarch64-linux-gnu",),
        # ori $a0, $zero, STATUS (bits 10..21); ori $a7, $zero, 93 (exit); syscall 0
        exit_instructions="I10:03800004  0b 74 81 03  00 00 2b 00",
    ),
)

# Other machines that an image may contain files for, named in messages.
_FOREIGN_MACHINES = {
    (32, "big", 2): "sparc",
    (32, "big", 18): "sparc",
    (64, "big", 43): "sparc64",
    (32, "big", 4): "m68k",
    (32, "big", 8): "mips, big-endian",
    (32, "little", 8): "mipsle",
    (64, "big", 8): "mips64, big-endian",
    (32, "big", 15): "hppa",
    (32, "big", 20): "powerpc, 32-bit",
    (64, "big", 21): "ppc64, big-endian",
    (32, "big", 22): "s390, 31-bit",
    (32, "big", 40): "arm, big-endian",
    (32, "little", 42): "sh4",
    (64, "little", 50): "ia64",
    (32, "little", 62): "x32, ILP32 on x86-64",
    (32, "big", 92): "OpenRISC",
    (32, "little", 93): "ARC",
    (32, "little", 113): "Nios II",
    (32, "little", 183): "arm64 ILP32",
    (64, "big", 183): "arm64, big-endian",
    (32, "little", 195): "ARC",
    (32, "little", 243): "riscv32",
    (32, "little", 252): "C-SKY",
    (32, "little", 258): "loong32",
    (64, "little", 0x9026): "alpha",
}

DEVICE_MACHINES = {
    83: "AVR", 94: "Xtensa", 105: "MSP430", 140: "TI C6000", 141: "TI C2000", 142: "TI C5500",
    164: "Hexagon", 165: "8051", 190: "CUDA", 205: "Intel GPU", 224: "AMD GPU", 247: "BPF",
}  # fmt: skip
"""e_machine of code that a program loads into a GPU, a microcontroller or the kernel's BPF VM."""


_MACHINE_BY_ELF = {(machine.bits, machine.byte_order, machine.e_machine): machine for machine in MACHINES}


def machine_from_elf(bits: int, byte_order: str, e_machine: int) -> Machine | None:
    """Return the machine whose executables have this class, byte order and e_machine, or None."""
    return _MACHINE_BY_ELF.get((bits, byte_order, e_machine))


def foreign_machine_name(bits: int, byte_order: str, e_machine: int) -> str:
    """Return the usual name of a machine that is not in the table, or ``unknown``."""
    return _FOREIGN_MACHINES.get((bits, byte_order, e_machine)) or DEVICE_MACHINES.get(e_machine, "unknown")
