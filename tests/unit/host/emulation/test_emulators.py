from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import DeadlineExceeded, EmulatorError
from buildkit_tasks.host.emulation import qemu
from buildkit_tasks.host.emulation.binfmt import HandlerTable
from buildkit_tasks.host.emulation.emulators import (
    EmulatorManager,
    add_versions,
    probe_machines,
    require_emulators,
)
from buildkit_tasks.host.engine.daemon import ClientTools, Engine
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.platforms.elf.probe import PROBE_STATUS, build_probe_program
from buildkit_tasks.report.model import PlatformSetup
from buildkit_tasks.system import debian
from tests.support.scripted import Entry, Kernel, Scripted
from tests.unit.platforms.elf.test_reader import with_interpreter

ARM64, AMD64 = parse_platforms(["linux/arm64", "linux/amd64"])
BOTH = (AMD64, ARM64)
NO_FORMAT = OSError(8, "Exec format error")


class Bench:
    """Emulators of this kernel, whose table is a folder and whose commands are scripted."""

    def __init__(self, folder: Path, *, choice: str = "auto", engine: Engine | None = None) -> None:
        self.run = Kernel(folder=folder / "binfmt_misc").mount_binfmt_misc()
        self.told: list[str] = []
        self.settings = Settings(cache=str(folder / "cache"), emulators=choice)
        self.emulators = EmulatorManager(
            engine=engine, settings=self.settings, commands=self.run, notify=self.told.append
        )
        table = HandlerTable(
            commands=self.run, state_path=folder / "cache" / "binfmt.json", mount_point=self.run.folder
        )
        vars(self.emulators)["handler_table"] = table
        self.runs("amd64")
        self.fails("arm64")

    def runs(self, name: str) -> None:
        self.run.expect(f"*/.probe-*/{name}", returncode=PROBE_STATUS)

    def fails(self, name: str, error: BaseException = NO_FORMAT) -> None:
        self.run.expect(f"*/.probe-*/{name}", error=error)

    def add(self, name: str = "qemu-aarch64", interpreter: str = "/bin/sh", flags: str = "F") -> None:
        machine = ARM64.machine
        self.run.add(Entry(name, interpreter, flags, machine.magic, machine.mask))

    def disable(self, name: str) -> None:
        path = self.run.folder / name
        path.write_text(path.read_text(encoding="utf-8").replace("enabled", "disabled"), encoding="utf-8")

    @property
    def names(self) -> list[str]:
        return [handler.name for handler in self.emulators.handler_table.read_handlers()]

    def row(self) -> PlatformSetup:
        """How arm64 runs."""
        return self.emulators.inspect([ARM64])[0]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Bench(tmp_path)


def static_qemu(folder: Path, name: str) -> Path:
    return executable(folder / "bin" / name, build_probe_program(AMD64.machine))


def executable(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755)
    return path


def remote(run_kind: str = "graph") -> Engine:
    return Engine(
        kind="system",
        endpoint="ssh://elsewhere",
        version="28",
        store=run_kind,
        platform=AMD64,
        is_local=False,
        tools=ClientTools(docker=("docker",), buildx=("docker", "buildx")),
    )


def test_a_platform_that_runs_without_a_handler_is_native(bench: Bench) -> None:
    amd64, arm64 = bench.emulators.inspect(BOTH)
    assert (amd64.native, amd64.runs, amd64.message) == (True, True, "")
    assert (arm64.native, arm64.runs) == (False, False)
    assert arm64.message == "no emulator is registered for it (Exec format error)"


def test_a_platform_that_runs_through_a_handler_names_it(bench: Bench) -> None:
    bench.add(flags="POF")
    bench.runs("arm64")
    row = bench.row()
    assert (row.native, row.runs, row.message) == (False, True, "")
    assert (row.handler, row.interpreter, row.flags) == ("qemu-aarch64", "/bin/sh", "POF")


def test_the_probe_decides_whatever_the_table_says(bench: Bench) -> None:
    bench.add(flags="F")
    bench.run.expect("*/.probe-*/arm64", returncode=0)
    assert not bench.row().runs
    bench.run.expect("*/.probe-*/arm64", returncode=139, stderr="qemu: uncaught target signal 11\n")
    row = bench.row()
    assert (row.runs, row.message) == (
        False,
        "handler qemu-aarch64 with /bin/sh: its probe failed: qemu: uncaught target signal 11",
    )


def test_row_3_a_handler_without_f_serves_no_container(bench: Bench) -> None:
    bench.add(flags="PO")
    bench.runs("arm64")
    row = bench.row()
    assert (row.runs, row.message) == (
        False,
        "handler qemu-aarch64 has flags 'PO' without F: /bin/sh cannot be found inside a container",
    )


def test_row_4_a_missing_interpreter_is_named(bench: Bench) -> None:
    bench.add(interpreter="/gone/qemu", flags="F")
    row = bench.row()
    assert (row.runs, row.message) == (
        False,
        "handler qemu-aarch64 names the interpreter /gone/qemu, which does not exist",
    )


