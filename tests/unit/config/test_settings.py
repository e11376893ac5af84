from __future__ import annotations

import os
import pwd
import shlex
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.config.repository import find_pyproject
from buildkit_tasks.config.settings import (
    SETTINGS_KEYS,
    SettingOrigin,
    Settings,
    SmokeCheck,
    cache_error,
    cache_folder,
    check_section_keys,
    check_section_names,
    create_cache_folder,
    load_settings,
    writable_cache_folder,
)
from buildkit_tasks.errors import CacheError, SettingsError
from tests.support.users import call_as_nobody, needs_root


@pytest.fixture
def project_dir(tmp_path: Path) -> Path:
    """Return a repository without settings; its empty pyproject.toml hides those of parent directories."""
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def write_pyproject(folder: Path, text: str) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(f"[tool.buildkit-tasks]\n{text}\n", encoding="utf-8")
    return path


# From weakest to strongest; each source sets the same key to its own name.
SOURCES = ("pyproject", "invoke", "field", "prefixed", "flag")
ORIGINS = (
    SettingOrigin.PYPROJECT,
    SettingOrigin.INVOKE,
    SettingOrigin.ENVIRONMENT,
    SettingOrigin.ENVIRONMENT,
    SettingOrigin.FLAG,
)


def load_from(project_dir: Path, *sources: str) -> Settings:
    environ: dict[str, str] = {}
    if "pyproject" in sources:
        write_pyproject(project_dir, 'name = "pyproject"')
    if "field" in sources:
        environ["BUILDX_BUILDER"] = "field"
    if "prefixed" in sources:
        environ["INVOKE_BUILDKIT_NAME"] = "prefixed"
    invoke = {"name": "invoke" if "invoke" in sources else None}
    flags = {"name": "flag" if "flag" in sources else ""}
    return load_settings(flags, invoke=invoke, environ=environ, folder=project_dir)


@pytest.mark.parametrize(("weak", "strong"), list(combinations(range(5), 2)))
def test_stronger_source_wins(project_dir: Path, weak: int, strong: int) -> None:
    settings = load_from(project_dir, SOURCES[weak], SOURCES[strong])
    assert settings.name == SOURCES[strong]
    assert settings.origins["name"] is ORIGINS[strong]


@pytest.mark.parametrize(("source", "origin"), list(zip(SOURCES, ORIGINS, strict=True)))
def test_source_overrides_default(project_dir: Path, source: str, origin: SettingOrigin) -> None:
    settings = load_from(project_dir, source)
    assert (settings.name, settings.origins["name"], settings.is_explicit("name")) == (source, origin, True)
    assert not settings.is_explicit("driver")


def test_origin_order() -> None:
    assert [origin.name for origin in sorted(SettingOrigin)] == [
        "DEFAULT",
        "PYPROJECT",
        "INVOKE",
        "ENVIRONMENT",
        "FLAG",
    ]


def test_defaults(project_dir: Path) -> None:
    settings = load_settings(environ={}, folder=project_dir)
    assert settings == Settings()
    assert not any(map(settings.is_explicit, SETTINGS_KEYS))


def test_sources_are_merged(project_dir: Path) -> None:
    write_pyproject(project_dir, 'name = "mine"\nengine = "private"')
    settings = load_settings({"name": "flag"}, environ={"INVOKE_BUILDKIT_JOBS": "3"}, folder=project_dir)
    assert (settings.name, settings.engine, settings.jobs) == ("flag", "private", 3)


def test_empty_value_is_not_set(project_dir: Path) -> None:
    write_pyproject(project_dir, 'tags = ["kept:1"]\nname = "kept"')
    environ = {"INVOKE_BUILDKIT_NAME": "", "BUILDX_BUILDER": "", "DOCKER_DEFAULT_PLATFORM": ""}
    settings = load_settings({"tags": [], "name": "", "file": None}, environ=environ, folder=project_dir)
    assert (settings.tags, settings.name, settings.file) == (("kept:1",), "kept", "")
    assert not settings.is_explicit("platforms")


