from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import DeadlineExceeded, EmulatorError
from buildkit_tasks.host.emulation import emulators, qemu
from buildkit_tasks.host.emulation.binfmt import HandlerTable
from buildkit_tasks.host.emulation.emulators import (
    EmulatorManager,
    add_versions,
    probe_machines,
    repair_command,
    require_emulators,
)
from buildkit_tasks.host.emulation.qemu import QemuFinder
from buildkit_tasks.host.engine.daemon import Engine
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.platforms.elf.probe import PROBE_STATUS, build_probe_program
from buildkit_tasks.report.model import PlatformSetup
from buildkit_tasks.system import debian
from tests.support.elf import elf
from tests.support.fake_engine import make_engine
from tests.support.scripted import Entry, Kernel, Scripted
from tests.support.users import call_as_nobody, needs_root

ARM64, AMD64 = parse_platforms(["linux/arm64", "linux/amd64"])
BOTH_PLATFORMS = (AMD64, ARM64)
REMOTE_ENGINE = make_engine(endpoint="ssh://builder", is_local=False)
EXEC_FORMAT_ERROR = OSError(8, "Exec format error")


class Harness:
    """The emulators of this kernel, with a directory as its table and scripted commands."""

    def __init__(self, folder: Path, *, choice: str = "auto", engine: Engine | None = None) -> None:
        self.commands = Kernel(folder=folder / "binfmt_misc").mount_binfmt_misc()
        self.messages: list[str] = []
        self.settings = Settings(cache=str(folder / "cache"), emulators=choice)
        self.emulators = EmulatorManager(
            engine=engine, settings=self.settings, commands=self.commands, notify=self.messages.append
        )
        table = HandlerTable(
            commands=self.commands,
            state_path=folder / "cache" / "binfmt.json",
            mount_point=self.commands.folder,
        )
        vars(self.emulators)["handler_table"] = table
        self.expect_working_probe("amd64")
        self.expect_failing_probe("arm64")

    def expect_working_probe(self, name: str) -> None:
        self.commands.expect(f"*/.probe-*/{name}", returncode=PROBE_STATUS)

    def expect_failing_probe(self, name: str, error: BaseException = EXEC_FORMAT_ERROR) -> None:
        self.commands.expect(f"*/.probe-*/{name}", error=error)

    def add_handler(self, name: str = "qemu-aarch64", interpreter: str = "/bin/sh", flags: str = "F") -> None:
        machine = ARM64.machine
        self.commands.add(Entry(name, interpreter, flags, machine.magic, machine.mask))

    def disable_handler(self, name: str) -> None:
        path = self.commands.folder / name
        path.write_text(path.read_text(encoding="utf-8").replace("enabled", "disabled"), encoding="utf-8")

    @property
    def handler_names(self) -> list[str]:
        return [handler.name for handler in self.emulators.handler_table.read_handlers()]

    def inspect_arm64(self) -> PlatformSetup:
        return self.emulators.inspect([ARM64])[0]


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Harness(tmp_path)


def write_static_qemu(folder: Path, name: str) -> Path:
    return write_executable(folder / "bin" / name, build_probe_program(AMD64.machine))


def write_executable(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755)
    return path


def test_native_without_handler(harness: Harness) -> None:
    amd64, arm64 = harness.emulators.inspect(BOTH_PLATFORMS)
    assert (amd64.native, amd64.runs, amd64.message) == (True, True, "")
    assert (arm64.native, arm64.runs) == (False, False)
    assert arm64.message == "no emulator is registered for it (Exec format error)"


def test_emulated_by_handler(harness: Harness) -> None:
    harness.add_handler(flags="POF")
    harness.expect_working_probe("arm64")
    row = harness.inspect_arm64()
    assert (row.native, row.runs, row.message) == (False, True, "")
    assert (row.handler, row.interpreter, row.flags) == ("qemu-aarch64", "/bin/sh", "POF")


