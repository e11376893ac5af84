"""Images as real tools write them: docker in both stores, buildx and skopeo."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.errors import EngineError, UsageError
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.export import export_image
from buildkit_tasks.host.engine.private import PrivateEnginePaths, ensure_private_engine, stop_private_engine
from buildkit_tasks.host.engine.sdk import connect_client
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.source import Source
from buildkit_tasks.oci.transports import find_local_output, open_image
from buildkit_tasks.oci.transports import tar_stream as rewind
from buildkit_tasks.oci.transports.directory import find_platform_dirs, walk_directory
from buildkit_tasks.oci.transports.docker_archive import DockerArchive, DockerLayoutArchive
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import PackageSet, install_packages
from buildkit_tasks.verify import verify
from tests.support.oci import (
    MemoryImage,
    add_platform,
    hello,
    make_tar,
    probe_program,
    single_platform_image,
    write_archive,
)
from tests.support.project import Project, program
from tests.support.registry import real as registry

THREE = ["linux/amd64", "linux/arm64", "linux/arm/v7"]
NAME = "buildkit-tasks-test/sources"
TOOLS = SubprocessRunner(dry_run_output=sys.stderr)


@pytest.fixture(scope="module")
def graph(engine: Engine) -> Iterator[Engine]:
    """An engine with the classic store, gone with its data afterwards."""
    assert engine.version
    settings, name = load_settings(), "graph-sources"
    try:
        yield ensure_private_engine(settings, TOOLS, lambda _: None, store="graph", name=name)
    except EngineError as error:
        pytest.skip(f"no private engine beside this one: {error}")
    stop_private_engine(settings, TOOLS, lambda _: None, name=name)
    assert not PrivateEnginePaths(cache_folder(settings), name).root.exists()


@pytest.fixture(scope="module")
def skopeo() -> Callable[..., None]:
    """Debian's skopeo, unpacked for the tests alone."""
    prefix = cache_folder(load_settings()) / "debian/skopeo"
    install_packages(
        prefix, [PackageSet(names=("skopeo",), suite="host", with_dependencies=True)], TOOLS, lambda _: None
    )
    libraries = sorted({str(path.parent) for path in prefix.glob("usr/lib/*/*.so.*")})
    env = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}

    def copy(*argv: str) -> None:
        command = [str(prefix / "usr/bin/skopeo"), "--insecure-policy", "copy", *argv]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr

    return copy


def store(engine: Engine, archive: Path, *names: str) -> Iterator[None]:
    """Load an archive into the engine under these names; they are removed afterwards."""
    client = connect_client(engine)
    api: Any = client.api  # load_image has no types
    loaded = "".join(message.get("stream", "") for message in api.load_image(archive.read_bytes()))
    image = loaded.split("Loaded image: ")[1].strip()
    for name in names[1:]:
        api.tag(image, *name.rsplit(":", 1))
    yield
    for name in names:
        api.remove_image(name, force=True)
    client.close()


@pytest.fixture
def stored(engine: Engine, tmp_path: Path) -> Iterator[str]:
    """An image of three platforms in the containerd store, under two tags."""
    note = {"io.containerd.image.name": f"docker.io/{NAME}:1", "org.opencontainers.image.ref.name": "1"}
    archive = write_archive(hello(THREE), tmp_path / "load.tar", **note)
    yield from (f"{NAME}:1" for _ in store(engine, archive, f"{NAME}:1", f"{NAME}:latest"))


def save(engine: Engine, project: Project, *names: str) -> Path:
    """What `docker save` writes."""
    argv = [*engine.tools.docker, "save", "-o", "saved.tar", *names]
    done = project.with_env(**engine.env).command(*argv)
    assert done.code == 0, done.stderr
    return project.folder / "saved.tar"


def proves(source: Source, platforms: list[str]) -> bool:
    assert [str(platform) for platform, _ in Image(source).platform_manifests] == platforms
    report = verify(source, [], "x")
    assert report.ok, report
    return True


def members(path: Path) -> set[str]:
    with tarfile.open(path) as archive:
        return set(archive.getnames())


