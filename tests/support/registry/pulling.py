"""How the rows about registries read an image: wholly, as a stranger, with waits that are only noted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.image import platform_manifests, read_manifest
from buildkit_tasks.oci.registry import open_registry
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.oci.source import read_blob
from tests.support.oci import LAYER_GZIP, Memory, platform_json, put_manifest
from tests.support.registry.hostile import Hostile, hostile

LAYER = bytes(range(256)) * 4096  # 1 MiB


@dataclasses.dataclass
class Bench:
    """A server and who we are to it; ``waits`` are the seconds that would have been slept."""

    server: Hostile
    access: RegistryOptions
    waits: list[float] = dataclasses.field(default_factory=list)

    def read(self, reference: str) -> list[bytes]:
        """The layers of an image, digests checked."""
        with open_registry(reference, options=self.access) as source:
            manifests = [read_manifest(source, entry) for _, entry in platform_manifests(source)]
            return [read_blob(source, layer, 1 << 24) for each in manifests for layer in each.layers]

    def refused(self, reference: str) -> RegistryError:
        with pytest.raises(RegistryError) as caught:
            self.read(reference)
        assert caught.value.exit_code == 4
        return caught.value


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with hostile() as server:
        waits: list[float] = []
        access = RegistryOptions(
            environ={"DOCKER_CONFIG": str(tmp_path)}, certificate_dirs=(), sleep=waits.append
        )
        yield Bench(server=server, access=access, waits=waits)


def one_layer() -> Memory:
    """An image with one layer of 1 MiB."""
    memory = Memory()
    layer = memory.put(LAYER, LAYER_GZIP)
    entry = put_manifest(memory, platform_json("linux/amd64"), [layer])
    return memory.index([{**entry, "platform": platform_json("linux/amd64")}])
