"""Change one part of an image, and recompute every digest and size above it.

Images are not changed in place: each function returns a new :class:`MemoryImage`, in which references to
the changed document point to the new one. So the planted fault is the only fault.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping

from buildkit_tasks.oci.model import INDEX_TYPES, OCI_MANIFEST, Digest
from buildkit_tasks.oci.source import read_blob
from buildkit_tasks.oci.transports.oci_archive import OciArchive
from buildkit_tasks.platforms import Platform
from tests.support.oci import LAYER_GZIP, Json, MemoryImage, descriptor, make_tar

Change = Callable[[Json], object]
REFERENCE = "vnd.docker.reference.digest"  # annotation of an attestation: the digest of its image manifest


def read_archive(archive: OciArchive) -> MemoryImage:
    """Read an image in an OCI archive into memory."""
    memory = MemoryImage(root=archive.root_descriptor())
    pending = [archive.root_descriptor()]
    while pending:
        each = pending.pop()
        data = memory.blobs[str(each.digest)] = read_blob(archive, each, 64 << 20)
        document = json.loads(data) if each.media_type in (*INDEX_TYPES, OCI_MANIFEST) else {}
        children = [*document.get("manifests", ()), *document.get("layers", ())]
        children += [document["config"]] if "config" in document else []
        # Reading does not need the platform, and that of attestations (unknown/unknown) is invalid.
        pending += [descriptor({**entry, "platform": None}) for entry in children]
    return memory if archive.root_descriptor().media_type in INDEX_TYPES else _add_index(memory)


def _add_index(image: MemoryImage) -> MemoryImage:
    """Put a single manifest into an index, with the platform of its config."""
    root = image.root_descriptor()
    manifest = read_document(image, str(root.digest))
    config = read_document(image, manifest["config"]["digest"])
    platform = {key: config[key] for key in ("os", "architecture", "variant") if key in config}
    entry = {"mediaType": root.media_type, "digest": str(root.digest), "size": root.size}
    return image.set_index([{**entry, "platform": platform}])


def read_document(image: MemoryImage, digest: str) -> Json:
    """Return a JSON document of the image."""
    document: Json = json.loads(image.blobs[digest])
    return document


def index_entries(image: MemoryImage) -> list[Json]:
    """Return the entries of the image's index."""
    entries: list[Json] = read_document(image, str(image.root_descriptor().digest))["manifests"]
    return entries


def platform_name(entry: Json) -> str:
    """Return the normalized platform of an index entry; empty if it has none."""
    platform = entry.get("platform") or {}
    parts = [str(platform.get(key, "")) for key in ("os", "architecture", "variant")]
    return str(Platform.normalize(*parts)) if platform else ""


def find_entry(image: MemoryImage, platform: str) -> Json:
    """Return the platform's entry in the index."""
    return next(entry for entry in index_entries(image) if platform_name(entry) == platform)


def read_manifest(image: MemoryImage, platform: str) -> Json:
    """Return the platform's manifest."""
    return read_document(image, find_entry(image, platform)["digest"])


def layer_tars(image: MemoryImage, platform: str) -> list[bytes]:
    """Return the uncompressed archives of a platform's layers, the lowest first."""
    blobs = [image.blobs[layer["digest"]] for layer in read_manifest(image, platform)["layers"]]
    return [gzip.decompress(blob) if blob[:2] == b"\x1f\x8b" else blob for blob in blobs]


def copy_image(image: MemoryImage) -> MemoryImage:
    """Return a copy, whose blobs can be changed without changing the original."""
    return MemoryImage(blobs=dict(image.blobs), root=image.root)


def change_index(image: MemoryImage, change: Change) -> MemoryImage:
    """Return the image with a changed index."""
    copy, index = copy_image(image), read_document(image, str(image.root_descriptor().digest))
    change(index)
    return copy.set_root(copy.put(index, image.root_descriptor().media_type))


def select_platforms(image: MemoryImage, *platforms: str) -> MemoryImage:
    """Return the image with only these platforms, without attestations."""
    selected = [find_entry(image, platform) for platform in platforms]
    return change_index(image, lambda index: index.update(manifests=selected))


def change_manifest(image: MemoryImage, platform: str, change: Change) -> MemoryImage:
    """Return the image with a changed manifest of one platform; its attestations refer to the new one."""
    copy, old, manifest = copy_image(image), find_entry(image, platform), read_manifest(image, platform)
    change(manifest)
    new = copy.put(manifest, old["mediaType"])

    def update_references(index: Json) -> None:
        for entry in index["manifests"]:
            if entry["digest"] == old["digest"] and platform_name(entry) == platform:
                entry.update(digest=new["digest"], size=new["size"])
            elif entry.get("annotations", {}).get(REFERENCE) == old["digest"]:
                entry["annotations"][REFERENCE] = new["digest"]

    return change_index(copy, update_references)


