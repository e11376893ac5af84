"""Limits on what is read of an image: images are untrusted input."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Maximum sizes and counts; sizes are bytes.

    ``document_bytes`` limits a manifest, an index and a config; ``layer_bytes`` and ``image_bytes`` are
    uncompressed sizes. ``compression_ratio`` is uncompressed to compressed size and applies only past
    ``ratio_threshold`` uncompressed bytes. ``entries`` limits the entries of one layer, ``nodes`` those
    that need more memory than a packed name: directories, executables, devices.
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
