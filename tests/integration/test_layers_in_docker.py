"""Docker unpacks layers as the model does, which scanned and unpacked layers equal in the property tests."""

from __future__ import annotations

import contextlib
import io
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator

import pytest
from docker.errors import APIError
from docker.models.containers import Container
from hypothesis import HealthCheck, event, example, given, settings

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.sdk import connect_client
from tests.support.layer_model import Malformed, Model
from tests.support.layer_strategies import valid_images
from tests.support.oci import layout_files, make_tar, single_platform_image
from tests.support.unpacking import Entry, directory, file, hard_link, layer_tar, symlink

pytestmark = pytest.mark.interop

Nodes = dict[str, tuple[object, ...]]

NAMES = ("a", "b", "c", "l")  # none that Docker itself writes in a container
IMAGE = "docker.io/library/layers:1"
_ATTEMPTS = 5
_OF_DOCKER = {".dockerenv", "dev", "etc", "proc", "sys"}


class _CollectedMeanwhile(Exception):
    """containerd's collector has removed a layer that it was about to use."""


class Comparison:
    """Compares what Docker unpacks with the model; ``counts`` are the kinds of images so far."""

    def __init__(self, engine: Engine) -> None:
        self.client = connect_client(engine)
        self.counts: Counter[str] = Counter()

    def check(self, layers: list[list[Entry]]) -> None:
        try:
            model = Model(layers)
        except Malformed:
            model = None
        nodes = self.unpack(layers)
        if nodes is None:
            self.count("rejected by Docker")
            assert model is None or model.may_be_rejected
        elif model is None:
            self.count("rejected here only")
        else:
            self.count("equal")
            # The mode of a directory without an entry may be that of a hidden one of another layer.
            implied = dict.fromkeys(model.list_implied(), ("directory",))
            expected = {path: node for path, node in model.list_nodes().items() if node[0] != "fifo"}
            assert set(nodes) == set(expected)
            assert nodes | implied == expected | implied

    def count(self, kind: str) -> None:
        event(kind)
        self.counts[kind] += 1

    def unpack(self, layers: list[list[Entry]]) -> Nodes | None:
        """Return what a container of the image has, or None if Docker cannot unpack the layers."""
        memory = single_platform_image([layer_tar(*entries) for entries in layers], Cmd=["/x"])
        names = {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": "1"}
        (image,) = self.client.images.load(make_tar(layout_files(memory, **names), form=tarfile.USTAR_FORMAT))
        try:
            container = self.create_container()
        except APIError as error:
            if "failed to extract layer" not in str(error):
                raise
            return None
        else:
            exported = b"".join(container.export())  # type: ignore[arg-type]
            container.remove()
            return list_archive(exported)
        finally:
            image.remove(force=True)

    def create_container(self) -> Container:
        """Create a container; again if containerd has just removed what an image before had in common."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(_CollectedMeanwhile):
                return self.try_to_create()
        return self.client.containers.create(IMAGE)

    def try_to_create(self) -> Container:
        try:
            return self.client.containers.create(IMAGE)
        except APIError as error:
            if "parent snapshot" in str(error) and "not found" in str(error):
                raise _CollectedMeanwhile from error
            raise


def drop_rejected(layers: list[list[Entry]]) -> list[list[Entry]]:
    """Return the image without the entries that Docker or the sandbox may reject."""
    accepted: list[list[Entry]] = []
    for entries in layers:
        accepted.append([])
        for entry in entries:
            accepted[-1].append(entry)
            if not is_accepted(accepted):
                del accepted[-1][-1]
    return accepted


def is_accepted(layers: list[list[Entry]]) -> bool:
    try:
        return not Model(layers).may_be_rejected
    except Malformed:
        return False


def list_archive(data: bytes) -> Nodes:
    nodes: Nodes = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if member.name.split("/")[0] in _OF_DOCKER:
                continue
            if member.islnk():
                nodes[member.name] = nodes[member.linkname]
            if member.isdir():
                nodes[member.name] = ("directory", stat.S_IMODE(member.mode) & 0o1777)
            elif member.issym():
                nodes[member.name] = ("link", member.linkname)
            elif member.isreg():
                content = archive.extractfile(member)
                assert content is not None
                nodes[member.name] = ("file", content.read(), stat.S_IMODE(member.mode) & 0o777)
    return nodes


@pytest.fixture(scope="module")
def comparison(engine: Engine) -> Iterator[Comparison]:
    comparison = Comparison(engine)
    yield comparison
    comparison.client.close()


def test_mode_of_implied_directory(comparison: Comparison) -> None:
    nodes = comparison.unpack([[directory("a", mode=0o700)], [file("a/b")]])
    assert nodes == {"a": ("directory", 0o700), "a/b": ("file", b"", 0o755)}


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(layers=valid_images(NAMES))
@example([[directory("a", mode=0o700)], [file("a/b")]])
@example([[file("a/b")], [symlink("a", "/c"), directory("a")]])
@example([[file("a/b")], [file(".wh.a/.")]])
@example([[file("a/b")], [hard_link("c", "a/b")]])
def test_docker_equals_model(comparison: Comparison, layers: list[list[Entry]]) -> None:
    comparison.check(layers)


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(layers=valid_images(NAMES).map(drop_rejected))
def test_accepted_images_in_docker_equal_model(comparison: Comparison, layers: list[list[Entry]]) -> None:
    comparison.check(layers)


def test_most_images_are_compared(comparison: Comparison) -> None:
    assert comparison.counts["equal"] >= 300
