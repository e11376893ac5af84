"""A layer as the stream of its tar archive: its media type, its digests, its caps."""

from __future__ import annotations

from typing import Self

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.layers.decompress import GZIP, PLAIN, ZSTD, Inflated
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.oci.model import Descriptor, Digest, Manifest
from buildkit_tasks.oci.source import Hasher, Source, Verified

__all__ = ["LayerStream", "check_diff_id", "check_layer_count", "open_layer"]

_OCI = "application/vnd.oci.image.layer.v1.tar"
_OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_FORMS = {
    **dict.fromkeys((_OCI, _OCI_FOREIGN, _DOCKER, _DOCKER_FOREIGN), PLAIN),
    **dict.fromkeys((f"{_OCI}+gzip", f"{_OCI_FOREIGN}+gzip"), GZIP),
    **dict.fromkeys((f"{_DOCKER}.gzip", f"{_DOCKER_FOREIGN}.gzip"), GZIP),
    **dict.fromkeys((f"{_OCI}+zstd", f"{_OCI_FOREIGN}+zstd", f"{_DOCKER}.zstd"), ZSTD),
}


def open_layer(
    source: Source, layer: Descriptor, *, algorithm: str = "sha256", limits: Limits = LIMITS
) -> LayerStream:
    """A stream of the layer's tar archive.

    The blob's digest and size are checked once it has been read to its end; so are the caps on
    size and ratio while reading. Raises :class:`MalformedImage` if the media type is no layer's or
    the bytes are of another compression, :class:`LimitExceeded` for a bomb.
    """
    form = _FORMS.get(layer.media_type)
    if form is None:
        raise MalformedImage(f"layer {layer.digest} is {layer.media_type!r}, which is no known kind of layer")
    return LayerStream(Verified(source, layer), form, algorithm, limits)


def check_layer_count(manifest: Manifest, diff_ids: tuple[Digest, ...]) -> None:
    """Raise :class:`MalformedImage` unless there is one diff_id per layer."""
    if len(diff_ids) != len(manifest.layers):
        raise MalformedImage(
            f"the manifest has {len(manifest.layers)} layers, the config {len(diff_ids)} diff_ids"
        )


def check_diff_id(layer: Descriptor, found: Digest, stated: Digest) -> None:
    """Raise :class:`MalformedImage` unless the config states the diff_id that the layer has."""
    if found != stated:
        raise MalformedImage(
            f"layer {layer.digest} has the diff_id {found} uncompressed; the config states {stated}"
        )


class LayerStream(Inflated):
    """An uncompressed layer; :meth:`finish` reads what is left and gives its diff_id."""

    def __init__(self, blob: Verified, form: str, algorithm: str, limits: Limits) -> None:
        super().__init__(blob, "the layer", cap=limits.layer, form=form, limits=limits)
        self._blob = blob
        self._algorithm = algorithm
        self._hash = Hasher(algorithm)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the blob's stream."""
        self._hash.close()
        super().close()

    def finish(self) -> Digest:
        """Read to the end, so that everything has been checked; the digest of the tar archive."""
        while self._next():
            pass
        return Digest(f"{self._algorithm}:{self._hash.hexdigest()}")

    def check_blob(self) -> None:
        """Read the compressed rest: raises if the blob itself is not what its digest says."""
        while self._blob.read(1 << 20):
            pass

    def _next(self) -> bytes:
        piece = super()._next()
        self._hash.update(piece)
        return piece
