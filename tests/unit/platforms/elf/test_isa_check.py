from __future__ import annotations

import struct

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import Platform
from buildkit_tasks.platforms.elf.build_attributes import read_attributes
from buildkit_tasks.platforms.elf.isa_check import (
    arm_float_abi,
    isa_problems,
    isa_warnings,
    missing_isa_info_reason,
)
from buildkit_tasks.platforms.elf.model import Binary, Evidence, riscv_extensions
from buildkit_tasks.platforms.elf.reader import read_binary
from buildkit_tasks.platforms.elf.view import WholeFile
from tests.support.elf import (
    BASE,
    ISA_NEEDED,
    ISA_USED,
    PT_GNU_PROPERTY,
    PT_NOTE,
    PT_OTHER,
    PT_PROCESSOR,
    Elf,
    Target,
    attributes,
    go_info,
    x86_note,
)
from tests.support.growth import assert_linear

UNKNOWN = "unknown (40), an unknown level"


def read(elf: Elf) -> Binary:
    return read_binary(WholeFile(elf.build()))


def go_binary(machine: str, *settings: str) -> Binary:
    modules = "path\tx\n" + "".join(f"build\t{setting}\n" for setting in settings)
    return read(Elf(machine=machine, sections={".go.buildinfo": go_info("go1.26.8", modules)}))


def platform(name: str) -> Platform:
    parts = name.split("/")
    return Platform.normalize("linux", *parts)


def needs(name: str, binary: Binary, *, whole: bool = False) -> str:
    """Return the only problem of a binary on a platform, or nothing; up to its source if not ``whole``."""
    problems = isa_problems(platform(name), binary)
    assert len(problems) <= 1
    return (problems[0] if whole else problems[0].partition(" (")[0]) if problems else ""


def test_isa_problem_message() -> None:
    assert needs("arm/v6", go_binary("arm", "GOARM=7"), whole=True) == (
        "needs ARMv7 (Go build info: GOARM=7); the baseline of linux/arm/v6 is ARMv6: build it with GOARM=6"
    )
    arm = Elf(machine="arm", sections={".ARM.attributes": attributes("aeabi", [(6, 10)])})
    assert needs("arm/v6", read(arm), whole=True) == (
        "needs ARMv7 (.ARM.attributes: CPU architecture v7); the baseline of linux/arm/v6 is ARMv6: "
        "build it with -march=armv6"
    )


@pytest.mark.parametrize(
    ("name", "setting", "need"),
    [
        ("arm/v5", "GOARM=5", ""),
        ("arm/v5", "GOARM=5,softfloat", ""),
        ("arm/v5", "GOARM=5,hardfloat", "needs a floating-point unit"),
        ("arm/v5", "GOARM=6", "needs ARMv6"),
        ("arm/v6", "GOARM=5", ""),
        ("arm/v6", "GOARM=6", ""),
        ("arm/v6", "GOARM=6,softfloat", ""),
        ("arm/v6", "GOARM=7", "needs ARMv7"),
        ("arm/v6", "GOARM=7,softfloat", "needs ARMv7"),
        ("arm/v7", "GOARM=7", ""),
        ("arm/v8", "GOARM=7", ""),
        ("arm/v7", "GOARM=9", "needs 9, an unknown level"),
        ("amd64", "GOAMD64=v1", ""),
        ("amd64", "GOAMD64=v2", "needs x86-64-v2"),
        ("amd64", "GOAMD64=v3", "needs x86-64-v3"),
        ("amd64/v2", "GOAMD64=v3", "needs x86-64-v3"),
        ("amd64/v3", "GOAMD64=v3", ""),
        ("amd64/v3", "GOAMD64=v4", "needs x86-64-v4"),
        ("amd64/v4", "GOAMD64=v1", ""),
        ("amd64", "GOAMD64=v9", "needs v9, an unknown level"),
        ("386", "GO386=sse2", ""),
        ("386", "GO386=softfloat", ""),
        ("386", "GO386=387", ""),
        ("arm64", "GOARM64=v8.0", ""),
        ("arm64", "GOARM64=v8.1", "needs Armv8.1-A"),
        ("arm64", "GOARM64=v8.0,lse", "needs the atomics of Armv8.1-A"),
        ("arm64", "GOARM64=v8.0,crypto", "needs the cryptography extension"),
        ("arm64", "GOARM64=v9.0", "needs Armv9.0-A"),
        ("arm64/v9", "GOARM64=v9.0", ""),
        ("arm64/v9", "GOARM64=v8.5", ""),
        ("arm64/v9", "GOARM64=v8.6", "needs Armv8.6-A"),
        ("arm64/v9", "GOARM64=v9.1", "needs Armv9.1-A"),
        ("arm64/v8.2", "GOARM64=v8.1,lse", ""),
        ("arm64/v8.2", "GOARM64=v8.0,lse", ""),
        ("arm64", "GOARM64=w", "needs w, an unknown level"),
        ("ppc64le", "GOPPC64=power8", ""),
        ("ppc64le", "GOPPC64=power9", "needs POWER9"),
        ("ppc64le", "GOPPC64=power10", "needs POWER10"),
        ("ppc64le/power9", "GOPPC64=power9", ""),
        ("riscv64", "GORISCV64=rva20u64", ""),
        ("riscv64", "GORISCV64=rva22u64", "needs RVA22U64"),
        ("riscv64", "GORISCV64=rva23u64", "needs RVA23U64"),
        ("mips64le", "GOMIPS64=hardfloat", ""),
        ("mips64le", "GOMIPS64=softfloat", ""),
        ("s390x", "GOARCH=s390x", ""),
        ("loong64", "GOARCH=loong64", ""),
        ("amd64", "GOOS=linux", ""),
        ("amd64", "GOOS=android", ""),
        ("amd64", "GOOS=freebsd", "needs freebsd"),
    ],
)
def test_go_levels(name: str, setting: str, need: str) -> None:
    problem = needs(name, go_binary(name.split("/", maxsplit=1)[0], setting))
    assert problem.startswith(need)
    assert bool(problem) == bool(need)


