from __future__ import annotations

from typing import Any

from buildkit_tasks.host.engine.sdk import available_manifests
from buildkit_tasks.platforms import Platform


def manifest(platform: str, digest: str, *, kind: str = "image", available: bool = True) -> dict[str, Any]:
    """Return an entry of Manifests in the engine's description of an image (API 1.48)."""
    names = zip(("os", "architecture", "variant"), platform.split("/"), strict=False)
    return {"ID": digest, "Kind": kind, "Available": available, "ImageData": {"Platform": dict(names)}}


def test_only_complete_platforms_are_available() -> None:
    manifests = [
        manifest("linux/amd64", "d1"),
        manifest("linux/arm/v7", "d2"),
        manifest("linux/arm64", "d3", available=False),
        manifest("unknown/unknown", "d4", kind="attestation"),
    ]
    assert available_manifests({"Manifests": manifests}) == {
        Platform.parse("linux/amd64"): "d1",
        Platform.parse("linux/arm/v7"): "d2",
    }
    assert available_manifests({}) == {}
