"""Fetch signed Debian packages and unpack them below a private prefix.

apt downloads them and checks the signatures, with a root directory of its own: it reads the machine's
mirror and proxy settings but needs neither dpkg's lock and database nor root privileges. A prefix is
built atomically; an incomplete one is built again.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import EngineError, LimitExceeded
from buildkit_tasks.system.command import CommandOptions, CommandResult, CommandRunner
from buildkit_tasks.system.files import build_atomically, completion_time, is_complete, rebuild_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from buildkit_tasks.system.notify import Notify

__all__ = [
    "DebianMirror",
    "PackageSet",
    "fetch_newest_package",
    "find_mirror",
    "install_packages",
    "package_age",
    "renew_packages",
]

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DAY_SECONDS = 86_400
_UPDATE_SECONDS = 300.0
_DOWNLOAD_SECONDS = 1800.0
_APT_ENV = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
# apt's messages, in English, for a mirror or a proxy that cannot be reached.
_NETWORK_ERROR = re.compile(
    r"failure resolving|could not resolve|happened resolving|could not connect|unable to connect"
    r"|failed to connect|cannot initiate|connection (?:failed|timed out|refused)|unreachable|no route to host"
    r"|407 |\bproxy\b",
    re.IGNORECASE,
)
_SUITES = ("testing", "stable", "oldstable", "oldoldstable")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSet:
    """Packages of one suite, for some architectures (by default the machine's).

    The suite ``host`` is the machine's own release. With ``with_dependencies`` apt adds the dependencies
    that are not installed on the machine.
    """

    names: tuple[str, ...]
    suite: str = "testing"
    architectures: tuple[str, ...] = ()
    with_dependencies: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianMirror:
    """The machine's Debian mirror, release (code name) and architecture."""

    uri: str
    release: str
    architecture: str


def find_mirror(commands: CommandRunner) -> DebianMirror:
    """Read the mirror from the machine's apt sources.

    Raises :class:`EngineError` if the machine is not Debian, or has no apt-get or no mirror.
    """
    os_release = _read_os_release()
    if os_release.get("ID") != "debian" or shutil.which("apt-get") is None:
        raise EngineError(
            "the private engine is made of Debian packages, but this machine runs "
            f"{os_release.get('ID', 'an unknown system')}",
            hint="install a Docker engine with buildx, start it and run this again",
        )
    codename = os_release.get("VERSION_CODENAME", "testing")
    output_format = "$(IDENTIFIER) $(RELEASE) $(REPO_URI)"
    listing = commands.run(["apt-get", "indextargets", "--no-release-info", f"--format={output_format}"])
    targets = (line.split(" ", 2) for line in listing.stdout.splitlines())
    uris = [target[2] for target in targets if target[:2] == ["Packages", codename]]
    if not uris:
        raise EngineError(
            f"the apt sources have no mirror for Debian {codename}", hint="look into /etc/apt/sources.list"
        )
    architecture = commands.run(["dpkg", "--print-architecture"]).stdout.strip()
    return DebianMirror(uri=uris[0], release=codename, architecture=architecture)


def _read_os_release() -> dict[str, str]:
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {name: value.strip("\"'") for name, value in pairs}


def install_packages(
    prefix: Path, package_sets: Sequence[PackageSet], commands: CommandRunner, notify: Notify
) -> Path:
    """Unpack the packages below ``prefix`` unless that is done already; return ``prefix``.

    Raises :class:`EngineError` with apt's messages if the archive cannot be reached or a signature is
    invalid, and :class:`LimitExceeded` if the disk is full.
    """
    if is_complete(prefix):
        return prefix
    mirror = find_mirror(commands)
    return build_atomically(
        prefix,
        lambda staging: _unpack_all(staging, mirror, package_sets, commands, notify),
        dry_run=commands.dry_run,
    )


def renew_packages(
    prefix: Path, package_sets: Sequence[PackageSet], commands: CommandRunner, notify: Notify
) -> None:
    """Fetch packages again that were unpacked below ``prefix``, and replace them in the end.

    A program that runs from there keeps running. Raises what :func:`install_packages` does; then what was
    there stays.
    """
    mirror = find_mirror(commands)
    rebuild_atomically(
        prefix,
        lambda staging: _unpack_all(staging, mirror, package_sets, commands, notify),
        dry_run=commands.dry_run,
    )


def package_age(prefix: Path) -> float:
    """Return for how many days packages have been below ``prefix``; 0 if there are none."""
    completed = completion_time(prefix)
    return 0 if completed is None else max(time.time() - completed, 0) / _DAY_SECONDS


def _unpack_all(
    staging: Path,
    mirror: DebianMirror,
    package_sets: Sequence[PackageSet],
    commands: CommandRunner,
    notify: Notify,
) -> None:
    for number, package_set in enumerate(package_sets):
        apt_root = _AptRoot(staging / f".apt{number}", mirror, package_set)
        debs = apt_root.download(commands, notify)
        _unpack_debs(debs, staging, commands)
        shutil.rmtree(apt_root.folder, ignore_errors=True)


def fetch_newest_package(
    name: str, architectures: Iterable[str], folder: Path, commands: CommandRunner, notify: Notify
) -> dict[str, Path]:
    """Unpack a package for each architecture from the newest suite that has it; return the prefixes.

    The newest suite differs by architecture: testing has loong64 but no mips64el. Raises
    :class:`EngineError` for an architecture that no suite has.
    """
    prefixes = {each: folder / f"{name}-{each}" for each in architectures}
    missing = [each for each, prefix in prefixes.items() if not is_complete(prefix)]
    if not missing or commands.dry_run:
        return prefixes
    mirror = find_mirror(commands)
    notify(f"fetching {name} from Debian for {', '.join(missing)}")
    # One apt root per architecture: apt reads the lists of all configured architectures at every call.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _ in pool.map(
            lambda each: _fetch_for_architecture(name, each, prefixes[each], mirror, commands), missing
        ):
            pass
    return prefixes


