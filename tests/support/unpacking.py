"""Build layers entry by entry, unpack them, and list the result."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import pickle
import stat
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.oci.model import Descriptor
from buildkit_tasks.run.sandbox.openat2 import DIRECTORY_FLAGS, remove_tree
from buildkit_tasks.run.sandbox.unpack import unpack
from tests.support.oci import MemoryImage, member, single_platform_image

NOBODY = 65534
IS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not IS_ROOT, reason="only root can change owners or become another user")

Entry = tuple[tarfile.TarInfo, bytes]


def tar_entry(
    name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", *, link: str = "", **fields: Any
) -> Entry:
    """Return an entry of a layer; ``fields`` are those of its header: mode, uid, gid, mtime."""
    info = member(name, kind, link=link)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def file(name: str, data: bytes = b"", **fields: Any) -> Entry:
    return tar_entry(name, data=data, **fields)


def directory(name: str, **fields: Any) -> Entry:
    return tar_entry(name, tarfile.DIRTYPE, **fields)


def symlink(name: str, target: str, **fields: Any) -> Entry:
    return tar_entry(name, tarfile.SYMTYPE, link=target, **fields)


def hard_link(name: str, target: str, **fields: Any) -> Entry:
    return tar_entry(name, tarfile.LNKTYPE, link=target, **fields)


def layer_tar(*entries: Entry) -> bytes:
    """Return a layer as a tar archive with its entries in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def platform_descriptor(source: MemoryImage) -> Descriptor:
    """Return the manifest descriptor of an image's first platform."""
    return Image(source).platform_manifests[0][1]


def unpack_layers(parent: Path, *layers: Iterable[Entry], limits: Limits = LIMITS, **config: Any) -> Path:
    """Unpack an image of these layers and return its root; ``config`` is the config's ``config``."""
    source = single_platform_image([layer_tar(*entries) for entries in layers], **config)
    root = parent / "root"
    unpack(source, platform_descriptor(source), root, limits=limits)
    return root


def unpack_error(parent: Path, *layers: Iterable[Entry], limits: Limits = LIMITS, **config: Any) -> str:
    """Return why an image of these layers is malformed; check that nothing of it is left."""
    with pytest.raises(MalformedImage) as caught:
        unpack_layers(parent, *layers, limits=limits, **config)
    assert list(parent.iterdir()) == []
    return caught.value.message


_CREATED_BY_UNPACK = {"dev", "proc", "sys", "tmp", "etc", "etc/hosts"}


def list_tree(root: Path) -> dict[str, str]:
    """Return the image's files by path: a file's content, ``-> TARGET``, or ``/`` for a directory."""
    tree = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name in _CREATED_BY_UNPACK:
            continue
        if path.is_symlink():
            tree[name] = f"-> {path.readlink()}"
        else:
            tree[name] = "/" if path.is_dir() else path.read_text() if path.is_file() else "?"
    return tree


def walk_closed(folder: Path) -> Iterator[Path]:
    """Yield the paths below a folder, also those in directories whose mode keeps this user out."""
    for path in list(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(0o700)
            yield from walk_closed(path)
            path.chmod(mode)


def remove_path(path: Path) -> None:
    """Remove a tree of any depth and with any modes."""
    parent_fd = os.open(path.parent, DIRECTORY_FLAGS)
    remove_tree(parent_fd, os.fsencode(path.name))
    os.close(parent_fd)
    assert not os.path.lexists(path)


def open_fds() -> set[tuple[str, str]]:
    """Return the open descriptors of this process and their targets.

    Later there may be fewer: a thread that an earlier test has left closes its own.
    """
    gc.collect()  # closes what earlier tests have left open
    fds = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor through which this directory is read
            fds.add((each.name, str(each.readlink())))
    return fds


def call_as_nobody(call: Callable[[], Any]) -> Any:
    """Call a function in a child process as an ordinary user; return its result, or fail with its error."""
    if not IS_ROOT:
        return call()
    read_fd, write_fd = os.pipe()
    with warnings.catch_warnings():
        # fork with threads: the child only calls the function and exits.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)  # type: ignore[attr-defined,unused-ignore]  # Linux only
            os.setresuid(NOBODY, NOBODY, NOBODY)  # type: ignore[attr-defined,unused-ignore]  # Linux only
            outcome = (True, call())
        except BaseException as error:  # noqa: BLE001 - the parent raises it
            outcome = (False, repr(error))
        os.write(write_fd, pickle.dumps(outcome))
        os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as stream:  # noqa: PTH123 - a descriptor
        succeeded, result = pickle.loads(stream.read())  # noqa: S301 - written by our own child
    os.waitpid(child, 0)
    assert succeeded, result
    return result