def test_goarm64_options() -> None:
    assert needs("arm64", go_binary("arm64", "GOARM64=v8.0,lse,crypto"), whole=True) == (
        "needs the atomics of Armv8.1-A (LSE) and the cryptography extension (Go build info: "
        "GOARM64=v8.0,lse,crypto); the baseline of linux/arm64 is Armv8.0-A: build it with GOARM64=v8.0"
    )

    assert "(LSE)" not in needs("arm64", go_binary("arm64", "GOARM64=v8.1,lse"), whole=True)


def test_other_go_variables_are_ignored() -> None:
    assert isa_problems(platform("amd64"), go_binary("amd64", "GOARM=7", "GOPPC64=power10")) == ()


def test_other_machine_has_no_isa_problems() -> None:
    assert isa_problems(platform("amd64"), go_binary("arm", "GOARM=7")) == ()


@pytest.mark.parametrize(
    ("value", "v5", "v6", "v7"),
    [(4, "", "", ""), (5, "", "", ""), (6, "ARMv6", "", ""), (7, "ARMv6", "", ""), (9, "ARMv6", "", ""),
     (8, "ARMv7", "ARMv7", ""), (10, "ARMv7", "ARMv7", ""), (14, "ARMv8", "ARMv8", "ARMv8"),
     (22, "ARMv9", "ARMv9", "ARMv9"),
     (40, UNKNOWN, UNKNOWN, UNKNOWN)],
)  # fmt: skip
def test_arm_cpu_architecture(value: int, v5: str, v6: str, v7: str) -> None:
    sections = {".ARM.attributes": attributes("aeabi", [(5, "x"), (6, value), (28, 1)])}
    binary = read(Elf(machine="arm", sections=sections))
    for name, need in (("arm/v5", v5), ("arm/v6", v6), ("arm/v7", v7)):
        problems = isa_problems(platform(name), binary)
        assert [text.split(" (.ARM", maxsplit=1)[0] for text in problems] == (
            [f"needs {need}"] if need else []
        )


def test_arm_attributes_evidence() -> None:
    pairs: list[tuple[int, int | str]] = [
        (5, "7-A"), (6, 10), (7, ord("A")), (9, 2), (10, 4), (12, 1), (28, 1), (66, 1), (67, "2.09"),
    ]  # fmt: skip
    binary = read(
        Elf(machine="arm", flags=0x5000400, sections={".ARM.attributes": attributes("aeabi", pairs)})
    )
    assert [(item.name, item.value) for item in binary.evidence] == [
        ("EABI", "5"), ("float ABI", "hard"), ("CPU name", "7-A"), ("CPU profile", "A"),
        ("CPU architecture", "v7"), ("Thumb", "Thumb-2"), ("FP architecture", "VFPv3-D16"),
        ("SIMD architecture", "NEON"), ("float ABI", "hard"),
    ]  # fmt: skip
    assert (binary.problems, arm_float_abi(binary)) == ((), "hard")


