"""Change one part of an image, and recompute every digest and size above it.

Images are not changed in place: each function returns a new :class:`Memory`, in which references to
the changed document point to the new one. So the planted fault is the only fault.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping

from buildkit_tasks.oci.model import INDEX_TYPES, OCI_CONFIG, OCI_MANIFEST, Digest
from buildkit_tasks.oci.source import read_blob
from buildkit_tasks.oci.transports.oci_archive import OciArchive
from buildkit_tasks.platforms import Platform
from tests.support.oci import LAYER_GZIP, Json, Memory, descriptor, make_tar

Change = Callable[[Json], object]
REFERENCE = "vnd.docker.reference.digest"


def read_archive(archive: OciArchive) -> Memory:
    """Read an image in an OCI archive into memory."""
    memory = Memory(top=archive.root_descriptor())
    todo = [archive.root_descriptor()]
    while todo:
        each = todo.pop()
        data = memory.blobs[str(each.digest)] = read_blob(archive, each, 64 << 20)
        document = json.loads(data) if each.media_type in (*INDEX_TYPES, OCI_MANIFEST) else {}
        below = [*document.get("manifests", ()), *document.get("layers", ())]
        below += [document["config"]] if "config" in document else []
        # A platform says nothing about how its blob is read; attestations have one that is none.
        todo += [descriptor({**entry, "platform": None}) for entry in below]
    return memory if archive.root_descriptor().media_type in INDEX_TYPES else _indexed(memory)


def _indexed(image: Memory) -> Memory:
    """A single manifest in an index, with the platform that its config states."""
    root = image.root_descriptor()
    manifest = load(image, str(root.digest))
    config = load(image, manifest["config"]["digest"])
    kind = {key: config[key] for key in ("os", "architecture", "variant") if key in config}
    entry = {"mediaType": root.media_type, "digest": str(root.digest), "size": root.size, "platform": kind}
    return image.index([entry])


def entries(image: Memory) -> list[Json]:
    """The entries of the image's index."""
    found: list[Json] = load(image, str(image.root_descriptor().digest))["manifests"]
    return found


def load(image: Memory, digest: str) -> Json:
    """A stored document."""
    found: Json = json.loads(image.blobs[digest])
    return found


def name_of(entry: Json) -> str:
    """The platform of an index entry as it is usually written; empty if it has none."""
    stated = entry.get("platform") or {}
    known = [str(stated.get(key, "")) for key in ("os", "architecture", "variant")]
    return str(Platform.normalize(*known)) if stated else ""


def entry_of(image: Memory, platform: str) -> Json:
    """The platform's entry in the index."""
    return next(entry for entry in entries(image) if name_of(entry) == platform)


def manifest_of(image: Memory, platform: str) -> Json:
    """The platform's manifest."""
    return load(image, entry_of(image, platform)["digest"])


def layers_of(image: Memory, platform: str) -> list[bytes]:
    """The archives of a platform's layers, uncompressed, the lowest first."""
    blobs = [image.blobs[layer["digest"]] for layer in manifest_of(image, platform)["layers"]]
    return [gzip.decompress(blob) if blob[:2] == b"\x1f\x8b" else blob for blob in blobs]


def copy(image: Memory) -> Memory:
    """The same image, in a memory of its own."""
    return Memory(blobs=dict(image.blobs), top=image.top)


def with_index(image: Memory, change: Change) -> Memory:
    """The image with another index."""
    made, index = copy(image), load(image, str(image.root_descriptor().digest))
    change(index)
    return made.point(made.put(index, image.root_descriptor().media_type))


def only(image: Memory, *platforms: str) -> Memory:
    """The image with these platforms alone, attestations left out."""
    kept = [entry_of(image, platform) for platform in platforms]
    return with_index(image, lambda index: index.update(manifests=kept))


def joined(*images: Memory) -> Memory:
    """One image with the platforms of all."""
    first, blobs = images[0], {key: data for each in images for key, data in each.blobs.items()}
    listed = [entry for each in images for entry in entries(each)]
    return with_index(Memory(blobs=blobs, top=first.top), lambda index: index.update(manifests=listed))


def with_manifest(image: Memory, platform: str, change: Change) -> Memory:
    """The image with another manifest in one platform; its attestations refer to the new one."""
    made, old, manifest = copy(image), entry_of(image, platform), manifest_of(image, platform)
    change(manifest)
    new = made.put(manifest, old["mediaType"])

    def repoint(index: Json) -> None:
        for entry in index["manifests"]:
            if entry["digest"] == old["digest"] and name_of(entry) == platform:
                entry.update(digest=new["digest"], size=new["size"])
            elif entry.get("annotations", {}).get(REFERENCE) == old["digest"]:
                entry["annotations"][REFERENCE] = new["digest"]

    return with_index(made, repoint)