@pytest.mark.parametrize("variable", ["DOCKER_DEFAULT_PLATFORM", "INVOKE_BUILDKIT_PLATFORMS"])
def test_list_from_environment(project_dir: Path, variable: str) -> None:
    settings = load_settings(environ={variable: "linux/arm64, linux/386,"}, folder=project_dir)
    assert settings.platforms == ("linux/arm64", "linux/386")
    assert settings.is_explicit("platforms")


def test_buildx_builder_variable(project_dir: Path) -> None:
    assert load_settings(environ={"BUILDX_BUILDER": "theirs"}, folder=project_dir).name == "theirs"


def test_numbers_from_environment(project_dir: Path) -> None:
    environ = {"INVOKE_BUILDKIT_TIMEOUT": "1.5", "INVOKE_BUILDKIT_EXPECT_EXIT": "3"}
    settings = load_settings(environ=environ, folder=project_dir)
    assert (settings.timeout, settings.expect_exit) == (1.5, 3)


def test_integer_timeout(project_dir: Path) -> None:
    write_pyproject(project_dir, "timeout = 90")
    assert load_settings(environ={}, folder=project_dir).timeout == 90.0


def test_keys_with_dashes(project_dir: Path) -> None:
    write_pyproject(project_dir, 'build-args = ["A=1"]\nexpect-exit = 4')
    settings = load_settings(environ={}, folder=project_dir)
    assert (settings.build_args, settings.expect_exit) == (("A=1",), 4)


