from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from buildkit_tasks.errors import EngineError, LimitExceeded
from buildkit_tasks.system import debian
from buildkit_tasks.system.debian import (
    DebianMirror,
    PackageSet,
    fetch_newest_package,
    find_mirror,
    install_packages,
    package_age,
    renew_packages,
)
from tests.support.scripted import Scripted

if TYPE_CHECKING:
    from buildkit_tasks.system.command import CommandOptions

MIRROR = "http://deb.example.org/debian"
# As printed by apt on a machine with several sources.
TARGETS = f"""Packages bookworm-updates {MIRROR}/updates
Translation-en bookworm {MIRROR}
Packages bookworm {MIRROR}
Packages bookworm http://second.example.org/debian
"""


@pytest.fixture(autouse=True)
def _debian_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a Debian machine."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "apt-get").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(debian, "_read_os_release", lambda: {"ID": "debian", "VERSION_CODENAME": "bookworm"})


def debian_commands() -> Scripted:
    """Answer as apt and dpkg of a Debian machine."""
    commands = Scripted().expect("apt-get indextargets *", stdout=TARGETS)
    return commands.expect("dpkg --print-architecture", stdout="amd64\n")


def download_commands(*names: str) -> Scripted:
    """Answer as apt that downloads the packages and dpkg that unpacks one file of each."""

    def download(_: list[str], options: CommandOptions) -> None:
        assert options.cwd is not None
        for name in names:
            (options.cwd / f"{name}_1.0_amd64.deb").touch()

    def unpack(argv: list[str], _: CommandOptions) -> None:
        name = Path(argv[2]).name.partition("_")[0]
        path = Path(argv[3]) / "usr/bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    commands = (
        debian_commands()
        .expect("apt-get -q -c * update")
        .expect("apt-get -q -c * download *", effect=download)
    )
    return commands.expect("dpkg -x *", effect=unpack)


def ignore_message(_: str) -> None:
    """Ignore progress messages."""


def install(prefix: Path, commands: Scripted, *names: str) -> Path:
    """Install packages, or the package ``a``."""
    return install_packages(prefix, [PackageSet(names=names or ("a",))], commands, ignore_message)


def test_find_mirror() -> None:
    assert find_mirror(debian_commands()) == DebianMirror(
        uri=MIRROR, release="bookworm", architecture="amd64"
    )


@pytest.mark.parametrize(("release", "system"), [({"ID": "ubuntu"}, "ubuntu"), ({}, "an unknown system")])
def test_other_distribution(monkeypatch: pytest.MonkeyPatch, release: dict[str, str], system: str) -> None:
    monkeypatch.setattr(debian, "_read_os_release", lambda: release)
    with pytest.raises(EngineError, match=f"but this machine runs {system}\\n") as excinfo:
        find_mirror(Scripted())
    assert (excinfo.value.exit_code, bool(excinfo.value.hint)) == (3, True)


def test_debian_without_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EngineError):
        find_mirror(Scripted())


def test_sources_without_mirror() -> None:
    commands = debian_commands().expect("apt-get indextargets *", stdout="Packages trixie http://x\n")
    with pytest.raises(EngineError, match="have no mirror for Debian bookworm") as excinfo:
        find_mirror(commands)
    assert excinfo.value.hint == "look into /etc/apt/sources.list"


def test_install_packages(tmp_path: Path) -> None:
    prefix = tmp_path / "cache" / "qemu"
    files: list[tuple[str, str]] = []

    def read_files(argv: list[str], _: CommandOptions) -> None:
        folder = Path(argv[3]).parent
        files.append(
            (
                (folder / "sources.list").read_text(encoding="utf-8"),
                (folder / "apt.conf").read_text(encoding="utf-8"),
            )
        )

    commands = download_commands("qemu-user").expect("apt-get -q -c * update", effect=read_files)
    messages: list[str] = []
    assert install_packages(prefix, [PackageSet(names=("qemu-user",))], commands, messages.append) == prefix
    assert (prefix / "usr/bin/qemu-user").exists()
    assert {path.name for path in prefix.iterdir()} == {"usr", ".complete"}
    assert messages == ["fetching qemu-user from Debian testing"]
    ((sources, configuration),) = files
    assert sources.split()[-3:] == [MIRROR, "testing", "main"]
    lines = configuration.splitlines()
    folder = re.escape(f"{tmp_path}/cache/.qemu.") + r"\w+\.staging/\.apt0"
    for name in ("Dir::State::Lists", "Dir::State::status", "Dir::Cache", "Dir::Log", "Dir::Etc::SourceList"):
        (value,) = [line for line in lines if line.startswith(f"{name} ")]
        assert re.search(folder, value)
    assert 'Dir::Etc::SourceParts "/dev/null";' in lines
    assert 'APT::Update::Error-Mode "any";' in lines
    assert "trusted" not in f"{sources}{configuration}".lower()
    assert "unauthenticated" not in configuration.lower()
    arguments = [call.argv[4:] for call in commands.matching_calls("apt-get -q *")]
    assert arguments == [("update",), ("download", "qemu-user:amd64")]


