"""Images that real tools write: docker with both image stores, buildx and skopeo."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.errors import UsageError
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.export import export_image
from buildkit_tasks.host.engine.sdk import connect_client
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.source import Source
from buildkit_tasks.oci.transports import find_local_output, open_image, tar_stream
from buildkit_tasks.oci.transports.directory import find_platform_dirs, walk_directory
from buildkit_tasks.oci.transports.docker_archive import DockerArchive, DockerLayoutArchive
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import PackageSet, install_packages
from buildkit_tasks.verify import verify
from tests.integration.hello_image import hello_programs
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


@pytest.fixture(scope="module")
def skopeo_copy() -> Callable[..., None]:
    """``skopeo copy``, with Debian's skopeo unpacked into the cache directory."""
    prefix = cache_folder(load_settings()) / "debian/skopeo"
    packages = PackageSet(names=("skopeo",), suite="host", with_dependencies=True)
    install_packages(prefix, [packages], SubprocessRunner(dry_run_output=sys.stderr), lambda _: None)
    libraries = sorted({str(path.parent) for path in prefix.glob("usr/lib/*/*.so.*")})
    env = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}

    def copy(*argv: str) -> None:
        command = [str(prefix / "usr/bin/skopeo"), "--insecure-policy", "copy", *argv]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr

    return copy


@contextmanager
def load_archive(engine: Engine, archive: Path) -> Iterator[str]:
    """Load an archive of ``NAME:1`` into the engine, tag it ``NAME:latest`` too, and yield ``NAME:1``."""
    client = connect_client(engine)
    api: Any = client.api  # load_image has no types
    output = "".join(message.get("stream", "") for message in api.load_image(archive.read_bytes()))
    api.tag(output.split("Loaded image: ")[1].strip(), NAME, "latest")
    yield f"{NAME}:1"
    for tag in ("1", "latest"):
        api.remove_image(f"{NAME}:{tag}", force=True)
    client.close()


@pytest.fixture
def stored_image(engine: Engine, tmp_path: Path) -> Iterator[str]:
    """An image of three platforms in the containerd store, with two tags."""
    names = {"io.containerd.image.name": f"docker.io/{NAME}:1", "org.opencontainers.image.ref.name": "1"}
    with load_archive(engine, write_archive(hello(THREE), tmp_path / "load.tar", **names)) as name:
        yield name


def docker_save(engine: Engine, project: Project, *names: str) -> Path:
    """Run ``docker save``, and return the path of the archive."""
    argv = [*engine.tools.docker, "save", "-o", "saved.tar", *names]
    done = project.with_env(**engine.env).command(*argv)
    assert done.code == 0, done.stderr
    return project.folder / "saved.tar"


def assert_verified(source: Source, platforms: list[str]) -> None:
    """Check that an image has exactly these platforms and passes verification."""
    assert [str(platform) for platform, _ in Image(source).platform_manifests] == platforms
    report = verify(source, [], "x")
    assert report.ok, report


def member_names(path: Path) -> set[str]:
    with tarfile.open(path) as archive:
        return set(archive.getnames())