def with_config(image: Memory, platform: str, change: Change) -> Memory:
    """The image with another configuration in one platform."""
    made, manifest = copy(image), manifest_of(image, platform)
    config = load(image, manifest["config"]["digest"])
    change(config)
    new = made.put(config, manifest["config"]["mediaType"])
    return with_manifest(made, platform, lambda document: document.update(config=new))


def starting(image: Memory, platform: str, **start: object) -> Memory:
    """The image with other words for what it starts: Entrypoint, Cmd, Env, User."""
    return with_config(image, platform, lambda config: config["config"].update(start))


def with_layers(image: Memory, platform: str, tars: Mapping[int, bytes]) -> Memory:
    """The image with other layers in one platform, by their numbers; the next number is one more."""
    made = copy(image)
    blobs = {at: made.put(gzip.compress(tar, 1, mtime=0), LAYER_GZIP) for at, tar in tars.items()}
    diff_ids = {at: str(Digest.from_bytes(tar)) for at, tar in tars.items()}
    made = with_config(made, platform, lambda config: _place(config["rootfs"]["diff_ids"], diff_ids))
    return with_manifest(made, platform, lambda manifest: _place(manifest["layers"], blobs))


def _place(items: list[object], new: Mapping[int, object]) -> None:
    for at, item in sorted(new.items()):
        items[at : at + 1] = [item]


def adding(
    image: Memory,
    platform: str,
    files: Mapping[str, bytes],
    others: Iterable[tarfile.TarInfo] = (),
) -> Memory:
    """The image with these files in one more layer on top."""
    return topped(image, platform, make_tar(files, others))


def topped(image: Memory, platform: str, tar: bytes) -> Memory:
    """The image with this archive as one more layer on top."""
    top = len(manifest_of(image, platform)["layers"])
    return with_layers(image, platform, {top: tar})


def replacing(
    image: Memory, platform: str, path: str, data: bytes | None = None, mode: int | None = None
) -> Memory:
    """The image with another content or mode of one file, in the layer that brought it."""
    tars = layers_of(image, platform)
    at = max(number for number, tar in enumerate(tars) if path in _names(tar))
    return with_layers(image, platform, {at: _rewritten(tars[at], path, data, mode)})


def removing(image: Memory, platform: str, *paths: str) -> Memory:
    """The image without these files: the layers that brought them no longer have them."""
    tars = enumerate(layers_of(image, platform))
    changed = {at: _without(tar, paths) for at, tar in tars if set(paths) & set(_names(tar))}
    assert changed, paths
    return with_layers(image, platform, changed)


def file_in(image: Memory, platform: str, path: str) -> bytes:
    """A regular file's content, from the highest layer that has it."""
    return next(found[path] for tar in layers_of(image, platform)[::-1] if path in (found := files_in(tar)))


def files_in(tar: bytes) -> dict[str, bytes]:
    """Every regular file of a layer."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {
            _plain(info.name): archive.extractfile(info).read()  # type: ignore[union-attr]
            for info in archive
            if info.isreg()
        }


def _names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return [_plain(name) for name in archive.getnames()]


def _plain(name: str) -> str:
    return name.removeprefix("./").rstrip("/")


def _rewritten(tar: bytes, path: str, data: bytes | None, mode: int | None) -> bytes:
    def change(info: tarfile.TarInfo, old: bytes) -> bytes | None:
        if _plain(info.name) != path:
            return old
        info.mode = info.mode if mode is None else mode
        return old if data is None else data

    return _filtered(tar, change)


def _without(tar: bytes, paths: Iterable[str]) -> bytes:
    gone = set(paths)
    return _filtered(tar, lambda info, old: None if _plain(info.name) in gone else old)


def _filtered(tar: bytes, change: Callable[[tarfile.TarInfo, bytes], bytes | None]) -> bytes:
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(tar)) as old,
        tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for info in old:
            file = old.extractfile(info) if info.isreg() else None
            data = change(info, file.read() if file else b"")
            if data is not None:
                info.size = len(data) if info.isreg() else info.size
                new.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return buffer.getvalue()


def single(image: Memory, platform: str) -> Memory:
    """The platform's manifest as the whole image, without an index."""
    entry = {key: value for key, value in entry_of(image, platform).items() if key != "platform"}
    return copy(image).point(entry)


__all__ = [
    "OCI_CONFIG",
    "REFERENCE",
    "adding",
    "copy",
    "entries",
    "entry_of",
    "file_in",
    "files_in",
    "joined",
    "layers_of",
    "load",
    "manifest_of",
    "name_of",
    "only",
    "read_archive",
    "removing",
    "replacing",
    "single",
    "starting",
    "topped",
    "with_config",
    "with_index",
    "with_layers",
    "with_manifest",
]
