from __future__ import annotations

import contextlib
import gzip
import io
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest

from buildkit_tasks.errors import MalformedImage, RegistryError, UsageError
from buildkit_tasks.oci.transports import find_local_output, open_image
from tests.support.oci import MemoryImage, hello, layout_files, make_tar, write_archive, write_layout_dir
from tests.support.unpacking import open_fds
from tests.support.zstd import zstd


def test_layout_and_archive(tmp_path: Path) -> None:
    memory = hello()
    folder = write_layout_dir(memory, tmp_path / "layout")
    file = write_archive(memory, tmp_path / "image.tar")
    for name in (f"oci:{folder}", f"oci-archive:{file}", str(folder), str(file)):
        with open_image(name) as source:
            assert source.root_descriptor().digest == memory.root_descriptor().digest
            assert len(source.platform_manifests) == 3


def test_name_after_path(tmp_path: Path) -> None:
    annotations = {"org.opencontainers.image.ref.name": "v1"}
    folder = write_layout_dir(hello(), tmp_path / "with:colon", **annotations)
    for name in (f"oci:{folder}", f"oci:{folder}:v1"):
        with open_image(name) as source:
            assert len(source.platform_manifests) == 3
    write_layout_dir(
        hello(["linux/amd64"]), tmp_path / "with", **annotations
    )  # the longer path still takes precedence
    with open_image(f"oci:{folder}") as source:
        assert len(source.platform_manifests) == 3
    (tmp_path / "with/index.json").unlink()
    (tmp_path / "with").rename(tmp_path / "gone")
    with pytest.raises(UsageError, match="no image named 'v2'"), open_image(f"oci:{folder}:v2") as source:
        source.root_descriptor()


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("docker-daemon:alpine:3", "a Docker engine"),
        ("docker-archive:x.tar", "x.tar does not exist"),
        ("dir:out", "local output"),
    ],
)
def test_unusable_name_has_hint(name: str, where: str) -> None:
    with pytest.raises(UsageError, match=where) as excinfo, open_image(name):
        pass
    assert "type=oci,dest=" in str(excinfo.value.hint)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("docker://alpine:3", "alpine:3"),
        ("alpine:latest", "alpine:latest"),
        ("alpine", "alpine"),
        ("docker:27", "docker:27"),
        ("localhost:5000/hello:v1", "localhost:5000/hello:v1"),
        ("a/b@sha256:" + "0" * 64, "a/b@sha256:" + "0" * 64),
    ],
)
def test_registry_reference(
    name: str, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    memory, requested = hello(), []

    def open_registry(text: str) -> AbstractContextManager[MemoryImage]:
        requested.append(text)
        return nullcontext(memory)

    with open_image(name, registry_opener=open_registry) as source:
        assert source.root is memory.root_descriptor()
    assert requested == [reference]


def test_no_file_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(MemoryImage):
        def root_descriptor(self) -> NoReturn:
            raise RegistryError("r.example cannot be reached", hint="curl r.example")

    monkeypatch.chdir(tmp_path)
    expected = {"app": "r.example cannot be reached; there is no file or folder 'app' either"}
    for name in ("app", "docker://app"):
        with (
            pytest.raises(RegistryError) as excinfo,
            open_image(name, registry_opener=lambda _: nullcontext(Unreachable())) as image,
        ):
            image.root_descriptor()
        assert excinfo.value.message == expected.get(name, "r.example cannot be reached")
        assert excinfo.value.hint == "curl r.example"


def test_default_registry_client() -> None:
    with pytest.raises(UsageError, match="is not a valid tag"), open_image("docker://x:!"):
        pass


def test_path_precedes_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    memory = hello()
    write_layout_dir(memory, tmp_path / "alpine")
    with open_image("alpine", registry_opener=refuse_open) as source:
        assert source.root_descriptor().digest == memory.root_descriptor().digest
    with (
        pytest.raises(AssertionError, match="opened alpine"),
        open_image("docker://alpine", registry_opener=refuse_open),
    ):
        pass


def refuse_open(text: str) -> NoReturn:
    raise AssertionError(f"opened {text}")


def test_docker_daemon_export() -> None:
    memory, requested = hello(), []

    def export(reference: str) -> BinaryIO:
        requested.append(reference)
        return io.BytesIO(make_tar(layout_files(memory)))

    with open_image("docker-daemon:a/b:1", export=export) as source:
        assert source.root_descriptor().digest == memory.root_descriptor().digest
    assert requested == ["a/b:1"]


@pytest.mark.parametrize(
    ("name", "cause", "hint"),
    [
        ("ostree://x", "transport 'ostree' is not supported", "oci-archive:"),
        ("docker:q:1", "unknown image name 'docker:q:1'", "docker-daemon:q:1 or docker://q:1"),
        ("image:q:1", "unknown image name", "docker-daemon:q:1 or docker://q:1"),
        ("podman:q:1", "unknown image name", "docker-daemon:q:1 or docker://q:1"),
        ("registry:r.example/q:1", "unknown image name", "docker://r.example/q:1"),
        ("docker-image://alpine", "unknown image name", "docker://alpine"),
        ("https://example.org/x", "unknown image name", "docker://example.org/x"),
        ("Docker://alpine", "unknown image name", "docker://alpine"),
        ("docker-deamon:q", "unknown image name", "docker-daemon:q"),
        ("oci-archve:dist/a.tar", "unknown image name", "oci-archive:dist/a.tar"),
        ("local:out/bin", "unknown image name", "dir:out/bin"),
        ("tar:out/a.tar", "unknown image name", "oci-archive:out/a.tar or docker-archive:out/a.tar"),
        ("oci-layout://dist/x", "unknown image name", "oci:dist/x"),
        ("oci://dist/x", "//dist/x does not exist", "oci:dist/x"),
        ("docker-daemon://q:1", "unknown image name", "docker-daemon:q:1"),
        ("containers-storage:x", "from containers-storage", "skopeo copy"),
        ("docker-daemon:", "needs an image name", "docker-daemon:NAME:TAG"),
        ("dir:", "has no path", "dir:DIR"),
        ("oci::x", ":x does not exist", "type=oci,tar=false,dest=:x"),
        ("oci:dist/nope", "dist/nope does not exist", "-o type=oci,tar=false,dest=dist/nope"),
        ("dist/nope.tar", "dist/nope.tar does not exist", "-o type=oci,dest=dist/nope.tar"),
        ("./my app.tar", "my app.tar does not exist", "-o 'type=oci,dest=./my app.tar'"),
        ("./a,b.tar", "a,b.tar does not exist", """-o 'type=oci,"dest=./a,b.tar"'"""),
        ("oci-archive:nope.tar:v1", "nope.tar does not exist", "-o type=oci,dest=nope.tar"),
        ("docker-archive:n.tar", "n.tar does not exist", "type=oci,dest=n.tar, then use oci-archive:n.tar"),
    ],
)
def test_invalid_names(name: str, cause: str, hint: str) -> None:
    with pytest.raises(UsageError, match=cause) as excinfo, open_image(name, registry_opener=refuse_open):
        pass
    assert hint in str(excinfo.value.hint)


def test_missing_local_output() -> None:
    with pytest.raises(UsageError, match="nowhere is not a directory") as excinfo:
        find_local_output("dir:nowhere")
    assert excinfo.value.hint == "inv build-multiarch -o type=local,dest=nowhere"


@pytest.mark.parametrize("prefix", ["docker://", "", "https://", "docker-daemon:", "registry:"])
@pytest.mark.parametrize("password", ["hunter2", "hun/ter2", "hun@ter2", "hunter2:"])
def test_login_in_name(prefix: str, password: str) -> None:
    name = f"{prefix}ci:{password}@host:5000/team/app:1"
    with pytest.raises(UsageError) as excinfo, open_image(name):
        pass
    assert excinfo.value.message == "'***@host:5000/team/app:1' contains a login, which an image name cannot"
    assert excinfo.value.hint == "docker login host:5000"


def test_forgotten_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_archive(hello(), tmp_path / "app.tar")
    (tmp_path / "dist").mkdir()
    write_archive(hello(), tmp_path / "dist/app.tar.gz")
    for name, cause, hint in (
        ("app", "app does not exist, but app.tar does", "app.tar"),
        ("dist/app.tar", r"dist/app\.tar does not exist", "inv build-multiarch"),
        ("dist/other", "there is no dist/other in the folder dist", "docker://dist/other for a registry"),
    ):
        with pytest.raises(UsageError, match=cause) as excinfo, open_image(name, registry_opener=refuse_open):
            pass
        assert str(excinfo.value.hint).startswith(hint)
    for name in ("dist/other:1", "team/app", "dist", "docker://dist/other"):
        with pytest.raises((AssertionError, UsageError), match=r"opened|local output"):
            open_image(name, registry_opener=refuse_open).__enter__()


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "é" * 300])
def test_impossible_paths(name: str) -> None:
    with pytest.raises(AssertionError, match="opened"), open_image(name, registry_opener=refuse_open):
        pass
    assert find_local_output(name) is None
    with pytest.raises(UsageError, match="does not exist"), open_image(f"oci:{name}"):
        pass


