"""Bake files as buildx 0.29 printed them: the files lie beside, and tests/engine prints them anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.build.bake.plan import BakePlan, parse_bake_plan
from buildkit_tasks.build.bake.print import BakePrinter, check_bake_arguments
from buildkit_tasks.build.bake.target import BakeTarget
from buildkit_tasks.errors import BuilderError, UsageError
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.daemon import ClientTools
from buildkit_tasks.platforms import Platform
from buildkit_tasks.system.command import CommandOptions
from tests.support.scripted import Scripted

FIXTURES = Path(__file__).parents[2] / "fixtures" / "bake"


def printed(name: str) -> str:
    return (FIXTURES / name).read_text(encoding="utf-8")


def plan(targets: Mapping[str, Any], default: list[str] | None = None, **groups: list[str]) -> str:
    """A plan as buildx prints it."""
    members = {"default": [*targets] if default is None else default, **groups}
    group = {name: {"targets": names} for name, names in members.items()}
    return json.dumps({"group": group, "target": targets})


def target(**keys: Any) -> BakeTarget:
    raw = {key.replace("_", "-"): value for key, value in keys.items()}
    return parse_bake_plan(plan({"web": raw}), "x.hcl").targets["web"]


def refused(**keys: Any) -> str:
    with pytest.raises(UsageError) as caught:
        target(**keys)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _entitled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BUILDX_BAKE_ENTITLEMENTS_FS", raising=False)
    monkeypatch.chdir(tmp_path)


def test_groups_and_matrices_come_expanded_and_in_order() -> None:
    found = parse_bake_plan(printed("group.printed.json"), "group.hcl")
    assert found.requested == ("tool-a", "tool-b", "web")
    assert [each.name for each in found.build_order] == ["tool-a", "tool-b", "base", "web"]


def test_what_a_target_inherits_is_its_own() -> None:
    web = parse_bake_plan(printed("group.printed.json"), "group.hcl").targets["web"]
    assert web.platforms == ("linux/amd64", "linux/arm64")
    assert (web.request.context, web.request.file) == ("web", "web/Dockerfile")
    assert web.request.tags == ("example.org/web:1",)
    assert web.linked_contexts == (("base", "base"),)
    assert web.request.build_contexts == ()


def test_the_sign_that_printing_doubled_is_single_again() -> None:
    found = parse_bake_plan(printed("group.printed.json"), "group.hcl")
    assert found.targets["web"].request.build_args == ("GREETING=hi ${USER}",)
    inline = found.targets["base"].inline_dockerfile
    assert inline is not None
    assert inline.splitlines()[1] == 'RUN echo "${HOME:-none}" > /based'


@pytest.mark.parametrize(
    ("shown", "meant"), [("$${A}", "${A}"), ("$$${A}", "$${A}"), ("%%{a}$B", "%{a}$B"), ("$$A", "$$A")]
)
def test_only_the_sign_before_a_brace_was_doubled(shown: str, meant: str) -> None:
    assert target(args={"A": shown}).request.build_args == (f"A={meant}",)


def test_every_key_that_is_honoured_is_in_the_request() -> None:
    request = parse_bake_plan(printed("every.printed.json"), "every.json").targets["default"].request
    assert (request.context, request.file, request.target) == ("app", "app/docker/Dockerfile", "release")
    assert request.build_args == ("EMPTY=", "TEMPLATE=${NAME}-%{x}", "VERSION=1.2")
    assert request.labels == ('org.example.title=a,b "c"',)
    assert request.annotations == ("index,manifest:org.example.a=b", "c=${d}")
    assert request.tags == ("example.org/app:1", "example.org/app:latest")
    assert request.build_contexts == (
        "code=https://example.org/code.git",
        "files=files",
        "image=docker-image://alpine:3",
    )
    assert request.cache_from == ("src=cache,type=local", "ref=example.org/app:cache,type=registry")
    assert request.cache_to == ("dest=cache,mode=max,type=local",)
    assert request.secrets == ("id=token,env=TOKEN", "id=file,src=files/secret")
    assert request.attest == ("mode=max,type=provenance", "type=sbom")
    assert (request.no_cache, request.pull) == (True, True)


def test_outputs_keep_their_commas() -> None:
    request = parse_bake_plan(printed("every.outputs.json"), "every.json").targets["default"].request
    assert [str(each) for each in request.outputs] == ["type=local,dest=out", 'type=oci,"dest=out/a,b.tar"']


def test_a_compose_file_has_a_target_for_each_service_that_is_built() -> None:
    found = parse_bake_plan(printed("compose.printed.json"), "compose.yaml")
    assert found.requested == ("web", "worker_one")
    web = found.targets["web"].request
    assert (web.file, web.tags, web.secrets) == (
        "web/Containerfile",
        ("example.org/web:1",),
        ("id=token,env=TOKEN",),
    )
    assert found.targets["worker_one"].platforms == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network", "host"),
        ("network", "none"),
        ("no-cache-filter", ["build"]),
        ("shm-size", "128m"),
        ("ulimits", ["nofile=1024:1024"]),
        ("call", "check"),
        ("entitlements", ["security.insecure"]),
        ("extra-hosts", {"a": "1.2.3.4"}),
        ("policy", [{"filename": "x"}]),
        ("matrix", {"a": ["b"]}),
        ("inherits", ["b"]),
        ("of-next-year", 1),
    ],
)
def test_a_key_that_cannot_be_honoured_is_refused_by_its_name(key: str, value: Any) -> None:
    message = refused(**{key: value})
    assert f"x.hcl: target web: {key} = {json.dumps(value)} is not supported" in message


@pytest.mark.parametrize(
    "keys",
    [
        {"network": "default"},
        {"call": "build"},
        {"description": "a text"},
        {"no-cache": False},
        {"ulimits": []},
        {"extra-hosts": None},
    ],
)
def test_a_key_that_changes_nothing_is_no_fault(keys: dict[str, Any]) -> None:
    assert target(**keys).request == target().request


@pytest.mark.parametrize(
    "keys",
    [
        {"context": ["x"]},
        {"context": "-"},
        {"dockerfile": "-"},
        {"dockerfile": "https://example.org/Dockerfile"},
        {"context": "https://example.org/x.git", "dockerfile-inline": "FROM scratch"},
        {"args": {"A": 1}},
        {"args": {"A=B": "x"}},
        {"args": ["A=1"]},
        {"labels": {"": "x"}},
        {"contexts": {"a=b": "x"}},
        {"tags": "x:1"},
        {"tags": [1]},
        {"platforms": "linux/amd64"},
        {"output": [{"type": "cacheonly"}]},
        {"output": [{"dest": "x"}]},
        {"output": ["type=local,dest=x"]},
        {"cache-from": [{"type": 1}]},
        {"secret": [{"src": "x"}]},
        {"secret": [{"id": "a", "uid": "0"}]},
        {"ssh": [{"id": "a", "paths": "k"}]},
        {"ssh": [{"id": "a", "paths": ["k,l"]}]},
        {"ssh": [{"paths": ["k"]}]},
        {"no-cache": "yes"},
        {"context": "a\0b"},
        {"args": {"A": "\ud800"}},
        {"labels": {"a\0": "b"}},
        {"ssh": [{"id": "default", "paths": ["\0"]}]},
    ],
)
def test_a_value_that_cannot_be_read_is_refused_by_its_key(keys: dict[str, Any]) -> None:
    message = refused(**keys)
    assert "x.hcl: target web: " in message
    assert any(f"{key} = " in message for key in keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"context": "/etc"},
        {"context": "../other"},
        {"dockerfile": "../../Dockerfile"},
        {"contexts": {"home": "/root"}},
        {"contexts": {"home": "cwd:///root"}},
        {"contexts": {"layout": "oci-layout:///var/images@sha256:00"}},
        {"secret": [{"id": "key", "src": "/root/.ssh/id_rsa"}]},
        {"secret": [{"id": "/etc/shadow"}]},
        {"ssh": [{"id": "default", "paths": ["/root/.ssh/id_rsa"]}]},
        {"output": [{"type": "local", "dest": "/usr/local"}]},
        {"cache-from": [{"type": "local", "src": "/var/cache"}]},
        {"cache-to": [{"type": "local", "dest": "../cache"}]},
    ],
    ids=json.dumps,
)
def test_what_lies_beyond_this_folder_is_refused_unless_it_is_allowed(
    keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is outside of this folder\n  try: " in refused(**keys)
    monkeypatch.setenv("BUILDX_BAKE_ENTITLEMENTS_FS", "0")
    target(**keys)


def test_a_link_that_leads_out_of_this_folder_is_seen_through(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/etc")
    assert "context: out is outside of this folder" in refused(context="out")


def test_a_secret_by_the_name_of_a_variable_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "x")
    assert target(secret=[{"id": "TOKEN"}]).request.secrets == ("id=TOKEN",)


@pytest.mark.parametrize(
    ("context", "dockerfile", "expected"),
    [
        (".", "Dockerfile", "Dockerfile"),
        ("a/b", "c/D", "a/b/c/D"),
        ("a", "cwd://D", "D"),
        ("cwd://a", "D", "a/D"),
        ("https://example.org/x.git", "Dockerfile", ""),
        ("https://example.org/x.git", "c/D", "c/D"),
    ],
)
def test_a_dockerfile_is_named_from_its_context_on(context: str, dockerfile: str, expected: str) -> None:
    assert target(context=context, dockerfile=dockerfile).request.file == expected


def test_agents_and_keys_are_passed_on() -> None:
    request = target(ssh=[{"id": "default"}, {"id": "key", "paths": ["a", "b"]}]).request
    assert request.ssh == ("default", "key=a,b")


def test_what_others_are_built_on_is_named_nothing_and_goes_nowhere() -> None:
    base = {"tags": ["base:1"], "output": [{"type": "cacheonly"}]}
    found = parse_bake_plan(plan({"web": {"contexts": {"b": "target:base"}}, "base": base}, ["web"]), "x.hcl")
    assert found.requested == ("web",)
    assert (found.targets["base"].request.tags, found.targets["base"].request.outputs) == ((), ())


def test_targets_that_are_built_on_each_other_are_refused() -> None:
    circle = {"a": {"contexts": {"x": "target:b"}}, "b": {"contexts": {"x": "target:a"}}}
    with pytest.raises(UsageError, match="a -> b -> a"):
        parse_bake_plan(plan(circle), "x.hcl")


def test_a_target_that_is_not_there_cannot_be_built_on() -> None:
    with pytest.raises(UsageError, match="target web: context x: no target 'nope'"):
        parse_bake_plan(plan({"web": {"contexts": {"x": "target:nope"}}}), "x.hcl")


def test_groups_in_groups_are_taken_apart_once() -> None:
    groups = {"one": ["web", "two"], "two": ["one", "tool"]}
    found = parse_bake_plan(plan({"tool": {}, "web": {}}, ["one", "web"], **groups), "x.hcl")
    assert found.requested == ("web", "tool")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"group": {}, "target": {}}',
        '{"group": {"default": {"targets": "web"}}, "target": {"web": {}}}',
        '{"group": {"default": {"targets": ["web"]}}, "target": {}}',
        '{"group": {"default": {"targets": ["web"]}}, "target": []}',
        "[" * 100_000,
    ],
)
def test_what_is_no_plan_is_said_to_be_none(text: str) -> None:
    with pytest.raises(BuilderError, match=r"buildx did not print a valid bake plan for x\.hcl"):
        parse_bake_plan(text, "x.hcl")


@pytest.mark.parametrize("name", ["--privileged", "-", "nowhere.hcl", ".", ""])
def test_a_file_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="there is no bake file"):
        check_bake_arguments(name, ())


def test_a_file_named_like_an_option_is_refused_even_if_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "--privileged").touch()
    with pytest.raises(UsageError, match="there is no bake file"):
        check_bake_arguments("--privileged", ())


@pytest.mark.parametrize(
    "name", ["--push", "https://example.org/x.git", "git@example.org:x", "a b", "a\n", "", "#x"]
)
def test_a_target_that_buildx_could_take_for_something_else_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.hcl").touch()
    check_bake_arguments("x.hcl", ("web", "worker_one", "a-1"))
    with pytest.raises(UsageError, match="is not a valid name of a bake target"):
        check_bake_arguments("x.hcl", ("web", name))


ENGINE = Engine(
    kind="system",
    endpoint="unix:///x",
    version="28",
    store="containerd",
    platform=Platform.parse("linux/amd64"),
    is_local=True,
    tools=ClientTools(docker=("docker",), buildx=("buildx",)),
)


def read(tmp_path: Path, text: str, run: Scripted, *, outputs: bool = True) -> BakePlan:
    (tmp_path / "x.hcl").write_text(text, encoding="utf-8")
    return BakePrinter(file="x.hcl", targets=("web",), engine=ENGINE, commands=run).print_plan(
        with_outputs=outputs
    )


def test_a_file_is_printed_without_its_outputs(tmp_path: Path) -> None:
    run = Scripted().expect("buildx bake *", stdout=plan({"web": {}}))
    read(tmp_path, 'output = ["type=oci,dest=x.tar"]', run, outputs=False)
    assert run.lines == ["buildx bake --print --file=x.hcl '--set=*.output=' -- web"]
    assert not run.calls[0].mutates
    assert run.calls[0].call.cwd is None


def test_outputs_are_printed_in_a_folder_where_nothing_can_be_lost(tmp_path: Path) -> None:
    folders: list[Path] = []

    def aside(argv: list[str], call: CommandOptions) -> None:
        assert argv[3] == f"--file={tmp_path}/x.hcl"
        assert call.cwd is not None
        assert (call.cwd / "dist").is_dir()
        folders.append(call.cwd)

    found = {"output": [{"type": "oci", "dest": "dist/x.tar"}], "context": "../../elsewhere"}
    run = Scripted().expect("buildx bake *--set=[*].secrets=*", stdout=plan({"web": found}), effect=aside)
    run.expect("buildx bake *output=*", stdout=plan({"web": {"context": "web"}}))
    web = read(tmp_path, 'output = ["type=oci,dest=dist/x.tar"]', run).targets["web"]
    assert (web.request.context, str(web.request.outputs[0])) == ("web", "type=oci,dest=dist/x.tar")
    assert tmp_path not in folders
    assert not folders[0].exists()


def test_a_file_without_outputs_is_printed_once(tmp_path: Path) -> None:
    run = Scripted().expect("buildx bake *", stdout=plan({"web": {}}))
    read(tmp_path, 'target "web" {}', run)
    assert len(run.calls) == 1


@pytest.mark.parametrize(
    "text",
    [
        'output = ["type=oci,dest=/home/me/x.tar"]',
        'output = ["type=oci,dest=../x.tar"]',
        'output = ["type=oci,dest=${PLACE}/x.tar"]',
        'output = ["type=oci,\\"dest=~/x.tar\\""]',
        'output = [{ type = "oci", dest = "/x.tar" }]',
        '"output": [{"type": "oci", "dest": "/x.tar"}]',
        'output = [{ type = "oci", dest = PLACE }]\noutput = ["type=oci,dest=%{x}"]',
    ],
)
def test_outputs_of_which_it_cannot_be_seen_where_they_go_are_refused_unprinted(
    tmp_path: Path, text: str
) -> None:
    run = Scripted().expect("buildx bake *output=*", stdout=plan({"web": {}}))
    with pytest.raises(UsageError, match=r"dest=.* is not a relative path inside this folder"):
        read(tmp_path, text, run)
    assert len(run.calls) == 1


def test_a_refusal_is_in_buildxs_words_with_the_next_command(tmp_path: Path) -> None:
    run = Scripted().expect("buildx bake *", returncode=1, stderr="#1 x\nERROR: failed to find target web\n")
    with pytest.raises(UsageError) as caught:
        read(tmp_path, "", run)
    assert str(caught.value) == (
        "x.hcl: failed to find target web\n  try: docker buildx bake --file=x.hcl --list=targets"
    )


def test_a_dry_run_where_buildx_is_still_to_be_fetched_shows_the_command(tmp_path: Path) -> None:
    run = Scripted(dry_run=True)
    assert read(tmp_path, "", run).build_order == ()
    assert run.shown == ["buildx bake --print --file=x.hcl '--set=*.output=' -- web"]
