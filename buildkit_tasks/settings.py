"""Settings: what a repository, an environment and a command line ask for, merged.

Rank: flag, then environment (``INVOKE_BUILDKIT_*``, then the field's own variables), then Invoke's
configuration ``buildkit.*``, then ``[tool.buildkit-tasks]`` in pyproject.toml, then the default. An
unknown key or a bad value is a :class:`SettingsError` that names the file and the key. The checks of
a run are tables of their own, which only a file has room for.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["BUILDER_NAME", "Origin", "Settings", "SmokeCheck", "cache_folder", "find_pyproject", "load"]

_ENVIRONMENT_PREFIX = "INVOKE_BUILDKIT_"
_FIELD_VARIABLES = {"DOCKER_DEFAULT_PLATFORM": "platforms", "BUILDX_BUILDER": "name"}
BUILDER_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*\Z")  # buildx's own grammar
_CHOICES = {
    "driver": ("auto", "docker-container", "docker"),
    "engine": ("auto", "system", "private"),
    "emulators": ("auto", "host", "image", "none"),
    "bases": ("auto", "registry", "standin"),
    "parity": ("warn", "fail", "off"),
    "progress": ("auto", "plain", "tty", "quiet", "rawjson"),
    "runner": ("auto", "docker", "sandbox"),
}
_GRAMMARS = {
    "name": (BUILDER_NAME, "builder name", "letters, digits, '.', '_' and '-'"),
    # QEMU's: a model's name, and features of it after commas.
    "cpu": (
        re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_.,=+-]*)?\Z"),
        "CPU",
        "max, floor, both, or a model that `qemu-ARCHITECTURE -cpu help` lists",
    ),
}
_SPLIT = ("platforms", "tags")  # whose items never hold a comma: each may be several
_KINDS = {tuple: "a list", str: "text", int: "a whole number, 0 or more", float: "a number, 0 or more"}


class Origin(enum.IntEnum):
    """Where a value came from; the higher wins."""

    DEFAULT = 0
    PYPROJECT = 1
    INVOKE = 2
    ENVIRONMENT = 3
    FLAG = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeCheck:
    """One thing to run in an image and what it must do: a table of ``[[tool.buildkit-tasks.check]]``.

    Without ``platforms`` it holds for all; a ``timeout`` of 0 is the one of the settings.
    """

    command: str = ""
    expect: str = ""
    expect_exit: int = 0
    platforms: tuple[str, ...] = ()
    timeout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a repository can settle once; each name is also a key of the settings.

    ``timeout`` is the seconds that one guest may run, ``jobs`` how many run at once (0: two for
    each processor), ``cache`` the folder for the private engine, packages, bases and unpacked
    roots, of which ``root_cache`` megabytes are kept. ``cpu`` is max, floor, both or a model.
    """

    platforms: tuple[str, ...] = ("linux/amd64", "linux/arm64")
    name: str = "multi-platform-builder"
    driver: str = "auto"
    driver_opt: tuple[str, ...] = ()
    engine: str = "auto"
    emulators: str = "auto"
    bases: str = "auto"
    context: str = "."
    file: str = ""
    tags: tuple[str, ...] = ()
    target: str = ""
    build_args: tuple[str, ...] = ()
    progress: str = "auto"
    command: str = ""
    allow_foreign: tuple[str, ...] = ()
    parity: str = "warn"
    mirrors: tuple[str, ...] = ()
    expect: str = ""
    expect_exit: int = 0
    timeout: float = 60.0
    jobs: int = 0
    runner: str = "auto"
    cpu: str = "max"
    checks: tuple[SmokeCheck, ...] = ()
    root_cache: int = 2048
    cache: str = ""
    origins: Mapping[str, Origin] = field(default_factory=dict, compare=False)

    def given(self, name: str) -> bool:
        """Whether somebody chose this value, so that a default may not overrule it."""
        return self.origins.get(name, Origin.DEFAULT) is not Origin.DEFAULT


_DEFAULTS = Settings()
_CHECK = SmokeCheck()
_FIELDS = {"check": "checks"}  # an array of tables is written as each of them is
_WRITTEN = {field: key for key, field in _FIELDS.items()}
KEYS = tuple(
    _WRITTEN.get(each.name, each.name) for each in dataclasses.fields(Settings) if each.name != "origins"
)
_CHECK_KEYS = tuple(each.name for each in dataclasses.fields(SmokeCheck))


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    invoke: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Merge all sources; in ``flags`` a None, an empty string or an empty list is "not given"."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for origin, label, found in _sources(flags, invoke, environ, folder or Path.cwd()):
        for key, raw in found.items():
            name = _FIELDS.get(key, key)
            values[name] = _checks(raw, label) if key == "check" else _value(key, raw, label)
            origins[name] = origin
    return dataclasses.replace(_DEFAULTS, **values, origins=origins)


