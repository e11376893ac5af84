from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.build.outputs import OutputSpec
from buildkit_tasks.build.request import (
    BuildRequest,
    check_request,
    make_buildx_argv,
    read_base_images,
    set_epoch,
)
from buildkit_tasks.errors import SettingsError, UsageError
from buildkit_tasks.platforms import parse_platforms
from tests.support.scripted import Scripted

PLATFORMS = parse_platforms(["linux/amd64,linux/arm/v7"])


@pytest.fixture(autouse=True)
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a request is made in, with a Dockerfile."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)
    (tmp_path / "Dockerfile").write_text("FROM alpine:3\n", encoding="utf-8")
    return tmp_path


def request(**options: Any) -> BuildRequest:
    return BuildRequest(platforms=options.pop("platforms", PLATFORMS), **options)


def refused(**options: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        check_request(request(**options))
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    "tag",
    [
        "hello",
        "hello:0.1",
        "hello:Tag_1.x-Y",
        "team/hello",
        "localhost:5000/team/hello:1",
        "Registry.Example.org/hello",
        "[2001:db8::1]:5000/hello",
        "a__b/c--d/e.f",
        "hello:" + "x" * 128,
    ],
)
def test_every_name_of_the_reference_grammar_is_taken(tag: str) -> None:
    check_request(request(tags=(tag,)))


@pytest.mark.parametrize(
    "tag",
    [
        "--privileged",
        "-x",
        "",
        " hello",
        "hello ",
        "hello\n",
        "hello:1\n",
        "Hello",
        "hello:",
        "hello:-x",
        "hello:" + "x" * 129,
        "hello//x",
        "/hello",
        "hello/",
        "a___b",
        "a,b",
        "hello:a:b",
        "h\u00e9llo",
        "hello:\u0661",
        "https://example.org/hello",
        "hello@sha256:" + "0" * 64,
        "$(id)",
    ],
)
def test_row_56_what_is_no_name_is_refused_before_anything_runs(tag: str) -> None:
    error = refused(tags=("good:1", tag))
    assert error.message == f"{tag!r} is not a valid image name"


@pytest.mark.parametrize(
    "argument",
    [
        "PASSWORD=x", "db_password=x", "GITHUB_TOKEN=x", "NPM-TOKEN=x", "AWS_SECRET_ACCESS_KEY=x",
        "API_KEY=x", "my_apikey=x", "SSH_PRIVATE_KEY=x", "CREDENTIALS", "TOKEN",
    ],
)  # fmt: skip
def test_a_secret_in_a_build_argument_is_refused_with_the_way_to_do_it(argument: str) -> None:
    error = refused(build_args=(argument,))
    name = argument.partition("=")[0]
    assert name in error.message
    assert error.hint == f"--secret id={name},env={name} and RUN --mount=type=secret,id={name}"


def test_a_refused_secrets_value_is_not_repeated() -> None:
    assert "hunter2" not in str(refused(build_args=("PASSWORD=hunter2",)))


@pytest.mark.parametrize(
    "argument", ["VERSION=1", "TOKENIZER=bpe", "KEYBOARD=de", "A=PASSWORD", "MONKEY=1", "X"]
)
def test_other_build_arguments_are_taken(argument: str) -> None:
    check_request(request(build_args=(argument,)))


def test_a_missing_context_is_named() -> None:
    error = refused(context="nowhere")
    assert (error.message, error.hint) == (
        "the build context 'nowhere' is not a folder",
        "--context FOLDER",
    )


def test_a_missing_dockerfile_is_named(context: Path) -> None:
    (context / "Dockerfile").unlink()
    assert refused().message == "there is no Dockerfile"
    (context / "sub").mkdir()
    assert refused(context="sub").message == "there is no sub/Dockerfile"
    assert refused(file="Other").message == "there is no Other"
    (context / "Other").touch()
    check_request(request(file="Other"))


def test_no_platform_nothing_to_build() -> None:
    assert "no platform" in refused(platforms=()).message


def test_load_needs_a_name() -> None:
    assert refused(load=True).hint == "add -t NAME:TAG"
    check_request(request(load=True, tags=("a",)))


def test_outputs_are_checked_too() -> None:
    assert "needs the name of an image" in refused(outputs=(OutputSpec(type="registry"),)).message


@pytest.mark.parametrize("url", ["https://example.org/x.git", "git@example.org:x", "ssh://x/y", "git://x/y"])
def test_a_remote_context_is_left_to_buildkit(url: str) -> None:
    check_request(request(context=url))
    assert read_base_images(request(context=url)).images == ()


