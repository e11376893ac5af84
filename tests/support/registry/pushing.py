"""How the rows about registries push an image: into a server that can be told to misbehave."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.copy import push as publish
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.report.model import NamedTag
from tests.support.oci import Memory
from tests.support.registry.hostile import Hostile, hostile


@dataclasses.dataclass
class Push:
    """A server and who we are to it; ``waits`` are the seconds that would have been slept."""

    server: Hostile
    access: RegistryOptions
    waits: list[float] = dataclasses.field(default_factory=list)

    def at(self, name: str) -> Reference:
        """A reference into the server."""
        return Reference.parse(f"{self.server.host}/{name}")

    def send(self, memory: Memory, name: str = "team/app", jobs: int = 4) -> str:
        """Put an image into a repository; gives its digest."""
        root = publish.copy_image(memory, self.at(name), registry_options=self.access, jobs=jobs)
        return str(root.digest)

    def name(self, digest: str, *tags: str, repository: str = "team/app") -> tuple[NamedTag, ...]:
        """Name what is there."""
        at = self.at(f"{repository}@{digest}")
        return publish.tag_image(at, [self.at(tag) for tag in tags], registry_options=self.access)

    def refused(self, memory: Memory, name: str = "team/app") -> RegistryError:
        with pytest.raises(RegistryError) as caught:
            self.send(memory, name)
        assert caught.value.exit_code == 4
        return caught.value

    def unnamed(self, digest: str, *tags: str) -> RegistryError:
        with pytest.raises(RegistryError) as caught:
            self.name(digest, *tags)
        assert caught.value.exit_code == 4
        return caught.value


@pytest.fixture
def push(tmp_path: Path) -> Iterator[Push]:
    with hostile() as server:
        waits: list[float] = []
        access = RegistryOptions(
            environ={"DOCKER_CONFIG": str(tmp_path)}, certificate_dirs=(), sleep=waits.append
        )
        yield Push(server=server, access=access, waits=waits)