def _fetch_for_architecture(
    name: str, architecture: str, prefix: Path, mirror: DebianMirror, commands: CommandRunner
) -> None:
    def unpack_newest(staging: Path) -> None:
        for suite in _SUITES:
            package_set = PackageSet(names=(name,), suite=suite, architectures=(architecture,))
            apt_root = _AptRoot(staging / ".apt", mirror, package_set)
            debs = apt_root.try_download(commands)
            if debs is not None:
                _unpack_debs(debs, staging, commands)
            shutil.rmtree(apt_root.folder)
            if debs is not None:
                return
        raise EngineError(f"Debian has no {name} for {architecture}")

    build_atomically(prefix, unpack_newest)


class _AptRoot:
    """A private apt root with its own sources, lists, cache and package database."""

    def __init__(self, folder: Path, mirror: DebianMirror, package_set: PackageSet) -> None:
        self.folder = folder
        self._mirror = mirror
        self._package_set = package_set
        self._suite = mirror.release if package_set.suite == "host" else package_set.suite
        self._architectures = package_set.architectures or (mirror.architecture,)

    def download(self, commands: CommandRunner, notify: Notify) -> Path:
        """Download the packages and return the directory of the .deb files."""
        debs = self.folder / "archives"
        if not commands.dry_run:
            self._create_files(debs)
        names = ", ".join(self._package_set.names)
        notify(f"fetching {names} from Debian {self._suite}")
        self._run_apt(commands, ["update"], _UPDATE_SECONDS)
        self._run_apt(commands, self._download_arguments(), _DOWNLOAD_SECONDS, cwd=debs)
        if not commands.dry_run and not any(debs.glob("*.deb")):
            raise EngineError(f"could not fetch {names}: apt-get succeeded but downloaded no package")
        return debs

    def try_download(self, commands: CommandRunner) -> Path | None:
        """Download without output; return None if the suite does not have the packages."""
        debs = self.folder / "archives"
        self._create_files(debs)
        update_result = commands.run(
            self._build_argv(["update"]), CommandOptions(env=_APT_ENV, timeout=_UPDATE_SECONDS)
        )
        if not update_result.ok:
            raise self._error(update_result)
        download_result = commands.run(
            self._build_argv(self._download_arguments()),
            CommandOptions(env=_APT_ENV, timeout=_DOWNLOAD_SECONDS, cwd=debs),
        )
        return debs if download_result.ok and any(debs.glob("*.deb")) else None

    def _download_arguments(self) -> list[str]:
        names = self._package_set.names
        if self._package_set.with_dependencies:
            # Quietly: apt lists packages that "will be installed", although it only downloads them.
            options = ("-qq", "--download-only", "--reinstall", "--no-install-recommends", "--yes")
            return ["install", *options, *names]
        return ["download", *(f"{name}:{arch}" for name in names for arch in self._architectures)]

    def _create_files(self, debs: Path) -> None:
        (self.folder / "lists" / "partial").mkdir(parents=True)
        (debs / "partial").mkdir(parents=True)
        options = f"[signed-by={_KEYRING}]" if _KEYRING.exists() else ""
        source_line = f"deb {options} {self._mirror.uri} {self._suite} main\n"
        (self.folder / "sources.list").write_text(source_line, encoding="utf-8")
        status = self.folder / "status"
        # apt locks the package database it resolves dependencies with: a copy avoids waiting for dpkg.
        if self._package_set.with_dependencies:
            shutil.copyfile("/var/lib/dpkg/status", status)
        else:
            status.touch()
        (self.folder / "apt.conf").write_text(self._format_configuration(debs), encoding="utf-8")

    def _format_configuration(self, debs: Path) -> str:
        architectures = " ".join(f'"{name}";' for name in self._architectures)
        values = {
            "Dir::Etc::SourceList": self.folder / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": self.folder / "lists",
            "Dir::State::status": self.folder / "status",
            "Dir::State::extended_states": self.folder / "extended_states",
            "Dir::Cache": self.folder,
            "Dir::Cache::archives": debs,
            "Dir::Log": self.folder,
            "APT::Architecture": self._architectures[0],
            "APT::Sandbox::User": "root",  # stay the current user: `_apt` cannot write to its directory
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
        }
        lines = [f'{key} "{value}";' for key, value in values.items()]
        return "\n".join(
            ["#clear APT::Architectures;", f"APT::Architectures {{ {architectures} }};", *lines, ""]
        )

    def _build_argv(self, arguments: Iterable[str]) -> list[str]:
        return ["apt-get", "-q", "-c", str(self.folder / "apt.conf"), *arguments]

    def _run_apt(
        self, commands: CommandRunner, arguments: list[str], timeout: float, cwd: Path | None = None
    ) -> None:
        argv = self._build_argv(arguments)
        result = commands.stream(argv, CommandOptions(env=_APT_ENV, timeout=timeout, cwd=cwd))
        if not result.ok:
            raise self._error(result)

    def _error(self, result: CommandResult) -> Exception:
        """Return the error for a call of apt that failed: a full disk, no network, or what apt says."""
        names = ", ".join(self._package_set.names)
        errors = [line for line in result.stderr.splitlines() if line.startswith("E:")]
        details = "; ".join(errors) or result.reason
        if "No space left" in result.stderr or "don't have enough free space" in result.stderr:
            return LimitExceeded(f"the disk is full while fetching {names}: {details}")
        if _NETWORK_ERROR.search(result.stderr):
            return EngineError(
                f"could not fetch {names}: the Debian mirror {self._mirror.uri} cannot be reached: {details}",
                hint="export http_proxy=http://HOST:PORT for a proxy, or name a reachable mirror in /etc/apt",
            )
        return EngineError(f"could not fetch {names}: {details}", hint="sudo apt-get update")


def _unpack_debs(debs: Path, folder: Path, commands: CommandRunner) -> None:
    files = sorted(debs.glob("*.deb")) or ([debs / "PACKAGE.deb"] if commands.dry_run else [])
    for deb in files:
        result = commands.run(
            ["dpkg", "-x", str(deb), str(folder)], CommandOptions(timeout=600), mutates=True
        )
        if not result.ok:
            is_disk_full = "No space left" in result.stderr
            raise (LimitExceeded if is_disk_full else EngineError)(
                f"could not unpack {deb.name}: {result.reason}"
            )