def test_complete_prefix_is_reused(tmp_path: Path) -> None:
    prefix = tmp_path / "qemu"
    prefix.mkdir()
    (prefix / ".complete").touch()
    assert install(prefix, Scripted(), "x") == prefix


def test_incomplete_prefix_is_replaced(tmp_path: Path) -> None:
    prefix = tmp_path / "qemu"
    prefix.mkdir()
    (prefix / "half").touch()
    install(prefix, download_commands("a"))
    assert {path.name for path in prefix.iterdir()} == {"usr", ".complete"}


def test_host_suite(tmp_path: Path) -> None:
    commands = download_commands("runc")
    messages: list[str] = []
    install_packages(tmp_path / "x", [PackageSet(names=("runc",), suite="host")], commands, messages.append)
    assert messages == ["fetching runc from Debian bookworm"]


def test_install_dry_run(tmp_path: Path) -> None:
    commands = debian_commands()
    commands.dry_run = True
    package_sets = [PackageSet(names=("runc", "tini"), suite="host", with_dependencies=True)]
    install_packages(tmp_path / "cache" / "engine", package_sets, commands, ignore_message)
    assert [line.split()[4] for line in commands.dry_run_lines if line.startswith("apt-get")] == [
        "update",
        "install",
    ]
    assert any(line.startswith("dpkg -x ") for line in commands.dry_run_lines)
    assert not (tmp_path / "cache").exists()


APT_OUTPUT = """W: something small
E: Failed to fetch http://x/InRelease  403 Forbidden
Reading lists...
E: The repository is not signed.
"""


def test_apt_errors(tmp_path: Path) -> None:
    commands = debian_commands().expect("apt-get -q -c * update", returncode=100, stderr=APT_OUTPUT)
    with pytest.raises(EngineError) as excinfo:
        install(tmp_path / "x", commands, "a", "b")
    assert excinfo.value.message == (
        "could not fetch a, b: E: Failed to fetch http://x/InRelease  403 Forbidden; "
        "E: The repository is not signed."
    )
    assert (excinfo.value.hint, excinfo.value.exit_code) == ("sudo apt-get update", 3)


@pytest.mark.parametrize(
    "cause",
    [
        "Temporary failure resolving 'deb.debian.org'",
        "Could not resolve 'proxy.example.org'",
        "Could not connect to deb.debian.org:80 (192.0.2.1), connection timed out",
        "Cannot initiate the connection to deb.debian.org:80. - connect (101: Network is unreachable)",
        "Unable to connect to proxy.example.org:3128:",
        "407  Proxy Authentication Required",
    ],
)
def test_unreachable_mirror(tmp_path: Path, cause: str) -> None:
    stderr = f"Err:1 http://x testing InRelease\n  {cause}\nE: Failed to fetch http://x/InRelease  {cause}\n"
    commands = debian_commands().expect("apt-get -q -c * update", returncode=100, stderr=stderr)
    with pytest.raises(EngineError, match="the Debian mirror http") as excinfo:
        install(tmp_path / "x", commands)
    assert cause in excinfo.value.message
    assert "http_proxy" in (excinfo.value.hint or "")


def test_download_error(tmp_path: Path) -> None:
    commands = download_commands().expect(
        "apt-get -q -c * download *", returncode=100, stderr="E: Unable to locate package a\n"
    )
    with pytest.raises(EngineError, match="could not fetch a: E: Unable to locate package a"):
        install(tmp_path / "x", commands)


@pytest.mark.parametrize(
    "stderr",
    [
        "E: Write error - write (28: No space left on device)\n",
        "E: You don't have enough free space in /x/archives/.\n",
    ],
)
def test_full_disk_during_download(tmp_path: Path, stderr: str) -> None:
    commands = download_commands().expect("apt-get -q -c * download *", returncode=100, stderr=stderr)
    with pytest.raises(LimitExceeded) as excinfo:
        install(tmp_path / "x", commands)
    assert excinfo.value.exit_code == 5
    assert stderr.strip() in excinfo.value.message


