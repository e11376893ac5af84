"""Root file systems of Debian's packages with their dependencies, for any architecture."""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
from pathlib import Path

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.system import debian
from buildkit_tasks.system.command import CommandOptions, SubprocessRunner
from buildkit_tasks.system.debian import PackageSet, find_mirror
from buildkit_tasks.system.files import build_atomically

__all__ = ["make_debian_layer"]

_SECONDS = 600.0


def make_debian_layer(package: str, architecture: str) -> bytes:
    """Return a layer with a package of the host's release and all that it needs.

    It is unpacked in the cache once. Raises :class:`EngineError` if it cannot be fetched.
    """
    prefix = cache_folder(load_settings()) / "debian" / f"root-{package}-{architecture}"
    build_atomically(prefix, lambda staging: _unpack(staging, package, architecture))
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        archive.add(prefix, ".", filter=_own_by_root)
    return output.getvalue()


def _unpack(staging: Path, package: str, architecture: str) -> None:
    commands = SubprocessRunner(dry_run_output=sys.stderr)
    package_set = PackageSet(
        names=(package,), suite="host", architectures=(architecture,), with_dependencies=True
    )
    apt_root = debian._AptRoot(staging / ".apt", find_mirror(commands), package_set)
    debs = apt_root.folder / "archives"
    apt_root._create_files(debs)
    (apt_root.folder / "status").write_text("")  # nothing is installed in the image
    for arguments in (["update"], apt_root._download_arguments()):
        result = commands.run(
            apt_root._build_argv(arguments), CommandOptions(env=debian._APT_ENV, timeout=_SECONDS)
        )
        if not result.ok:
            raise apt_root._error(result)
    debian._unpack_debs(debs, staging, commands)
    shutil.rmtree(apt_root.folder)
    for name in ("bin", "lib", "lib64", "sbin"):  # since Debian 13 packages have files in /usr alone
        if not (staging / name).exists() and (staging / "usr" / name).exists():
            (staging / name).symlink_to(f"usr/{name}")


def _own_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    return member
