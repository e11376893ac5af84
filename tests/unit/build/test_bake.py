"""Bake plans. tests/fixtures/bake has the output of buildx 0.29; tests/integration prints it again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.build.bake.plan import BakePlan, parse_bake_plan
from buildkit_tasks.build.bake.print import BakePrinter, check_bake_arguments
from buildkit_tasks.build.bake.target import BakeTarget
from buildkit_tasks.errors import BuilderError, UsageError
from buildkit_tasks.host.engine.daemon import ClientTools
from buildkit_tasks.system.command import CommandOptions
from buildkit_tasks.system.landlock import restricted_argv
from tests.support.fake_engine import make_engine
from tests.support.scripted import Scripted

FIXTURES = Path(__file__).parents[2] / "fixtures" / "bake"


def read_fixture(name: str) -> str:
    return (FIXTURES / name).read_text(encoding="utf-8")


def format_plan(targets: Mapping[str, Any], default: list[str] | None = None, **groups: list[str]) -> str:
    """Return a plan as ``buildx bake --print`` formats it."""
    members = {"default": [*targets] if default is None else default, **groups}
    group = {name: {"targets": names} for name, names in members.items()}
    return json.dumps({"group": group, "target": targets})


def parse_target(**keys: Any) -> BakeTarget:
    raw = {key.replace("_", "-"): value for key, value in keys.items()}
    return parse_bake_plan(format_plan({"web": raw}), "x.hcl").targets["web"]


def usage_error(**keys: Any) -> str:
    with pytest.raises(UsageError) as excinfo:
        parse_target(**keys)
    return str(excinfo.value)


@pytest.fixture(autouse=True)
def _no_entitlements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BUILDX_BAKE_ENTITLEMENTS_FS", raising=False)
    monkeypatch.chdir(tmp_path)


def test_groups_are_expanded() -> None:
    bake_plan = parse_bake_plan(read_fixture("group.printed.json"), "group.hcl")
    assert bake_plan.requested == ("tool-a", "tool-b", "web")
    assert [each.name for each in bake_plan.build_order] == ["tool-a", "tool-b", "base", "web"]


def test_inherited_keys() -> None:
    web = parse_bake_plan(read_fixture("group.printed.json"), "group.hcl").targets["web"]
    assert web.platforms == ("linux/amd64", "linux/arm64")
    assert (web.request.context, web.request.file) == ("web", "web/Dockerfile")
    assert web.request.tags == ("example.org/web:1",)
    assert web.linked_contexts == (("base", "base"),)
    assert web.request.build_contexts == ()


def test_template_signs_are_unescaped() -> None:
    bake_plan = parse_bake_plan(read_fixture("group.printed.json"), "group.hcl")
    assert bake_plan.targets["web"].request.build_args == ("GREETING=hi ${USER}",)
    inline = bake_plan.targets["base"].inline_dockerfile
    assert inline is not None
    assert inline.splitlines()[1] == 'RUN echo "${HOME:-none}" > /based'


@pytest.mark.parametrize(
    ("printed", "expected"), [("$${A}", "${A}"), ("$$${A}", "$${A}"), ("%%{a}$B", "%{a}$B"), ("$$A", "$$A")]
)
def test_unescape_before_braces_only(printed: str, expected: str) -> None:
    assert parse_target(args={"A": printed}).request.build_args == (f"A={expected}",)


def test_supported_keys() -> None:
    request = parse_bake_plan(read_fixture("every.printed.json"), "every.json").targets["default"].request
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


def test_container_keys() -> None:
    target = parse_target(
        network="host",
        entitlements=["network.host"],
        ulimits=["nofile=1024:2048"],
        resources={"memory": "2g", "cpu-quota": 50000},
        **{
            "extra-hosts": {"a": "10.0.0.1,fe80::1", "b": "host-gateway"},
            "shm-size": "1g",
            "no-cache-filter": ["build"],
        },
    )
    assert target.entitlements == ("network.host",)
    request = target.request
    assert (request.network, request.shm_size, request.no_cache_filters) == ("host", "1g", ("build",))
    assert request.add_hosts == ("a=10.0.0.1", "a=fe80::1", "b=host-gateway")
    assert request.ulimits == ("nofile=1024:2048",)
    assert request.resources == ("memory=2g", "cpu-quota=50000")


def test_comma_in_output() -> None:
    request = parse_bake_plan(read_fixture("every.outputs.json"), "every.json").targets["default"].request
    assert [str(output) for output in request.outputs] == [
        "type=local,dest=out",
        'type=oci,"dest=out/a,b.tar"',
    ]


def test_compose_services() -> None:
    bake_plan = parse_bake_plan(read_fixture("compose.printed.json"), "compose.yaml")
    assert bake_plan.requested == ("web", "worker_one")
    web = bake_plan.targets["web"].request
    assert (web.file, web.tags, web.secrets) == (
        "web/Containerfile",
        ("example.org/web:1",),
        ("id=token,env=TOKEN",),
    )
    assert bake_plan.targets["worker_one"].platforms == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("call", "check"),
        ("policy", [{"filename": "x"}]),
        ("matrix", {"a": ["b"]}),
        ("inherits", ["b"]),
        ("of-next-year", 1),
    ],
)
def test_unsupported_key(key: str, value: Any) -> None:
    message = usage_error(**{key: value})
    assert f"x.hcl: target web: {key} = {json.dumps(value)} is not supported" in message


@pytest.mark.parametrize(
    "keys",
    [
        {"call": "build"},
        {"description": "a text"},
        {"no-cache": False},
        {"ulimits": []},
        {"extra-hosts": None},
    ],
)
def test_default_values_are_ignored(keys: dict[str, Any]) -> None:
    assert parse_target(**keys).request == parse_target().request


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
        {"resources": ["memory=2g"]},
        {"resources": {"memory": ["2g"]}},
        {"context": "a\0b"},
        {"args": {"A": "\ud800"}},
        {"labels": {"a\0": "b"}},
        {"ssh": [{"id": "default", "paths": ["\0"]}]},
    ],
)
def test_invalid_value(keys: dict[str, Any]) -> None:
    message = usage_error(**keys)
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
def test_path_outside_of_folder(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is outside of this folder\n  try: " in usage_error(**keys)
    monkeypatch.setenv("BUILDX_BAKE_ENTITLEMENTS_FS", "0")
    parse_target(**keys)


def test_symlink_out_of_folder(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/etc")
    assert "context: out is outside of this folder" in usage_error(context="out")


def test_secret_from_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "x")
    assert parse_target(secret=[{"id": "TOKEN"}]).request.secrets == ("id=TOKEN",)


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
def test_dockerfile_path(context: str, dockerfile: str, expected: str) -> None:
    assert parse_target(context=context, dockerfile=dockerfile).request.file == expected


def test_ssh_agent_and_keys() -> None:
    request = parse_target(ssh=[{"id": "default"}, {"id": "key", "paths": ["a", "b"]}]).request
    assert request.ssh == ("default", "key=a,b")


def test_dependency_is_not_exported() -> None:
    base = {"tags": ["base:1"], "output": [{"type": "cacheonly"}]}
    bake_plan = parse_bake_plan(
        format_plan({"web": {"contexts": {"b": "target:base"}}, "base": base}, ["web"]), "x.hcl"
    )
    assert bake_plan.requested == ("web",)
    assert (bake_plan.targets["base"].request.tags, bake_plan.targets["base"].request.outputs) == ((), ())


def test_cyclic_targets() -> None:
    cycle = {"a": {"contexts": {"x": "target:b"}}, "b": {"contexts": {"x": "target:a"}}}
    with pytest.raises(UsageError, match="a -> b -> a"):
        parse_bake_plan(format_plan(cycle), "x.hcl")


def test_unknown_linked_target() -> None:
    with pytest.raises(UsageError, match="target web: context x: no target 'nope'"):
        parse_bake_plan(format_plan({"web": {"contexts": {"x": "target:nope"}}}), "x.hcl")


def test_nested_groups() -> None:
    groups = {"one": ["web", "two"], "two": ["one", "tool"]}
    bake_plan = parse_bake_plan(format_plan({"tool": {}, "web": {}}, ["one", "web"], **groups), "x.hcl")
    assert bake_plan.requested == ("web", "tool")


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
def test_invalid_plan(text: str) -> None:
    with pytest.raises(BuilderError, match=r"buildx did not print a valid bake plan for x\.hcl"):
        parse_bake_plan(text, "x.hcl")


@pytest.mark.parametrize(
    ("name", "target", "key"), [("a b", {}, 'name = "a b"'), ("web", ["x"], 'target = ["x"]')]
)
def test_malformed_target(name: str, target: Any, key: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"x.hcl: target {name}: {key}")):
        parse_bake_plan(format_plan({name: target}), "x.hcl")


@pytest.mark.parametrize("name", ["--privileged", "-", "nowhere.hcl", ".", ""])
def test_missing_bake_file(name: str) -> None:
    with pytest.raises(UsageError, match="there is no bake file"):
        check_bake_arguments((name,), ())


def test_bake_file_like_a_flag(tmp_path: Path) -> None:
    (tmp_path / "--privileged").touch()
    with pytest.raises(UsageError, match="there is no bake file"):
        check_bake_arguments(("--privileged",), ())


@pytest.mark.parametrize(
    "name", ["--push", "https://example.org/x.git", "git@example.org:x", "a b", "a\n", "", "#x"]
)
def test_invalid_target_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.hcl").touch()
    check_bake_arguments(("x.hcl",), ("web", "worker_one", "a-1"))
    with pytest.raises(UsageError, match="is not a valid name of a bake target"):
        check_bake_arguments(("x.hcl",), ("web", name))


ENGINE = make_engine(tools=ClientTools(docker=("docker",), buildx=("buildx",)))


def print_plan(tmp_path: Path, text: str, commands: Scripted, *, outputs: bool = True) -> BakePlan:
    (tmp_path / "x.hcl").write_text(text, encoding="utf-8")
    return BakePrinter(files=("x.hcl",), targets=("web",), engine=ENGINE, commands=commands).print_plan(
        with_outputs=outputs
    )


def test_print_without_outputs(tmp_path: Path) -> None:
    commands = Scripted().expect("buildx bake *", stdout=format_plan({"web": {}}))
    print_plan(tmp_path, 'output = ["type=oci,dest=x.tar"]', commands, outputs=False)
    assert commands.lines == ["buildx bake --print --file=x.hcl '--set=*.output=' -- web"]
    assert not commands.calls[0].mutates
    assert commands.calls[0].options.cwd is None


def test_print_of_several_files(tmp_path: Path) -> None:
    for name, text in {"a.hcl": 'output = ["type=oci,dest=x.tar"]', "b.hcl": ""}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    commands = Scripted().expect("*buildx bake *", stdout=format_plan({"web": {}}))
    BakePrinter(
        files=("a.hcl", "b.hcl"), targets=(), overrides=("web.args.A=1",), engine=ENGINE, commands=commands
    ).print_plan(with_outputs=True)
    assert commands.lines[0] == (
        "buildx bake --print --file=a.hcl --file=b.hcl --set=web.args.A=1 '--set=*.output=' --"
    )
    assert f"--file={tmp_path}/a.hcl --file={tmp_path}/b.hcl " in commands.lines[1]


@pytest.mark.parametrize(
    "override", ["web.output=type=local,dest=x", "*.outputs+=x", "web.push=true", "w.load"]
)
def test_override_of_outputs(tmp_path: Path, override: str) -> None:
    (tmp_path / "x.hcl").touch()
    with pytest.raises(UsageError, match="outputs are not set in this way"):
        check_bake_arguments(["x.hcl"], [], [override])


@pytest.mark.parametrize(
    "override", ["", "web", "args=1", "--file=x", "-x.args=1", ".args=1", "web args.a=1"]
)
def test_malformed_override(tmp_path: Path, override: str) -> None:
    (tmp_path / "x.hcl").touch()
    with pytest.raises(UsageError, match=r"not of the form TARGET\.KEY=VALUE"):
        check_bake_arguments(["x.hcl"], [], [override])


@pytest.mark.parametrize(
    "override", ["web.args.A=b=c\nd", "w*.tags+=x:1", "*.no-cache", "*.platform=linux/arm64"]
)
def test_override(tmp_path: Path, override: str) -> None:
    (tmp_path / "x.hcl").touch()
    check_bake_arguments(["x.hcl"], [], [override])


def test_print_outputs_in_empty_folder(tmp_path: Path) -> None:
    folders: list[Path] = []

    def check_folder(argv: list[str], options: CommandOptions) -> None:
        assert f"--file={tmp_path}/x.hcl" in argv
        assert options.cwd is not None
        assert argv == restricted_argv(options.cwd, argv[argv.index("buildx") :])
        assert options.env["BUILDX_CONFIG"] == options.env["TMPDIR"] == str(options.cwd)
        assert (options.cwd / "dist").is_dir()
        folders.append(options.cwd)

    printed = {"output": [{"type": "oci", "dest": "dist/x.tar"}], "context": "../../elsewhere"}
    commands = Scripted().expect(
        "*buildx bake *--set=[*].secrets=*", stdout=format_plan({"web": printed}), effect=check_folder
    )
    commands.expect("buildx bake *output=*", stdout=format_plan({"web": {"context": "web"}}))
    web = print_plan(tmp_path, 'output = ["type=oci,dest=dist/x.tar"]', commands).targets["web"]
    assert (web.request.context, str(web.request.outputs[0])) == ("web", "type=oci,dest=dist/x.tar")
    assert tmp_path not in folders
    assert not folders[0].exists()


def test_print_once_without_outputs(tmp_path: Path) -> None:
    commands = Scripted().expect("buildx bake *", stdout=format_plan({"web": {}}))
    print_plan(tmp_path, 'target "web" {}', commands)
    assert len(commands.calls) == 1


@pytest.mark.parametrize(
    "text",
    [
        'output = ["type=oci,dest=/home/me/x.tar"]',
        'output = ["type=oci,dest=../x.tar"]',
        'output = ["type=oci,dest=${PLACE}/x.tar"]',
        'output = ["type=oci,\\"dest=~/x.tar\\""]',
        'output = [{ type = "oci", dest = "/x.tar" }]',
        '"output": [{"type": "oci", "dest": "/x.tar"}]',
        'output = ["type=oci,DEST=/x.tar"]',
        'output = [{ type = "oci", dest = PLACE }]\noutput = ["type=oci,dest=%{x}"]',
    ],
)
def test_unsafe_dest_is_refused(tmp_path: Path, text: str) -> None:
    commands = Scripted().expect("buildx bake *output=*", stdout=format_plan({"web": {}}))
    with pytest.raises(UsageError, match=r"dest=.* is not a relative path inside this folder"):
        print_plan(tmp_path, text, commands)
    assert len(commands.calls) == 1


def test_output_outside_of_folder(tmp_path: Path) -> None:
    reason = "ERROR: failed to open open /x.tar: permission denied"
    commands = Scripted().expect("buildx bake *output=*", stdout=format_plan({"web": {}}))
    commands.expect("*buildx bake *secrets=*", returncode=1, stderr=reason)
    with pytest.raises(UsageError, match=r"x\.hcl: an output is outside this folder: .*/x\.tar: permission"):
        print_plan(tmp_path, 'output = ["type=oci,${WHERE}"]', commands)


def test_buildx_error_and_hint(tmp_path: Path) -> None:
    commands = Scripted().expect(
        "buildx bake *", returncode=1, stderr="#1 x\nERROR: failed to find target web\n"
    )
    with pytest.raises(UsageError) as excinfo:
        print_plan(tmp_path, "", commands)
    assert str(excinfo.value) == (
        "x.hcl: failed to find target web\n  try: docker buildx bake --file=x.hcl --list=targets"
    )


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("x.hcl:1,14-15: Unclosed configuration block", "x.hcl:1,14-15: Unclosed configuration block"),
        ("unknown key: argz", "x.hcl: unknown key: argz"),
    ],
)
def test_buildx_error_of_a_file(tmp_path: Path, reason: str, message: str) -> None:
    commands = Scripted().expect("buildx bake *", returncode=1, stderr=f"ERROR: {reason}\n")
    with pytest.raises(UsageError) as excinfo:
        print_plan(tmp_path, "", commands)
    assert str(excinfo.value) == message  # listing the targets would fail too, or not help


def test_dry_run_without_buildx(tmp_path: Path) -> None:
    commands = Scripted(dry_run=True)
    assert print_plan(tmp_path, "", commands).build_order == ()
    assert commands.dry_run_lines == ["buildx bake --print --file=x.hcl '--set=*.output=' -- web"]