def test_default_environment_and_folder(project_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pyproject(project_dir, 'engine = "system"')
    (project_dir / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(project_dir / "deep" / "er")
    monkeypatch.setenv("INVOKE_BUILDKIT_NAME", "from-here")
    settings = load_settings()
    assert (settings.engine, settings.name) == ("system", "from-here")


def test_nearest_pyproject(project_dir: Path) -> None:
    (project_dir / "near").mkdir()
    near = write_pyproject(project_dir / "near", 'name = "near"')
    far = write_pyproject(project_dir, 'name = "far"')
    assert find_pyproject(project_dir / "near") == near
    (project_dir / "other").mkdir()
    assert find_pyproject(project_dir / "other") == far
    assert load_settings(environ={}, folder=project_dir / "near").name == "near"


UNKNOWN_KEYS: list[tuple[dict[str, Any], str]] = [
    ({"pyproject": 'platfroms = ["linux/amd64"]'}, "pyproject.toml: [tool.buildkit-tasks]"),
    ({"invoke": {"platfroms": "x"}}, "Invoke's configuration: buildkit"),
    ({"environ": {"INVOKE_BUILDKIT_PLATFROMS": "x"}}, "environment INVOKE_BUILDKIT_PLATFROMS"),
]


def settings_error(project_dir: Path, source: dict[str, Any]) -> SettingsError:
    if "pyproject" in source:
        write_pyproject(project_dir, source["pyproject"])
    with pytest.raises(SettingsError) as excinfo:
        load_settings(
            source.get("flags"),
            invoke=source.get("invoke"),
            environ=source.get("environ", {}),
            folder=project_dir,
        )
    assert excinfo.value.exit_code == 2
    return excinfo.value


@pytest.mark.parametrize(("source", "label"), UNKNOWN_KEYS)
def test_unknown_key_suggestion(project_dir: Path, source: dict[str, Any], label: str) -> None:
    error = settings_error(project_dir, source)
    assert error.message.endswith(f"{label}: unknown key 'platfroms', did you mean 'platforms'?")
    assert error.hint is None


@pytest.mark.parametrize(
    "name",
    [
        "tool.buildkit_tasks", "tool.Buildkit-Tasks", "tool.buildkit-task", "tool.buildkittasks",
        "tool.buildkit-taks", "tool.buildkit.tasks", "tool.buildkit", "tools.buildkit-tasks",
        "Tool.buildkit-tasks", "buildkit-tasks", "buildkit_tasks", "tool.Build_Kit-Tasks", "tool.build-kit",
        "tool.buildkits", "tool.bulidkit", "buildkit", "tool.invoke.buildkit", "tool.invoke.buildkit_tasks",
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["", ".image"])
def test_misnamed_table(project_dir: Path, name: str, suffix: str) -> None:
    path = project_dir / "pyproject.toml"
    brackets = ("[[", "]]") if suffix else ("[", "]")
    text = f"{name}{suffix}".join(brackets) + '\nname = "mine"\n'
    path.write_text(text, encoding="utf-8")
    error = settings_error(project_dir, {})
    assert error.message == f"{path}: nothing reads [{name}]: the settings are in [tool.buildkit-tasks]"
    subprocess.run(shlex.split(error.hint or ""), check=True)
    settings = load_settings(environ={}, folder=project_dir)
    assert "mine" in (settings.name, *(image.name for image in settings.images))


def test_misnamed_table_beside_the_right_one(project_dir: Path) -> None:
    write_pyproject(project_dir, 'name = "x"\n[tool.buildkit_tasks]\nname = "y"')
    assert "[tool.buildkit_tasks]" in settings_error(project_dir, {}).message


def test_quoted_table_name(project_dir: Path) -> None:
    (project_dir / "pyproject.toml").write_text('[tool."Buildkit Tasks"]\nname = "x"\n', encoding="utf-8")
    assert settings_error(project_dir, {}).hint == "rename the table to [tool.buildkit-tasks]"


@pytest.mark.parametrize(
    "text",
    [
        "[tool.build-tasks]", "[tool.buildkit]\nworkers = 3", "[tool.buildx]", "[tool.ruff]\nname = 1",
        "[dependency-groups]\nbuildkit-tasks = ['x']", "[project]\nname = 'buildkit-tasks'",
        "[tool.uv.sources]\nbuildkit-tasks = {path = '.'}", "[tool.uv.buildkit-tasks]\nname = 'x'",
        "tool.buildkit_tasks = 1", "[tool.buildkite]\nname = 'x'", "[tool.buildkitd]\nname = 'x'",
        "[tool.buildkits]\nworkers = 3", "[tool.docker]\nname = 'x'", "[tool.invoke.run]\nname = 'x'",
        "[tool.uv.buildkit]\nname = 'x'", "[tool.buildtasks]\nname = 'x'", "[tool.buildbot]\nname = 'x'",
    ],
)  # fmt: skip
def test_table_of_another_tool(project_dir: Path, text: str) -> None:
    (project_dir / "pyproject.toml").write_text(text, encoding="utf-8")
    assert load_settings(environ={}, folder=project_dir) == Settings()


@pytest.mark.parametrize(
    "name",
    [
        "buildkit_tasks", "buildkit-tasks", "buildkit-task", "Buildkit", "BUILDKIT", "BuildKit", "build-kit",
        "build_kit", "Build.Kit", "build kit", "buildkits", "bulidkit", "buildkt", "BuildkitTasks",
    ],
)  # fmt: skip
def test_misnamed_section(name: str) -> None:
    with pytest.raises(SettingsError, match=f"nothing reads '{name}': the settings are in 'buildkit'"):
        check_section_names({name: {"Driver-Opt": "x"}, "buildkit": {}})
    check_section_names({name: None})


@pytest.mark.parametrize("name", ["buildkit", "buildkite", "buildkitd", "docker", "buildx", "build", "run"])
def test_section_of_another_tool(name: str) -> None:
    check_section_names({name: {"name": "x"}, "buildkits": {"workers": 3}})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"buildkit": {}, "BUILDKIT": {"name": "x"}}, "nothing reads 'BUILDKIT'"),
        ({"buildkit": {"name": None, "Name": "x"}}, "unknown key 'Name'"),
    ],
)
def test_section_keys(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_section_keys(sections)
    check_section_keys({"buildkit": {"name": "x"}, "tasks": {}})


def test_unknown_key_list(project_dir: Path) -> None:
    error = settings_error(project_dir, {"pyproject": "zzz = 1"})
    assert error.hint == f"use one of {', '.join(SETTINGS_KEYS)}"


BAD_VALUES: list[tuple[str, str]] = [
    ('timeout = "soon"', "timeout = 'soon' is not a number above 0"),
    ("timeout = true", "timeout = True is not a number above 0"),
    ("timeout = nan", "timeout = nan is not a number above 0"),
    ("timeout = inf", "timeout = inf is not a number above 0"),
    ("timeout = -1", "timeout = -1 is not a number above 0"),
    ("timeout = 0", "timeout = 0 is not a number above 0"),
    ("expect-exit = 256", "expect_exit = 256 is not an exit status, 0 to 255"),
    ('jobs = "many"', "jobs = 'many' is not a whole number, 0 or more"),
    ("jobs = -2", "jobs = -2 is not a whole number, 0 or more"),
    ("jobs = 1.5", "jobs = 1.5 is not a whole number, 0 or more"),
    ("name = 7", "name = 7 is not text"),
    ("platforms = 3", "platforms = 3 is not a list"),
    ("platforms = [3]", "platforms = [3] is not a list"),
    ("tags = {a = 1}", "tags = {'a': 1} is not a list"),
    ('engine = "privat"', "engine = 'privat' is not one of auto, system, private"),
    (
        'driver = "Docker"',
        "driver = 'Docker' is not one of auto, docker-container, docker, remote, kubernetes",
    ),
    ('runner = "podman"', "runner = 'podman' is not one of auto, docker, sandbox"),
    ('root-cache = "much"', "root_cache = 'much' is not a whole number, 0 or more"),
    ("cpu = 386", "cpu = 386 is not text"),
    ('cpu = "-cpu"', "'-cpu' is not a valid CPU"),
    ('cpu = "max host"', "'max host' is not a valid CPU"),
    ('cpu = "max\\n"', "'max\\n' is not a valid CPU"),
    ('cpu = "a;b"', "'a;b' is not a valid CPU"),
    ('allow = ["network.host", "everything"]', "'everything' is not a valid entitlement"),
    ('allow = "network.host --debug"', "'network.host --debug' is not a valid entitlement"),
    ('fallback = "yes"', "fallback = 'yes' is not one of none, emulate"),
]


def test_nodes_from_environment(project_dir: Path) -> None:
    nodes = "name=a,endpoint=tcp://10.0.0.1:1 name=b,endpoint=tcp://10.0.0.2:1,platform=linux/arm64"
    from_environment = load_settings(environ={"INVOKE_BUILDKIT_NODES": nodes}, folder=project_dir).nodes
    assert from_environment == tuple(nodes.split())
    assert load_settings({"nodes": nodes.split()}, environ={}, folder=project_dir).nodes == from_environment


@pytest.mark.parametrize(("text", "message"), BAD_VALUES)
def test_bad_value(project_dir: Path, text: str, message: str) -> None:
    error = settings_error(project_dir, {"pyproject": text})
    assert error.message == f"{project_dir / 'pyproject.toml'}: [tool.buildkit-tasks]: {message}"


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ({"environ": {"INVOKE_BUILDKIT_JOBS": "x"}}, "environment INVOKE_BUILDKIT_JOBS"),
        ({"invoke": {"jobs": "x"}}, "Invoke's configuration: buildkit"),
        ({"flags": {"jobs": "x"}}, "command line"),
    ],
)
def test_bad_value_source(project_dir: Path, source: dict[str, Any], label: str) -> None:
    assert (
        settings_error(project_dir, source).message == f"{label}: jobs = 'x' is not a whole number, 0 or more"
    )