def test_archive_format_is_detected(tmp_path: Path) -> None:
    memory = hello()
    data = make_tar(layout_files(memory))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    (tmp_path / "odd").write_bytes(zstd.compress(data))
    for name in ("a.tar.gz", "odd"):
        for prefix in ("", "oci-archive:", "docker-archive:"):
            with open_image(f"{prefix}{tmp_path / name}") as source:
                assert source.root_descriptor().digest == memory.root_descriptor().digest
    (tmp_path / "files.tar").write_bytes(make_tar({"etc/passwd": b""}))
    with (
        pytest.raises(UsageError, match="is not an image: it has neither"),
        open_image(str(tmp_path / "files.tar")),
    ):
        pass


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    image_tar, other_tar = make_tar(layout_files(hello())), make_tar({"x": b""})
    before = open_fds()
    for data in (
        image_tar,
        gzip.compress(image_tar),
        other_tar,
        gzip.compress(other_tar),
        b"junk" * 500,
        gzip.compress(b"junk"),
    ):
        (tmp_path / "x.tar").write_bytes(data)
        for prefix in ("", "oci-archive:", "docker-archive:"):
            with (
                contextlib.suppress(UsageError, MalformedImage),
                open_image(f"{prefix}{tmp_path}/x.tar") as source,
            ):
                source.root_descriptor()
    assert open_fds() <= before


