from __future__ import annotations

import io
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.build.outputs import OutputSpec
from buildkit_tasks.build.request import (
    BuildRequest,
    check_request,
    drop_outputs,
    make_buildx_argv,
    read_base_images,
    read_dockerfile_from_stdin,
    set_epoch,
)
from buildkit_tasks.errors import SettingsError, UsageError
from buildkit_tasks.platforms import parse_platforms
from tests.support.argv import option_values
from tests.support.scripted import Scripted

PLATFORMS = parse_platforms(["linux/amd64,linux/arm/v7"])


@pytest.fixture(autouse=True)
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty build context with a Dockerfile."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)
    (tmp_path / "Dockerfile").write_text("FROM alpine:3\n", encoding="utf-8")
    return tmp_path


def make_request(**options: Any) -> BuildRequest:
    return BuildRequest(platforms=options.pop("platforms", PLATFORMS), **options)


def usage_error(**options: Any) -> UsageError:
    with pytest.raises(UsageError) as excinfo:
        check_request(make_request(**options))
    assert excinfo.value.exit_code == 2
    return excinfo.value


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
def test_valid_tag(tag: str) -> None:
    check_request(make_request(tags=(tag,)))


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
def test_invalid_tag(tag: str) -> None:
    error = usage_error(tags=("good:1", tag))
    assert error.message == f"{tag!r} is not a valid image name"


@pytest.mark.parametrize(
    "argument",
    [
        "PASSWORD=x", "db_password=x", "GITHUB_TOKEN=x", "NPM-TOKEN=x", "AWS_SECRET_ACCESS_KEY=x",
        "S3_ACCESS_KEY=x", "API_KEY=x", "my_apikey=x", "SSH_PRIVATE_KEY=x", "CREDENTIALS", "TOKEN",
    ],
)  # fmt: skip
def test_secret_build_arg(argument: str) -> None:
    error = usage_error(build_args=(argument,))
    name = argument.partition("=")[0]
    assert name in error.message
    assert error.hint == f"--secret id={name},env={name} and RUN --mount=type=secret,id={name}"


def test_secret_value_is_not_shown() -> None:
    assert "hunter2" not in str(usage_error(build_args=("PASSWORD=hunter2",)))


@pytest.mark.parametrize(
    "argument", ["VERSION=1", "TOKENIZER=bpe", "KEYBOARD=de", "A=PASSWORD", "MONKEY=1", "X"]
)
def test_valid_build_arg(argument: str) -> None:
    check_request(make_request(build_args=(argument,)))


def test_missing_context() -> None:
    error = usage_error(context="nowhere")
    assert (error.message, error.hint) == ("the build context 'nowhere' is not a folder", "--context FOLDER")


def test_missing_dockerfile(context: Path) -> None:
    (context / "Dockerfile").unlink()
    assert usage_error().message == "there is no Dockerfile"
    (context / "sub").mkdir()
    assert usage_error(context="sub").message == "there is no sub/Dockerfile"
    assert usage_error(file="Other").message == "there is no Other"
    (context / "Other").touch()
    check_request(make_request(file="Other"))


def test_bake_file_instead_of_dockerfile(context: Path) -> None:
    (context / "Dockerfile").unlink()
    (context / "sub").mkdir()
    assert usage_error().hint == "name another Dockerfile by -f FILE or by file in the settings"
    for name in ("compose.yaml", "docker-bake.hcl"):
        (context / name).touch()
        assert usage_error().hint == f"--bake {name}"
    for other in ({"file": "Other"}, {"context": "sub"}):
        assert usage_error(**other).hint == "name another Dockerfile by -f FILE or by file in the settings"


def test_nearest_network() -> None:
    assert usage_error(network="hots").hint == "--network=host"
    assert usage_error(network="bridge").hint == "inv setup-builder --driver-opt network=bridge --recreate"


def test_no_platform() -> None:
    assert "no platform" in usage_error(platforms=()).message


def test_load_without_tag() -> None:
    assert str(usage_error(load=True)) == "--load needs a tag\n  try: -t NAME:TAG"
    check_request(make_request(load=True, tags=("a",)))


def test_check_outputs() -> None:
    assert usage_error(outputs=(OutputSpec(type="registry"),)).message == "a push needs a tag"
    part = {"outputs": (OutputSpec(type="registry"),), "platforms": PLATFORMS[:1]}
    assert usage_error(**part, split=True).message == "--split needs a tag"


