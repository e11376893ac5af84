"""How much of an image is read before it is refused: images are hostile input."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The caps; sizes are bytes.

    ``document`` bounds a manifest, an index and a config; ``layer`` and ``image`` are uncompressed
    sizes; ``ratio`` is uncompressed to compressed and counts past ``ratio_free`` bytes only. Of a
    layer's ``entries`` at most ``nodes`` may be anything but plain files.
    """

    document_bytes: int = 4 << 20
    layers: int = 512
    manifests: int = 1000
    entries: int = 5_000_000
    nodes: int = 1_000_000
    layer_bytes: int = 20 << 30
    image_bytes: int = 50 << 30
    compression_ratio: int = 1100
    ratio_threshold: int = 64 << 20
    zstd_window_log: int = 26


LIMITS = Limits()
