"""Settings: what a repository, an environment and a command line ask for, merged.

Rank: flag, then environment (``INVOKE_BUILDKIT_*``, then the field's own variables), then Invoke's
configuration ``buildkit.*``, then ``[tool.buildkit-tasks]`` in pyproject.toml, then the default. An
unknown key or a bad value is a :class:`SettingsError` that names the file and the key. The checks of
a run, and several images, are tables of their own, which only a file has room for.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.config.schema import (
    BUILDER_NAME_PATTERN,
    ImageSettings,
    SmokeCheck,
    normalize_keys,
    read_image_tables,
    read_smoke_checks,
    read_value,
)
from buildkit_tasks.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "BUILDER_NAME_PATTERN",
    "ImageSettings",
    "SettingOrigin",
    "Settings",
    "SmokeCheck",
    "cache_folder",
    "find_pyproject",
    "load_settings",
]

_ENVIRONMENT_PREFIX = "INVOKE_BUILDKIT_"
_KEY_OF_VARIABLE = {"DOCKER_DEFAULT_PLATFORM": "platforms", "BUILDX_BUILDER": "name"}


class SettingOrigin(enum.IntEnum):
    """Where a value came from; the higher wins."""

    DEFAULT = 0
    PYPROJECT = 1
    INVOKE = 2
    ENVIRONMENT = 3
    FLAG = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a repository can settle once; each name is also a key of the settings.

    ``timeout`` is the seconds that one guest may run, ``jobs`` how many run at once (0: two for
    each processor), ``cache`` the folder for the private engine, packages, bases and unpacked
    roots, of which ``root_cache`` megabytes are kept. ``cpu`` is max, floor, both or a model.
    A builder's BuildKit does ``parallelism`` steps at once and keeps ``builder_cache`` megabytes (0:
    its own default); ``allow`` are the entitlements that it may give to builds.
    """

    platforms: tuple[str, ...] = ("linux/amd64", "linux/arm64")
    name: str = "multi-platform-builder"
    driver: str = "auto"
    driver_opt: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    fallback: str = "none"
    buildkitd_config: str = ""
    plain_http: tuple[str, ...] = ()
    parallelism: int = 0
    builder_cache: int = 0
    allow: tuple[str, ...] = ()
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
    images: tuple[ImageSettings, ...] = ()
    root_cache: int = 2048
    cache: str = ""
    origins: Mapping[str, SettingOrigin] = field(default_factory=dict, compare=False)

    def is_explicit(self, name: str) -> bool:
        """Whether somebody chose this value, so that a default may not overrule it."""
        return self._origin_of(name) is not SettingOrigin.DEFAULT

    def for_image(self, image: ImageSettings) -> Settings:
        """The settings of one image: what its table says, unless a stronger source says otherwise.

        An image that says what to run or to expect is not put to the checks of the others.
        """
        images_origin = self._origin_of("images")
        overrides = {
            key: value for key, value in image.values.items() if self._origin_of(key) <= images_origin
        }
        checks = () if {"command", "expect"} & overrides.keys() else self.checks
        origins = {**self.origins, **dict.fromkeys(overrides, images_origin)}
        return dataclasses.replace(self, **overrides, checks=checks, images=(), origins=origins)

    def _origin_of(self, name: str) -> SettingOrigin:
        return self.origins.get(name, SettingOrigin.DEFAULT)


_DEFAULTS = Settings()
_DEFAULT_VALUES = {
    each.name: getattr(_DEFAULTS, each.name)
    for each in dataclasses.fields(Settings)
    if each.name != "origins"
}
_FIELD_OF_KEY = {"check": "checks", "image": "images"}  # an array of tables is written as each of them is
_KEY_OF_FIELD = {field: key for key, field in _FIELD_OF_KEY.items()}
SETTINGS_KEYS = tuple(_KEY_OF_FIELD.get(name, name) for name in _DEFAULT_VALUES)


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    invoke: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Merge all sources; in ``flags`` a None, an empty string or an empty list is "not given"."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, SettingOrigin] = {}
    for origin, label, table in _iter_sources(flags, invoke, environ, folder or Path.cwd()):
        for key, raw in table.items():
            name = _FIELD_OF_KEY.get(key, key)
            values[name] = _read_setting(key, raw, label)
            origins[name] = origin
    return dataclasses.replace(_DEFAULTS, **values, origins=origins)