@pytest.mark.parametrize("url", ["https://example.org/x.git", "git@example.org:x", "ssh://x/y", "git://x/y"])
def test_remote_context(url: str) -> None:
    check_request(make_request(context=url))
    assert read_base_images(make_request(context=url)).images == ()


@pytest.mark.parametrize("path", ["./git@x", "httpsx", "sub"])
def test_local_context(path: str, context: Path) -> None:
    (context / path).mkdir()
    assert not make_request(context=path).has_remote_context


def test_minimal_argv() -> None:
    output = OutputSpec(type="oci", attributes=(("dest", "a,b.tar"),))
    argv = make_buildx_argv(make_request(outputs=(output,), tags=("a:1", "b:2")), "x", Path("/m.json"))
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


def test_argv_of_all_options() -> None:
    argv = make_buildx_argv(
        make_request(
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
            network="host",
            shm_size="1g",
            cgroup_parent="builds",
            no_cache_filters=("a", "b"),
            add_hosts=("db:10.0.0.1",),
            ulimits=("nofile=1:2",),
            resources=("memory=1g",),
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
        "--network=host",
        "--shm-size=1g",
        "--cgroup-parent=builds",
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
        "--no-cache-filter=a",
        "--no-cache-filter=b",
        "--add-host=db:10.0.0.1",
        "--ulimit=nofile=1:2",
        "--resource=memory=1g",
        "--metadata-file=m",
        "--",
        "--help",
    ]


# Fields that change what happens around buildx, and not its arguments.
OTHER_FIELDS = {
    "context", "dockerfile_text", "iidfile", "load", "metadata_file", "no_push", "split", "verify_first",
}  # fmt: skip
ARGUMENT_FIELDS = [each.name for each in fields(BuildRequest) if each.name not in OTHER_FIELDS]
VALUES: dict[str, Any] = {
    "platforms": PLATFORMS[:1],
    "outputs": (OutputSpec.parse("type=local,dest=x"),),
    "epoch": 1,
}


@pytest.mark.parametrize("name", ARGUMENT_FIELDS)
def test_field_is_an_argument(name: str) -> None:
    request = make_request(tags=("x:1",), build_args=("A=b",))
    defaults: dict[type, Any] = {str: "x", bool: True, tuple: ("x=y",)}
    changes: dict[str, Any] = {name: VALUES.get(name, defaults.get(type(getattr(request, name))))}
    changed = replace(request, **changes)
    assert make_buildx_argv(changed, "b", None) != make_buildx_argv(request, "b", None)


def test_argv_of_a_call() -> None:
    request = make_request(
        outputs=(OutputSpec(type="registry"),),
        tags=("a:1",),
        load=True,
        cache_to=("type=inline",),
        call="check",
    )
    argv = make_buildx_argv(drop_outputs(request), "x", None)
    assert argv == ["build", "--builder=x", "--platform=linux/amd64,linux/arm/v7", "--call=check", "--", "."]


def test_no_push() -> None:
    outputs = tuple(map(OutputSpec.parse, ["type=registry", "type=oci,dest=a.tar", "type=image,push=true"]))
    assert drop_outputs(make_request(outputs=outputs)).outputs == outputs
    assert drop_outputs(make_request(outputs=outputs, no_push=True)).outputs == outputs[1:2]


def test_dockerfile_from_stdin(monkeypatch: pytest.MonkeyPatch, context: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"FROM alpine\n")))
    request = make_request(file="-", dockerfile_text=read_dockerfile_from_stdin())
    (context / "Dockerfile").unlink()
    check_request(request)
    assert read_base_images(request).images == ("alpine",)
    url = "https://example.org/a.git"
    assert read_base_images(replace(request, context=url)).images == ("alpine",)
    assert "is empty" in usage_error(file="-", dockerfile_text=" \n").message