def gzip_in_place(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def test_containerd_store(engine: Engine, stored_image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = hello(THREE).root_descriptor().digest
    export = partial(export_image, engine)
    for name in (stored_image, f"docker.io/{stored_image}", NAME, str(root), root.hex, f"{NAME}@{root}"):
        with open_image(f"docker-daemon:{name}", export=export) as source:
            assert source.root_descriptor().digest == root
            assert_verified(source, THREE)
    monkeypatch.setattr(tar_stream, "_MAX_CACHED_MEMBER", 0)  # read the stream again for each blob
    with open_image(f"docker-daemon:{stored_image}", export=export) as source:
        assert_verified(source, THREE)


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


@pytest.mark.parametrize("compressed", [False, True])
def test_docker_save_of_containerd_store(
    compressed: bool, engine: Engine, stored_image: str, project: Project
) -> None:
    path = docker_save(engine, project, stored_image)
    assert {"index.json", "manifest.json"} <= member_names(path)
    if compressed:
        gzip_in_place(path)
    for name in (f"docker-archive:{path}", f"docker-archive:{path}:{stored_image}", str(path)):
        with open_image(name) as source:
            assert isinstance(source.source, DockerLayoutArchive)
            assert source.root_descriptor().digest == hello(THREE).root_descriptor().digest
            assert_verified(source, THREE)


@pytest.fixture
def partial_image(engine: Engine, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Pull one platform of an image of three whose layers the engine does not have."""
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
    native = str(engine.platform)
    with open_image(f"docker-daemon:{partial_image(native)}", export=partial(export_image, engine)) as source:
        missing = {str(platform): source.is_missing(entry) for platform, entry in source.platform_manifests}
        assert missing == {name: name != native for name in THREE}
        assert native in [verdict.platform for verdict in verify(source, [], "x").platforms if verdict.ok]


def test_unexportable_image(engine: Engine, partial_image: Callable[[str], str]) -> None:
    other = next(name for name in THREE if name != str(engine.platform))
    name = partial_image(other)
    with pytest.raises(UsageError, match=f"has {other} of .*, which it cannot export without") as caught:
        export_image(engine, name)
    assert caught.value.hint == f"docker pull --platform {engine.platform} {name}"
    partial_image(str(engine.platform))
    export_image(engine, name).close()


@pytest.fixture
def classic_image(graph_engine: Engine, skopeo_copy: Callable[..., None], tmp_path: Path) -> Iterator[str]:
    """An image of one platform with two layers in the classic store, with two tags."""
    memory = single_platform_image(
        [make_tar({"main": probe_program("linux/arm64")}), make_tar({"data": b"x"})],
        "linux/arm64",
        Cmd=["/main"],
    )
    archive = write_archive(memory, tmp_path / "oci.tar")
    skopeo_copy(
        "--override-arch=arm64", f"oci-archive:{archive}", f"docker-archive:{tmp_path}/load.tar:{NAME}:1"
    )
    with load_archive(graph_engine, tmp_path / "load.tar") as name:
        yield name


def test_graphdriver_store(graph_engine: Engine, classic_image: str) -> None:
    client = connect_client(graph_engine)
    image = str(client.images.get(classic_image).id)
    client.close()
    for name in (classic_image, NAME, image, image.removeprefix("sha256:")[:12]):
        with open_image(f"docker-daemon:{name}", export=partial(export_image, graph_engine)) as source:
            assert_verified(source, ["linux/arm64"])
            (entry,) = source.entries
            assert not source.is_missing(entry.descriptor)
            assert str(source.manifest(entry.descriptor).config.digest) == image


def test_docker_save_of_graphdriver_store(graph_engine: Engine, classic_image: str, project: Project) -> None:
    path = docker_save(graph_engine, project, classic_image, f"{NAME}:latest")
    for name in (
        f"docker-archive:{path}",
        f"docker-archive:{path}:{NAME}",
        f"docker-archive:{path}:@0",
        str(path),
    ):
        with open_image(name) as source:
            assert isinstance(source.source, DockerLayoutArchive)
            assert_verified(source, ["linux/arm64"])


@pytest.mark.parametrize("compressed", [False, True])
def test_skopeo_docker_archive(compressed: bool, skopeo_copy: Callable[..., None], tmp_path: Path) -> None:
    memory = hello(THREE)
    archive, path = write_archive(memory, tmp_path / "oci.tar"), tmp_path / "saved.tar"
    skopeo_copy("--override-arch=arm64", f"oci-archive:{archive}", f"docker-archive:{path}:{NAME}:1")
    assert "index.json" not in member_names(path)
    with tarfile.open(path) as saved:
        assert any(info.issym() for info in saved)
    if compressed:
        gzip_in_place(path)
    with open_image(str(archive)) as source:
        manifests = {str(platform): entry for platform, entry in source.platform_manifests}
        config = source.manifest(manifests["linux/arm64"]).config
    for name in (
        f"docker-archive:{path}",
        f"docker-archive:{path}:{NAME}:1",
        f"docker-archive:{path}:@0",
        str(path),
    ):
        with open_image(name) as source:
            assert isinstance(source.source, DockerArchive)
            assert_verified(source, ["linux/arm64"])
            assert source.manifest(source.root_descriptor()).config.digest == config.digest


DOCKERFILE = """\
FROM scratch
ARG TARGETARCH
COPY files /
COPY hello-$TARGETARCH /usr/bin/hello
CMD ["/usr/bin/hello"]
"""


@pytest.fixture
def links_project(engine: Engine, project: Project) -> Project:
    """A Dockerfile that copies an absolute and a relative symbolic link."""
    assert engine.version
    project.write({"Dockerfile": DOCKERFILE, "files/etc/x": "x", **hello_programs()})
    (project.folder / "files/absolute").symlink_to("/usr/bin/hello")
    (project.folder / "files/relative").symlink_to("usr/bin/hello")
    return project


def test_local_output_links(links_project: Project) -> None:
    links_project.json("build-multiarch", "--platform=linux/amd64,linux/arm64", "-o", "type=local,dest=out")
    path = find_local_output(f"dir:{links_project.folder}/out")
    assert path is not None
    assert (path / "linux_arm64/absolute").readlink() == Path("/linux_arm64/usr/bin/hello")
    platform_dirs = find_platform_dirs(path)
    assert [str(platform) for platform, _ in platform_dirs] == ["linux/amd64", "linux/arm64"]
    for platform, folder in platform_dirs:
        entries = {entry.name: entry for entry in walk_directory(folder)}
        assert (entries["absolute"].target, entries["relative"].target) == ("/usr/bin/hello", "usr/bin/hello")
        with entries["usr/bin/hello"].open() as stream:
            assert stream.read() == program(str(platform))


def test_local_output_of_one_platform(links_project: Project) -> None:
    links_project.json("build-multiarch", "--platform=linux/arm64", "-o", "type=local,dest=out")
    path = links_project.folder / "out"
    assert find_platform_dirs(path) == ((None, path),)
    assert {entry.name: entry.target for entry in walk_directory(path)}["absolute"] == "/usr/bin/hello"


@pytest.mark.parametrize("artifact", ["false", "true"])
def test_attestation_subjects(artifact: str, links_project: Project) -> None:
    """Attestations as image manifests, and as OCI artifacts, which older builders cannot write."""
    output = f"type=oci,dest=out.tar,oci-artifact={artifact}"
    links_project.json(
        "build-multiarch", "--platform=linux/amd64,linux/arm64", "--provenance=mode=min", "-o", output
    )
    with open_image(f"oci-archive:{links_project.folder}/out.tar") as source:
        entries = source.entries
        assert [entry.kind.value for entry in entries] == ["image"] * 2 + ["attestation"] * 2
        subjects = [source.attested_images(entry.descriptor) for entry in entries[2:]]
        assert subjects == [(entry.descriptor.digest,) for entry in entries[:2]]
        assert_verified(source, ["linux/amd64", "linux/arm64"])


def test_type_docker_archive(links_project: Project) -> None:
    links_project.json(
        "build-multiarch", "--platform=linux/arm64", "-t", "a/b:1", "-o", "type=docker,dest=out.tar"
    )
    path = links_project.folder / "out.tar"
    with tarfile.open(path) as archive:
        document = archive.extractfile("manifest.json")
        assert document is not None
        assert json.load(document)[0]["RepoTags"] == ["a/b:1"]
    for name in (str(path), f"docker-archive:{path}:a/b:1"):
        with open_image(name) as source:
            assert_verified(source, ["linux/arm64"])