def test_full_disk_during_unpack(tmp_path: Path) -> None:
    stderr = "tar: ./usr/bin/a: Cannot write: No space left on device\n"
    commands = download_commands("a").expect("dpkg -x *", returncode=2, stderr=stderr)
    with pytest.raises(
        LimitExceeded, match=r"could not unpack a_1\.0_amd64\.deb: .*No space left"
    ) as excinfo:
        install(tmp_path / "x", commands)
    assert excinfo.value.exit_code == 5
    commands.expect("dpkg -x *", returncode=2, stderr="dpkg-deb: error: not a Debian format archive\n")
    with pytest.raises(EngineError, match="not a Debian format archive"):
        install(tmp_path / "x", commands)


def test_download_without_packages(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not fetch a"):
        install(tmp_path / "x", download_commands())
    assert not (tmp_path / "x").exists()


def test_failed_install_is_removed(tmp_path: Path) -> None:
    prefix = tmp_path / "cache" / "x"
    commands = download_commands("a").expect("dpkg -x *", returncode=2, stderr="broken", times=1)
    with pytest.raises(EngineError):
        install(prefix, commands)
    assert [path.name for path in prefix.parent.iterdir()] == [".x.lock"]
    assert install(prefix, commands) == prefix
    assert (prefix / "usr/bin/a").exists()


def fetch_newest(
    tmp_path: Path, suites: dict[str, str], *, status: int = 0
) -> tuple[Scripted, dict[str, Path]]:
    """Fetch a package that is in one suite per architecture."""

    def suite_of(options: CommandOptions) -> str:
        assert options.cwd is not None
        return (options.cwd.parent / "sources.list").read_text(encoding="utf-8").split()[-2]

    def download(argv: list[str], options: CommandOptions) -> None:
        architecture = argv[-1].partition(":")[2]
        if suites.get(architecture) == suite_of(options):
            assert options.cwd is not None
            (options.cwd / "a_1_x.deb").touch()

    commands = download_commands("a").expect(
        "apt-get -q -c * update", returncode=status, stderr="E: no route\n" * status
    )
    commands.expect("apt-get -q -c * download *", effect=download)
    return commands, fetch_newest_package(
        "a", ["amd64", "mips64el"], tmp_path / "cache", commands, ignore_message
    )


def test_newest_suite_per_architecture(tmp_path: Path) -> None:
    commands, prefixes = fetch_newest(tmp_path, {"amd64": "testing", "mips64el": "oldstable"})
    assert prefixes == {each: tmp_path / "cache" / f"a-{each}" for each in ("amd64", "mips64el")}
    assert all((prefix / "usr/bin/a").exists() for prefix in prefixes.values())
    assert len(commands.matching_calls("*download a:amd64")) == 1
    assert len(commands.matching_calls("*download a:mips64el")) == 3
    prefixes = fetch_newest_package("a", ["amd64"], tmp_path / "cache", Scripted(), ignore_message)
    assert list(prefixes) == ["amd64"]


def test_architecture_without_package(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="Debian has no a for mips64el"):
        fetch_newest(tmp_path, {"amd64": "stable"})
    assert (tmp_path / "cache" / "a-amd64").is_dir()
    assert not (tmp_path / "cache" / "a-mips64el").exists()


def test_unreachable_archive(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not fetch a: E: no route"):
        fetch_newest(tmp_path, {}, status=1)


def test_renew_packages(tmp_path: Path) -> None:
    prefix = install(tmp_path / "qemu", download_commands("a"))
    (prefix / "usr/bin/old").touch()
    os.utime(prefix / ".complete", (0, 0))
    assert package_age(prefix) > 20_000
    with (prefix / "usr/bin/old").open() as running:
        renew_packages(prefix, [PackageSet(names=("a",))], download_commands("a"), ignore_message)
        assert running.read() == ""
    assert [path.name for path in (prefix / "usr/bin").iterdir()] == ["a"]
    assert package_age(prefix) < 1
    assert not list(tmp_path.glob(".*.staging"))


def test_failed_renewal(tmp_path: Path) -> None:
    prefix = install(tmp_path / "qemu", download_commands("a"))
    os.utime(prefix / ".complete", (0, 0))
    commands = debian_commands().expect("apt-get -q -c * update", returncode=100, stderr="E: no mirror\n")
    with pytest.raises(EngineError, match="no mirror"):
        renew_packages(prefix, [PackageSet(names=("a",))], commands, ignore_message)
    assert (prefix / "usr/bin/a").exists()
    assert package_age(prefix) > 20_000
    assert not list(tmp_path.glob(".*.staging"))


def test_age_without_packages(tmp_path: Path) -> None:
    assert package_age(tmp_path / "qemu") == 0