@pytest.mark.parametrize("path", ["./git@x", "httpsx", "sub"])
def test_a_folder_is_no_remote_context(path: str, context: Path) -> None:
    (context / path).mkdir()
    assert not request(context=path).has_remote_context


def test_the_arguments_of_a_plain_build_are_exactly_these() -> None:
    output = OutputSpec(type="oci", attributes=(("dest", "a,b.tar"),))
    argv = make_buildx_argv(request(outputs=(output,), tags=("a:1", "b:2")), "x", Path("/m.json"))
    assert argv == [
        "build",
        "--builder=x",
        "--platform=linux/amd64,linux/arm/v7",
        "--tag=a:1",
        "--tag=b:2",
        '--output=type=oci,"dest=a,b.tar"',
        "--metadata-file=/m.json",
        "--",
        ".",
    ]


def test_every_option_reaches_buildx_bound_to_its_flag() -> None:
    argv = make_buildx_argv(
        request(
            context="--help",
            file="D f",
            target="--t",
            build_args=("A=1,2", "B"),
            build_contexts=("alpine=oci-layout://x",),
            cache_from=("type=local,src=c",),
            cache_to=("type=inline",),
            secrets=("id=a,src=key",),
            ssh=("x=key",),
            labels=("l=1",),
            annotations=("index:a=1",),
            attest=("type=sbom",),
            provenance="false",
            sbom="true",
            no_cache=True,
            pull=True,
            progress="plain",
        ),
        "x",
        Path("m"),
    )
    assert argv == [
        "build",
        "--builder=x",
        "--platform=linux/amd64,linux/arm/v7",
        "--file=D f",
        "--target=--t",
        "--provenance=false",
        "--sbom=true",
        "--no-cache=true",
        "--pull=true",
        "--progress=plain",
        "--build-arg=A=1,2",
        "--build-arg=B",
        "--build-context=alpine=oci-layout://x",
        "--cache-from=type=local,src=c",
        "--cache-to=type=inline",
        "--secret=id=a,src=key",
        "--ssh=x=key",
        "--label=l=1",
        "--annotation=index:a=1",
        "--attest=type=sbom",
        "--metadata-file=m",
        "--",
        "--help",
    ]


@pytest.mark.parametrize(
    ("asked", "ci", "given"),
    [("auto", "", []), ("auto", "true", ["--progress=plain"]), ("tty", "true", ["--progress=tty"])],
)
def test_progress_is_plain_in_ci_unless_somebody_asks(
    monkeypatch: pytest.MonkeyPatch, asked: str, ci: str, given: list[str]
) -> None:
    monkeypatch.setenv("CI", ci)
    argv = make_buildx_argv(request(progress=asked), "x", Path("m"))
    assert [word for word in argv if word.startswith("--progress")] == given


def given(name: str, **options: Any) -> list[str]:
    """The values that buildx is given for an option."""
    argv = make_buildx_argv(request(**options), "x", Path("m"))
    return [word.removeprefix(f"--{name}=") for word in argv if word.startswith(f"--{name}=")]


def test_secrets_agents_and_caches_are_looked_at_before_a_build() -> None:
    assert "no nowhere" in refused(secrets=("id=a,src=nowhere",)).message
    assert "no nowhere" in refused(ssh=("a=nowhere",)).message
    assert "has no dest" in refused(cache_to=("type=local",)).message
    assert "has no src" in refused(cache_from=("type=local",)).message


@pytest.mark.parametrize(
    "url",
    [
        "https://keeper:hunter2@example.org/x.git",
        "https://hunter2@example.org/x.git",
        "HTTPS://hunter2@example.org/x.git",
        "ssh://keeper:hunter2@example.org/x.git",
        "https://:hunter2@example.org/x.git",
    ],
)
def test_a_password_in_a_contexts_url_is_refused_and_not_repeated(url: str) -> None:
    for error in (refused(context=url), refused(build_contexts=(f"src={url}",))):
        assert "***@example.org" in error.message
        assert "hunter2" not in str(error)
        assert "GIT_AUTH_TOKEN" in str(error.hint)
    argument = refused(build_args=(f"REPO={url}",))
    assert "build argument REPO has a URL with a password" in argument.message
    assert "hunter2" not in str(argument)


@pytest.mark.parametrize(
    "url", ["ssh://git@example.org/x.git", "git@example.org:x.git", "https://example.org/@x"]
)
def test_a_user_without_a_password_is_no_secret(url: str) -> None:
    check_request(request(context=url, build_contexts=(f"src={url}",), build_args=(f"REPO={url}",)))


