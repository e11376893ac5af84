from __future__ import annotations

import errno
import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest

from buildkit_tasks.cli.exit_codes import verify_exit_code
from buildkit_tasks.config.schema import ImageSettings
from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import EngineError, RegistryError, UsageError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import Descriptor
from buildkit_tasks.pipeline.images import ImageResolver
from buildkit_tasks.pipeline.last_build import RecordedImage
from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import BuildResult, BuiltPlatform, Check, Output, VerifyReport
from buildkit_tasks.verify.rootfs import RootfsVerifier
from tests.support.oci import MemoryImage, hello, write_archive
from tests.support.scripted import Scripted

ARM64 = Platform.parse("linux/arm64")


@pytest.fixture
def resolver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageResolver:
    """Return the resolver of an empty folder with an empty cache."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return ImageResolver(settings=Settings(cache=str(tmp_path / "cache")), commands=Scripted())


def make_result(*outputs: Output) -> BuildResult:
    return BuildResult(digest="", outputs=outputs, platforms=(), builder="b", bases="registry", seconds=0.0)


def test_nothing_built_yet(resolver: ImageResolver) -> None:
    with pytest.raises(UsageError, match="nothing was built here yet"):
        resolver.resolve("")
    assert resolver.resolve("docker://alpine") == "docker://alpine"


@pytest.mark.parametrize(
    ("outputs", "name"),
    [
        ((Output(type="oci", dest="a.tar"),), "oci-archive:{folder}/a.tar"),
        ((Output(type="local", dest="out"), Output(type="oci", dest="a.tar")), "oci-archive:{folder}/a.tar"),
        (
            (Output(type="registry", ref="r.example/a:1"), Output(type="docker", ref="a:1")),
            "docker-daemon:a:1",
        ),
        ((Output(type="docker", dest="a.tar"),), "docker-archive:{folder}/a.tar"),
        ((Output(type="oci", dest="out", unpacked=True),), "oci:{folder}/out"),
        ((Output(type="docker", dest="out", unpacked=True),), "oci:{folder}/out"),
        ((Output(type="local", dest="out"), Output(type="registry", ref="r/a:1")), "docker://r/a:1"),
        ((Output(type="tar", dest="a.tar"), Output(type="local", dest="out")), "dir:{folder}/out"),
    ],
)
def test_best_output(resolver: ImageResolver, outputs: tuple[Output, ...], name: str) -> None:
    resolver.record_last_built(make_result(*outputs))
    assert resolver.resolve("") == name.format(folder=Path.cwd())


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (Output(type="tar", dest="b.tar"), "wrote {folder}/b.tar, a tar archive of files"),
        (Output(type="image", ref="app:1"), "left app:1 in the store of the builder"),
        (None, "left the image in the store of the builder"),
        (
            Output(type="docker", ref="a:1-linux-arm64", only_platform="linux/arm64"),
            "separate image for each platform: docker-daemon:a:1-linux-arm64",
        ),
    ],
)
def test_unreadable_output(resolver: ImageResolver, output: Output | None, cause: str) -> None:
    resolver.record_last_built(make_result(Output(type="oci", dest="a.tar")))
    platforms = tuple(BuiltPlatform(platform=name) for name in ("linux/arm64", "linux/386"))
    unreadable = make_result(*filter(None, [output]))
    resolver.record_last_built(replace(unreadable, platforms=platforms))
    with pytest.raises(UsageError, match=re.escape(cause.format(folder=Path.cwd()))) as excinfo:
        resolver.resolve("")
    assert excinfo.value.hint == (
        "inv build-multiarch --platform linux/arm64,linux/386 -o type=oci,dest=dist/image.tar"
    )


def _refuse(reference: str) -> NoReturn:
    raise RegistryError(f"r.example has no {reference}", hint="docker login r.example")


def test_similar_name(resolver: ImageResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageResolver, "_open_registry_image", staticmethod(_refuse))
    resolver.record_last_built(make_result(Output(type="docker", ref="app:1")))
    images = (ImageSettings(name="web"), ImageSettings(name="tool"))
    resolver = replace(resolver, settings=replace(resolver.settings, images=images))
    for name, suggestion in [("app:1", "docker-daemon:app:1"), ("wep", "web"), ("other", "")]:
        with pytest.raises(RegistryError, match=f"r.example has no {name}") as excinfo, resolver.open(name):
            pass
        assert excinfo.value.message.endswith(f"; did you mean {suggestion}?" if suggestion else name)
        assert excinfo.value.hint == (None if suggestion else "docker login r.example")


def test_archive_in_unreadable_folder(resolver: ImageResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, **_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)  # root may read every folder
    message = r"dist/app\.tar cannot be read: Permission denied"
    with pytest.raises(UsageError, match=message), resolver.open("dist/app.tar"):
        pass


def test_failed_build(resolver: ImageResolver) -> None:
    resolver.record_last_built(make_result(Output(type="oci", dest="a.tar")))
    for _ in range(2):
        resolver.last_build.start([RecordedImage(platforms=("linux/386",))])
    with pytest.raises(UsageError, match=r"has not succeeded; the one before it is oci-archive:.*/a\.tar"):
        resolver.resolve("")


def test_one_of_several_platforms(resolver: ImageResolver) -> None:
    outputs = [Output(type="docker", ref=f"a:1-{name}", only_platform=name) for name in ("x", "y")]
    platforms = tuple(BuiltPlatform(platform=name) for name in ("x", "y"))
    archive = Output(type="oci", dest="a.tar")
    resolver.record_last_built(replace(make_result(*outputs, archive), platforms=platforms))
    assert resolver.resolve("").endswith("/a.tar")


@pytest.mark.parametrize(
    "data", [b"", b"oci-archive:/a.tar", b"{}", b'{"last": ["web"], "images": []}', b"[]"]
)
def test_damaged_record(resolver: ImageResolver, data: bytes) -> None:
    path = resolver.last_build.path
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(UsageError, match="nothing was built here yet"):
        resolver.resolve("")
    resolver.record_last_built(make_result(Output(type="oci", dest="a.tar")))
    assert resolver.resolve("").endswith("/a.tar")


def test_folder_name_is_bytes(resolver: ImageResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.fsdecode(b"caf\xe9"))
    folder.mkdir()
    monkeypatch.chdir(folder)
    resolver.record_last_built(make_result(Output(type="oci", dest="a.tar")))
    assert resolver.resolve("") == f"oci-archive:{Path.cwd()}/a.tar"


def test_platform_of_folder(resolver: ImageResolver) -> None:
    build_folder(resolver, "one", "linux/arm64")
    build_folder(resolver, "two", "linux/386")
    resolver.record_last_built(make_result(Output(type="oci", dest="a.tar")))
    for name, platform in (("one", "linux/arm64"), ("dir:two", "linux/386")):
        report = resolver.verify(name, ())
        assert [(row.platform, row.ok) for row in report.platforms] == [(platform, True)]
    report = resolver.verify("dir:one", [Platform.parse("linux/386")])
    assert {row.platform: row.ok for row in report.platforms} == {"linux/386": False, "linux/arm64": False}


def test_folder_is_built_again(resolver: ImageResolver) -> None:
    build_folder(resolver, "out", "linux/arm64")
    build_folder(resolver, "out", "linux/386")
    assert [row.platform for row in resolver.verify("out", ()).platforms] == ["linux/386"]
    build_folder(resolver, "out", "linux/arm64", "linux/386")  # in folders that are named after the platforms
    with pytest.raises(UsageError, match="cannot tell which platform the folder out was built for"):
        resolver.verify("out", ())


def build_folder(resolver: ImageResolver, name: str, *platforms: str) -> None:
    Path(name).mkdir(exist_ok=True)
    built = tuple(BuiltPlatform(platform=platform) for platform in platforms)
    resolver.record_last_built(replace(make_result(Output(type="local", dest=name)), platforms=built))


def test_last_build_made_several_images(resolver: ImageResolver) -> None:
    resolver.last_build.start([RecordedImage(name="web"), RecordedImage(name="tool")])
    with pytest.raises(UsageError, match="the last build here made several images: web, tool") as excinfo:
        resolver.resolve("")
    assert excinfo.value.hint == 'pass image="web"'


def test_last_built_per_folder(resolver: ImageResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver.record_last_built(make_result(Output(type="oci", dest="a.tar")))
    same_name = Path("other") / Path.cwd().name
    same_name.mkdir(parents=True)
    for folder in ("..", same_name.absolute()):
        monkeypatch.chdir(folder)
        with pytest.raises(UsageError):
            resolver.resolve("")


def test_verify_archive(resolver: ImageResolver) -> None:
    write_archive(hello(["linux/arm64"]), Path("a.tar"))
    report = resolver.verify("a.tar", (ARM64,))
    assert (report.ok, report.subject) == (True, "a.tar")


def test_verify_for_hosts(resolver: ImageResolver) -> None:
    write_archive(hello(["linux/arm64"]), Path("a.tar"))
    report = resolver.verify("a.tar", (), {Platform.parse("linux/amd64"): 3})
    check = report.platforms[0].checks[0]
    assert (check.name, check.ok) == ("for", False)
    assert "3 linux/amd64 nodes cannot start a.tar: it holds linux/arm64" in check.message
    assert check.hint.endswith(" build-multiarch --platform linux/arm64,linux/amd64")


def test_daemon_image_without_engine(resolver: ImageResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildkit_tasks.host.engine.find_tools", lambda _: None)
    monkeypatch.setattr("os.geteuid", lambda: 0)  # only root can start a private engine
    monkeypatch.setattr("buildkit_tasks.host.engine.private.list_missing_capabilities", list)
    with pytest.raises(EngineError, match="docker with buildx is not installed"):
        resolver.verify("docker-daemon:a:1", ())


# Time limits.


class StuckImage(MemoryImage):
    """An image whose blob ``stuck`` is never read to its end."""

    stuck = ""

    def open(self, descriptor: Descriptor) -> BinaryIO:
        while str(descriptor.digest) == self.stuck:
            pass
        return super().open(descriptor)


def stuck_image(*platforms: str) -> tuple[StuckImage, str]:
    """Return an image of these platforms with the last one's layer stuck, and that layer's digest."""
    image = StuckImage()
    image.blobs, image.root = (whole := hello(platforms)).blobs, whole.root
    entry = Image(image).platform_manifests[-1][1]
    image.stuck = str(Image(image).manifest(entry).layers[-1].digest)
    return image, image.stuck


def verify_stuck(resolver: ImageResolver, seconds: float, *expected: Platform) -> VerifyReport:
    image, _ = stuck_image("linux/amd64", "linux/arm64")
    limited = replace(
        resolver,
        settings=replace(resolver.settings, verify_timeout=seconds),
        open_sources={"oci:x": Image(image)},
    )
    return limited.verify("oci:x", expected)


@pytest.mark.parametrize("expected", [(), (ARM64,)])
def test_verify_timeout(resolver: ImageResolver, expected: tuple[Platform, ...]) -> None:
    report = verify_stuck(resolver, 0.2, *expected)
    assert not report.ok
    assert report.digest.startswith("sha256:")
    assert {verdict.platform for verdict in report.platforms} == {"linux/amd64", "linux/arm64"}
    (check,) = report.platforms[-1].checks
    _, digest = stuck_image("linux/amd64", "linux/arm64")
    assert (check.name, check.ok, check.expected) == ("timeout", False, "0.2 s")
    assert (
        f"not verified within 0.2 s, which ended while reading layer {digest} of linux/arm64" in check.message
    )
    assert check.hint.endswith("verify-arch oci:x --timeout 1")
    assert verify_exit_code(report) == 124


def test_timeout_of_local_output(resolver: ImageResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("linux_amd64", "linux_arm64"):
        Path(name, "bin").mkdir(parents=True)

    def check_platform(_: object, platform: Platform, *__: object) -> list[Check]:
        while platform == ARM64:
            pass
        return [Check(name="binaries", ok=True)]

    monkeypatch.setattr(RootfsVerifier, "check_platform", check_platform)
    limited = replace(resolver, settings=replace(resolver.settings, verify_timeout=0.2))
    first, second = limited.verify("dir:.", ()).platforms
    assert (first.platform, first.ok) == ("linux/amd64", True)
    assert [check.name for check in second.checks] == ["timeout"]


def test_timeout_of_silent_registry(resolver: ImageResolver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts, and never answers
        name = f"docker://127.0.0.1:{server.getsockname()[1]}/app:1"
        limited = replace(resolver, settings=replace(resolver.settings, verify_timeout=0.5))
        (verdict,) = limited.verify(name, ()).platforms
    assert verdict.platform == "unknown"
    assert verdict.checks[0].name == "timeout"
    assert f"ended while reading the index of {name}" in verdict.checks[0].message


def test_fast_verification_keeps_limit(resolver: ImageResolver) -> None:
    limited = replace(
        resolver,
        settings=replace(resolver.settings, verify_timeout=100.0),
        open_sources={"oci:x": Image(hello(["linux/arm64"]))},
    )
    assert limited.verify("oci:x", ()).ok
