"""The seam to Debian's archive: fetch signed packages and unpack them under a private prefix.

apt does the fetching and checks the signatures, in a root of its own: it reads the machine's mirror
and proxy settings and writes nowhere but here, so that neither dpkg's lock nor its database is
touched and no special rights are needed. A prefix is made beside its place and renamed when it is
whole; one that was cut off is made again.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import EngineError, LimitExceeded
from buildkit_tasks.system.command import Call, Completed, Runner
from buildkit_tasks.system.files import _COMPLETE, staged

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from buildkit_tasks.system.notify import Tell

__all__ = [
    "Archive",
    "Packages",
    "fetch_newest",
    "find_archive",
    "provision",
]

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_UPDATE_SECONDS = 300.0
_DOWNLOAD_SECONDS = 1800.0
_SUITES = ("testing", "stable", "oldstable", "oldoldstable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """Package names of one suite, for some architectures; ``host`` names the host's own release.

    With ``dependencies`` apt adds those that the host itself does not have.
    """

    names: tuple[str, ...]
    suite: str = "testing"
    architectures: tuple[str, ...] = ()
    dependencies: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """The mirror that this machine uses, its own release and its Debian architecture."""

    uri: str
    release: str
    architecture: str


def find_archive(run: Runner) -> Archive:
    """Read the mirror from the machine's own apt sources.

    Raises :class:`EngineError` where there is no apt, or where it is not Debian's.
    """
    release = _os_release()
    if release.get("ID") != "debian" or shutil.which("apt-get") is None:
        raise EngineError(
            f"the private engine is made from Debian packages, and this is {release.get('ID', 'not Debian')}",
            hint="install a Docker engine with buildx, start it, and run this again",
        )
    codename = release.get("VERSION_CODENAME", "testing")
    wanted = "$(IDENTIFIER) $(RELEASE) $(REPO_URI)"
    listing = run.run(["apt-get", "indextargets", "--no-release-info", f"--format={wanted}"])
    rows = (line.split(" ", 2) for line in listing.stdout.splitlines())
    uris = [row[2] for row in rows if row[:2] == ["Packages", codename]]
    if not uris:
        raise EngineError(
            f"apt's sources name no mirror for Debian {codename}", hint="look into /etc/apt/sources.list"
        )
    architecture = run.run(["dpkg", "--print-architecture"]).stdout.strip()
    return Archive(uri=uris[0], release=codename, architecture=architecture)


def _os_release() -> dict[str, str]:
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {name: value.strip("\"'") for name, value in pairs}


def provision(prefix: Path, wanted: Sequence[Packages], run: Runner, tell: Tell) -> Path:
    """Make ``prefix`` hold the unpacked packages, once; gives it back.

    Raises :class:`EngineError` with apt's own words when the archive cannot be reached or a
    signature does not hold.
    """
    if (prefix / _COMPLETE).exists():
        return prefix
    archive = find_archive(run)

    def fill(folder: Path) -> None:
        for number, packages in enumerate(wanted):
            root = _AptRoot(folder / f".apt{number}", archive, packages)
            fetched = root.fetch(run, tell)
            _unpack(fetched, folder, run)
            shutil.rmtree(root.folder, ignore_errors=True)

    return staged(prefix, fill, dry_run=run.dry_run)


def fetch_newest(
    name: str, architectures: Iterable[str], folder: Path, run: Runner, tell: Tell
) -> dict[str, Path]:
    """Unpack a package for each architecture from the newest suite that has it.

    Gives the prefix of each architecture under ``folder``. Raises :class:`EngineError` naming an
    architecture that no suite has. Architectures come and go: testing has loong64 and no mips64el.
    """
    prefixes = {each: folder / f"{name}-{each}" for each in architectures}
    missing = [each for each, prefix in prefixes.items() if not (prefix / _COMPLETE).exists()]
    if not missing or run.dry_run:
        return prefixes
    archive = find_archive(run)
    tell(f"fetching {name} from Debian for {', '.join(missing)}")
    # One apt root for each: a root of many architectures reads all their lists at every call.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _ in pool.map(lambda each: _fetch_newest(name, each, prefixes[each], archive, run), missing):
            pass
    return prefixes


def _fetch_newest(name: str, architecture: str, prefix: Path, archive: Archive, run: Runner) -> None:
    def fill(staging: Path) -> None:
        for suite in _SUITES:
            wanted = Packages(names=(name,), suite=suite, architectures=(architecture,))
            root = _AptRoot(staging / ".apt", archive, wanted)
            found = root.try_fetch(run)
            if found is not None:
                _unpack(found, staging, run)
            shutil.rmtree(root.folder)
            if found is not None:
                return
        raise EngineError(f"Debian has no {name} for {architecture}")

    staged(prefix, fill)


class _AptRoot:
    """A private apt: its own sources, lists, cache and package database."""

    def __init__(self, folder: Path, archive: Archive, packages: Packages) -> None:
        self.folder = folder
        self._archive = archive
        self._packages = packages
        self._suite = archive.release if packages.suite == "host" else packages.suite
        self._architectures = packages.architectures or (archive.architecture,)

    def fetch(self, run: Runner, tell: Tell) -> Path:
        """Download the packages into a folder of .deb files."""
        debs = self.folder / "archives"
        if not run.dry_run:
            self._lay_out(debs)
        names = ", ".join(self._packages.names)
        tell(f"fetching {names} from Debian {self._suite}")
        self._apt(run, ["update"], _UPDATE_SECONDS)
        self._apt(run, self._download(), _DOWNLOAD_SECONDS, cwd=debs)
        if not run.dry_run and not any(debs.glob("*.deb")):
            raise EngineError(f"could not fetch {names}: apt-get says it did, and nothing is there")
        return debs

    def try_fetch(self, run: Runner) -> Path | None:
        """Download quietly; None where this suite does not have the packages."""
        debs = self.folder / "archives"
        self._lay_out(debs)
        done = run.run(self._argv(["update"]), Call(timeout=_UPDATE_SECONDS))
        if not done.ok:
            raise _apt_error(done, self._packages.names)
        found = run.run(self._argv(self._download()), Call(timeout=_DOWNLOAD_SECONDS, cwd=debs))
        return debs if found.ok and any(debs.glob("*.deb")) else None

    def _download(self) -> list[str]:
        names = self._packages.names
        if self._packages.dependencies:
            return ["install", "--download-only", "--reinstall", "--no-install-recommends", "--yes", *names]
        return ["download", *(f"{name}:{arch}" for name in names for arch in self._architectures)]

    def _lay_out(self, debs: Path) -> None:
        (self.folder / "lists" / "partial").mkdir(parents=True)
        (debs / "partial").mkdir(parents=True)
        options = f"[signed-by={_KEYRING}]" if _KEYRING.exists() else ""
        line = f"deb {options} {self._archive.uri} {self._suite} main\n"
        (self.folder / "sources.list").write_text(line, encoding="utf-8")
        status = self.folder / "status"
        # apt locks the database that it resolves against: a copy needs no lock of dpkg's.
        if self._packages.dependencies:
            shutil.copyfile("/var/lib/dpkg/status", status)
        else:
            status.touch()
        (self.folder / "apt.conf").write_text(self._configuration(debs), encoding="utf-8")

    def _configuration(self, debs: Path) -> str:
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
            "APT::Sandbox::User": _user(),
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

    def _argv(self, arguments: Iterable[str]) -> list[str]:
        return ["apt-get", "-q", "-c", str(self.folder / "apt.conf"), *arguments]

    def _apt(self, run: Runner, arguments: list[str], timeout: float, cwd: Path | None = None) -> None:
        argv = self._argv(arguments)
        call = Call(env={"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}, timeout=timeout, cwd=cwd)
        done = run.stream(argv, call)
        if not done.ok:
            raise _apt_error(done, self._packages.names)


def _user() -> str:
    """Who apt downloads as: ``_apt`` could not write into a user's own folder."""
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _apt_error(done: Completed, names: Iterable[str]) -> Exception:
    errors = [line for line in done.stderr.splitlines() if line.startswith("E:")]
    words = "; ".join(errors) or done.reason
    if "No space left" in done.stderr or "don't have enough free space" in done.stderr:
        return LimitExceeded(f"the disk is full while fetching {', '.join(names)}: {words}")
    return EngineError(f"could not fetch {', '.join(names)}: {words}", hint="apt-get update")


def _unpack(debs: Path, folder: Path, run: Runner) -> None:
    files = sorted(debs.glob("*.deb")) or ([debs / "PACKAGE.deb"] if run.dry_run else [])
    for deb in files:
        done = run.run(["dpkg", "-x", str(deb), str(folder)], Call(timeout=600), mutates=True)
        if not done.ok:
            full = "No space left" in done.stderr
            raise (LimitExceeded if full else EngineError)(f"could not unpack {deb.name}: {done.reason}")