def _sources(
    flags: Mapping[str, Any] | None,
    invoke: Mapping[str, Any] | None,
    environ: Mapping[str, str],
    folder: Path,
) -> Iterator[tuple[Origin, str, dict[str, Any]]]:
    """Every source, the weakest first, with the words that name it in an error."""
    pyproject = find_pyproject(folder)
    if pyproject is not None:
        label = f"{pyproject}: [tool.buildkit-tasks]"
        yield Origin.PYPROJECT, label, _checked(_pyproject_table(pyproject), label)
    label = "Invoke's configuration: buildkit"
    yield Origin.INVOKE, label, _checked(_without_environment(invoke or {}, environ), label)
    for variable, key in _FIELD_VARIABLES.items():
        if environ.get(variable):
            yield Origin.ENVIRONMENT, f"environment {variable}", {key: environ[variable]}
    for variable, text in environ.items():
        if variable.startswith(_ENVIRONMENT_PREFIX) and text:
            key = variable.removeprefix(_ENVIRONMENT_PREFIX).lower()
            label = f"environment {variable}"
            if key in (*_FIELDS, *_WRITTEN):
                hint = "write them as [[tool.buildkit-tasks.check]] in pyproject.toml"
                raise SettingsError(f"{label}: checks cannot come from the environment", hint=hint)
            yield Origin.ENVIRONMENT, label, _checked({key: text}, label)
    given = {key: value for key, value in (flags or {}).items() if value not in (None, "", [], ())}
    yield Origin.FLAG, "command line", given


def _without_environment(invoke: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Invoke has merged the environment into its configuration: a bad value there is not the file's."""
    return {
        key: value for key, value in invoke.items() if f"{_ENVIRONMENT_PREFIX}{key.upper()}" not in environ
    }


def find_pyproject(folder: Path) -> Path | None:
    """The nearest pyproject.toml, here or above."""
    candidates = (parent / "pyproject.toml" for parent in (folder, *folder.parents))
    return next((path for path in candidates if path.is_file()), None)


def _pyproject_table(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error
    tools = document.get("tool", {})
    table = tools.get("buildkit-tasks", {}) if isinstance(tools, dict) else tools
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: [tool.buildkit-tasks] is not a table")
    return table


def _checked(found: Mapping[str, Any], label: str, keys: tuple[str, ...] = KEYS) -> dict[str, Any]:
    """The values under their Python names; None is "not given", an unknown key an error."""
    known: dict[str, Any] = {}
    for raw, value in found.items():
        key = raw.replace("-", "_")
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1)
            hint = (
                f"did you mean {close[0].replace('_', '-')!r}?" if close else f"known are {', '.join(keys)}"
            )
            raise SettingsError(f"{label}: unknown key {raw!r}", hint=hint)
        if value is not None:
            known[key] = value
    return known


def _checks(raw: Any, label: str) -> tuple[SmokeCheck, ...]:
    """The checks of a list of tables, or an error that also says which table it is."""
    if not isinstance(raw, list | tuple) or not all(isinstance(table, dict) for table in raw):
        hint = "begin each with [[tool.buildkit-tasks.check]]"
        raise SettingsError(f"{label}: check = {raw!r} is not a list of tables", hint=hint)
    return tuple(_check(table, f"{label}: check {number}") for number, table in enumerate(raw, start=1))


def _check(table: dict[str, Any], label: str) -> SmokeCheck:
    known = _checked(table, label, _CHECK_KEYS)
    check = SmokeCheck(**{key: _value(key, raw, label, _CHECK) for key, raw in known.items()})
    try:
        re.compile(check.expect)  # what stands in braces is filled in later, and makes no difference
    except re.error as error:
        raise SettingsError(
            f"{label}: expect = {check.expect!r} is no regular expression: {error}"
        ) from error
    return check


def _value(key: str, raw: Any, label: str, defaults: Settings | SmokeCheck = _DEFAULTS) -> Any:
    """The raw value as the type of the key's default, or an error that names where it stands."""
    default = getattr(defaults, key)
    try:
        value = _converted(raw, default)
        if key in _SPLIT:
            value = _listed(",".join(value))
    except (TypeError, ValueError):
        raise SettingsError(f"{label}: {key} = {raw!r} is not {_KINDS[type(default)]}") from None
    if key in _CHOICES and value not in _CHOICES[key]:
        raise SettingsError(f"{label}: {key} = {raw!r} is none of {', '.join(_CHOICES[key])}")
    if key in _GRAMMARS:
        grammar, what, hint = _GRAMMARS[key]
        if not grammar.match(value):
            raise SettingsError(f"{label}: {value!r} is no {what}", hint=hint)
    return value


def _converted(raw: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        return _listed(raw)
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise TypeError
    if isinstance(default, str):
        if not isinstance(raw, str):
            raise TypeError
        return raw
    if isinstance(default, int) and isinstance(raw, float):
        raise TypeError
    number = type(default)(raw)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


def _listed(raw: Any) -> tuple[str, ...]:
    """A list from a list or from text with commas."""
    items = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise TypeError
    return tuple(item.strip() for item in items if item.strip())


def cache_folder(settings: Settings) -> Path:
    """Where the private engine, its packages and the stand-in bases live, for this user."""
    if settings.cache:
        return Path(settings.cache).expanduser().absolute()
    import platformdirs  # noqa: PLC0415 - 40 ms that `inv --list` need not pay

    return Path(platformdirs.user_cache_dir("buildkit-tasks"))
