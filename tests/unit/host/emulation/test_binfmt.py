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

# The kernel's text for the handler of Debian's qemu-user-binfmt.
DEBIAN_ENTRY = """enabled
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


def test_parse_entry() -> None:
    handler = Handler.parse("qemu-aarch64", DEBIAN_ENTRY, (5, 6))
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


def test_parse_disabled_and_extension_entries() -> None:
    assert not Handler.parse("x", DEBIAN_ENTRY.replace("enabled", "disabled")).enabled
    jar = Handler.parse("jar", "enabled\ninterpreter /usr/bin/jexec\nflags: \nextension .jar\n")
    assert (jar.flags, jar.magic) == ("", b"")
    assert not any(map(jar.matches, MACHINES))


def test_parse_interpreter_with_spaces() -> None:
    assert Handler.parse("x", "enabled\ninterpreter /a b/c\n").interpreter == "/a b/c"


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.architecture)
def test_matches_only_its_machine(machine: Machine) -> None:
    handler = Handler(name="x", enabled=True, interpreter="/q", magic=machine.magic, mask=machine.mask)
    assert [each.architecture for each in MACHINES if handler.matches(each)] == [machine.architecture]


def test_matches_with_offset_and_mask() -> None:
    any_elf = Handler(name="x", enabled=True, interpreter="/q", magic=b"\x7fELF")
    by_machine = Handler(name="x", enabled=True, interpreter="/q", offset=18, magic=b"\xb7\x00")
    past_end = Handler(name="x", enabled=True, interpreter="/q", offset=19, magic=b"\x00\x00")
    masked = Handler(name="x", enabled=True, interpreter="/q", magic=b"zzzz", mask=b"\0\0\0\0")
    assert all(map(any_elf.matches, MACHINES))
    assert [machine.architecture for machine in MACHINES if by_machine.matches(machine)] == ["arm64"]
    assert not any(map(past_end.matches, MACHINES))
    assert all(map(masked.matches, MACHINES))


def test_last_registered_is_effective(kernel: Kernel, table: HandlerTable) -> None:
    for name in ("zz", "mm", "aa", "nn"):
        kernel.add(entry(ARM64, name))
    assert [handler.name for handler in table.read_handlers()] == ["nn", "aa", "mm", "zz"]
    effective = table.effective_handler(ARM64)
    assert effective is not None
    assert effective.name == "nn"
    assert table.effective_handler(ARM) is None


def test_enabled_handler_is_effective(kernel: Kernel, table: HandlerTable) -> None:
    kernel.add(entry(ARM64, "on"))
    kernel.add(entry(ARM64, "off", enabled=False))
    kernel.add(entry(ARM, "arm-off", enabled=False))
    handlers = table.effective_handler(ARM64), table.effective_handler(ARM)
    assert [handler and handler.name for handler in handlers] == ["on", "arm-off"]


def test_not_mounted(tmp_path: Path) -> None:
    table = HandlerTable(commands=Scripted(), state_path=tmp_path / "x", mount_point=tmp_path / "gone")
    assert (table.is_mounted, table.read_handlers(), table.effective_handler(ARM64)) == (False, [], None)


def test_mount(tmp_path: Path) -> None:
    commands = Scripted().expect("mount -t binfmt_misc binfmt_misc *")
    HandlerTable(commands=commands, state_path=tmp_path / "x", mount_point=tmp_path).mount()
    assert commands.lines == [f"mount -t binfmt_misc binfmt_misc {tmp_path}"]
    assert commands.calls[0].mutates


def test_mount_if_mounted(kernel: Kernel, table: HandlerTable) -> None:
    table.mount()
    assert kernel.calls == []


def test_mount_refused(tmp_path: Path) -> None:
    commands = Scripted().expect(
        "mount *", returncode=32, stderr="mount: unknown filesystem type 'binfmt_misc'.\n"
    )
    with pytest.raises(EmulatorError) as excinfo:
        HandlerTable(commands=commands, state_path=tmp_path / "x", mount_point=tmp_path).mount()
    assert "unknown filesystem type" in excinfo.value.message
    assert (excinfo.value.hint, excinfo.value.exit_code) == ("modprobe binfmt_misc", 3)
    commands.expect("mount *", returncode=errno.EPERM, stderr="denied\n")
    with pytest.raises(EmulatorError, match="cannot be mounted: denied") as excinfo:
        HandlerTable(commands=commands, state_path=tmp_path / "x", mount_point=tmp_path).mount()
    assert excinfo.value.hint == "run on a host or in a privileged container"


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.architecture)
def test_register(machine: Machine, kernel: Kernel, table: HandlerTable) -> None:
    table.register(machine, QEMU)
    ((path, line),) = kernel.written
    assert path == kernel.folder / "register"
    _, name, kind, offset, magic, mask, interpreter, flags = line.decode("ascii").split(":")
    assert (name, kind, offset, interpreter) == (f"qemu-{machine.qemu_suffix}", "M", "", str(QEMU))
    assert "F" in flags
    assert "C" not in flags
    assert set(flags) <= set("OPF")
    assert bytes.fromhex(magic.replace("\\x", "")) == machine.magic
    assert bytes.fromhex(mask.replace("\\x", "")) == machine.mask
    assert len(line) < 1920  # binfmt_misc.c, MAX_REGISTER_LENGTH
    effective = table.effective_handler(machine)
    assert effective is not None
    assert effective.interpreter == str(QEMU)


def test_register_with_real_runner(tmp_path: Path) -> None:
    (tmp_path / "register").touch()
    (tmp_path / "qemu-aarch64").write_text("enabled\n", encoding="utf-8")
    table = HandlerTable(commands=SubprocessRunner(), state_path=tmp_path / "state", mount_point=tmp_path)
    table.register(ARM64, QEMU)
    assert (tmp_path / "register").read_bytes().startswith(b":qemu-aarch64:M::\\x7f\\x45\\x4c\\x46\\x02\\x01")


REFUSALS = [
    (errno.EEXIST, "a handler qemu-aarch64 exists already"),
    (errno.EPERM, "registering qemu-aarch64 needs root on the host, or a privileged container"),
    (errno.EACCES, "registering qemu-aarch64 needs root on the host, or a privileged container"),
    (errno.EROFS, "registering qemu-aarch64 needs root on the host, or a privileged container"),
    (errno.EINVAL, f"the kernel refuses handler qemu-aarch64 for {QEMU}: Invalid argument"),
]


@pytest.mark.parametrize(("number", "message"), REFUSALS)
def test_register_refused(kernel: Kernel, table: HandlerTable, number: int, message: str) -> None:
    kernel.write_error = OSError(number, errno.errorcode[number].replace("EINVAL", "Invalid argument"))
    with pytest.raises(EmulatorError) as excinfo:
        table.register(ARM64, QEMU)
    assert excinfo.value.message.startswith(message)
    assert (excinfo.value.platform, excinfo.value.exit_code) == ("linux/arm64", 3)
    assert not table.state_path.exists()


def test_register_after_another_process(kernel: Kernel, table: HandlerTable) -> None:
    kernel.add(entry(ARM64, "qemu-aarch64", "/theirs"))
    table.register(ARM64, QEMU)
    assert [handler.interpreter for handler in table.read_handlers()] == ["/theirs"]
    assert table.remove_registered() == []


def test_name_of_another_architecture(kernel: Kernel, table: HandlerTable) -> None:
    kernel.add(entry(ARM, "qemu-aarch64"))
    with pytest.raises(EmulatorError, match="a handler qemu-aarch64 exists already"):
        table.register(ARM64, QEMU)


def test_remove_registered(kernel: Kernel, table: HandlerTable) -> None:
    kernel.add(entry(ARM, "theirs"))
    table.register(ARM64, QEMU)
    table.register(ARM, Path("/opt/qemu/qemu-arm"))
    assert table.remove_registered() == ["qemu-aarch64", "qemu-arm"]
    assert [handler.name for handler in table.read_handlers()] == ["theirs"]
    assert not table.state_path.exists()
    assert table.remove_registered() == []


@pytest.mark.parametrize("others", [False, True])
def test_table_is_unmounted_unless_others_use_it(tmp_path: Path, *, others: bool) -> None:
    kernel = Kernel(folder=tmp_path / "binfmt_misc")

    def mount(*_: object) -> None:
        kernel.mount_binfmt_misc()

    kernel.expect("mount *", effect=mount).expect("umount *")
    table = HandlerTable(commands=kernel, state_path=tmp_path / "state", mount_point=kernel.folder)
    table.mount()
    table.register(ARM64, QEMU)
    if others:
        kernel.add(entry(ARM, "theirs"))
    assert table.remove_registered() == ["qemu-aarch64"]
    assert len(kernel.matching_calls("umount *")) == (0 if others else 1)


def test_remove_keeps_changed_handler(kernel: Kernel, table: HandlerTable) -> None:
    table.register(ARM64, QEMU)
    table.register(ARM, QEMU)
    changed = kernel.folder / "qemu-aarch64"
    changed.write_text(changed.read_text(encoding="utf-8").replace("OPF", "OPFC"), encoding="utf-8")
    before = len(kernel.written)
    assert table.remove_registered() == ["qemu-arm"]
    assert kernel.written[before:] == [(kernel.folder / "qemu-arm", b"-1")]
    assert changed.exists()


def test_remove_missing_handler(kernel: Kernel, table: HandlerTable) -> None:
    table.register(ARM64, QEMU)
    (kernel.folder / "qemu-aarch64").unlink()
    assert table.remove_registered() == []


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"register": 4}', "\x00"])
def test_damaged_state_removes_nothing(kernel: Kernel, table: HandlerTable, text: str) -> None:
    kernel.add(entry(ARM64, "theirs"))
    table.state_path.parent.mkdir()
    table.state_path.write_text(text, encoding="utf-8")
    assert table.remove_registered() == []
    assert kernel.written == []


@pytest.mark.parametrize("name", ["../outside", "register", "status"])
def test_hostile_state_removes_nothing(kernel: Kernel, table: HandlerTable, name: str) -> None:
    (kernel.folder / name).write_text("text", encoding="utf-8")
    table.state_path.parent.mkdir()
    table.state_path.write_text(json.dumps({name: "text"}), encoding="utf-8")
    assert table.remove_registered() == []
    assert kernel.written == []


def test_dry_run_keeps_state(kernel: Kernel, table: HandlerTable) -> None:
    table.register(ARM64, QEMU)
    state = table.state_path.read_bytes()
    kernel.dry_run = True
    table.register(ARM, QEMU)
    assert table.remove_registered() == ["qemu-aarch64"]
    assert table.state_path.read_bytes() == state
    assert [handler.name for handler in table.read_handlers()] == ["qemu-aarch64"]


def test_remove(kernel: Kernel, table: HandlerTable) -> None:
    kernel.add(entry(ARM64, "broken"))
    kernel.add(entry(ARM, "kept"))
    table.remove(next(handler for handler in table.read_handlers() if handler.name == "broken"))
    assert kernel.written == [(kernel.folder / "broken", b"-1")]
    assert [handler.name for handler in table.read_handlers()] == ["kept"]
