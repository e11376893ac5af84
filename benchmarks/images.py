"""Generate large images as OCI image layouts.

Each layer is streamed, and its digest and diff_id are computed on the way: no layer is held in memory.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from buildkit_tasks.oci.model import Digest
from tests.support.oci import (
    LAYER_GZIP,
    Json,
    MemoryImage,
    descriptor,
    layout_files,
    make_tar,
    platform_json,
    probe_program,
    put_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = [
    "Layer",
    "SelectedFiles",
    "generate_entries",
    "image",
    "load_layout",
    "noise",
    "select_data",
    "select_files",
    "write_archive",
    "write_layer",
]

_MULTIARCH = Path("/usr/lib/x86_64-linux-gnu")
_PROGRAMS = (Path("/usr/bin"), Path("/usr/lib64"), _MULTIARCH)
_OTHERS = (Path("/usr/lib"), Path("/usr/share"))
_MERGED = ("bin", "lib", "lib64")  # links into /usr, as Debian has them
_LARGEST, _SMALL = 32 << 20, 1 << 20  # bytes of a file
_ELF = b"\x7fELF"


class Writes(Protocol):
    """A file object that a layer's archive is written to."""

    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A gzip layer in a layout: its descriptor and its diff_id."""

    entry: Json
    diff_id: str
    path: Path

    @property
    def size(self) -> int:
        """Return the compressed size in bytes."""
        return int(self.entry["size"])


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedFiles:
    """Paths of this machine in the order in which they are added to a layer."""

    files: tuple[Path, ...]
    links: tuple[Path, ...]

    def write(self, to: Writes) -> None:
        """Write the paths as a reproducible archive, without times and owners."""
        with tarfile.open(fileobj=to, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
            for name in _MERGED:
                archive.addfile(_link(name, f"usr/{name}"))
            for path in self.links:
                archive.addfile(_link(str(path)[1:], str(path.readlink())))
            for path in self.files:
                with contextlib.suppress(FileNotFoundError), path.open("rb") as content:
                    archive.addfile(
                        _plain(archive.gettarinfo(fileobj=content, arcname=str(path)[1:])), content
                    )


def select_files(count: int, large: int) -> SelectedFiles:
    """Choose files of /usr by sorted order: programs and libraries of ``large`` bytes, then small ones.

    The choice differs between machines, but is always the same on one machine.
    """
    files: dict[Path, None] = {}
    seen: set[int] = set()  # git's programs are one file under a hundred names
    for path in _regular(_PROGRAMS, _LARGEST):
        status = path.stat()
        large -= 0 if status.st_ino in seen else status.st_size
        seen.add(status.st_ino)
        if large < 0:
            break
        files[path] = None
    for path in _regular(_OTHERS, _SMALL):
        if len(files) >= count:
            break
        files[path] = None
    links = (path for root in _PROGRAMS for path in _walk(root) if path.is_symlink())
    return SelectedFiles(files=tuple(files), links=tuple(links))


def select_data(large: int) -> SelectedFiles:
    """Choose ``large`` bytes of files of /usr that are not programs, and so fit every platform."""
    files = []
    for path in _regular(_OTHERS, _LARGEST):
        if _begins(path) == _ELF:
            continue
        large -= path.stat().st_size
        if large < 0:
            break
        files.append(path)
    return SelectedFiles(files=tuple(files), links=())


def write_layer(folder: Path, write: Callable[[Writes], None], level: int = 6) -> Layer:
    """Add a layer to the layout in ``folder``; ``write`` writes the uncompressed archive."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "layer"
    with unfinished.open("wb") as file:
        compressed = _Hashed(file)
        with gzip.GzipFile(fileobj=compressed, mode="wb", compresslevel=level, mtime=0) as stream:
            plain = _Hashed(stream)
            with io.BufferedWriter(plain, 1 << 20) as buffer:
                write(buffer)
    path = blobs / compressed.hash.hexdigest()
    unfinished.rename(path)
    entry: Json = {
        "mediaType": LAYER_GZIP,
        "digest": f"sha256:{path.name}",
        "size": path.stat().st_size,
    }
    return Layer(entry=entry, diff_id=f"sha256:{plain.hash.hexdigest()}", path=path)