@pytest.mark.parametrize(
    "text", ["[tool", "[tool]\nbuildkit-tasks = 3", "tool = 3", "[[tool.buildkit-tasks]]\n"]
)
def test_unreadable_pyproject(project_dir: Path, text: str) -> None:
    path = project_dir / "pyproject.toml"
    path.write_text(text, encoding="utf-8")
    assert settings_error(project_dir, {}).message.startswith(f"{path}: ")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(Settings()) == tmp_path / "xdg" / "buildkit-tasks"
    assert cache_folder(Settings(cache="~/mine")) == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    assert cache_folder(Settings(cache="near")) == tmp_path / "near"


def test_cache_without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", find_nobody)
    assert cache_folder(Settings()) == Path("/nonexistent/.cache/buildkit-tasks")
    assert cache_folder(Settings(cache="~/mine")) == Path("/nonexistent/mine")


def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = Settings(cache=str(tmp_path / "file/cache"))
    with pytest.raises(CacheError, match="Not a directory") as excinfo:
        writable_cache_folder(settings)
    error = excinfo.value
    assert error.exit_code == 3
    assert "set XDG_CACHE_HOME, or the key `cache` (INVOKE_BUILDKIT_CACHE), to" in error.message
    new = Settings(cache=str(tmp_path / "parent/new"))
    assert writable_cache_folder(new) == tmp_path / "parent/new"
    assert not (tmp_path / "parent").exists()
    assert create_cache_folder(new).stat().st_mode & 0o777 == 0o700


