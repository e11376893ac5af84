from __future__ import annotations

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
)
from tests.support.scripted import Scripted

if TYPE_CHECKING:
    from buildkit_tasks.system.command import CommandOptions

MIRROR = "http://deb.example.org/debian"
# As apt printed it on a machine with several sources.
TARGETS = f"""Packages bookworm-updates {MIRROR}/updates
Translation-en bookworm {MIRROR}
Packages bookworm {MIRROR}
Packages bookworm http://second.example.org/debian
"""


@pytest.fixture(autouse=True)
def _debian_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Debian machine, whatever this one is."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "apt-get").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(debian, "_read_os_release", lambda: {"ID": "debian", "VERSION_CODENAME": "bookworm"})


def host() -> Scripted:
    """The answers of a Debian machine's apt and dpkg."""
    run = Scripted().expect("apt-get indextargets *", stdout=TARGETS)
    return run.expect("dpkg --print-architecture", stdout="amd64\n")


def downloads(*names: str) -> Scripted:
    """A host whose private apt downloads these and whose dpkg unpacks a file for each."""

    def download(_: list[str], call: CommandOptions) -> None:
        assert call.cwd is not None
        for name in names:
            (call.cwd / f"{name}_1.0_amd64.deb").touch()

    def unpack(argv: list[str], _: CommandOptions) -> None:
        name = Path(argv[2]).name.partition("_")[0]
        place = Path(argv[3]) / "usr/bin" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()

    run = host().expect("apt-get -q -c * update").expect("apt-get -q -c * download *", effect=download)
    return run.expect("dpkg -x *", effect=unpack)


def quiet(_: str) -> None:
    """Say nothing."""


def test_the_mirror_is_the_one_of_the_machines_own_release() -> None:
    assert find_mirror(host()) == DebianMirror(uri=MIRROR, release="bookworm", architecture="amd64")


@pytest.mark.parametrize(("release", "shown"), [({"ID": "ubuntu"}, "ubuntu"), ({}, "not Debian")])
def test_another_distribution_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, release: dict[str, str], shown: str
) -> None:
    monkeypatch.setattr(debian, "_read_os_release", lambda: release)
    with pytest.raises(EngineError, match=f"and this is {shown}\\n") as caught:
        find_mirror(Scripted())
    assert (caught.value.exit_code, bool(caught.value.hint)) == (3, True)


def test_a_debian_without_apt_is_no_debian_to_fetch_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EngineError):
        find_mirror(Scripted())


def test_sources_without_a_mirror_say_where_to_look() -> None:
    run = host().expect("apt-get indextargets *", stdout="Packages trixie http://x\n")
    with pytest.raises(EngineError, match="name no mirror for Debian bookworm") as caught:
        find_mirror(run)
    assert caught.value.hint == "look into /etc/apt/sources.list"


def test_packages_are_fetched_by_an_apt_of_our_own_and_unpacked(tmp_path: Path) -> None:
    place = tmp_path / "cache" / "qemu"
    seen: list[tuple[str, str]] = []

    def look(argv: list[str], _: CommandOptions) -> None:
        folder = Path(argv[3]).parent
        seen.append(
            (
                (folder / "sources.list").read_text(encoding="utf-8"),
                (folder / "apt.conf").read_text(encoding="utf-8"),
            )
        )

    run = downloads("qemu-user").expect("apt-get -q -c * update", effect=look)
    told: list[str] = []
    assert install_packages(place, [PackageSet(names=("qemu-user",))], run, told.append) == place
    assert (place / "usr/bin/qemu-user").exists()
    assert {each.name for each in place.iterdir()} == {"usr", ".complete"}
    assert told == ["fetching qemu-user from Debian testing"]
    ((sources, configuration),) = seen
    assert sources.split()[-3:] == [MIRROR, "testing", "main"]
    lines = configuration.splitlines()
    folder = re.escape(f"{tmp_path}/cache/.qemu.") + r"\w+\.staging/\.apt0"
    for name in ("Dir::State::Lists", "Dir::State::status", "Dir::Cache", "Dir::Log", "Dir::Etc::SourceList"):
        (value,) = [line for line in lines if line.startswith(f"{name} ")]
        assert re.search(folder, value)
    assert 'Dir::Etc::SourceParts "/dev/null";' in lines
    assert "trusted" not in configuration.lower()
    assert "unauthenticated" not in configuration.lower()
    words = [each.argv[4:] for each in run.asked("apt-get -q *")]
    assert words == [("update",), ("download", "qemu-user:amd64")]


def test_a_prefix_that_is_whole_is_used_without_asking_anybody(tmp_path: Path) -> None:
    place = tmp_path / "qemu"
    place.mkdir()
    (place / ".complete").touch()
    assert install_packages(place, [PackageSet(names=("x",))], Scripted(), quiet) == place


def test_the_hosts_own_release_is_asked_where_it_must_be(tmp_path: Path) -> None:
    run = downloads("runc")
    said: list[str] = []
    install_packages(tmp_path / "x", [PackageSet(names=("runc",), suite="host")], run, said.append)
    assert said == ["fetching runc from Debian bookworm"]


def test_a_dry_run_shows_the_commands_and_makes_nothing(tmp_path: Path) -> None:
    run = host()
    run.dry_run = True
    wanted = [PackageSet(names=("runc", "tini"), suite="host", with_dependencies=True)]
    install_packages(tmp_path / "cache" / "engine", wanted, run, quiet)
    assert [line.split()[4] for line in run.shown if line.startswith("apt-get")] == ["update", "install"]
    assert any(line.startswith("dpkg -x ") for line in run.shown)
    assert not (tmp_path / "cache").exists()