def test_find_local_output(tmp_path: Path) -> None:
    write_layout_dir(hello(), tmp_path / "layout")
    (tmp_path / "out/linux_amd64").mkdir(parents=True)
    out, layout = tmp_path / "out", tmp_path / "layout"
    assert find_local_output(str(out)) == find_local_output(f"dir:{out}") == out
    assert find_local_output(f"dir:{layout}") == layout  # dir: is not checked for a layout
    for name in (str(layout), f"oci:{layout}", "", "alpine", "docker://alpine"):
        assert find_local_output(name) is None
    with pytest.raises(UsageError, match="local output directory"), open_image(str(out)):
        pass
    with pytest.raises(UsageError, match="not a directory"):
        find_local_output("dir:nowhere")


@pytest.mark.parametrize("form", ["oci:{}", "oci-archive:{}", "{}"])
def test_missing_path(form: str, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.tar"
    with pytest.raises(UsageError, match=rf"{missing} does not exist"), open_image(form.format(missing)):
        pass


@pytest.mark.parametrize("name", ["", "oci:", "oci-archive:"])
def test_empty_name(name: str) -> None:
    with pytest.raises(UsageError, match=r"image name is empty|has no path"), open_image(name):
        pass


def test_wrong_transport_hint(tmp_path: Path) -> None:
    file = write_archive(hello(), tmp_path / "image.tar")
    for name, suggestion in (
        (f"oci-archive:{tmp_path}", f"oci:{tmp_path}"),
        (f"oci:{file}", f"oci-archive:{file}"),
    ):
        with pytest.raises(UsageError) as excinfo, open_image(name):
            pass
        assert suggestion in str(excinfo.value.hint)