@pytest.mark.parametrize(
    "options",
    [
        {"network": "host"},
        {"network": "none"},
        {"add_hosts": ("db:10.0.0.1", "db=fe80::1", "db:[::1]", "gw=host-gateway")},
        {"shm_size": "512m"},
        {"shm_size": "1.5 GiB"},
        {"ulimits": ("nofile=1024", "core=0:-1", "nproc=-1", "cpu=10:20")},
        {"resources": ("memory=2g", "memory-swap=-1", "cpuset-cpus=0-3")},
    ],
)
def test_container_options(options: dict[str, Any]) -> None:
    check_request(make_request(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "bridge"}, "--network=bridge: BuildKit has only the networks default, none, host"),
        ({"add_hosts": ("db",)}, "--add-host=db is not a host and its address"),
        ({"add_hosts": (":10.0.0.1",)}, "--add-host=:10.0.0.1 is not a host and its address"),
        ({"add_hosts": ("db:gateway",)}, "--add-host=db:gateway is not a host and its address"),
        ({"shm_size": "big"}, "--shm-size=big is not a size"),
        ({"shm_size": "-1"}, "--shm-size=-1 is not a size"),
        ({"ulimits": ("nofiles=1",)}, "--ulimit=nofiles=1 is not a limit"),
        ({"ulimits": ("nofile",)}, "--ulimit=nofile is not a limit"),
        ({"ulimits": ("nofile=2:1",)}, "--ulimit=nofile=2:1: the soft limit is above the hard one"),
        ({"ulimits": ("nofile=-1:1",)}, "--ulimit=nofile=-1:1: the soft limit is above the hard one"),
        ({"resources": ("disk=1g",)}, "--resource=disk=1g is not a limit"),
        ({"resources": ("memory",)}, "--resource=memory is not a limit"),
    ],
)
def test_invalid_container_option(options: dict[str, Any], message: str) -> None:
    assert message in usage_error(**options).message


def test_image_id_needs_an_image() -> None:
    files = tuple(map(OutputSpec.parse, ["type=local,dest=out", "type=tar,dest=x.tar"]))
    assert "have no image ID" in usage_error(iidfile="id", outputs=files).message
    check_request(make_request(iidfile="id", outputs=(*files, OutputSpec.parse("type=oci,dest=y.tar"))))
    check_request(make_request(iidfile="id", tags=("a:1",), load=True))


@pytest.mark.parametrize(
    ("progress", "ci", "expected"),
    [("auto", "", []), ("auto", "true", ["--progress=plain"]), ("tty", "true", ["--progress=tty"])],
)
def test_progress_in_ci(monkeypatch: pytest.MonkeyPatch, progress: str, ci: str, expected: list[str]) -> None:
    monkeypatch.setenv("CI", ci)
    argv = make_buildx_argv(make_request(progress=progress), "x", Path("m"))
    assert [argument for argument in argv if argument.startswith("--progress")] == expected


def buildx_values(name: str, **options: Any) -> list[str]:
    """Return the values of an option in buildx's arguments for a request."""
    return option_values(make_buildx_argv(make_request(**options), "x", Path("m")), name)


def test_check_secrets_and_caches() -> None:
    assert "no nowhere" in usage_error(secrets=("id=a,src=nowhere",)).message
    assert "no nowhere" in usage_error(ssh=("a=nowhere",)).message
    assert "has no dest" in usage_error(cache_to=("type=local",)).message
    assert "has no src" in usage_error(cache_from=("type=local",)).message


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
def test_password_in_url(url: str) -> None:
    for error in (usage_error(context=url), usage_error(build_contexts=(f"src={url}",))):
        assert "***@example.org" in error.message
        assert "hunter2" not in str(error)
        assert "GIT_AUTH_TOKEN" in str(error.hint)
    argument = usage_error(build_args=(f"REPO={url}",))
    assert "build argument REPO has a URL with a password" in argument.message
    assert "hunter2" not in str(argument)


@pytest.mark.parametrize(
    "url", ["ssh://git@example.org/x.git", "git@example.org:x.git", "https://example.org/@x"]
)
def test_url_without_password(url: str) -> None:
    check_request(make_request(context=url, build_contexts=(f"src={url}",), build_args=(f"REPO={url}",)))


def test_userinfo_in_tag() -> None:
    assert (
        usage_error(tags=("keeper:hunter2@example.org/x",)).message
        == "'***@example.org/x' contains a login, which an image name cannot"
    )


def test_invalid_source_date_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert isinstance(usage_error(), SettingsError)
    assert isinstance(usage_error(reproducible=True), SettingsError)


OCI_OUTPUT = OutputSpec(type="oci", attributes=(("dest", "x.tar"),))


def test_reproducible_argv() -> None:
    options = {"reproducible": True, "epoch": 5, "outputs": (OCI_OUTPUT,)}
    for argument in ("SOURCE_DATE_EPOCH", "SOURCE_DATE_EPOCH=5"):
        assert buildx_values("build-arg", build_args=(argument, "A=1"), **options) == [
            "A=1",
            "SOURCE_DATE_EPOCH=5",
        ]
    assert buildx_values("output", **options) == ["type=oci,dest=x.tar,rewrite-timestamp=true"]
    assert buildx_values("provenance", **options) == ["false"]