APT_SAYS = """W: something small
E: Failed to fetch http://x/InRelease  403 Forbidden
Reading lists...
E: The repository is not signed.
"""


def test_apts_own_errors_are_in_the_message(tmp_path: Path) -> None:
    run = host().expect("apt-get -q -c * update", returncode=100, stderr=APT_SAYS)
    with pytest.raises(EngineError) as caught:
        install_packages(tmp_path / "x", [PackageSet(names=("a", "b"))], run, quiet)
    assert caught.value.message == (
        "could not fetch a, b: E: Failed to fetch http://x/InRelease  403 Forbidden; "
        "E: The repository is not signed."
    )
    assert (caught.value.hint, caught.value.exit_code) == ("apt-get update", 3)


def test_a_download_that_fails_is_told_in_the_same_way(tmp_path: Path) -> None:
    run = downloads().expect(
        "apt-get -q -c * download *", returncode=100, stderr="E: Unable to locate package a\n"
    )
    with pytest.raises(EngineError, match="could not fetch a: E: Unable to locate package a"):
        install_packages(tmp_path / "x", [PackageSet(names=("a",))], run, quiet)


@pytest.mark.parametrize(
    "said",
    [
        "E: Write error - write (28: No space left on device)\n",
        "E: You don't have enough free space in /x/archives/.\n",
    ],
)
def test_row_25_a_full_disk_while_fetching_is_a_limit(tmp_path: Path, said: str) -> None:
    run = downloads().expect("apt-get -q -c * download *", returncode=100, stderr=said)
    with pytest.raises(LimitExceeded) as caught:
        install_packages(tmp_path / "x", [PackageSet(names=("a",))], run, quiet)
    assert caught.value.exit_code == 5
    assert said.strip() in caught.value.message


def test_a_full_disk_while_unpacking_is_a_limit_too(tmp_path: Path) -> None:
    said = "tar: ./usr/bin/a: Cannot write: No space left on device\n"
    run = downloads("a").expect("dpkg -x *", returncode=2, stderr=said)
    with pytest.raises(LimitExceeded, match=r"could not unpack a_1\.0_amd64\.deb: .*No space left") as caught:
        install_packages(tmp_path / "x", [PackageSet(names=("a",))], run, quiet)
    assert caught.value.exit_code == 5
    run.expect("dpkg -x *", returncode=2, stderr="dpkg-deb: error: not a Debian format archive\n")
    with pytest.raises(EngineError, match="not a Debian format archive"):
        install_packages(tmp_path / "x", [PackageSet(names=("a",))], run, quiet)


def test_a_download_that_brings_no_package_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not fetch a"):
        install_packages(tmp_path / "x", [PackageSet(names=("a",))], downloads(), quiet)
    assert not (tmp_path / "x").exists()


def test_row_19_a_failed_provisioning_leaves_nothing_and_a_second_run_completes(tmp_path: Path) -> None:
    place = tmp_path / "cache" / "x"
    run = downloads("a").expect("dpkg -x *", returncode=2, stderr="broken", times=1)
    with pytest.raises(EngineError):
        install_packages(place, [PackageSet(names=("a",))], run, quiet)
    assert [each.name for each in place.parent.iterdir()] == [".x.lock"]
    assert install_packages(place, [PackageSet(names=("a",))], run, quiet) == place
    assert (place / "usr/bin/a").exists()


def newest(tmp_path: Path, suites: dict[str, str], *, status: int = 0) -> tuple[Scripted, dict[str, Path]]:
    """Fetch a package that each architecture has in one suite only."""

    def suite_of(call: CommandOptions) -> str:
        assert call.cwd is not None
        return (call.cwd.parent / "sources.list").read_text(encoding="utf-8").split()[-2]

    def download(argv: list[str], call: CommandOptions) -> None:
        architecture = argv[-1].partition(":")[2]
        if suites.get(architecture) == suite_of(call):
            assert call.cwd is not None
            (call.cwd / "a_1_x.deb").touch()

    run = downloads("a").expect("apt-get -q -c * update", returncode=status, stderr="E: no route\n" * status)
    run.expect("apt-get -q -c * download *", effect=download)
    return run, fetch_newest_package("a", ["amd64", "mips64el"], tmp_path / "cache", run, quiet)


def test_each_architecture_comes_from_the_newest_suite_that_has_it(tmp_path: Path) -> None:
    run, found = newest(tmp_path, {"amd64": "testing", "mips64el": "oldstable"})
    assert found == {each: tmp_path / "cache" / f"a-{each}" for each in ("amd64", "mips64el")}
    assert all((place / "usr/bin/a").exists() for place in found.values())
    assert len(run.asked("*download a:amd64")) == 1
    assert len(run.asked("*download a:mips64el")) == 3
    again = fetch_newest_package("a", ["amd64"], tmp_path / "cache", Scripted(), quiet)
    assert list(again) == ["amd64"]


def test_an_architecture_that_no_suite_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="Debian has no a for mips64el"):
        newest(tmp_path, {"amd64": "stable"})
    assert (tmp_path / "cache" / "a-amd64").is_dir()
    assert not (tmp_path / "cache" / "a-mips64el").exists()


def test_an_archive_that_cannot_be_reached_is_not_taken_for_one_without_the_package(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not fetch a: E: no route"):
        newest(tmp_path, {}, status=1)