@pytest.mark.parametrize(
    ("flags", "pairs", "abi"),
    [
        (0x5000400, [], "hard"),
        (0x5000200, [], "soft"),
        (0x5000002, [], ""),
        (0x4000400, [], ""),
        (0x5000000, [(6, 10), (28, 1)], "hard"),
        (0x5000000, [(6, 10), (28, 0)], "soft"),
        (0x5000000, [(6, 10)], "soft"),
        (0x5000000, [(28, 2)], ""),
        (0x5000000, [(28, 3)], ""),
    ],
)
def test_arm_float_abi(flags: int, pairs: list[tuple[int, int | str]], abi: str) -> None:
    sections = {".ARM.attributes": attributes("aeabi", pairs)} if pairs else {}
    assert arm_float_abi(read(Elf(machine="arm", flags=flags, sections=sections))) == abi


def test_arm_float_abi_of_other_machine() -> None:
    assert arm_float_abi(read(Elf(machine="riscv64"))) == ""


# Entry points are odd in Thumb code. f04f: mov.w (Thumb-2); b538: push; f7ff fffe: bl, also in Thumb-1.
@pytest.mark.parametrize(
    ("code", "odd", "need"),
    [
        (bytes.fromhex("4ff0000b 4ff0000e"), 1, "needs ARMv7"),
        (bytes.fromhex("38b5 4ff0000b 0000"), 1, "needs ARMv7"),
        (bytes.fromhex("38b5 fff7feff 38b5"), 1, ""),
        (bytes.fromhex("38b5 38b5 38b5 38b5"), 1, ""),
        (bytes.fromhex("00 4ff0000b 4ff0000e"), 2, ""),  # ARM code has even addresses
    ],
)
def test_thumb_2_at_entry_point(code: bytes, odd: int, need: str) -> None:
    elf = Elf(machine="arm", segments=[(PT_OTHER, code)])
    elf.build()
    elf.entry = BASE + elf.offsets[0] + odd
    assert needs("arm/v6", read(elf)) == need
    assert needs("arm/v7", read(elf)) == ""


def test_run_time_detection_is_warning() -> None:
    pairs: list[tuple[int, int | str]] = [(6, 14), (12, 3)]
    plain = {".ARM.attributes": attributes("aeabi", pairs)}
    detecting = {**plain, ".rodata": b"x\0/proc/cpuinfo\0"}
    assert needs("arm/v7", read(Elf(machine="arm", sections=plain))) == "needs ARMv8"
    library = read(Elf(machine="arm", sections=detecting))
    assert isa_problems(platform("arm/v7"), library) == ()
    assert "".join(isa_warnings(platform("arm/v7"), library)) == (
        "has code for ARMv8 (.ARM.attributes: CPU architecture v8), which seems optional because it "
        "checks the CPU at run time (/proc/cpuinfo); the baseline of linux/arm/v7 is ARMv7"
    )
    assert isa_warnings(platform("arm/v8"), library) == ()
    assert isa_warnings(platform("arm/v7"), read(Elf(machine="arm", sections=plain))) == ()


def test_go_level_ignores_run_time_detection() -> None:
    sections = {
        ".go.buildinfo": go_info("go1.26", "build\tGOARM=7\n"),
        ".ARM.attributes": attributes("aeabi", [(6, 14)]),
        ".rodata": b"getauxval",
    }
    assert needs("arm/v6", read(Elf(machine="arm", sections=sections))) == "needs ARMv7"


