"""Fixture for pushes to a fake registry: anonymous, with recorded waits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.copy.push import copy_image, tag_image
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.report.model import NamedTag
from tests.support.oci import MemoryImage
from tests.support.registry.fake import FakeRegistry, fake_registry


@dataclasses.dataclass
class Push:
    """A registry and the options to access it; ``waits`` records the seconds of all waits."""

    server: FakeRegistry
    options: RegistryOptions
    waits: list[float] = dataclasses.field(default_factory=list)

    def reference(self, name: str) -> Reference:
        """Return a reference to the registry."""
        return Reference.parse(f"{self.server.host}/{name}")

    def send(self, memory: MemoryImage, name: str = "team/app", jobs: int = 4) -> str:
        """Push an image by digest; return the digest."""
        root = copy_image(memory, self.reference(name), registry_options=self.options, jobs=jobs)
        return str(root.digest)

    def tag(self, digest: str, *tags: str, repository: str = "team/app") -> tuple[NamedTag, ...]:
        """Tag a pushed image."""
        image = self.reference(f"{repository}@{digest}")
        return tag_image(image, [self.reference(tag) for tag in tags], registry_options=self.options)

    def error(self, memory: MemoryImage, name: str = "team/app") -> RegistryError:
        """Return the error of a failing :meth:`send`."""
        with pytest.raises(RegistryError) as caught:
            self.send(memory, name)
        assert caught.value.exit_code == 4
        return caught.value

    def tag_error(self, digest: str, *tags: str) -> RegistryError:
        """Return the error of a failing :meth:`tag`."""
        with pytest.raises(RegistryError) as caught:
            self.tag(digest, *tags)
        assert caught.value.exit_code == 4
        return caught.value


@pytest.fixture
def push(tmp_path: Path) -> Iterator[Push]:
    with fake_registry() as server:
        waits: list[float] = []
        options = RegistryOptions(
            environ={"DOCKER_CONFIG": str(tmp_path)}, certificate_dirs=(), sleep=waits.append
        )
        yield Push(server=server, options=options, waits=waits)
