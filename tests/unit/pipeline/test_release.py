from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import NoReturn

import pytest

from buildkit_tasks.config.images import settings_for_image
from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.pipeline.images import ImageResolver
from buildkit_tasks.pipeline.parts_file import read_parts
from buildkit_tasks.pipeline.release import ReleaseService, ReleaseSpec
from buildkit_tasks.pipeline.runs import ImageRunner
from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import to_document
from tests.support.registry.pushing import Push, push
from tests.support.oci import (
    LAYER_GZIP,
    Memory,
    flip,
    hello,
    platform_json,
    put_manifest,
    write_archive,
    write_folder,
)
from tests.support.registry.hostile import hostile
from tests.support.scripted import Scripted
from tests.unit.oci.transports.test_docker_archive import one

__all__ = ["push"]

ONE, TWO = (f"example.org/app@{Digest.from_bytes(text)}" for text in (b"one", b"two"))


@pytest.fixture
def releases(push: Push, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReleaseService:
    """Whatever starts a program fails here: an archive is pushed and verified without any."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("INVOKE_BUILDKIT_CACHE", str(tmp_path / "cache"))
    settings, run = load_settings(), Scripted()
    images = ImageResolver(settings=settings, commands=run)

    def needs_engine(*_: object) -> NoReturn:
        raise AssertionError("no engine is needed")

    runs = ImageRunner(
        settings=settings,
        commands=run,
        notify=print,
        resolver=images,
        get_engine=needs_engine,
        open_containers=needs_engine,
    )
    return ReleaseService(image_runner=runs, registry_options=push.options)


def release(push: Push, *tags: str, proved: bool = False, platforms: tuple[str, ...] = ()) -> ReleaseSpec:
    names = [f"{push.server.host}/{tag}" for tag in tags]
    return ReleaseSpec.from_tags(names, tuple(map(Platform.parse, platforms)), verify_first=proved)


# An archive


@pytest.mark.parametrize("form", ["oci-archive", "oci"])
def test_an_archive_arrives_byte_for_byte_and_is_named(
    push: Push, releases: ReleaseService, tmp_path: Path, form: str
) -> None:
    memory = hello()
    path = (write_folder if form == "oci" else write_archive)(memory, tmp_path / "image")
    result = releases.push(f"{form}:{path}", release(push, "team/app:v1"))
    found = push.server.repository("team/app").content
    for digest, data in memory.blobs.items():
        assert found["blobs"].get(digest, found["manifests"].get(digest, ("", b"")))[1] == data
    assert push.server.tag_digest("team/app:v1") == str(memory.root_descriptor().digest) == result.digest
    assert result.ok
    assert [row.platform for row in result.platforms] == ["linux/amd64", "linux/arm64", "linux/arm/v7"]


def test_the_document_of_a_push_has_the_keys_that_programs_read(
    push: Push, releases: ReleaseService, tmp_path: Path
) -> None:
    path = write_archive(hello(), tmp_path / "image.tar")
    told = to_document(releases.push(str(path), release(push, "team/app:v1")))
    assert list(told) == ["schema_version", "ok", "digest", "tags", "platforms", "verify", "run", "seconds"]
    assert (told["ok"], told["verify"], told["run"]) == (True, None, None)
    assert list(told["tags"][0]) == ["ref", "digest", "previous", "moved"]
    assert told["platforms"][0]["digest"].startswith("sha256:")


def test_what_does_not_hold_where_it_was_pushed_gets_no_name(
    push: Push, releases: ReleaseService, tmp_path: Path
) -> None:
    path = write_archive(hello(["linux/amd64"]), tmp_path / "image.tar")
    wanted = release(push, "team/app:v1", proved=True, platforms=("linux/amd64", "linux/arm64"))
    result = releases.push(str(path), wanted)
    assert not result.ok
    assert result.verify is not None
    assert not result.verify.ok
    assert (result.tags, result.run) == ((), None)
    assert push.server.moved_tags == []


def test_an_archive_with_a_flipped_byte_is_never_named(
    push: Push, releases: ReleaseService, tmp_path: Path
) -> None:
    memory = hello(["linux/amd64"])
    layer = next(key for key, data in memory.blobs.items() if data.startswith(b"\x1f\x8b"))
    memory.blobs[layer] = flip(memory.blobs[layer])
    path = write_archive(memory, tmp_path / "image.tar")
    with pytest.raises(MalformedImage):
        releases.push(str(path), release(push, "team/app:v1"))
    assert push.server.moved_tags == []


def test_without_a_name_what_was_built_last_is_meant(
    push: Push, releases: ReleaseService, tmp_path: Path
) -> None:
    path = write_archive(hello(), tmp_path / "image.tar")
    remember(releases, f"oci-archive:{path}")
    assert releases.push("", release(push, "team/app:v1")).ok


@pytest.mark.parametrize("last", ["docker://example.org/app:v1", "docker-daemon:app:v1", "dir:/tmp/out"])
def test_what_was_built_last_is_sent_from_a_file_alone(
    push: Push, releases: ReleaseService, last: str
) -> None:
    remember(releases, last)
    with pytest.raises(UsageError, match="is not an archive") as caught:
        releases.push("", release(push, "team/app:v1"))
    assert caught.value.hint == "inv push-multiarch ARCHIVE -t REF"
    assert push.server.received == []


def remember(releases: ReleaseService, name: str) -> None:
    record = releases.image_runner.resolver._last_built_file
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(name, encoding="utf-8")


def test_a_plan_says_what_would_be_put_where_and_asks_nobody(
    push: Push, releases: ReleaseService, tmp_path: Path
) -> None:
    memory = hello(["linux/amd64"])
    path = write_archive(memory, tmp_path / "image.tar")
    plan = releases.plan_push(str(path), release(push, "team/app:v1", "other/app:v2", proved=True))
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


def test_parts_become_one_image_with_a_name(push: Push, releases: ReleaseService) -> None:
    names = ("linux/amd64", "linux/arm64")
    parts = [push.reference(f"parts/x@{push.send(hello([name]), 'parts/x')}") for name in names]
    result = releases.merge(parts, release(push, "team/app:v1", platforms=names[::-1]))
    assert push.server.tag_digest("team/app:v1") == result.digest
    assert [row.platform for row in result.platforms] == ["linux/arm64", "linux/amd64"]


def test_a_plan_of_a_merge_only_reads(push: Push, releases: ReleaseService) -> None:
    part = push.reference(f"parts/x@{push.send(hello(['linux/amd64']), 'parts/x')}")
    before = len(push.server.received)
    plan = releases.plan_merge([part], release(push, "team/app:v1"))
    assert f"would push an index of 1 parts as {push.server.host}/team/app@{plan.digest}" in plan.to_text()
    assert {each.method for each in push.server.received[before:]} == {"GET"}


# Words


def test_a_push_without_a_tag_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no tag is given"):
        ReleaseSpec.from_tags((), (), verify_first=True)


def test_a_digest_is_no_tag() -> None:
    with pytest.raises(UsageError, match="is not a valid tag"):
        ReleaseSpec.from_tags([ONE], (), verify_first=True)


def test_a_tag_that_is_named_twice_is_named_once() -> None:
    found = ReleaseSpec.from_tags(["app", "docker.io/library/app:latest"], (), verify_first=True)
    assert found.tags == (Reference.parse("app"),)


def references(*texts: str) -> tuple[Reference, ...]:
    return tuple(map(Reference.parse, texts))


def test_parts_are_named_by_words_and_in_files(tmp_path: Path) -> None:
    (tmp_path / "parts").write_text(f"# from CI\n\n{TWO}  # arm64\n", encoding="utf-8")
    assert read_parts([f"{ONE},"], [str(tmp_path / "parts")]) == references(ONE, TWO)
    assert read_parts([f"{ONE},{TWO}", ONE], []) == references(ONE, TWO)


def test_reports_of_builds_name_parts_several_in_one_file_too(tmp_path: Path) -> None:
    name, digest = TWO.split("@")
    outputs = [{"type": "oci", "dest": "x"}, {"type": "registry", "ref": f"{name}:v1"}]
    reports = [
        {"ok": True, "digest": "", "outputs": [{"type": "registry", "ref": ONE}]},
        {"ok": True, "digest": digest, "outputs": outputs},
    ]
    path = tmp_path / "all.json"
    path.write_text("\n".join(json.dumps(each, indent=2) for each in reports), encoding="utf-8")
    (second,) = references(f"{name}:v1@{digest}")
    assert read_parts([], [str(path)]) == (*references(ONE), second)


def of_images(**parts: str) -> str:
    """What a build of several images tells; one without a part could not be built."""
    builds = {name: {"outputs": [{"ref": part}]} if part else None for name, part in parts.items()}
    return json.dumps({"images": [{"name": name, "build": build} for name, build in builds.items()]})


def test_of_several_images_parts_are_those_of_the_one_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(of_images(web=ONE, tool=""), encoding="utf-8")
    (tmp_path / "b").write_text(of_images(tool=ONE) + of_images(web=TWO), encoding="utf-8")
    files = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert read_parts([], files, "web") == references(ONE, TWO)
    with pytest.raises(UsageError, match="a: tool names no image in a registry"):
        read_parts([], files, "tool")
    with pytest.raises(UsageError, match="no part is of image 'nope'; the parts are of web, tool"):
        read_parts([], files, "nope")


def test_parts_of_two_images_are_never_taken_for_those_of_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(of_images(web=ONE), encoding="utf-8")
    (tmp_path / "b").write_text(of_images(tool=TWO), encoding="utf-8")
    assert read_parts([], [str(tmp_path / "a")]) == references(ONE)
    with pytest.raises(UsageError, match="the parts are of several images: web, tool") as caught:
        read_parts([], [str(tmp_path / "a"), str(tmp_path / "b")])
    assert caught.value.hint == "select one by --image"


def test_a_merge_of_one_of_several_images_is_under_that_images_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = '[[tool.buildkit-tasks.image]]\nname = "web"\nexpect = "this is web"\ntags = ["app:web"]\n'
    (tmp_path / "pyproject.toml").write_text(table, encoding="utf-8")
    settings = load_settings()
    assert (settings_for_image(settings, "web").expect, settings_for_image(settings, "web").tags) == (
        "this is web",
        ("app:web",),
    )
    assert settings_for_image(settings, "") == settings
    with pytest.raises(UsageError, match="there is no image 'nope' in the settings") as caught:
        settings_for_image(settings, "nope")
    assert caught.value.hint == "choose one of web"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"images": [{"name": "web", "build": 7}]}', "web names no image in a registry"),
        ('{"images": [7]}', "no part is given"),
        ('{"outputs": [], "digest": ""}', "names no image in a registry"),
        ('{"outputs": [{"ref": "app:v1"}]}', "names no image in a registry"),
        ('{"outputs": 7}', "names no image in a registry"),
        ("{", "is not a report of build-multiarch"),
        ('{"outputs": [{"ref": "a@b"}]} []', "is not a report of build-multiarch"),
        ("UPPER@sha256:1", "is not a valid image reference"),
        ("", "no part is given"),
        ("{" * 100_000, "is not a report of build-multiarch"),
    ],
)
def test_a_file_without_parts_is_a_usage_error(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "parts").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        read_parts([], [str(tmp_path / "parts")])


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
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
    "word", ["--privileged", "-t", "app:v1 --x", "https://example.org/app", "app:", "App"]
)
def test_a_word_that_is_no_tag_is_refused_before_anything_is_asked(word: str) -> None:
    with pytest.raises(UsageError):
        ReleaseSpec.from_tags([word], (), verify_first=True)


# Other sources


def test_a_compressed_archive_is_sent_from_several_threads(
    push: Push, releases: ReleaseService, tmp_path: Path
) -> None:
    memory = Memory()
    noise = random.Random(5)  # noqa: S311 - bytes that do not get smaller
    layers = [memory.put(noise.randbytes(1_500_000), LAYER_GZIP) for _ in range(6)]
    entry = put_manifest(memory, platform_json("linux/amd64"), layers)
    config = json.loads(memory.blobs[json.loads(memory.blobs[entry["digest"]])["config"]["digest"]])
    config["rootfs"] = {"type": "layers", "diff_ids": [each["digest"] for each in layers]}
    entry = put_manifest(memory, config, layers)
    memory.index([{**entry, "platform": platform_json("linux/amd64")}])
    path = write_archive(memory, tmp_path / "image.tar")
    path.write_bytes(gzip.compress(path.read_bytes(), 1))
    result = releases.push(str(path), release(push, "team/app:v1"))
    found = push.server.repository("team/app").content["blobs"]
    assert all(found[each["digest"]][1] == memory.blobs[each["digest"]] for each in layers)
    assert push.server.tag_digest("team/app:v1") == result.digest


def test_what_docker_save_wrote_is_sent_over_one_connection(
    push: Push, releases: ReleaseService, tmp_path: Path
) -> None:
    path = one().write(tmp_path / "saved.tar")
    result = releases.push(f"docker-archive:{path}", release(push, "team/app:v1"))
    assert result.ok
    assert len({each.connection for each in push.server.requests("PUT /upload/*")}) == 1


def test_an_image_is_copied_from_one_registry_to_another(push: Push, releases: ReleaseService) -> None:
    memory = hello()
    with hostile() as other:
        reference = other.add_image(memory)
        result = releases.push(f"docker://{reference}", release(push, "team/app:v1"))
    assert result.digest == str(memory.root_descriptor().digest) == push.server.tag_digest("team/app:v1")
