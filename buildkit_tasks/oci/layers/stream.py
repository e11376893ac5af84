"""Open a layer as the stream of its tar archive: media type, digests, size limits."""

from __future__ import annotations

from typing import Self

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.layers.decompress import GZIP, PLAIN, ZSTD, DecompressedStream
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.oci.model import Descriptor, Digest, Manifest
from buildkit_tasks.oci.source import Hasher, Source, VerifyingReader

__all__ = ["LayerStream", "check_diff_id", "check_layer_count", "open_layer"]

_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_OCI_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_COMPRESSION_BY_MEDIA_TYPE = {
    **dict.fromkeys((_OCI_LAYER, _OCI_NONDISTRIBUTABLE, _DOCKER_LAYER, _DOCKER_FOREIGN_LAYER), PLAIN),
    **dict.fromkeys((f"{_OCI_LAYER}+gzip", f"{_OCI_NONDISTRIBUTABLE}+gzip"), GZIP),
    **dict.fromkeys((f"{_DOCKER_LAYER}.gzip", f"{_DOCKER_FOREIGN_LAYER}.gzip"), GZIP),
    **dict.fromkeys((f"{_OCI_LAYER}+zstd", f"{_OCI_NONDISTRIBUTABLE}+zstd", f"{_DOCKER_LAYER}.zstd"), ZSTD),
}


def open_layer(
    source: Source, layer: Descriptor, *, algorithm: str = "sha256", limits: Limits = LIMITS
) -> LayerStream:
    """Return a stream of the layer's tar archive.

    The blob's size and digest are checked when its end is reached, the limits on size and ratio while
    reading. Raises :class:`MalformedImage` if the media type is not a layer's or does not match the
    compression of the data, :class:`LimitExceeded` for a decompression bomb.
    """
    compression = _COMPRESSION_BY_MEDIA_TYPE.get(layer.media_type)
    if compression is None:
        raise MalformedImage(
            f"layer {layer.digest}: {layer.media_type!r} is not a supported layer media type"
        )
    return LayerStream(VerifyingReader(source, layer), compression, algorithm, limits)


def check_layer_count(manifest: Manifest, diff_ids: tuple[Digest, ...]) -> None:
    """Raise :class:`MalformedImage` unless the config has one diff_id per layer."""
    if len(diff_ids) != len(manifest.layers):
        raise MalformedImage(
            f"the manifest has {len(manifest.layers)} layers, the config {len(diff_ids)} diff_ids"
        )


def check_diff_id(layer: Descriptor, actual: Digest, expected: Digest) -> None:
    """Raise :class:`MalformedImage` unless the layer has the diff_id that the config states."""
    if actual != expected:
        raise MalformedImage(
            f"layer {layer.digest} has the diff_id {actual}, but the config states {expected}"
        )


class LayerStream(DecompressedStream):
    """The uncompressed bytes of a layer, hashed for its diff_id."""

    def __init__(self, blob: VerifyingReader, compression: str, algorithm: str, limits: Limits) -> None:
        super().__init__(
            blob, "the layer", max_size=limits.layer_bytes, compression=compression, limits=limits
        )
        self._blob = blob
        self._algorithm = algorithm
        self._hasher = Hasher(algorithm)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the blob."""
        self._hasher.close()
        super().close()

    def finish(self) -> Digest:
        """Read to the end, which checks size and digest of the blob; return the layer's diff_id."""
        while self._next_chunk():
            pass
        return Digest(f"{self._algorithm}:{self._hasher.hexdigest()}")

    def verify_blob(self) -> None:
        """Read the remaining compressed bytes; raise :class:`MalformedImage` if the digest does not match."""
        while self._blob.read(1 << 20):
            pass

    def _next_chunk(self) -> bytes:
        chunk = super()._next_chunk()
        self._hasher.update(chunk)
        return chunk