def test_row_5_a_deleted_interpreter_with_f_is_no_fault_while_it_works(bench: Bench) -> None:
    bench.add(interpreter="/gone/qemu", flags="F")
    bench.runs("arm64")
    assert bench.row().runs


def test_row_6_a_disabled_handler_says_disabled(bench: Bench) -> None:
    bench.add()
    bench.disable("qemu-aarch64")
    row = bench.row()
    assert (row.runs, row.message) == (False, "handler qemu-aarch64 is disabled")


def test_a_disabled_handler_does_no_harm_to_what_runs_natively(bench: Bench) -> None:
    bench.add()
    bench.disable("qemu-aarch64")
    bench.runs("arm64")
    row = bench.row()
    assert (row.native, row.runs, row.message) == (True, True, "")


def test_row_7_of_two_handlers_the_winner_is_named(bench: Bench) -> None:
    bench.add("old")
    bench.add("new", "/gone/qemu")
    assert bench.row().message.startswith("handler new names the interpreter /gone/qemu")


def test_row_11_a_hanging_probe_is_told_with_its_deadline(bench: Bench) -> None:
    bench.add()
    bench.fails("arm64", DeadlineExceeded("it took too long"))
    assert bench.row().message == "handler qemu-aarch64 with /bin/sh: its probe did not end within 10 s"
    assert {each.call.timeout for each in bench.run.asked("*/.probe-*")} == {10.0}


def test_inspecting_changes_nothing_and_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    bench.add()
    bench.emulators.inspect(BOTH)
    assert bench.run.written == []
    assert not any(each.mutates for each in bench.run.calls)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_programs_that_are_probed_are_the_architectures_own(tmp_path: Path) -> None:
    seen: dict[str, bytes] = {}

    def look(argv: list[str], _: object) -> None:
        path = Path(argv[0])
        assert path.stat().st_mode & 0o777 == 0o700
        seen[path.name] = path.read_bytes()

    run = Scripted().expect("*", returncode=PROBE_STATUS, effect=look)
    platforms = parse_platforms(["arm/v7", "arm/v6", "s390x"])
    found = probe_machines((each.machine for each in platforms), Settings(cache=str(tmp_path)), run)
    assert found == {"arm": "", "s390x": ""}
    assert seen == {each.architecture: build_probe_program(each.machine) for each in platforms}


def test_what_is_missing_is_registered_with_the_hosts_static_qemu(bench: Bench, tmp_path: Path) -> None:
    qemu = static_qemu(tmp_path, "qemu-aarch64-static")
    bench.run.expect("*/.probe-*/arm64", returncode=PROBE_STATUS)
    bench.run.expect("*/.probe-*/arm64", error=NO_FORMAT, times=1)
    rows = bench.emulators.ensure(BOTH)
    assert [row.runs for row in rows] == [True, True]
    assert (rows[1].handler, rows[1].interpreter) == ("qemu-aarch64", str(qemu))
    assert f"registering {qemu} for linux/arm64" in bench.told


@pytest.mark.parametrize(
    "data",
    [with_interpreter(AMD64.machine, b"/lib/ld.so\0"), b"#!/bin/sh\n", b""],
    ids=["dynamic", "script", "empty"],
)
def test_a_host_qemu_that_would_not_work_in_a_container_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    executable(tmp_path / "bin" / "qemu-aarch64-static", data)
    assert qemu._find_host_qemu(ARM64.machine) is None
    better = static_qemu(tmp_path, "qemu-aarch64")
    assert qemu._find_host_qemu(ARM64.machine) == better


def test_two_variants_of_one_architecture_are_registered_once(bench: Bench, tmp_path: Path) -> None:
    static_qemu(tmp_path, "qemu-arm")
    bench.fails("arm")
    bench.emulators.ensure(parse_platforms(["arm/v7", "arm/v6"]))
    assert bench.names == ["qemu-arm"]
    assert len(bench.run.written) == 1


def test_what_works_is_not_touched(bench: Bench, tmp_path: Path) -> None:
    static_qemu(tmp_path, "qemu-aarch64")
    bench.add("theirs")
    bench.runs("arm64")
    bench.emulators.ensure(BOTH, recreate=True)
    assert (bench.names, bench.run.written) == (["theirs"], [])


def test_a_foreign_handler_that_fails_is_kept_unless_recreate_is_asked_for(
    bench: Bench, tmp_path: Path
) -> None:
    qemu = static_qemu(tmp_path, "qemu-aarch64")
    bench.add("theirs")
    bench.add("theirs-too")
    assert not bench.emulators.ensure([ARM64])[0].runs
    assert (bench.names, bench.run.written) == (["theirs-too", "theirs"], [])
    bench.emulators.ensure([ARM64], recreate=True)
    assert bench.names == ["qemu-aarch64"]
    assert bench.emulators.handler_table.read_handlers()[0].interpreter == str(qemu)
    assert "removing handler theirs, which does not work" in bench.told