def test_failed_probe_with_handler(harness: Harness) -> None:
    harness.add_handler(flags="F")
    harness.commands.expect("*/.probe-*/arm64", returncode=0)
    assert not harness.inspect_arm64().runs
    harness.commands.expect("*/.probe-*/arm64", returncode=139, stderr="qemu: uncaught target signal 11\n")
    row = harness.inspect_arm64()
    assert (row.runs, row.message) == (
        False,
        "handler qemu-aarch64 with /bin/sh: its probe failed: qemu: uncaught target signal 11",
    )


def test_handler_without_f(harness: Harness) -> None:
    harness.add_handler(flags="PO")
    harness.expect_working_probe("arm64")
    row = harness.inspect_arm64()
    assert (row.runs, row.message) == (
        False,
        "handler qemu-aarch64 has flags 'PO' without F: /bin/sh cannot be found inside a container",
    )


def test_missing_interpreter(harness: Harness) -> None:
    harness.add_handler(interpreter="/gone/qemu", flags="F")
    row = harness.inspect_arm64()
    assert (row.runs, row.message) == (
        False,
        "handler qemu-aarch64 names the interpreter /gone/qemu, which does not exist",
    )


def test_deleted_interpreter_that_runs(harness: Harness) -> None:
    harness.add_handler(interpreter="/gone/qemu", flags="F")
    harness.expect_working_probe("arm64")
    assert harness.inspect_arm64().runs


@needs_root
def test_hidden_interpreter(harness: Harness, tmp_path: Path) -> None:
    """After root has registered handlers, their interpreters may be where other users cannot look."""
    interpreter = write_executable(tmp_path / "bin" / "qemu", b"")  # pytest's directory is closed to others
    harness.add_handler(interpreter=str(interpreter), flags="F")
    (handler,) = harness.emulators.handler_table.read_handlers()
    row = PlatformSetup(platform="linux/arm64", native=False, interpreter=str(interpreter))
    assert call_as_nobody(lambda: emulators._explain_handler_failure(handler, "")) == ""
    message = call_as_nobody(lambda: emulators._explain_handler_failure(handler, "Exec format error"))
    assert message == f"handler qemu-aarch64 with {interpreter}: Exec format error"
    assert call_as_nobody(lambda: add_versions([row], Scripted())[0].version) == ""