def _read_setting(key: str, raw: Any, label: str) -> Any:
    if key == "check":
        return read_smoke_checks(raw, label)
    if key == "image":
        return read_image_tables(raw, label, _DEFAULT_VALUES)
    return read_value(key, raw, label, _DEFAULT_VALUES[key])


def _iter_sources(
    flags: Mapping[str, Any] | None,
    invoke: Mapping[str, Any] | None,
    environ: Mapping[str, str],
    folder: Path,
) -> Iterator[tuple[SettingOrigin, str, dict[str, Any]]]:
    """Every source, the weakest first, with the words that name it in an error."""
    pyproject = find_pyproject(folder)
    if pyproject is not None:
        label = f"{pyproject}: [tool.buildkit-tasks]"
        yield (
            SettingOrigin.PYPROJECT,
            label,
            normalize_keys(_read_pyproject_table(pyproject), label, SETTINGS_KEYS),
        )
    label = "Invoke's configuration: buildkit"
    yield (
        SettingOrigin.INVOKE,
        label,
        normalize_keys(_drop_environment_keys(invoke or {}, environ), label, SETTINGS_KEYS),
    )
    for variable, key in _KEY_OF_VARIABLE.items():
        if environ.get(variable):
            yield SettingOrigin.ENVIRONMENT, f"environment {variable}", {key: environ[variable]}
    for variable, text in environ.items():
        if variable.startswith(_ENVIRONMENT_PREFIX) and text:
            key = variable.removeprefix(_ENVIRONMENT_PREFIX).lower()
            label = f"environment {variable}"
            if key in (*_FIELD_OF_KEY, *_KEY_OF_FIELD):
                hint = (
                    f"write them as [[tool.buildkit-tasks.{_KEY_OF_FIELD.get(key, key)}]] in pyproject.toml"
                )
                raise SettingsError(
                    f"{label}: {_FIELD_OF_KEY.get(key, key)} cannot come from the environment", hint=hint
                )
            yield SettingOrigin.ENVIRONMENT, label, normalize_keys({key: text}, label, SETTINGS_KEYS)
    explicit_flags = {key: value for key, value in (flags or {}).items() if value not in (None, "", [], ())}
    yield (
        SettingOrigin.FLAG,
        "command line",
        {key: _join_repeated_flag(key, value) for key, value in explicit_flags.items()},
    )


def _join_repeated_flag(key: str, value: Any) -> Any:
    """An option that may repeat, for a key that is one text: as if it were written with commas."""
    return (
        ",".join(value)
        if isinstance(value, list | tuple) and isinstance(_DEFAULT_VALUES[key], str)
        else value
    )


def _drop_environment_keys(invoke: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Invoke has merged the environment into its configuration: a bad value there is not the file's."""
    return {
        key: value for key, value in invoke.items() if f"{_ENVIRONMENT_PREFIX}{key.upper()}" not in environ
    }


def find_pyproject(folder: Path) -> Path | None:
    """The nearest pyproject.toml, here or above."""
    candidates = (parent / "pyproject.toml" for parent in (folder, *folder.parents))
    return next((path for path in candidates if path.is_file()), None)


def _read_pyproject_table(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error
    tools = document.get("tool", {})
    table = tools.get("buildkit-tasks", {}) if isinstance(tools, dict) else tools
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: [tool.buildkit-tasks] is not a table")
    return table


def cache_folder(settings: Settings) -> Path:
    """Where the private engine, its packages and the stand-in bases live, for this user."""
    if settings.cache:
        return Path(settings.cache).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("buildkit-tasks"))