def test_nothing_is_removed_before_its_replacement_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(debian, "_read_os_release", lambda: {"ID": "arch"})
    bench = Bench(tmp_path, choice="host")
    bench.add("theirs", flags="P")
    with pytest.raises(EmulatorError, match="and this is arch") as caught:
        bench.emulators.ensure([ARM64], recreate=True)
    assert caught.value.exit_code == 3
    assert bench.names == ["theirs"]


def test_with_emulators_none_nothing_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    static_qemu(tmp_path, "qemu-aarch64")
    bench = Bench(tmp_path, choice="none")
    rows = bench.emulators.ensure(BOTH, recreate=True)
    assert [row.runs for row in rows] == [True, False]
    assert bench.run.written == []
    assert len(bench.run.asked("*/.probe-*")) == 2


def test_without_apt_the_binfmt_image_is_tried_and_its_words_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(debian, "_read_os_release", lambda: {"ID": "arch"})
    local = Engine(
        kind="system", endpoint="unix:///x", version="28", store="graph", platform=AMD64, is_local=True,
        tools=ClientTools(docker=("docker",), buildx=("docker", "buildx")),
    )  # fmt: skip
    bench = Bench(tmp_path, engine=local)
    bench.run.expect(
        "docker run --rm --privileged tonistiigi/binfmt --install arm64", returncode=1, stderr="no network"
    )
    assert not bench.emulators.ensure([ARM64])[0].runs
    assert "tonistiigi/binfmt: no network" in bench.told


def test_row_9_an_installer_that_says_it_succeeded_is_not_believed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, choice="image", engine=remote())
    bench.run.expect("docker import *").expect("docker rmi *")
    bench.run.expect(
        "docker run --rm --network=none *", returncode=1, stderr="exec /probe: exec format error"
    )
    bench.run.expect("docker run --rm --privileged tonistiigi/binfmt --install arm64")
    row = bench.emulators.ensure([ARM64])[0]
    assert (row.runs, row.message) == (False, "exec /probe: exec format error")


def test_an_engine_on_another_kernel_is_probed_in_its_containers_and_tidied(tmp_path: Path) -> None:
    bench = Bench(tmp_path, engine=remote())
    bench.run.expect("docker import *").expect("docker rmi *")
    bench.run.expect("docker run *", returncode=PROBE_STATUS)
    rows = bench.emulators.inspect(BOTH)
    assert [(row.native, row.runs) for row in rows] == [(True, True), (False, True)]
    made = {each.argv[-1] for each in bench.run.asked("docker import *")}
    removed = {each.argv[-1] for each in bench.run.asked("docker rmi *")}
    assert made == removed
    assert len(made) == 2
    assert bench.run.asked("*/.probe-*") == []


def test_a_probe_that_hangs_in_a_container_is_removed_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, engine=remote())
    bench.run.expect("docker import *").expect("docker rmi *")
    bench.run.expect("docker run *", error=DeadlineExceeded("docker run took longer than 30 s"))
    row = bench.emulators.inspect([ARM64])[0]
    assert (row.runs, row.message) == (False, "docker run took longer than 30 s")
    assert len(bench.run.asked("docker rmi *")) == 1


def test_an_error_names_every_platform_that_fails_and_what_to_do() -> None:
    good = PlatformSetup(platform="linux/amd64", native=True, runs=True)
    bad = PlatformSetup(platform="linux/arm64", native=False, message="no emulator")
    other = PlatformSetup(platform="linux/386", native=False, handler="x", message="is disabled")
    require_emulators([good])
    with pytest.raises(EmulatorError) as caught:
        require_emulators([good, bad])
    assert (caught.value.platform, caught.value.hint) == ("linux/arm64", "sudo inv setup-builder")
    with pytest.raises(EmulatorError) as caught:
        require_emulators([bad, good, other])
    assert str(caught.value).startswith("linux/arm64: no emulator\nlinux/386: is disabled\n  try: ")
    assert "--recreate" in (caught.value.hint or "")


def test_a_version_is_what_the_interpreter_says_of_itself(tmp_path: Path) -> None:
    here = executable(tmp_path / "qemu", b"")
    said = "qemu-aarch64 version 10.0.2 (Debian 1:10.0.2+ds-1)\nCopyright (c) 2003-2025\n"
    run = Scripted().expect(f"{here} --version", stdout=said)
    rows = [
        PlatformSetup(platform="linux/arm64", native=False, interpreter=str(here)),
        PlatformSetup(platform="linux/arm", native=False, interpreter=str(here)),
        PlatformSetup(platform="linux/386", native=False, interpreter="/gone"),
        PlatformSetup(platform="linux/amd64", native=True),
    ]
    assert [row.version for row in add_versions(rows, run)] == ["10.0.2", "10.0.2", "", ""]
    assert len(run.calls) == 1


def test_an_interpreter_that_does_not_say_its_version_is_no_fault() -> None:
    run = Scripted().expect("/q --version", error=DeadlineExceeded("slow"))
    assert qemu.read_qemu_version("/q", run) == ""
    assert qemu.read_qemu_version("/r", run.expect("/r --version", stdout="hello")) == ""