def test_a_users_name_in_a_tag_is_not_repeated() -> None:
    assert (
        refused(tags=("keeper:hunter2@example.org/x",)).message
        == "'***@example.org/x' is not a valid image name"
    )


def test_a_bad_source_date_epoch_is_an_error_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert isinstance(refused(), SettingsError)
    assert isinstance(refused(reproducible=True), SettingsError)


OCI = OutputSpec(type="oci", attributes=(("dest", "x.tar"),))


def test_a_reproducible_build_has_one_time_everywhere_and_no_attestation() -> None:
    options = {"reproducible": True, "epoch": 5, "outputs": (OCI,)}
    assert given("build-arg", build_args=("SOURCE_DATE_EPOCH", "A=1"), **options) == [
        "A=1",
        "SOURCE_DATE_EPOCH=5",
    ]
    assert given("output", **options) == ["type=oci,dest=x.tar,rewrite-timestamp=true"]
    assert given("provenance", **options) == ["false"]


def test_other_builds_have_the_time_that_buildx_passes_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")
    assert given("build-arg", outputs=(OCI,)) == []
    assert given("output", outputs=(OCI,)) == ["type=oci,dest=x.tar"]
    assert given("provenance", outputs=(OCI,)) == []


@pytest.mark.parametrize(
    ("asked", "kept"),
    [({"provenance": "mode=max"}, ["mode=max"]), ({"sbom": "true"}, []), ({"attest": ("type=sbom",)}, [])],
)
def test_attestations_that_are_asked_for_are_kept_and_told_of(asked: dict[str, Any], kept: list[str]) -> None:
    told: list[str] = []
    wanted = request(reproducible=True, build_args=("SOURCE_DATE_EPOCH=5",), **asked)
    timed = set_epoch(wanted, Scripted(), told.append)
    assert timed.epoch == 5
    assert told[0] == "SOURCE_DATE_EPOCH=5 (--build-arg)"
    assert "the index digest differs in every build" in told[1]
    assert given("provenance", reproducible=True, epoch=5, **asked) == kept


def test_an_inline_cache_is_told_of_as_well() -> None:
    told: list[str] = []
    wanted = request(reproducible=True, build_args=("SOURCE_DATE_EPOCH=5",), cache_to=("type=inline",))
    set_epoch(wanted, Scripted(), told.append)
    assert [line.partition(" contains")[0] for line in told[1:]] == ["--cache-to type=inline"]


def test_the_time_of_a_url_is_0_and_no_git_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    wanted = request(reproducible=True, context="https://example.org/x.git")
    assert set_epoch(wanted, Scripted(), print).epoch == 0


def test_a_build_that_need_not_be_reproducible_asks_for_no_time() -> None:
    assert set_epoch(request(), Scripted(), print) == request()


def test_no_attest_is_neither_provenance_nor_sbom() -> None:
    assert given("provenance", no_attest=True) == ["false"]
    assert given("sbom", no_attest=True) == ["false"]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"attest": ("type=sbom",)}, "--attest"),
        ({"provenance": "mode=max"}, "--provenance"),
        ({"sbom": "true"}, "--sbom"),
        ({"sbom": "true", "provenance": "true"}, "--provenance, --sbom"),
    ],
)
def test_no_attest_contradicts_what_asks_for_an_attestation(asked: dict[str, Any], named: str) -> None:
    assert refused(no_attest=True, **asked).message == f"--no-attest contradicts {named}"


def test_no_attest_agrees_with_what_says_the_same() -> None:
    check_request(request(no_attest=True, provenance="false", sbom="false"))


def test_bases_are_read_with_the_build_arguments_and_their_environment(
    context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "ARG GO=1.20\nARG BASE\nFROM golang:$GO\nFROM $BASE\n"
    (context / "Dockerfile").write_text(text, encoding="utf-8")
    monkeypatch.setenv("BASE", "busybox:1")
    assert read_base_images(request(build_args=("GO=1.27", "BASE"))).images == ("golang:1.27", "busybox:1")


def test_an_entitlement_is_given_only_where_it_is_asked_for() -> None:
    plain = make_buildx_argv(request(), "x", Path("m"))
    asked = make_buildx_argv(request(allow=("network.host",)), "x", Path("m"))
    assert set(asked) - set(plain) == {"--allow=network.host"}
    assert not [word for word in plain if word.startswith("--allow")]