def file_with_shared_notes(headers: int) -> bytes:
    """Return a file with 64 KiB of notes, and program headers that are all about them."""
    notes = x86_note((ISA_NEEDED, 0b1)) * ((1 << 16) // len(x86_note((ISA_NEEDED, 0b1))))
    program = bytearray(Elf(segments=[(PT_NOTE, notes)]).build())
    table_offset, (entry_size, count) = (
        struct.unpack_from("<Q", program, 32)[0],
        struct.unpack_from("<HH", program, 54),
    )
    table = bytes(program[table_offset : table_offset + entry_size * count])
    struct.pack_into("<Q", program, 32, len(program))
    struct.pack_into("<H", program, 56, headers)
    return bytes(program) + (table * headers)[: headers * entry_size]


def test_notes_are_read_once() -> None:
    binary = read_binary(WholeFile(file_with_shared_notes(1100)))
    assert len([each for each in binary.evidence if each.source == "x86 ISA note"]) == 1
    assert binary.problems == ("more than 262144 bytes of notes: the rest was not read",)


def test_shared_notes_take_linear_time() -> None:
    assert_linear(lambda data: read_binary(WholeFile(data)), file_with_shared_notes, 1100)


def test_note_after_many_others() -> None:
    others = x86_note((ISA_USED, 0b1)) * 5000
    binary = read(Elf(segments=[(PT_NOTE, others), (PT_NOTE, x86_note((ISA_NEEDED, 0b111)))]))
    assert Evidence("x86 ISA note", "needed", "x86-64-v3") in binary.evidence


@pytest.mark.parametrize("machine", ["amd64", "386"])
@pytest.mark.parametrize("segment", [PT_NOTE, PT_GNU_PROPERTY])
@pytest.mark.parametrize(
    ("bits", "need"), [(1, ""), (3, "needs x86-64-v2"), (7, "needs x86-64-v3"), (15, "needs x86-64-v4")]
)
def test_x86_isa_needed(machine: str, segment: int, bits: int, need: str) -> None:
    note = x86_note((ISA_NEEDED, bits), align=8 if machine == "amd64" else 4)
    assert needs(machine, read(Elf(machine=machine, segments=[(segment, note)]))) == need


def test_x86_isa_used_is_not_needed() -> None:
    binary = read(Elf(segments=[(PT_NOTE, x86_note((ISA_USED, 0b1111)))]))
    assert [(item.name, item.value) for item in binary.evidence] == [("used", "x86-64-v4")]
    assert isa_problems(platform("amd64"), binary) == ()


def test_x86_isa_of_variants() -> None:
    v3 = read(Elf(segments=[(PT_NOTE, x86_note((ISA_NEEDED, 0b111)))]))
    assert needs("amd64/v2", v3) == "needs x86-64-v3"
    assert needs("amd64/v3", v3) == needs("amd64/v4", v3) == ""


@pytest.mark.parametrize(
    ("flags", "need"),
    [(0x20000006, ""), (0x60000006, ""), (0x80000006, ""), (0xA0000006, "needs MIPS64 release 6"),
     (0x80000406, "needs NaN as in IEEE 754-2008"),
     (0xF0000006, "needs unknown")],
)  # fmt: skip
def test_mips_flags(flags: int, need: str) -> None:
    assert needs("mips64le", read(Elf(machine="mips64le", flags=flags))) == need


def test_mips_evidence() -> None:
    abiflags = bytes([0, 0, 64, 2, 2, 2, 0, 1]) + bytes(4) + (0x200).to_bytes(4, "little") + bytes(8)
    binary = read(Elf(machine="mips64le", segments=[(PT_PROCESSOR, abiflags)]))
    assert [str(item) for item in binary.evidence] == [
        "ELF flags: MIPS architecture mips64r2", "ELF flags: MIPS ABI n64",
        ".MIPS.abiflags: float ABI double", ".MIPS.abiflags: ASE MSA",
    ]  # fmt: skip
    assert needs("mips64le", binary) == "needs the MSA extension"


GC = "rv64i2p1_m2p0_a2p1_f2p2_d2p2_c2p0_zicsr2p0_zifencei2p0_zmmul1p0_zaamo1p0_zalrsc1p0_zca1p0_zcd1p0"


@pytest.mark.parametrize(
    ("name", "arch", "need"),
    [
        ("riscv64", GC, ""),
        ("riscv64", "rv64gc", ""),
        ("riscv64", "rv64i2p1_m2p0", ""),
        ("riscv64", f"{GC}_zba1p0_zbb1p0", "needs the RISC-V extensions zba, zbb"),
        ("riscv64", f"{GC}_v1p0_zve32x1p0_zvl128b1p0", "needs the RISC-V extension v"),
        ("riscv64", f"{GC}_xtheadba1p0", "needs the RISC-V extension xtheadba"),
        ("riscv64", f"{GC}_sstc1p0", ""),
        ("riscv64/rva22u64", f"{GC}_zba1p0_zbb1p0", ""),
        ("riscv64/rva22u64", f"{GC}_v1p0", "needs the RISC-V extension v"),
        ("riscv64/rva23u64", f"{GC}_v1p0_zvl128b1p0_zba1p0", ""),
    ],
)
@pytest.mark.parametrize("as_segment", [True, False])
def test_riscv_extensions_needed(name: str, arch: str, need: str, *, as_segment: bool) -> None:
    data = attributes("riscv", [(4, 16), (5, arch), (6, 0)])
    sections: dict[str, bytes] = {} if as_segment else {".riscv.attributes": data}
    elf = Elf(machine="riscv64", segments=[(PT_PROCESSOR, data)] if as_segment else [], sections=sections)
    assert needs(name, read(elf)) == need


def test_riscv_extensions() -> None:
    assert riscv_extensions("rv64g") == {"i", "m", "a", "f", "d", "zicsr", "zifencei"}
    assert riscv_extensions("RV64I2P1_ZVL128B1P0_Za128rs1p0_ziccif") == {"i", "zvl128b", "za128rs", "ziccif"}
    assert riscv_extensions("nonsense") == set()


def test_other_flags_evidence() -> None:
    def evidence(machine: str, flags: int) -> list[str]:
        return [str(item) for item in read(Elf(machine=machine, flags=flags)).evidence]

    assert evidence("riscv64", 5) == ["ELF flags: float ABI double", "ELF flags: compressed yes"]
    assert evidence("ppc64le", 2) == ["ELF flags: PPC64 ABI v2"]
    assert evidence("ppc64le", 0) == evidence("s390x", 0) == evidence("arm64", 0) == []
    assert evidence("loong64", 0x43) == ["ELF flags: float ABI double", "ELF flags: object ABI v1"]
    assert needs("ppc64le", read(Elf(machine="ppc64le", flags=1))) == (
        "needs ELF ABI v1, and little-endian Linux has v2"
    )
    assert needs("riscv64", read(Elf(machine="riscv64", flags=13))) == "needs the RV64E calling convention"


def test_foreign_os_abi() -> None:
    assert isa_problems(platform("amd64"), read(Elf(abi=9))) == (
        "needs FreeBSD (ELF header: OS ABI FreeBSD); the baseline of linux/amd64 is x86-64 (baseline)",
    )
    assert isa_problems(platform("amd64"), read(Elf(abi=3))) == ()
    assert isa_problems(Platform("freebsd", "amd64"), read(Elf(abi=9))) == ()
    assert isa_problems(platform("s390x"), read(Elf(machine="s390x", abi=9))) == (
        "needs FreeBSD (ELF header: OS ABI FreeBSD); linux/s390x does not include it",
    )


@pytest.mark.parametrize("name", ["s390x", "loong64", "arm64", "ppc64le"])
def test_missing_isa_info_of_machine(name: str) -> None:
    exception = "" if name in ("s390x", "loong64") else ", except Go's"
    assert missing_isa_info_reason(read(Elf(machine=name))) == (
        f"{name} files record no level of the instruction set{exception}"
    )


def test_missing_isa_info_of_file() -> None:
    assert missing_isa_info_reason(read(Elf())) == "the file records no level of the instruction set"
    assert missing_isa_info_reason(read(Elf(segments=[(PT_NOTE, x86_note((ISA_NEEDED, 1)))]))) == ""
    assert missing_isa_info_reason(go_binary("arm64", "GOARM64=v8.0")) == ""


def test_missing_isa_info_of_unknown_machine() -> None:
    binary = read(Elf(machine=Target(bits=64, order="little", machine=9999)))
    assert missing_isa_info_reason(binary) == "its machine is unknown"


def test_evidence_text() -> None:
    assert str(Evidence("Go build info", "GOARM", "7")) == "Go build info: GOARM=7"
    assert str(Evidence("ELF flags", "float ABI", "hard")) == "ELF flags: float ABI hard"


def test_unknown_attributes_by_parity() -> None:
    pairs: list[tuple[int, int | str]] = [(8, 300), (71, "text"), (70, 1 << 20), (6, 14)]
    assert read_attributes(attributes("aeabi", pairs), "aeabi", "little") == dict(pairs)


def test_compatibility_attribute() -> None:
    section = attributes("aeabi", [(32, 1), (6, 10)])
    # Insert a name of four bytes between the flag and the next tag, and increase both lengths.
    data = bytearray(section.replace(b"\x20\x01", b"\x20\x01gnu\0"))
    data[1] += 4
    data[12] += 4
    assert read_attributes(bytes(data), "aeabi", "little") == {32: "gnu", 6: 10}


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"B", "unknown version"),
        (b"A\xff\xff\xff\x7faeabi\0", "invalid block of 2147483647 bytes"),
        (b"A\0\0\0\0aeabi\0", "invalid block of 0 bytes"),
        (b"A\x08\0\0\0aaaa", "unterminated string"),
        (attributes("aeabi", [(5, "x")])[:-1], "invalid block"),
        (attributes("aeabi", [(6, 1 << 80)]), "unterminated number"),
    ],
)
def test_malformed_attributes(data: bytes, cause: str) -> None:
    with pytest.raises(MalformedImage, match=cause):
        read_attributes(data, "aeabi", "little")
    assert read(Elf(machine="arm", sections={".ARM.attributes": data})).problems
