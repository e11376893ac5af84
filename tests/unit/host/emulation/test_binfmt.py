from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from buildkit_tasks.errors import EmulatorError
from buildkit_tasks.host.emulation.binfmt import Handler, HandlerTable
from buildkit_tasks.platforms import MACHINES, Machine, Platform
from buildkit_tasks.system.command import SubprocessRunner
from tests.support.scripted import Entry, Kernel, Scripted

ARM64 = Platform.parse("linux/arm64").machine
ARM = Platform.parse("linux/arm/v7").machine
QEMU = Path("/opt/qemu/qemu-aarch64")

# As the kernel printed it for Debian's qemu-user-binfmt on a real machine.
REAL = """enabled
interpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P
flags: POF
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(folder=tmp_path / "binfmt_misc").mount_binfmt_misc()


@pytest.fixture
def table(kernel: Kernel, tmp_path: Path) -> HandlerTable:
    return HandlerTable(
        commands=kernel, state_path=tmp_path / "cache" / "binfmt.json", mount_point=kernel.folder
    )


def entry(
    machine: Machine, name: str, interpreter: str = "/q", flags: str = "F", *, enabled: bool = True
) -> Entry:
    return Entry(name, interpreter, flags, machine.magic, machine.mask, enabled)


def test_an_entry_is_read_as_the_kernel_prints_it() -> None:
    handler = Handler.parse("qemu-aarch64", REAL, (5, 6))
    assert handler == Handler(
        name="qemu-aarch64",
        enabled=True,
        interpreter="/usr/libexec/qemu-binfmt/aarch64-binfmt-P",
        flags="POF",
        offset=0,
        magic=bytes.fromhex("7f454c460201010000000000000000000200b700"),
        mask=bytes.fromhex("ffffffffffffff00fffffffffffffffffeffffff"),
        registration_order=(5, 6),
    )
    assert [machine.architecture for machine in MACHINES if handler.matches(machine)] == ["arm64"]


def test_a_disabled_entry_and_one_for_a_file_ending_are_read_too() -> None:
    assert not Handler.parse("x", REAL.replace("enabled", "disabled")).enabled
    jar = Handler.parse("jar", "enabled\ninterpreter /usr/bin/jexec\nflags: \nextension .jar\n")
    assert (jar.flags, jar.magic) == ("", b"")
    assert not any(map(jar.matches, MACHINES))


def test_an_interpreter_may_have_blanks_in_its_path() -> None:
    assert Handler.parse("x", "enabled\ninterpreter /a b/c\n").interpreter == "/a b/c"


@pytest.mark.parametrize("row", MACHINES, ids=lambda row: row.architecture)
def test_a_handler_made_for_an_architecture_matches_that_one_alone(row: Machine) -> None:
    handler = Handler(name="x", enabled=True, interpreter="/q", magic=row.magic, mask=row.mask)
    assert [each.architecture for each in MACHINES if handler.matches(each)] == [row.architecture]


def test_offset_and_mask_are_heeded() -> None:
    any_elf = Handler(name="x", enabled=True, interpreter="/q", magic=b"\x7fELF")
    by_machine = Handler(name="x", enabled=True, interpreter="/q", offset=18, magic=b"\xb7\x00")
    past_the_end = Handler(name="x", enabled=True, interpreter="/q", offset=19, magic=b"\x00\x00")
    nothing_counts = Handler(name="x", enabled=True, interpreter="/q", magic=b"zzzz", mask=b"\0\0\0\0")
    assert all(map(any_elf.matches, MACHINES))
    assert [each.architecture for each in MACHINES if by_machine.matches(each)] == ["arm64"]
    assert not any(map(past_the_end.matches, MACHINES))
    assert all(map(nothing_counts.matches, MACHINES))


def test_the_last_registered_wins_as_in_the_kernel(kernel: Kernel, table: HandlerTable) -> None:
    for name in ("zz", "mm", "aa", "nn"):
        kernel.add(entry(ARM64, name))
    assert [handler.name for handler in table.read_handlers()] == ["nn", "aa", "mm", "zz"]
    winner = table.effective_handler(ARM64)
    assert winner is not None
    assert winner.name == "nn"
    assert table.effective_handler(ARM) is None


def test_a_disabled_handler_gives_way_to_an_enabled_one_and_is_named_when_alone(
    kernel: Kernel, table: HandlerTable
) -> None:
    kernel.add(entry(ARM64, "on"))
    kernel.add(entry(ARM64, "off", enabled=False))
    kernel.add(entry(ARM, "arm-off", enabled=False))
    found = table.effective_handler(ARM64), table.effective_handler(ARM)
    assert [handler and handler.name for handler in found] == ["on", "arm-off"]


def test_without_the_table_there_is_no_handler(tmp_path: Path) -> None:
    table = HandlerTable(commands=Scripted(), state_path=tmp_path / "x", mount_point=tmp_path / "gone")
    assert (table.is_mounted, table.read_handlers(), table.effective_handler(ARM64)) == (False, [], None)


def test_the_table_is_mounted_where_it_is_not(tmp_path: Path) -> None:
    run = Scripted().expect("mount -t binfmt_misc binfmt_misc *")
    HandlerTable(commands=run, state_path=tmp_path / "x", mount_point=tmp_path).mount()
    assert run.lines == [f"mount -t binfmt_misc binfmt_misc {tmp_path}"]
    assert run.calls[0].mutates


def test_a_mounted_table_is_not_mounted_again(kernel: Kernel, table: HandlerTable) -> None:
    table.mount()
    assert kernel.calls == []


def test_a_refused_mount_gives_mounts_own_words_and_a_next_command(tmp_path: Path) -> None:
    run = Scripted().expect(
        "mount *", returncode=32, stderr="mount: unknown filesystem type 'binfmt_misc'.\n"
    )
    with pytest.raises(EmulatorError) as caught:
        HandlerTable(commands=run, state_path=tmp_path / "x", mount_point=tmp_path).mount()
    assert "unknown filesystem type" in caught.value.message
    assert (caught.value.hint, caught.value.exit_code) == ("sudo modprobe binfmt_misc", 3)


@pytest.mark.parametrize("row", MACHINES, ids=lambda row: row.architecture)
def test_a_handler_is_always_registered_with_f_and_never_with_c(
    row: Machine, kernel: Kernel, table: HandlerTable
) -> None:
    table.register(row, QEMU)
    ((place, line),) = kernel.written
    assert place == kernel.folder / "register"
    _, name, kind, offset, magic, mask, interpreter, flags = line.decode("ascii").split(":")
    assert (name, kind, offset, interpreter) == (f"qemu-{row.qemu_suffix}", "M", "", str(QEMU))
    assert "F" in flags
    assert "C" not in flags
    assert set(flags) <= set("OPF")
    assert bytes.fromhex(magic.replace("\\x", "")) == row.magic
    assert bytes.fromhex(mask.replace("\\x", "")) == row.mask
    assert len(line) < 1920  # binfmt_misc.c, MAX_REGISTER_LENGTH
    winner = table.effective_handler(row)
    assert winner is not None
    assert winner.interpreter == str(QEMU)


def test_the_register_line_is_written_by_the_real_runner_too(tmp_path: Path) -> None:
    (tmp_path / "register").touch()
    (tmp_path / "qemu-aarch64").write_text("enabled\n", encoding="utf-8")
    HandlerTable(commands=SubprocessRunner(), state_path=tmp_path / "ledger", mount_point=tmp_path).register(
        ARM64, QEMU
    )
    assert (tmp_path / "register").read_bytes().startswith(b":qemu-aarch64:M::\\x7f\\x45\\x4c\\x46\\x02\\x01")


REFUSALS = [
    (errno.EEXIST, "the handler name qemu-aarch64 is taken"),
    (errno.EPERM, "registering qemu-aarch64 needs root on the host, or a privileged container"),
    (errno.EACCES, "registering qemu-aarch64 needs root on the host, or a privileged container"),
    (errno.EROFS, "registering qemu-aarch64 needs root on the host, or a privileged container"),
    (errno.EINVAL, f"the kernel refuses handler qemu-aarch64 for {QEMU}: Invalid argument"),
]


@pytest.mark.parametrize(("number", "words"), REFUSALS)
def test_the_kernels_refusal_is_put_into_words(
    kernel: Kernel, table: HandlerTable, number: int, words: str
) -> None:
    kernel.refusal = OSError(number, errno.errorcode[number].replace("EINVAL", "Invalid argument"))
    with pytest.raises(EmulatorError) as caught:
        table.register(ARM64, QEMU)
    assert caught.value.message.startswith(words)
    assert (caught.value.platform, caught.value.exit_code) == ("linux/arm64", 3)
    assert not table.state_path.exists()


def test_what_was_added_is_noted_and_removed_again(kernel: Kernel, table: HandlerTable) -> None:
    kernel.add(entry(ARM, "theirs"))
    table.register(ARM64, QEMU)
    table.register(ARM, Path("/opt/qemu/qemu-arm"))
    assert table.remove_registered() == ["qemu-aarch64", "qemu-arm"]
    assert [handler.name for handler in table.read_handlers()] == ["theirs"]
    assert not table.state_path.exists()
    assert table.remove_registered() == []


def test_an_entry_that_was_changed_since_is_not_removed(kernel: Kernel, table: HandlerTable) -> None:
    table.register(ARM64, QEMU)
    table.register(ARM, QEMU)
    changed = kernel.folder / "qemu-aarch64"
    changed.write_text(changed.read_text(encoding="utf-8").replace("OPF", "OPFC"), encoding="utf-8")
    before = len(kernel.written)
    assert table.remove_registered() == ["qemu-arm"]
    assert kernel.written[before:] == [(kernel.folder / "qemu-arm", b"-1")]
    assert changed.exists()


def test_an_entry_that_is_gone_already_is_no_fault(kernel: Kernel, table: HandlerTable) -> None:
    table.register(ARM64, QEMU)
    (kernel.folder / "qemu-aarch64").unlink()
    assert table.remove_registered() == []


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"register": 4}', "\x00"])
def test_a_damaged_ledger_removes_nothing(kernel: Kernel, table: HandlerTable, text: str) -> None:
    kernel.add(entry(ARM64, "theirs"))
    table.state_path.parent.mkdir()
    table.state_path.write_text(text, encoding="utf-8")
    assert table.remove_registered() == []
    assert kernel.written == []


@pytest.mark.parametrize("name", ["../outside", "register", "status"])
def test_a_ledger_cannot_lead_outside_the_table_or_to_its_switches(
    kernel: Kernel, table: HandlerTable, name: str
) -> None:
    (kernel.folder / name).write_text("text", encoding="utf-8")
    table.state_path.parent.mkdir()
    table.state_path.write_text(json.dumps({name: "text"}), encoding="utf-8")
    assert table.remove_registered() == []
    assert kernel.written == []


def test_a_dry_run_notes_and_forgets_nothing(kernel: Kernel, table: HandlerTable) -> None:
    table.register(ARM64, QEMU)
    noted = table.state_path.read_bytes()
    kernel.dry_run = True
    table.register(ARM, QEMU)
    assert table.remove_registered() == ["qemu-aarch64"]
    assert table.state_path.read_bytes() == noted
    assert [handler.name for handler in table.read_handlers()] == ["qemu-aarch64"]


def test_a_handler_that_stands_in_the_way_is_removed_by_name(kernel: Kernel, table: HandlerTable) -> None:
    kernel.add(entry(ARM64, "broken"))
    kernel.add(entry(ARM, "kept"))
    table.remove(next(handler for handler in table.read_handlers() if handler.name == "broken"))
    assert kernel.written == [(kernel.folder / "broken", b"-1")]
    assert [handler.name for handler in table.read_handlers()] == ["kept"]