def test_probe_outside_unwritable_cache(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    harness.settings = Settings(cache=str(tmp_path / "file/cache"))
    machine = AMD64.machine
    assert probe_machines([machine], harness.settings, harness.commands) == {"amd64": ""}


def test_disabled_handler(harness: Harness) -> None:
    harness.add_handler()
    harness.disable_handler("qemu-aarch64")
    row = harness.inspect_arm64()
    assert (row.runs, row.message) == (False, "handler qemu-aarch64 is disabled")


def test_disabled_handler_of_native_platform(harness: Harness) -> None:
    harness.add_handler()
    harness.disable_handler("qemu-aarch64")
    harness.expect_working_probe("arm64")
    row = harness.inspect_arm64()
    assert (row.native, row.runs, row.message) == (True, True, "")


def test_effective_handler_is_reported(harness: Harness) -> None:
    harness.add_handler("old")
    harness.add_handler("new", "/gone/qemu")
    assert harness.inspect_arm64().message.startswith("handler new names the interpreter /gone/qemu")


def test_probe_timeout(harness: Harness) -> None:
    harness.add_handler()
    harness.expect_failing_probe("arm64", DeadlineExceeded("it took too long"))
    assert (
        harness.inspect_arm64().message
        == "handler qemu-aarch64 with /bin/sh: its probe did not end within 10 s"
    )
    assert {call.options.timeout for call in harness.commands.matching_calls("*/.probe-*")} == {10.0}


def test_inspect_changes_nothing(harness: Harness, tmp_path: Path) -> None:
    harness.add_handler()
    harness.emulators.inspect(BOTH_PLATFORMS)
    assert harness.commands.written == []
    assert not any(call.mutates for call in harness.commands.calls)
    assert list((tmp_path / "cache").iterdir()) == []


def test_probe_programs(tmp_path: Path) -> None:
    programs: dict[str, bytes] = {}

    def record(argv: list[str], _: object) -> None:
        path = Path(argv[0])
        assert path.stat().st_mode & 0o777 == 0o700
        programs[path.name] = path.read_bytes()

    commands = Scripted().expect("*", returncode=PROBE_STATUS, effect=record)
    platforms = parse_platforms(["arm/v7", "arm/v6", "s390x"])
    failures = probe_machines(
        (platform.machine for platform in platforms), Settings(cache=str(tmp_path)), commands
    )
    assert failures == {"arm": "", "s390x": ""}
    assert programs == {
        platform.architecture: build_probe_program(platform.machine) for platform in platforms
    }


def test_register_host_qemu(harness: Harness, tmp_path: Path) -> None:
    qemu = write_static_qemu(tmp_path, "qemu-aarch64-static")
    harness.commands.expect("*/.probe-*/arm64", returncode=PROBE_STATUS)
    harness.commands.expect("*/.probe-*/arm64", error=EXEC_FORMAT_ERROR, times=1)
    rows = harness.emulators.ensure(BOTH_PLATFORMS)
    assert [row.runs for row in rows] == [True, True]
    assert (rows[1].handler, rows[1].interpreter) == ("qemu-aarch64", str(qemu))
    assert f"registering {qemu} for linux/arm64" in harness.messages


@pytest.mark.parametrize(
    "data",
    [elf("linux/amd64", interpreter="/lib/ld.so"), elf("linux/amd64")[:100], b"#!/bin/sh\n", b""],
    ids=["dynamic", "truncated", "script", "empty"],
)
def test_host_qemu_must_be_static(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    write_executable(tmp_path / "bin" / "qemu-aarch64-static", data)
    assert qemu._find_host_qemu(ARM64.machine) is None
    static = write_static_qemu(tmp_path, "qemu-aarch64")
    assert qemu._find_host_qemu(ARM64.machine) == static


def test_variants_are_registered_once(harness: Harness, tmp_path: Path) -> None:
    write_static_qemu(tmp_path, "qemu-arm")
    harness.expect_failing_probe("arm")
    harness.emulators.ensure(parse_platforms(["arm/v7", "arm/v6"]))
    assert harness.handler_names == ["qemu-arm"]
    assert len(harness.commands.written) == 1


def test_ensure_keeps_working_handlers(harness: Harness, tmp_path: Path) -> None:
    write_static_qemu(tmp_path, "qemu-aarch64")
    harness.add_handler("theirs")
    harness.expect_working_probe("arm64")
    harness.emulators.ensure(BOTH_PLATFORMS, recreate=True)
    assert (harness.handler_names, harness.commands.written) == (["theirs"], [])


def test_recreate_replaces_failing_handlers(harness: Harness, tmp_path: Path) -> None:
    qemu = write_static_qemu(tmp_path, "qemu-aarch64")
    harness.add_handler("theirs")
    harness.add_handler("theirs-too")
    assert not harness.emulators.ensure([ARM64])[0].runs
    assert (harness.handler_names, harness.commands.written) == (["theirs-too", "theirs"], [])
    harness.emulators.ensure([ARM64], recreate=True)
    assert harness.handler_names == ["qemu-aarch64"]
    assert harness.emulators.handler_table.read_handlers()[0].interpreter == str(qemu)
    assert "removing handler theirs, which does not work" in harness.messages


def test_failing_handler_is_kept_beside_a_missing_one(harness: Harness, tmp_path: Path) -> None:
    for name in ("qemu-aarch64", "qemu-s390x"):
        write_static_qemu(tmp_path, name)
    harness.add_handler("theirs")
    harness.expect_failing_probe("s390x")
    harness.emulators.ensure([ARM64, Platform.parse("linux/s390x")])
    assert harness.handler_names == ["qemu-s390x", "theirs"]


def test_handler_that_another_process_registers_meanwhile(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def wait_for_lock(*_: object, **__: object) -> Iterator[None]:
        harness.add_handler("theirs")
        harness.expect_working_probe("arm64")
        yield

    monkeypatch.setattr(emulators, "file_lock", wait_for_lock)
    write_static_qemu(tmp_path, "qemu-aarch64")
    assert harness.emulators.ensure([ARM64])[0].runs
    assert (harness.handler_names, harness.commands.written) == (["theirs"], [])


def test_qemu_is_not_downloaded_against_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: list[object] = []
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(debian, "install_packages", lambda *args: downloads.append(args))
    for emulators_setting in ("none", "auto"):
        settings = Settings(cache=str(tmp_path), emulators=emulators_setting)
        finder = QemuFinder(settings=settings, commands=Scripted(), notify=print)
        assert finder.find(ARM64.machine) is None
        assert len(downloads) == (emulators_setting == "auto")


def test_handler_kept_without_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(debian, "_read_os_release", lambda: {"ID": "arch"})
    harness = Harness(tmp_path, choice="host")
    harness.add_handler("theirs", flags="P")
    with pytest.raises(EmulatorError, match="this machine runs arch") as excinfo:
        harness.emulators.ensure([ARM64], recreate=True)
    assert excinfo.value.exit_code == 3
    assert harness.handler_names == ["theirs"]


@pytest.mark.parametrize("choice", ["auto", "image", "host"])
def test_ordinary_user_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    """A user who may not register handlers lets the engine do it, and fetches no QEMU."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(HandlerTable, "is_writable", False)
    monkeypatch.setattr(debian, "install_packages", lambda *_: pytest.fail("nothing may be fetched"))
    harness = Harness(tmp_path, choice=choice, engine=make_engine())
    harness.commands.expect("docker run --rm --privileged tonistiigi/binfmt --install arm64")
    harness.expect_failing_probe("s390x")
    s390x = Platform.parse("linux/s390x")
    machine = s390x.machine
    harness.commands.add(Entry("theirs", "/q", "F", machine.magic, machine.mask))
    rows = harness.emulators.ensure([AMD64, ARM64, s390x], recreate=True)
    assert [row.runs for row in rows] == [True, False, False]
    installers = harness.commands.matching_calls("docker run *")
    assert len(installers) == (0 if choice == "host" else 1)
    assert harness.commands.written == []


def test_emulators_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    write_static_qemu(tmp_path, "qemu-aarch64")
    harness = Harness(tmp_path, choice="none")
    rows = harness.emulators.ensure(BOTH_PLATFORMS, recreate=True)
    assert [row.runs for row in rows] == [True, False]
    assert harness.commands.written == []
    assert len(harness.commands.matching_calls("*/.probe-*")) == 2


def test_binfmt_image_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(debian, "_read_os_release", lambda: {"ID": "arch"})
    harness = Harness(tmp_path, engine=make_engine())
    harness.commands.expect(
        "docker run --rm --privileged tonistiigi/binfmt --install arm64", returncode=1, stderr="no network"
    )
    assert not harness.emulators.ensure([ARM64])[0].runs
    assert "tonistiigi/binfmt: no network" in harness.messages


def test_installer_status_is_not_trusted(tmp_path: Path) -> None:
    harness = Harness(tmp_path, choice="image", engine=REMOTE_ENGINE)
    harness.commands.expect("docker import *").expect("docker rmi *")
    harness.commands.expect(
        "docker run --rm --network=none *", returncode=1, stderr="exec /probe: exec format error"
    )
    harness.commands.expect("docker run --rm --privileged tonistiigi/binfmt --install arm64")
    row = harness.emulators.ensure([ARM64])[0]
    assert (row.runs, row.message) == (False, "exec /probe: exec format error")


def test_remote_engine_is_probed_in_containers(tmp_path: Path) -> None:
    harness = Harness(tmp_path, engine=REMOTE_ENGINE)
    harness.commands.expect("docker import *").expect("docker rmi *")
    harness.commands.expect("docker run *", returncode=PROBE_STATUS)
    rows = harness.emulators.inspect(BOTH_PLATFORMS)
    assert [(row.native, row.runs) for row in rows] == [(True, True), (False, True)]
    imported = {call.argv[-1] for call in harness.commands.matching_calls("docker import *")}
    removed = {call.argv[-1] for call in harness.commands.matching_calls("docker rmi *")}
    assert imported == removed
    assert len(imported) == 2
    assert harness.commands.matching_calls("*/.probe-*") == []


def test_container_probe_timeout(tmp_path: Path) -> None:
    harness = Harness(tmp_path, engine=REMOTE_ENGINE)
    harness.commands.expect("docker import *").expect("docker rmi *")
    harness.commands.expect("docker run *", error=DeadlineExceeded("docker run took longer than 30 s"))
    row = harness.emulators.inspect([ARM64])[0]
    assert (row.runs, row.message) == (False, "docker run took longer than 30 s")
    assert len(harness.commands.matching_calls("docker rmi *")) == 1


def test_require_emulators() -> None:
    good = PlatformSetup(platform="linux/amd64", native=True, runs=True)
    bad = PlatformSetup(platform="linux/arm64", native=False, message="no emulator")
    other = PlatformSetup(platform="linux/386", native=False, handler="x", message="is disabled")
    require_emulators([good])
    with pytest.raises(EmulatorError) as excinfo:
        require_emulators([good, bad])
    assert excinfo.value.platform == "linux/arm64"
    with pytest.raises(EmulatorError) as excinfo:
        require_emulators([bad, good, other])
    assert str(excinfo.value).startswith("linux/arm64: no emulator\nlinux/386: is disabled\n  try: ")
    assert excinfo.value.hint == repair_command([other])


def test_repair_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = PlatformSetup(platform="linux/arm64", native=False)
    failing = PlatformSetup(platform="linux/386", native=False, handler="x")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert repair_command([missing]) == "inv setup-builder"
    assert repair_command([missing, failing]) == "inv setup-builder --recreate"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert repair_command([failing]) == "su -c 'inv setup-builder --recreate'"
    write_executable(tmp_path / "sudo", b"")
    assert repair_command([failing]) == "sudo inv setup-builder --recreate"


def test_add_versions(tmp_path: Path) -> None:
    program = write_executable(tmp_path / "qemu", b"")
    output = "qemu-aarch64 version 10.0.2 (Debian 1:10.0.2+ds-1)\nCopyright (c) 2003-2025\n"
    commands = Scripted().expect(f"{program} --version", stdout=output)
    rows = [
        PlatformSetup(platform="linux/arm64", native=False, interpreter=str(program)),
        PlatformSetup(platform="linux/arm", native=False, interpreter=str(program)),
        PlatformSetup(platform="linux/386", native=False, interpreter="/gone"),
        PlatformSetup(platform="linux/amd64", native=True),
    ]
    assert [row.version for row in add_versions(rows, commands)] == ["10.0.2", "10.0.2", "", ""]
    assert len(commands.calls) == 1


def test_unknown_qemu_version() -> None:
    commands = Scripted().expect("/q --version", error=DeadlineExceeded("slow"))
    assert qemu.read_qemu_version("/q", commands) == ""
    assert qemu.read_qemu_version("/r", commands.expect("/r --version", stdout="hello")) == ""


def test_handlers_of_replaced_emulators(harness: Harness, tmp_path: Path) -> None:
    """The kernel keeps the files of renewed packages open; other handlers are not touched."""
    harness.add_handler(interpreter=f"{tmp_path}/qemu/usr/bin/qemu-aarch64", flags="F")
    harness.emulators.remove_handlers(tmp_path / "other")
    assert harness.emulators.handler_table.read_handlers()
    harness.emulators.remove_handlers(tmp_path / "qemu")
    assert not harness.emulators.handler_table.read_handlers()