def generate_entries(kind: bytes, mode: int, link: str = "") -> Callable[[Writes], None]:
    """Write a layer of a million entries of one kind, a thousand in each of a thousand directories."""

    def write(to: Writes) -> None:
        for outer in range(1000):
            to.write(_header(f"d{outer:03}", tarfile.DIRTYPE, 0o755, ""))
            # Headers differ only in three digits of the name and in the checksum.
            first = _header(f"d{outer:03}/f000", kind, mode, link)
            at, added = len(f"d{outer:03}/f"), int(first[148:154], 8) - 3 * ord("0")
            for inner in range(1000):
                digits = f"{inner:03}".encode()
                checksum = b"%06o" % (added + sum(digits))
                to.write(first[:at] + digits + first[at + 3 : 148] + checksum + first[154:])
        to.write(bytes(1024))

    return write


def noise(size: int) -> Callable[[Writes], None]:
    """Write a layer of incompressible files of 1 MiB each."""

    def write(to: Writes) -> None:
        block = b"".join(hashlib.sha512(number.to_bytes(4, "big")).digest() for number in range(1 << 14))
        for number in range(size // len(block)):
            info = tarfile.TarInfo(f"data/{number:05}")
            info.size = len(block)
            to.write(info.tobuf(tarfile.USTAR_FORMAT))
            to.write(block)
        to.write(bytes(1024))

    return write


def image(folder: Path, layer: Layer, platforms: Sequence[str], entrypoint: str = "/main") -> str:
    """Make the layout an image of these platforms, each with the layer and its own program.

    Return the image's name. An ``entrypoint`` other than ``/main`` is taken from the layer.
    """
    memory = MemoryImage()
    entries = [_manifest(memory, layer, platform, entrypoint) for platform in platforms]
    for name, data in layout_files(memory.set_index(entries)).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return f"oci:{folder}"


def write_archive(folder: Path, path: Path) -> str:
    """Write a layout as an archive and return its name."""
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname=".")
    return f"oci-archive:{path}"


def load_layout(folder: Path) -> MemoryImage:
    """Read a layout with all blobs into memory, to fill a registry from it."""
    (entry,) = json.loads((folder / "index.json").read_text(encoding="utf-8"))["manifests"]
    blobs = {f"sha256:{path.name}": path.read_bytes() for path in (folder / "blobs/sha256").iterdir()}
    return MemoryImage(blobs=blobs, root=descriptor(entry))


def _manifest(memory: MemoryImage, layer: Layer, platform: str, entrypoint: str) -> Json:
    program = make_tar({"main": probe_program(platform)})
    own = memory.put(gzip.compress(program, mtime=0), LAYER_GZIP)
    config: dict[str, Any] = {
        **platform_json(platform),
        "config": {"Entrypoint": [entrypoint]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id, str(Digest.from_bytes(program))]},
    }
    layers = [layer.entry, own]
    if entrypoint != "/main":
        layers, config["rootfs"]["diff_ids"] = [layer.entry], [layer.diff_id]
    return {**put_manifest(memory, config, layers), "platform": platform_json(platform)}


class _Hashed(io.RawIOBase):
    """A writer that forwards and hashes data."""

    def __init__(self, to: Writes) -> None:
        self.hash = hashlib.sha256()
        self._to = to

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.hash.update(data)
        self._to.write(data)
        return len(data)


def _regular(roots: Iterable[Path], largest: int) -> Iterator[Path]:
    for root in roots:
        for path in _walk(root):
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink() and path.stat().st_size <= largest:
                    yield path


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_ELF))


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mtime = info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
    return info


def _header(name: str, kind: bytes, mode: int, link: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, link
    return info.tobuf(tarfile.USTAR_FORMAT)