def test_containerd_store(engine: Engine, stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = hello(THREE).root_descriptor().digest
    export = partial(export_image, engine)
    for name in (stored, f"docker.io/{stored}", NAME, str(root), root.hex, f"{NAME}@{root}"):
        with open_image(f"docker-daemon:{name}", export=export) as source:
            assert source.root_descriptor().digest == root
            assert proves(source, THREE)
    monkeypatch.setattr(rewind, "_MAX_CACHED_MEMBER", 0)  # every blob by going through the stream again
    with open_image(f"docker-daemon:{stored}", export=export) as source:
        assert proves(source, THREE)


@pytest.mark.parametrize(
    "name", ["buildkit-tasks-test/none", "buildkit-tasks-test/none:1", "sha256:" + "0" * 64]
)
def test_missing_daemon_image(engine: Engine, name: str) -> None:
    with pytest.raises(UsageError, match=f"the engine has no image '{name}'") as caught:
        export_image(engine, name)
    assert caught.value.hint == f"docker pull {name}"


@pytest.mark.parametrize("name", ["../containers/json?x=", "a b", "--all", "", "X", "a/../../info"])
def test_invalid_name_is_not_sent(engine: Engine, name: str) -> None:
    with pytest.raises(UsageError):
        export_image(engine, name)


@pytest.mark.parametrize("packed", [False, True])
def test_docker_save_of_containerd_store(packed: bool, engine: Engine, stored: str, project: Project) -> None:
    path = save(engine, project, stored)
    assert {"index.json", "manifest.json"} <= members(path)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    for name in (f"docker-archive:{path}", f"docker-archive:{path}:{stored}", str(path)):
        with open_image(name) as source:
            assert isinstance(source.source, DockerLayoutArchive)
            assert source.root_descriptor().digest == hello(THREE).root_descriptor().digest
            assert proves(source, THREE)


@pytest.fixture
def partial_image(engine: Engine, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Pulls one platform of an image of three, whose bytes the engine has never had."""
    memory = MemoryImage()
    tars = {name: make_tar({"main": probe_program(name), "new": os.urandom(99)}) for name in THREE}
    memory.set_index([add_platform(memory, name, [tar], Cmd=["/main"]) for name, tar in tars.items()])
    client = connect_client(engine)
    with registry.serve(tmp_path) as host:
        registry.push(host, memory, "partial", "1")

        def pull(platform: str) -> str:
            client.api.pull(f"{host}/partial", tag="1", platform=platform)
            return f"{host}/partial:1"

        yield pull
        client.api.remove_image(f"{host}/partial:1", force=True)
    client.close()


def test_platform_not_pulled(engine: Engine, partial_image: Callable[[str], str]) -> None:
    own = str(engine.platform)
    with open_image(f"docker-daemon:{partial_image(own)}", export=partial(export_image, engine)) as source:
        found = {str(platform): source.is_missing(entry) for platform, entry in source.platform_manifests}
        assert found == {name: name != own for name in THREE}
        assert own in [verdict.platform for verdict in verify(source, [], "x").platforms if verdict.ok]


def test_unexportable_image(engine: Engine, partial_image: Callable[[str], str]) -> None:
    other = next(name for name in THREE if name != str(engine.platform))
    name = partial_image(other)
    with pytest.raises(UsageError, match=f"has {other} of .*, which it cannot export without") as caught:
        export_image(engine, name)
    assert caught.value.hint == f"docker pull --platform {engine.platform} {name}"
    partial_image(str(engine.platform))
    export_image(engine, name).close()


@pytest.fixture
def classic(graph: Engine, skopeo: Callable[..., None], tmp_path: Path) -> Iterator[str]:
    """An image of one platform, two layers, in the classic store, under two tags."""
    memory = single_platform_image(
        [make_tar({"main": probe_program("linux/arm64")}), make_tar({"data": b"x"})],
        "linux/arm64",
        Cmd=["/main"],
    )
    archive = write_archive(memory, tmp_path / "oci.tar")
    skopeo("--override-arch=arm64", f"oci-archive:{archive}", f"docker-archive:{tmp_path}/load.tar:{NAME}:1")
    yield from (f"{NAME}:1" for _ in store(graph, tmp_path / "load.tar", f"{NAME}:1", f"{NAME}:latest"))


def test_graphdriver_store(graph: Engine, classic: str) -> None:
    client = connect_client(graph)
    image = str(client.images.get(classic).id)
    client.close()
    for name in (classic, NAME, image, image.removeprefix("sha256:")[:12]):
        with open_image(f"docker-daemon:{name}", export=partial(export_image, graph)) as source:
            assert proves(source, ["linux/arm64"])
            (entry,) = source.entries
            assert not source.is_missing(entry.descriptor)
            assert str(source.manifest(entry.descriptor).config.digest) == image


def test_docker_save_of_graphdriver_store(graph: Engine, classic: str, project: Project) -> None:
    path = save(graph, project, classic, f"{NAME}:latest")
    for name in (
        f"docker-archive:{path}",
        f"docker-archive:{path}:{NAME}",
        f"docker-archive:{path}:@0",
        str(path),
    ):
        with open_image(name) as source:
            assert isinstance(source.source, DockerLayoutArchive)
            assert proves(source, ["linux/arm64"])


@pytest.mark.parametrize("packed", [False, True])
def test_skopeo_docker_archive(packed: bool, skopeo: Callable[..., None], tmp_path: Path) -> None:
    memory = hello(THREE)
    archive, path = write_archive(memory, tmp_path / "oci.tar"), tmp_path / "saved.tar"
    skopeo("--override-arch=arm64", f"oci-archive:{archive}", f"docker-archive:{path}:{NAME}:1")
    assert "index.json" not in members(path)
    with tarfile.open(path) as saved:
        assert any(info.issym() for info in saved)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    with open_image(str(archive)) as source:
        config = source.manifest(
            {str(platform): entry for platform, entry in source.platform_manifests}["linux/arm64"]
        ).config
    for name in (
        f"docker-archive:{path}",
        f"docker-archive:{path}:{NAME}:1",
        f"docker-archive:{path}:@0",
        str(path),
    ):
        with open_image(name) as source:
            assert isinstance(source.source, DockerArchive)
            assert proves(source, ["linux/arm64"])
            assert source.manifest(source.root_descriptor()).config.digest == config.digest


DOCKERFILE = """\
FROM scratch
ARG TARGETARCH
COPY files /
COPY hello-$TARGETARCH /usr/bin/hello
CMD ["/usr/bin/hello"]
"""


@pytest.fixture
def tiny(engine: Engine, project: Project) -> Project:
    assert engine.version
    files = {f"hello-{name}": program(f"linux/{name}") for name in ("amd64", "arm64")}
    project.write({"Dockerfile": DOCKERFILE, "files/etc/x": "x", **files})
    (project.folder / "files/absolute").symlink_to("/usr/bin/hello")
    (project.folder / "files/relative").symlink_to("usr/bin/hello")
    return project


def test_local_output_links(tiny: Project) -> None:
    tiny.json("build-multiarch", "--platform=linux/amd64,linux/arm64", "-o", "type=local,dest=out")
    path = find_local_output(f"dir:{tiny.folder}/out")
    assert path is not None
    assert (path / "linux_arm64/absolute").readlink() == Path("/linux_arm64/usr/bin/hello")
    found = find_platform_dirs(path)
    assert [str(platform) for platform, _ in found] == ["linux/amd64", "linux/arm64"]
    for platform, folder in found:
        entries = {entry.name: entry for entry in walk_directory(folder)}
        assert (entries["absolute"].target, entries["relative"].target) == ("/usr/bin/hello", "usr/bin/hello")
        with entries["usr/bin/hello"].open() as stream:
            assert stream.read() == program(str(platform))


def test_local_output_of_one_platform(tiny: Project) -> None:
    tiny.json("build-multiarch", "--platform=linux/arm64", "-o", "type=local,dest=out")
    path = tiny.folder / "out"
    assert find_platform_dirs(path) == ((None, path),)
    assert {entry.name: entry.target for entry in walk_directory(path)}["absolute"] == "/usr/bin/hello"


@pytest.mark.parametrize("artifact", ["false", "true"])
def test_attestation_subjects(artifact: str, tiny: Project) -> None:
    """In both forms; older builders know the first alone."""
    output = f"type=oci,dest=out.tar,oci-artifact={artifact}"
    tiny.json("build-multiarch", "--platform=linux/amd64,linux/arm64", "--provenance=mode=min", "-o", output)
    with open_image(f"oci-archive:{tiny.folder}/out.tar") as source:
        entries = source.entries
        assert [entry.kind.value for entry in entries] == ["image"] * 2 + ["attestation"] * 2
        stated = [source.attested_images(entry.descriptor) for entry in entries[2:]]
        assert stated == [(entry.descriptor.digest,) for entry in entries[:2]]
        assert proves(source, ["linux/amd64", "linux/arm64"])


def test_type_docker_archive(tiny: Project) -> None:
    tiny.json("build-multiarch", "--platform=linux/arm64", "-t", "a/b:1", "-o", "type=docker,dest=out.tar")
    path = tiny.folder / "out.tar"
    with tarfile.open(path) as archive:
        document = archive.extractfile("manifest.json")
        assert document is not None
        assert json.load(document)[0]["RepoTags"] == ["a/b:1"]
    for name in (str(path), f"docker-archive:{path}:a/b:1"):
        with open_image(name) as source:
            assert proves(source, ["linux/arm64"])