def test_untrusted_cache(tmp_path: Path) -> None:
    folder = tmp_path / "a cache"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(CacheError) as caught:
        cache_folder(Settings(cache=str(folder)))
    assert caught.value.message == f"the cache {folder} is not used, because other users can write to it"
    assert caught.value.exit_code == 3
    subprocess.run(str(caught.value.hint), shell=True, check=True)  # noqa: S602 - as somebody pastes it
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("cache", "variable"),
    [("", "XDG_CACHE_HOME"), ("/mine", "INVOKE_BUILDKIT_CACHE")],
    ids=["default", "set"],
)
def test_cache_hint(monkeypatch: pytest.MonkeyPatch, project_dir: Path, cache: str, variable: str) -> None:
    """The hint, pasted into a shell, changes the folder that the next command uses."""
    error = cache_error(Settings(cache=cache), Path("/x"), "read-only file system")
    script = f'{error.hint} && printf %s "${variable}"'
    folder = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout
    Path(folder).rmdir()
    write_pyproject(project_dir, f"cache = {cache!r}")
    monkeypatch.setenv(variable, folder)
    assert cache_folder(load_settings(folder=project_dir)).is_relative_to(folder)


@needs_root
def test_unreadable_parent_has_no_settings(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()  # pytest's directory is closed to other users
    assert call_as_nobody(lambda: str(find_pyproject(tmp_path / "project"))) == "None"


@pytest.mark.parametrize(
    "cpu", ["max", "floor", "both", "arm1176", "Skylake-Server-v1,+avx2,pmu=off", "z14.2"]
)
def test_cpu_values(project_dir: Path, cpu: str) -> None:
    assert load_settings({"cpu": cpu}, environ={}, folder=project_dir).cpu == cpu


CHECK_TABLES = """
[[tool.buildkit-tasks.check]]

[[tool.buildkit-tasks.check]]
command = "uname -m"
expect = "^{machine}$"
expect-exit = 3
platforms = ["linux/arm64,linux/386", "arm"]
timeout = 5
"""


def test_checks(project_dir: Path) -> None:
    write_pyproject(project_dir, CHECK_TABLES)
    settings = load_settings(environ={}, folder=project_dir)
    check = SmokeCheck(
        command="uname -m",
        expect="^{machine}$",
        expect_exit=3,
        platforms=("linux/arm64", "linux/386", "arm"),
        timeout=5.0,
    )
    assert settings.checks == (SmokeCheck(), check)
    assert settings.is_explicit("checks")
    assert not load_settings(environ={}, folder=project_dir / "nowhere").checks[0].platforms


def test_invoke_checks(project_dir: Path) -> None:
    write_pyproject(project_dir, CHECK_TABLES)
    settings = load_settings(
        invoke={"check": [{"command": "true", "expect": None}]}, environ={}, folder=project_dir
    )
    assert settings.checks == (SmokeCheck(command="true"),)
    assert settings.origins["checks"] is SettingOrigin.INVOKE


BAD_CHECKS: list[tuple[str, str, str | None]] = [
    ('exepct = "x"', "unknown key 'exepct', did you mean 'expect'?", None),
    ("expect_exti = 1", "unknown key 'expect_exti', did you mean 'expect-exit'?", None),
    ("zzz = 1", "unknown key 'zzz'", "use one of command, expect, expect_exit, platforms, timeout"),
    ("command = ['a']", "command = ['a'] is not text", None),
    ("expect-exit = 'one'", "expect_exit = 'one' is not an exit status, 0 to 255", None),
    ("timeout = -1", "timeout = -1 is not a number, 0 or more", None),
    ("platforms = 3", "platforms = 3 is not a list", None),
    (
        "expect = '('",
        "expect = '(' is not a valid regular expression: missing ), unterminated subpattern",
        None,
    ),
]


@pytest.mark.parametrize(("line", "message", "hint"), BAD_CHECKS)
def test_bad_check(project_dir: Path, line: str, message: str, hint: str | None) -> None:
    error = settings_error(
        project_dir, {"pyproject": f"{CHECK_TABLES}\n[[tool.buildkit-tasks.check]]\n{line}"}
    )
    assert error.message.startswith(
        f"{project_dir / 'pyproject.toml'}: [tool.buildkit-tasks]: check 3: {message}"
    )
    assert error.hint == hint


@pytest.mark.parametrize("text", ["check = 'true'", "check = {command = 'a'}", "check = ['true']"])
def test_checks_not_a_list(project_dir: Path, text: str) -> None:
    error = settings_error(project_dir, {"pyproject": text})
    assert error.message.endswith("is not a list of tables")
    assert error.hint == "start each table with [[tool.buildkit-tasks.check]]"


def test_bad_invoke_check(project_dir: Path) -> None:
    error = settings_error(project_dir, {"invoke": {"check": [{}, {"timeout": "soon"}]}})
    assert error.message.startswith("Invoke's configuration: buildkit: check 2: timeout = 'soon' is not")


@pytest.mark.parametrize("variable", ["INVOKE_BUILDKIT_CHECK", "INVOKE_BUILDKIT_CHECKS"])
def test_checks_from_environment(project_dir: Path, variable: str) -> None:
    error = settings_error(project_dir, {"environ": {variable: "true"}})
    assert error.message == f"environment {variable}: checks cannot be set in the environment"
    assert error.hint == "add [[tool.buildkit-tasks.check]] to pyproject.toml"


def test_check_key(project_dir: Path) -> None:
    assert settings_error(project_dir, {"pyproject": "checks = []"}).message.endswith(
        "unknown key 'checks', did you mean 'check'?"
    )
    assert "check" in SETTINGS_KEYS
    assert "checks" not in SETTINGS_KEYS


IMAGE_TABLES = """
platforms = ["linux/arm64"]
tags = ["all:1"]
expect = "all"

[[tool.buildkit-tasks.image]]
name = "web"
context = "web"
tags = ["web:1", "web:2,web:3"]
build-args = ["A=1"]

[[tool.buildkit-tasks.image]]
name = "worker.2"
file = "worker/Dockerfile"
target = "last"
platforms = "linux/386,linux/amd64"
expect = "^{goarch}$"
command = "uname"
"""


def test_image_settings(project_dir: Path) -> None:
    write_pyproject(project_dir, IMAGE_TABLES)
    settings = load_settings(environ={}, folder=project_dir)
    assert [image.name for image in settings.images] == ["web", "worker.2"]
    web, worker = map(settings.for_image, settings.images)
    assert (web.context, web.tags, web.build_args) == ("web", ("web:1", "web:2", "web:3"), ("A=1",))
    assert (web.platforms, web.expect) == (("linux/arm64",), "all")
    assert (worker.file, worker.target, worker.tags) == ("worker/Dockerfile", "last", ("all:1",))
    assert (worker.platforms, worker.expect, worker.command) == (
        ("linux/386", "linux/amd64"),
        "^{goarch}$",
        "uname",
    )
    assert worker.is_explicit("target")
    assert not web.is_explicit("target")
    assert (web.images, web.name) == ((), "multi-platform-builder")


@pytest.mark.parametrize("variable", ["DOCKER_DEFAULT_PLATFORM", "INVOKE_BUILDKIT_PLATFORMS"])
def test_flag_overrides_image(project_dir: Path, variable: str) -> None:
    write_pyproject(project_dir, IMAGE_TABLES)
    settings = load_settings({"tags": ["flag:1"]}, environ={variable: "linux/s390x"}, folder=project_dir)
    for image in map(settings.for_image, settings.images):
        assert (image.platforms, image.tags) == (("linux/s390x",), ("flag:1",))


def test_image_expect_replaces_checks(project_dir: Path) -> None:
    write_pyproject(project_dir, f'{IMAGE_TABLES}\n[[tool.buildkit-tasks.check]]\ncommand = "id"')
    settings = load_settings(environ={}, folder=project_dir)
    web, worker = map(settings.for_image, settings.images)
    assert web.checks == (SmokeCheck(command="id"),)
    assert worker.checks == ()


@pytest.mark.parametrize("key", ["command", "expect"])
def test_image_replaces_checks(project_dir: Path, key: str) -> None:
    tables = f'[[tool.buildkit-tasks.image]]\nname = "a"\n{key} = "x"\n'
    write_pyproject(project_dir, f'{tables}[[tool.buildkit-tasks.check]]\ncommand = "id"')
    settings = load_settings(environ={}, folder=project_dir)
    assert settings.for_image(settings.images[0]).checks == ()


def test_value_that_invoke_read_from_the_environment(project_dir: Path) -> None:
    source = {"environ": {"INVOKE_BUILDKIT_JOBS": "x"}, "invoke": {"jobs": "x"}}
    assert settings_error(project_dir, source).message.startswith("environment INVOKE_BUILDKIT_JOBS: ")


def test_invoke_images(project_dir: Path) -> None:
    settings = load_settings(
        invoke={"image": [{"name": "web", "target": "x"}]}, environ={}, folder=project_dir
    )
    assert settings.for_image(settings.images[0]).target == "x"
    assert settings.for_image(settings.images[0]).origins["target"] is SettingOrigin.INVOKE


def image_tables(*lines: str) -> str:
    return "\n".join(f"[[tool.buildkit-tasks.image]]\n{line}" for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (image_tables('context = "x"'), "image 1: it has no name"),
        (image_tables("name = 5"), "image 1: name = 5 is not a valid image name"),
        (image_tables('name = "a"', 'name = "../b"'), "image 2: name = '../b' is not a valid image name"),
        (image_tables('name = "a\\n"'), r"image 1: name = 'a\n' is not a valid image name"),
        (image_tables('name = "a/b"'), "image 1: name = 'a/b' is not a valid image name"),
        (image_tables('name = "-a"'), "image 1: name = '-a' is not a valid image name"),
        (
            image_tables('name = "a"', 'name = "b"', 'name = "A"'),
            "image 3: name = 'A' is already the name of image 1",
        ),
        (image_tables('name = "a"', 'name = "b"\ntag = "x:1"'), "image 2: unknown key 'tag'"),
        (image_tables('name = "a"\nplatforms = 5'), "image 1: platforms = 5 is not a list"),
        (image_tables('name = "a"\ncontext = ["x"]'), "image 1: context = ['x'] is not text"),
        (image_tables('name = "a"\nexpect = "("'), "image 1: expect = '(' is not a valid regular expression"),
        ('image = "web"', "image = 'web' is not a list of tables"),
        ("image = [1]", "image = [1] is not a list of tables"),
    ],
)
def test_bad_image(project_dir: Path, text: str, message: str) -> None:
    path = write_pyproject(project_dir, text)
    with pytest.raises(SettingsError) as excinfo:
        load_settings(environ={}, folder=project_dir)
    assert f"{path}: [tool.buildkit-tasks]: {message}" in str(excinfo.value)