def change_config(image: MemoryImage, platform: str, change: Change) -> MemoryImage:
    """Return the image with a changed configuration of one platform."""
    copy, manifest = copy_image(image), read_manifest(image, platform)
    config = read_document(image, manifest["config"]["digest"])
    change(config)
    new = copy.put(config, manifest["config"]["mediaType"])
    return change_manifest(copy, platform, lambda document: document.update(config=new))


def set_runtime_config(image: MemoryImage, platform: str, **values: object) -> MemoryImage:
    """Return the image with other values in the ``config`` object: Entrypoint, Cmd, Env, User."""
    return change_config(image, platform, lambda config: config["config"].update(values))


def replace_layers(image: MemoryImage, platform: str, tars: Mapping[int, bytes]) -> MemoryImage:
    """Return the image with other layers of one platform, by number; the next number adds a layer."""
    copy = copy_image(image)
    blobs = {number: copy.put(gzip.compress(tar, 1, mtime=0), LAYER_GZIP) for number, tar in tars.items()}
    diff_ids = {number: str(Digest.from_bytes(tar)) for number, tar in tars.items()}
    copy = change_config(copy, platform, lambda config: _set_items(config["rootfs"]["diff_ids"], diff_ids))
    return change_manifest(copy, platform, lambda manifest: _set_items(manifest["layers"], blobs))


def _set_items(items: list[object], new: Mapping[int, object]) -> None:
    for number, item in sorted(new.items()):
        items[number : number + 1] = [item]


def add_files(
    image: MemoryImage, platform: str, files: Mapping[str, bytes], others: Iterable[tarfile.TarInfo] = ()
) -> MemoryImage:
    """Return the image with one more layer, which has these files and other members."""
    return add_layer(image, platform, make_tar(files, others))


def add_layer(image: MemoryImage, platform: str, tar: bytes) -> MemoryImage:
    """Return the image with this archive as one more layer."""
    return replace_layers(image, platform, {len(read_manifest(image, platform)["layers"]): tar})


def replace_file(
    image: MemoryImage, platform: str, path: str, data: bytes | None = None, mode: int | None = None
) -> MemoryImage:
    """Return the image with other content or another mode of a file, in the highest layer that has it."""
    tars = layer_tars(image, platform)
    number = max(number for number, tar in enumerate(tars) if path in _member_names(tar))

    def change(info: tarfile.TarInfo, old: bytes) -> bytes | None:
        if _normalize_name(info.name) != path:
            return old
        info.mode = info.mode if mode is None else mode
        return old if data is None else data

    return replace_layers(image, platform, {number: _rewrite_tar(tars[number], change)})


def remove_files(image: MemoryImage, platform: str, *paths: str) -> MemoryImage:
    """Return the image without these files: they are removed from the layers, without whiteouts."""

    def change(info: tarfile.TarInfo, old: bytes) -> bytes | None:
        return None if _normalize_name(info.name) in paths else old

    tars = enumerate(layer_tars(image, platform))
    changed = {
        number: _rewrite_tar(tar, change) for number, tar in tars if set(paths) & set(_member_names(tar))
    }
    assert changed, paths
    return replace_layers(image, platform, changed)


def read_file(image: MemoryImage, platform: str, path: str) -> bytes:
    """Return a regular file's content, from the highest layer that has it."""
    layers = map(layer_files, reversed(layer_tars(image, platform)))
    return next(files[path] for files in layers if path in files)


def layer_files(tar: bytes) -> dict[str, bytes]:
    """Return the content of every regular file of a layer, by path."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {
            _normalize_name(info.name): archive.extractfile(info).read()  # type: ignore[union-attr]
            for info in archive
            if info.isreg()
        }


def _member_names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return [_normalize_name(name) for name in archive.getnames()]


def _normalize_name(name: str) -> str:
    return name.removeprefix("./").rstrip("/")


def _rewrite_tar(tar: bytes, change: Callable[[tarfile.TarInfo, bytes], bytes | None]) -> bytes:
    """Return the archive with each member changed, or removed if ``change`` returns None."""
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


def drop_index(image: MemoryImage, platform: str) -> MemoryImage:
    """Return an image whose root is the platform's manifest."""
    entry = {key: value for key, value in find_entry(image, platform).items() if key != "platform"}
    return copy_image(image).set_root(entry)
