"""Fixture for pulls from a fake registry: anonymous, with recorded waits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.registry import open_registry
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.oci.source import read_blob
from tests.support.oci import LAYER_GZIP, MemoryImage, platform_json, put_manifest
from tests.support.registry.fake import FakeRegistry, fake_registry

LAYER = bytes(range(256)) * 4096  # 1 MiB


@dataclasses.dataclass
class Pull:
    """A registry and the options to access it; ``waits`` records the seconds of all waits."""

    server: FakeRegistry
    options: RegistryOptions
    waits: list[float] = dataclasses.field(default_factory=list)

    def read(self, reference: str) -> list[bytes]:
        """Return the verified layers of an image."""
        with open_registry(reference, options=self.options) as source:
            manifests = [Image(source).manifest(entry) for _, entry in Image(source).platform_manifests]
            return [read_blob(source, layer, 1 << 24) for each in manifests for layer in each.layers]

    def error(self, reference: str) -> RegistryError:
        """Return the error of a failing :meth:`read`."""
        with pytest.raises(RegistryError) as caught:
            self.read(reference)
        assert caught.value.exit_code == 4
        return caught.value


@pytest.fixture
def pull(tmp_path: Path) -> Iterator[Pull]:
    with fake_registry() as server:
        waits: list[float] = []
        options = RegistryOptions(
            environ={"DOCKER_CONFIG": str(tmp_path)}, certificate_dirs=(), sleep=waits.append
        )
        yield Pull(server=server, options=options, waits=waits)


def one_layer() -> MemoryImage:
    """Return an image with one layer of 1 MiB."""
    memory = MemoryImage()
    layer = memory.put(LAYER, LAYER_GZIP)
    entry = put_manifest(memory, platform_json("linux/amd64"), [layer])
    return memory.set_index([{**entry, "platform": platform_json("linux/amd64")}])
