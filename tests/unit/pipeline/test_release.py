from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

import pytest

from buildkit_tasks.config.images import settings_for_image
from buildkit_tasks.config.settings import Settings, load_settings
from buildkit_tasks.errors import LimitExceeded, MalformedImage, RegistryError, UsageError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.pipeline.images import ImageResolver
from buildkit_tasks.pipeline.parts_file import read_parts
from buildkit_tasks.pipeline.release import ReleaseService, ReleaseSpec
from buildkit_tasks.pipeline.runs import ImageRunner
from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import BuildResult, BuiltPlatform, Output, to_document
from tests.support.oci import (
    LAYER_GZIP,
    MemoryImage,
    flip,
    hello,
    platform_json,
    put_manifest,
    write_archive,
    write_layout_dir,
)
from tests.support.registry.fake import fake_registry
from tests.support.registry.pushing import Push, push
from tests.support.scripted import Scripted
from tests.unit.oci.transports.test_docker_archive import single_image

__all__ = ["push"]

FIRST_PART, SECOND_PART = (f"example.org/app@{Digest.from_bytes(text)}" for text in (b"one", b"two"))


@pytest.fixture
def releases(push: Push, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReleaseService:
    """Return the service with runners that fail: archives are pushed and verified without a program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("INVOKE_BUILDKIT_CACHE", str(tmp_path / "cache"))
    settings, commands = load_settings(), Scripted()
    resolver = ImageResolver(settings=settings, commands=commands)

    def refuse_engine(*_: object) -> NoReturn:
        raise AssertionError("no engine is needed")

    image_runner = ImageRunner(
        settings=settings,
        commands=commands,
        notify=print,
        resolver=resolver,
        get_engine=refuse_engine,
        open_containers=refuse_engine,
    )
    return ReleaseService(image_runner=image_runner, registry_options=push.options)


def make_spec(push: Push, *tags: str, verify: bool = False, platforms: tuple[str, ...] = ()) -> ReleaseSpec:
    names = [f"{push.server.host}/{tag}" for tag in tags]
    return ReleaseSpec.from_tags(names, tuple(map(Platform.parse, platforms)), verify_first=verify)


def test_access_to_every_repository(push: Push, releases: ReleaseService) -> None:
    host = push.server.host
    releases.check_access([f"{host}/a:1", f"{host}/a:2", f"{host}/b:1"])
    with pytest.raises(RegistryError, match="Connection refused"):
        releases.check_access([f"{host}/a:1", "127.0.0.1:1/b:1"])


def test_unreachable_registry_of_second_tag(push: Push, releases: ReleaseService, tmp_path: Path) -> None:
    path = write_archive(hello(), tmp_path / "image.tar")
    spec = ReleaseSpec.from_tags([f"{push.server.host}/a:1", "127.0.0.1:1/b:1"], (), verify_first=False)
    with pytest.raises(RegistryError, match="Connection refused"):
        releases.push(str(path), spec)
    assert push.server.repository("a").content["manifests"] == {}


# Archives


@pytest.mark.parametrize("form", ["oci-archive", "oci"])
def test_push_archive(push: Push, releases: ReleaseService, tmp_path: Path, form: str) -> None:
    memory = hello()
    path = (write_layout_dir if form == "oci" else write_archive)(memory, tmp_path / "image")
    result = releases.push(f"{form}:{path}", make_spec(push, "team/app:v1"))
    content = push.server.repository("team/app").content
    for digest, data in memory.blobs.items():
        assert content["blobs"].get(digest, content["manifests"].get(digest, ("", b"")))[1] == data
    assert push.server.tag_digest("team/app:v1") == str(memory.root_descriptor().digest) == result.digest
    assert result.ok
    assert [row.platform for row in result.platforms] == ["linux/amd64", "linux/arm64", "linux/arm/v7"]


def test_push_document_keys(push: Push, releases: ReleaseService, tmp_path: Path) -> None:
    path = write_archive(hello(), tmp_path / "image.tar")
    document = to_document(releases.push(str(path), make_spec(push, "team/app:v1")))
    assert list(document) == [
        "schema_version",
        "ok",
        "digest",
        "tags",
        "platforms",
        "verify",
        "run",
        "seconds",
    ]
    assert (document["ok"], document["verify"], document["run"]) == (True, None, None)
    assert list(document["tags"][0]) == ["ref", "digest", "previous", "moved"]
    assert document["platforms"][0]["digest"].startswith("sha256:")


def test_failed_verification(push: Push, releases: ReleaseService, tmp_path: Path) -> None:
    path = write_archive(hello(["linux/amd64"]), tmp_path / "image.tar")
    spec = make_spec(push, "team/app:v1", verify=True, platforms=("linux/amd64", "linux/arm64"))
    result = releases.push(str(path), spec)
    assert not result.ok
    assert result.verify is not None
    assert not result.verify.ok
    assert (result.tags, result.run) == ((), None)
    assert push.server.moved_tags == []


def test_corrupt_archive(push: Push, releases: ReleaseService, tmp_path: Path) -> None:
    memory = hello(["linux/amd64"])
    layer = next(key for key, data in memory.blobs.items() if data.startswith(b"\x1f\x8b"))
    memory.blobs[layer] = flip(memory.blobs[layer])
    path = write_archive(memory, tmp_path / "image.tar")
    with pytest.raises(MalformedImage):
        releases.push(str(path), make_spec(push, "team/app:v1"))
    assert push.server.moved_tags == []


def test_push_last_built(push: Push, releases: ReleaseService, tmp_path: Path) -> None:
    path = write_archive(hello(), tmp_path / "image.tar")
    record_last_built(releases, Output(type="oci", dest=str(path)))
    assert releases.push("", make_spec(push, "team/app:v1")).ok


@pytest.mark.parametrize(("output_type", "prefix"), [("registry", "docker://"), ("docker", "docker-daemon:")])
def test_push_from_store(
    output_type: str, prefix: str, push: Push, releases: ReleaseService, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{push.server.host}/team/app:v1"
    record_last_built(releases, Output(type=output_type, ref=name))
    opened: list[str] = []

    def open_image(_: ImageResolver, image: str) -> AbstractContextManager[Image]:
        opened.append(image)
        return contextlib.nullcontext(Image(hello()))

    monkeypatch.setattr(ImageResolver, "open", open_image)
    assert releases.push("", make_spec(push, "team/app:v2")).ok
    assert opened == [prefix + name]


def test_folder_is_not_pushed(push: Push, releases: ReleaseService) -> None:
    record_last_built(releases, Output(type="local", dest="out"))
    with pytest.raises(UsageError, match="is a local output directory") as excinfo:
        releases.push("", make_spec(push, "team/app:v1"))
    assert excinfo.value.hint == "inv build-multiarch --platform linux/386 -o type=oci,dest=dist/image.tar"
    assert push.server.received == []


def record_last_built(releases: ReleaseService, output: Output) -> None:
    platforms = (BuiltPlatform(platform="linux/386"),)
    releases.image_runner.resolver.record_last_built(
        BuildResult(digest="", outputs=(output,), platforms=platforms, builder="", bases="", seconds=0.0)
    )


def test_plan_push(push: Push, releases: ReleaseService, tmp_path: Path) -> None:
    memory = hello(["linux/amd64"])
    path = write_archive(memory, tmp_path / "image.tar")
    plan = releases.plan_push(str(path), make_spec(push, "team/app:v1", "other/app:v2", verify=True))
    host, digest = push.server.host, memory.root_descriptor().digest
    size = sum(len(memory.blobs[key]) for key in list(memory.blobs)[:2])
    assert plan.to_text().splitlines() == [
        f"would push 2 blobs ({size} bytes) and 2 manifests as {host}/team/app@{digest}",
        f"would verify and run docker://{host}/team/app@{digest} (linux/amd64)",
        f"would tag it {host}/team/app:v1",
        f"would tag it {host}/other/app:v2",
    ]
    assert plan.to_dict()["digest"] == str(digest)
    assert push.server.received == []


# Parts


def test_merge(push: Push, releases: ReleaseService) -> None:
    names = ("linux/amd64", "linux/arm64")
    parts = [push.reference(f"parts/x@{push.send(hello([name]), 'parts/x')}") for name in names]
    result = releases.merge(parts, make_spec(push, "team/app:v1", platforms=names[::-1]))
    assert push.server.tag_digest("team/app:v1") == result.digest
    assert [row.platform for row in result.platforms] == ["linux/arm64", "linux/amd64"]


def test_plan_merge(push: Push, releases: ReleaseService) -> None:
    part = push.reference(f"parts/x@{push.send(hello(['linux/amd64']), 'parts/x')}")
    before = len(push.server.received)
    plan = releases.plan_merge([part], make_spec(push, "team/app:v1"))
    assert f"would push an index of 1 parts as {push.server.host}/team/app@{plan.digest}" in plan.to_text()
    assert {request.method for request in push.server.received[before:]} == {"GET"}


# Tags and parts


def test_no_tag() -> None:
    with pytest.raises(UsageError, match="a push needs a tag"):
        ReleaseSpec.from_tags((), (), verify_first=True)


def test_digest_as_tag() -> None:
    with pytest.raises(UsageError, match="is not a valid tag"):
        ReleaseSpec.from_tags([FIRST_PART], (), verify_first=True)


def test_duplicate_tag() -> None:
    spec = ReleaseSpec.from_tags(["app", "docker.io/library/app:latest"], (), verify_first=True)
    assert spec.tags == (Reference.parse("app"),)


def parse_references(*texts: str) -> tuple[Reference, ...]:
    return tuple(map(Reference.parse, texts))


def test_parts_of_flags_and_files(tmp_path: Path) -> None:
    (tmp_path / "parts").write_text(f"# from CI\n\n{SECOND_PART}  # arm64\n", encoding="utf-8")
    assert read_parts([f"{FIRST_PART},"], [str(tmp_path / "parts")]) == parse_references(
        FIRST_PART, SECOND_PART
    )
    assert read_parts([f"{FIRST_PART},{SECOND_PART}", FIRST_PART], []) == parse_references(
        FIRST_PART, SECOND_PART
    )


def test_part_as_it_is_printed() -> None:
    assert read_parts([f"docker://{FIRST_PART},{SECOND_PART}"], []) == (
        Reference.parse(FIRST_PART),
        Reference.parse(SECOND_PART),
    )


def test_parts_of_reports(tmp_path: Path) -> None:
    name, digest = SECOND_PART.split("@")
    outputs = [{"type": "oci", "dest": "x"}, {"type": "registry", "ref": f"{name}:v1"}]
    reports = [
        {"ok": True, "digest": "", "outputs": [{"type": "registry", "ref": FIRST_PART}]},
        {"ok": True, "digest": digest, "outputs": outputs},
    ]
    path = tmp_path / "all.json"
    path.write_text("\n".join(json.dumps(report, indent=2) for report in reports), encoding="utf-8")
    (second,) = parse_references(f"{name}:v1@{digest}")
    assert read_parts([], [str(path)]) == (*parse_references(FIRST_PART), second)


def images_report(**parts: str) -> str:
    """Return the report of a build of several images; "" is a part whose build failed."""
    builds = {name: {"outputs": [{"ref": part}]} if part else None for name, part in parts.items()}
    return json.dumps({"images": [{"name": name, "build": build} for name, build in builds.items()]})


def test_parts_of_selected_image(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(images_report(web=FIRST_PART, tool=""), encoding="utf-8")
    (tmp_path / "b").write_text(
        images_report(tool=FIRST_PART) + images_report(web=SECOND_PART), encoding="utf-8"
    )
    files = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert read_parts([], files, "web") == parse_references(FIRST_PART, SECOND_PART)
    (tmp_path / "c").write_text(images_report(web=SECOND_PART, webmail=FIRST_PART), encoding="utf-8")
    assert read_parts([], [str(tmp_path / "c")], "web") == parse_references(SECOND_PART)
    with pytest.raises(UsageError, match="a: tool names no image in a registry"):
        read_parts([], files, "tool")
    with pytest.raises(UsageError, match="no part is of image 'nope'; the parts are of web, tool"):
        read_parts([], files, "nope")


def test_parts_of_two_images(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(images_report(web=FIRST_PART), encoding="utf-8")
    (tmp_path / "b").write_text(images_report(tool=SECOND_PART), encoding="utf-8")
    assert read_parts([], [str(tmp_path / "a")]) == parse_references(FIRST_PART)
    with pytest.raises(UsageError, match="the parts are of several images: web, tool") as excinfo:
        read_parts([], [str(tmp_path / "a"), str(tmp_path / "b")])
    assert excinfo.value.hint == "select one by --image"


def test_settings_for_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = '[[tool.buildkit-tasks.image]]\nname = "web"\nexpect = "this is web"\ntags = ["app:web"]\n'
    (tmp_path / "pyproject.toml").write_text(table, encoding="utf-8")
    settings = load_settings()
    assert (settings_for_image(settings, "web").expect, settings_for_image(settings, "web").tags) == (
        "this is web",
        ("app:web",),
    )
    assert settings_for_image(settings, "") == settings
    assert settings_for_image(Settings(), "web") == Settings()
    with pytest.raises(UsageError, match="there is no image 'nope' in the settings") as excinfo:
        settings_for_image(settings, "nope")
    assert excinfo.value.hint == "choose one of web"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"name": "web", "build": 7}]}', "web names no image in a registry"),
        ('{"images": [7]}', "no part is given"),
        ("\n", "is empty"),
        ('{"ok": false, "error": "no good\\n  try: x"}', "is the report of a failed build: no good$"),
        (
            '{"images": [{"name": "web", "build": null, "error": "no good"}]}',
            "parts: web is the report of a failed build: no good",
        ),
        ('{"outputs": [], "digest": ""}', "names no image in a registry"),
        ('{"outputs": [{"ref": "app:v1"}]}', "names no image in a registry"),
        ('{"outputs": 7}', "names no image in a registry"),
        ("{", "is not a report of build-multiarch"),
        ('{"outputs": [{"ref": "a@b"}]} []', "is not a report of build-multiarch"),
        ("UPPER@sha256:1", "is not a valid image reference"),
        ("# none yet", "no part is given"),
        ("{" * 100_000, "is not a report of build-multiarch"),
    ],
)
def test_invalid_parts_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "parts").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_parts([], [str(tmp_path / "parts")])


def test_unreadable_parts_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_parts([], [str(tmp_path / "none")])
    (tmp_path / "zeros").touch()
    os.truncate(tmp_path / "zeros", (64 << 20) + 1)
    with pytest.raises(LimitExceeded, match="larger than 64 MiB"):
        read_parts([], [str(tmp_path / "zeros")])
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_parts([], [str(tmp_path / "binary")])


@pytest.mark.parametrize(
    "tag", ["--privileged", "-t", "app:v1 --x", "https://example.org/app", "app:", "App"]
)
def test_invalid_tag(tag: str) -> None:
    with pytest.raises(UsageError):
        ReleaseSpec.from_tags([tag], (), verify_first=True)


# Other sources


def test_push_compressed_archive(push: Push, releases: ReleaseService, tmp_path: Path) -> None:
    memory = MemoryImage()
    noise = random.Random(5)  # noqa: S311 - bytes that cannot be compressed
    layers = [memory.put(noise.randbytes(1_500_000), LAYER_GZIP) for _ in range(6)]
    entry = put_manifest(memory, platform_json("linux/amd64"), layers)
    config = json.loads(memory.blobs[json.loads(memory.blobs[entry["digest"]])["config"]["digest"]])
    config["rootfs"] = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    entry = put_manifest(memory, config, layers)
    memory.set_index([{**entry, "platform": platform_json("linux/amd64")}])
    path = write_archive(memory, tmp_path / "image.tar")
    path.write_bytes(gzip.compress(path.read_bytes(), 1))
    result = releases.push(str(path), make_spec(push, "team/app:v1"))
    blobs = push.server.repository("team/app").content["blobs"]
    assert all(blobs[layer["digest"]][1] == memory.blobs[layer["digest"]] for layer in layers)
    assert push.server.tag_digest("team/app:v1") == result.digest


def test_push_docker_archive(push: Push, releases: ReleaseService, tmp_path: Path) -> None:
    path = single_image().write(tmp_path / "saved.tar")
    result = releases.push(f"docker-archive:{path}", make_spec(push, "team/app:v1"))
    assert result.ok
    assert len({request.connection for request in push.server.requests("PUT /upload/*")}) == 1


def test_push_from_registry(push: Push, releases: ReleaseService) -> None:
    memory = hello()
    with fake_registry() as other:
        reference = other.add_image(memory)
        result = releases.push(f"docker://{reference}", make_spec(push, "team/app:v1"))
    assert result.digest == str(memory.root_descriptor().digest) == push.server.tag_digest("team/app:v1")