@pytest.mark.parametrize("variable", ["INVOKE_BUILDKIT_IMAGE", "INVOKE_BUILDKIT_IMAGES"])
def test_images_from_environment(project_dir: Path, variable: str) -> None:
    with pytest.raises(
        SettingsError, match=r"(?s)images cannot be set .*\[\[tool\.buildkit-tasks\.image\]\]"
    ):
        load_settings(environ={variable: "web"}, folder=project_dir)


def test_repeated_flag_for_text_key(project_dir: Path) -> None:
    assert load_settings({"target": ["a", "b"]}, environ={}, folder=project_dir).target == "a,b"


def test_new_cache_is_private(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        folder = create_cache_folder(Settings(cache=str(tmp_path / "new/cache")))
    finally:
        os.umask(umask)
    assert [each.stat().st_mode & 0o777 for each in (folder, folder.parent)] == [0o700, 0o700]


def test_cache_made_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another user has made in a sticky directory after the check is not used."""
    make_folder = Path.mkdir

    def make_faster(path: Path, mode: int = 0o777) -> None:
        make_folder(path, mode)
        path.chmod(0o777)
        raise FileExistsError

    monkeypatch.setattr(Path, "mkdir", make_faster)
    with pytest.raises(CacheError, match="other users can write to it"):
        create_cache_folder(Settings(cache=str(tmp_path / "cache")))