def test_epoch_of_other_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")
    assert buildx_values("build-arg", outputs=(OCI_OUTPUT,)) == []
    assert buildx_values("output", outputs=(OCI_OUTPUT,)) == ["type=oci,dest=x.tar"]
    assert buildx_values("provenance", outputs=(OCI_OUTPUT,)) == []


@pytest.mark.parametrize(
    ("options", "provenance"),
    [({"provenance": "mode=max"}, ["mode=max"]), ({"sbom": "true"}, []), ({"attest": ("type=sbom",)}, [])],
)
def test_reproducible_attestations(options: dict[str, Any], provenance: list[str]) -> None:
    messages: list[str] = []
    unresolved = make_request(reproducible=True, build_args=("SOURCE_DATE_EPOCH=5",), **options)
    resolved = set_epoch(unresolved, Scripted(), messages.append)
    assert resolved.epoch == 5
    assert messages[0] == "SOURCE_DATE_EPOCH=5 (--build-arg)"
    assert "the index digest differs in every build" in messages[1]
    assert buildx_values("provenance", reproducible=True, epoch=5, **options) == provenance


def test_reproducible_inline_cache() -> None:
    messages: list[str] = []
    unresolved = make_request(
        reproducible=True, build_args=("SOURCE_DATE_EPOCH=5",), cache_to=("type=inline",)
    )
    set_epoch(unresolved, Scripted(), messages.append)
    assert [message.partition(" contains")[0] for message in messages[1:]] == ["--cache-to type=inline"]


def test_epoch_of_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    unresolved = make_request(reproducible=True, context="https://example.org/x.git")
    assert set_epoch(unresolved, Scripted(), print).epoch == 0


def test_no_epoch_by_default() -> None:
    assert set_epoch(make_request(), Scripted(), print) == make_request()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provenance": "maybe"}, "--provenance=maybe is neither true, false nor NAME=VALUE"),
        ({"provenance": "mode=max,maybe"}, "--provenance=mode=max,maybe is neither"),
        ({"sbom": "yes"}, "--sbom=yes is neither true, false nor NAME=VALUE"),
    ],
)
def test_unknown_attestation(options: dict[str, Any], message: str) -> None:
    assert usage_error(**options).message.startswith(message)


@pytest.mark.parametrize("value", ["true", "False", "0", "mode=min", "mode=max,version=v1", ""])
def test_attestation(value: str) -> None:
    assert buildx_values("provenance", provenance=value) == [value] * bool(value)


def test_no_attest() -> None:
    assert buildx_values("provenance", no_attest=True) == ["false"]
    assert buildx_values("sbom", no_attest=True) == ["false"]


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"attest": ("type=sbom",)}, "--attest"),
        ({"provenance": "mode=max"}, "--provenance"),
        ({"sbom": "true"}, "--sbom"),
        ({"sbom": "true", "provenance": "true"}, "--provenance, --sbom"),
    ],
)
def test_no_attest_contradiction(options: dict[str, Any], flags: str) -> None:
    assert usage_error(no_attest=True, **options).message == f"--no-attest contradicts {flags}"


def test_no_attest_repeated() -> None:
    check_request(make_request(no_attest=True, provenance="false", sbom="false"))


def test_bases_with_build_args(context: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "ARG GO=1.20\nARG BASE\nFROM golang:$GO\nFROM $BASE\n"
    (context / "Dockerfile").write_text(text, encoding="utf-8")
    monkeypatch.setenv("BASE", "busybox:1")
    assert read_base_images(make_request(build_args=("GO=1.27", "BASE"))).images == (
        "golang:1.27",
        "busybox:1",
    )


def test_unreadable_dockerfile(context: Path) -> None:
    (context / "Dockerfile").unlink()
    with pytest.raises(UsageError, match="Dockerfile cannot be read: No such file"):
        read_base_images(make_request())


def test_allow() -> None:
    default_argv = make_buildx_argv(make_request(), "x", Path("m"))
    argv = make_buildx_argv(make_request(allow=("network.host",)), "x", Path("m"))
    assert set(argv) - set(default_argv) == {"--allow=network.host"}
    assert not [argument for argument in default_argv if argument.startswith("--allow")]
