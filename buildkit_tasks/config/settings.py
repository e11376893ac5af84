"""Settings, merged from all sources.

From strongest to weakest: flags, the environment (``INVOKE_BUILDKIT_*``, then variables of Docker),
Invoke's configuration ``buildkit.*``, ``[tool.buildkit-tasks]`` in pyproject.toml, and the defaults.
Unknown keys and invalid values raise a :class:`SettingsError` that names the source and the key. Checks
and images are arrays of tables, which only files and Invoke's configuration can express.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import enum
import functools
import os
import re
import shlex
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.config.repository import confine_paths, find_pyproject, refuse_user_keys
from buildkit_tasks.config.schema import (
    BUILDER_NAME_PATTERN,
    ImageSettings,
    SmokeCheck,
    normalize_keys,
    read_image_tables,
    read_smoke_checks,
    read_value,
)
from buildkit_tasks.errors import CacheError, SettingsError
from buildkit_tasks.system.files import expand_home, explain_untrusted, explain_unwritable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = [
    "BUILDER_NAME_PATTERN",
    "ImageSettings",
    "SettingOrigin",
    "SettingSource",
    "Settings",
    "SmokeCheck",
    "cache_error",
    "cache_folder",
    "cache_path",
    "check_section_keys",
    "check_section_names",
    "create_cache_folder",
    "load_settings",
    "override_settings",
    "writable_cache_folder",
]

_TABLE = "buildkit-tasks"  # of pyproject.toml, in [tool]
_SECTION = "buildkit"  # of Invoke's configuration
_INVOKE_LABEL = f"Invoke's configuration: {_SECTION}"
# Shares of equal characters, by difflib: a typo is more similar than build-tasks, a name of another tool.
_SIMILAR = 0.9
_SIMILAR_SECTION = 0.87  # one typo in a name that is short
_OTHER_PRODUCTS = ("buildkitd", "buildkite")  # one letter more: BuildKit's daemon, and a CI service

_ENVIRONMENT_PREFIX = "INVOKE_BUILDKIT_"
_KEY_OF_VARIABLE = {"DOCKER_DEFAULT_PLATFORM": "platforms", "BUILDX_BUILDER": "name"}


_explain_untrusted = functools.cache(explain_untrusted)  # the folder does not change while a task runs


class SettingOrigin(enum.IntEnum):
    """The source of a value; the higher one wins."""

    DEFAULT = 0
    PYPROJECT = 1
    INVOKE = 2
    ENVIRONMENT = 3
    FLAG = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingSource:
    """Where a value is written: ``label`` begins messages, ``spelling`` is its option or variable, if any."""

    label: str
    spelling: str = ""

    def describe(self, key: str, value: object) -> str:
        """Return the value as it is written there, with the place: ``--cpu=x``, or ``FILE: cpu = 'x'``."""
        return f"{self.spelling}={value}" if self.spelling else f"{self.label}: {key} = {value!r}"

    def suggest(self, key: str, value: str) -> str:
        """Return how another value is written there."""
        return f"{self.spelling}={value}" if self.spelling else f'{key} = "{value}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. Each field is a key of the configuration, ``checks`` and ``images`` in the singular.

    ``verify_timeout`` limits the verification of an image, in seconds (0: no limit), and ``timeout`` one run;
    ``jobs`` run in parallel (0: two per processor). ``cache`` is the directory for the private engine,
    packages, stand-in bases and unpacked images, of which ``root_cache`` megabytes are kept. ``cpu`` is max,
    floor, both or a QEMU model. BuildKit runs ``parallelism`` steps in parallel and keeps ``builder_cache``
    megabytes (0: its default); ``allow`` lists the entitlements that builds may use. ``origins`` has the
    kind of source of each value that is set, ``sources`` the place.
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
    network: str = ""
    add_hosts: tuple[str, ...] = ()
    shm_size: str = ""
    ulimits: tuple[str, ...] = ()
    progress: str = "auto"
    command: str = ""
    allow_foreign: tuple[str, ...] = ()
    parity: str = "warn"
    verify_timeout: float = 0.0
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
    sources: Mapping[str, SettingSource] = field(default_factory=dict, compare=False)

    def is_explicit(self, name: str) -> bool:
        """Return True if a source set this value, so that it is not just the default."""
        return self._origin_of(name) is not SettingOrigin.DEFAULT

    def describe(self, key: str) -> str:
        """Return the value of a setting as its source has it, for messages: ``--cpu=x``, ``cpu = 'x'``."""
        value = getattr(self, key)
        source = self.sources.get(key)
        return source.describe(key, value) if source else f"{key} = {value!r}"

    def suggest(self, key: str, value: str) -> str:
        """Return another value of a setting as its source has it, for hints."""
        return self.sources.get(key, SettingSource(label="")).suggest(key, value)

    def for_image(self, image: ImageSettings) -> Settings:
        """Return the settings of one image: its table overrides what weaker sources set.

        If the table sets ``command`` or ``expect``, the common checks do not apply to the image.
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
    if each.name not in ("origins", "sources")
}
_FIELD_OF_KEY = {"check": "checks", "image": "images"}  # TOML: [[tool.buildkit-tasks.check]]
_KEY_OF_FIELD = {field: key for key, field in _FIELD_OF_KEY.items()}
SETTINGS_KEYS = tuple(_KEY_OF_FIELD.get(name, name) for name in _DEFAULT_VALUES)


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    invoke: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    flag_names: Mapping[str, str] | None = None,
) -> Settings:
    """Merge all sources. None, empty strings and empty lists in ``flags`` count as not set.

    ``flag_names`` are the options that set ``flags``, as the user types them, by key; messages name them.
    ``environ`` and ``folder`` default to those of the process; pyproject.toml is searched in ``folder``
    and its parents. Raises :class:`SettingsError` for an unknown key or an invalid value, and for one that a
    repository may not set.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, SettingOrigin] = {}
    sources: dict[str, SettingSource] = {}
    folder = folder or Path.cwd()
    pyproject = find_pyproject(folder)
    weaker_sources = _iter_sources(invoke or {}, environ, pyproject)
    for origin, source, table in (*weaker_sources, *_iter_flags(flags or {}, flag_names or {})):
        for key, raw in normalize_keys(table, source.label, SETTINGS_KEYS).items():
            name = _FIELD_OF_KEY.get(key, key)
            values[name] = _read_setting(key, raw, source.label)
            origins[name], sources[name] = origin, source
    if pyproject is not None:
        repository_names = {name for name, origin in origins.items() if origin is SettingOrigin.PYPROJECT}
        values |= _confine_to_repository(values, repository_names, pyproject, folder)
    return dataclasses.replace(_DEFAULTS, **values, origins=origins, sources=sources)


def _confine_to_repository(
    values: Mapping[str, Any], names: Collection[str], pyproject: Path, folder: Path
) -> dict[str, Any]:
    """Return the values that pyproject.toml has set; raise SettingsError for one that it may not set."""
    label = _format_label(pyproject)
    refuse_user_keys(values, names, label)
    own = confine_paths({name: values[name] for name in names}, pyproject, folder, label)
    if "images" in own:
        own["images"] = tuple(
            dataclasses.replace(
                each, values=confine_paths(each.values, pyproject, folder, f"{label} {each.name}")
            )
            for each in own["images"]
        )
    return own


def override_settings(settings: Settings, values: Mapping[str, Any], label: str) -> Settings:
    """Return settings that flags with these values override; None and empty lists count as not set.

    Raises :class:`SettingsError` for an invalid value; ``label`` begins its message.
    """
    flags = {
        key: read_value(key, raw, label, _DEFAULT_VALUES[key])
        for key, raw in values.items()
        if raw not in (None, [], ())
    }
    origins = {**settings.origins, **dict.fromkeys(flags, SettingOrigin.FLAG)}
    sources = {**settings.sources, **dict.fromkeys(flags, SettingSource(label=label))}
    return dataclasses.replace(settings, **flags, origins=origins, sources=sources)


def _read_setting(key: str, raw: Any, label: str) -> Any:
    if key == "check":
        return read_smoke_checks(raw, label)
    if key == "image":
        return read_image_tables(raw, label, _DEFAULT_VALUES)
    return read_value(key, raw, label, _DEFAULT_VALUES[key])


def _iter_sources(
    invoke: Mapping[str, Any], environ: Mapping[str, str], pyproject: Path | None
) -> Iterator[tuple[SettingOrigin, SettingSource, dict[str, Any]]]:
    """Yield all sources but the flags, the weakest first, with the values of each by key."""
    if pyproject is not None:
        source = SettingSource(label=_format_label(pyproject))
        yield SettingOrigin.PYPROJECT, source, _read_pyproject_table(pyproject)
    invoke_values = _drop_environment_keys(invoke, environ)
    yield SettingOrigin.INVOKE, SettingSource(label=_INVOKE_LABEL), invoke_values
    for variable, key in _environment_keys(environ).items():
        source = SettingSource(label=f"environment {variable}", spelling=variable)
        yield SettingOrigin.ENVIRONMENT, source, {key: environ[variable]}


def _iter_flags(
    flags: Mapping[str, Any], flag_names: Mapping[str, str]
) -> Iterator[tuple[SettingOrigin, SettingSource, dict[str, Any]]]:
    """Yield each option that is set."""
    for key, value in _explicit_flags(flags).items():
        name = flag_names.get(key, "")
        source = SettingSource(label=f"option {name}" if name else "command line", spelling=name)
        yield SettingOrigin.FLAG, source, {key: value}


def _format_label(pyproject: Path) -> str:
    return f"{pyproject}: [tool.{_TABLE}]"


def _environment_keys(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the keys of the variables that are set, by variable; ``INVOKE_BUILDKIT_*`` come last."""
    keys = {variable: key for variable, key in _KEY_OF_VARIABLE.items() if environ.get(variable)}
    for variable in environ:
        if variable.startswith(_ENVIRONMENT_PREFIX) and environ[variable]:
            key = keys[variable] = variable.removeprefix(_ENVIRONMENT_PREFIX).lower()
            if key in (*_FIELD_OF_KEY, *_KEY_OF_FIELD):
                raise SettingsError(
                    f"environment {variable}: {_FIELD_OF_KEY.get(key, key)} cannot be set in the environment",
                    hint=f"add [[tool.buildkit-tasks.{_KEY_OF_FIELD.get(key, key)}]] to pyproject.toml",
                )
    return keys


def _explicit_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that are set; values of a repeated one are joined with commas for a string setting."""
    return {
        key: ",".join(value)
        if isinstance(value, list | tuple) and isinstance(_DEFAULT_VALUES[key], str)
        else value
        for key, value in flags.items()
        if value not in (None, "", [], ())
    }


def _drop_environment_keys(invoke: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Drop values that Invoke has read from the environment, so that messages name the right source."""
    return {
        key: value for key, value in invoke.items() if f"{_ENVIRONMENT_PREFIX}{key.upper()}" not in environ
    }


def _read_pyproject_table(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error
    for name in _iter_misnamed_tables(document):
        raise _misnamed_table_error(path, name)
    tools = document.get("tool", {})
    table = tools.get(_TABLE, {}) if isinstance(tools, dict) else tools
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: [tool.{_TABLE}] is not a table")
    return table


def _iter_misnamed_tables(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of tables that are meant to be ``[tool.buildkit-tasks]``, but would not be read."""
    for key, value in document.items():
        if _is_meant(key, value):
            yield key
        elif isinstance(value, dict) and _is_similar(key, "tool", ratio=0.8):
            yield from (
                f"{key}.{name}" for name, table in _iter_subtables(value) if _is_misnamed(key, name, table)
            )


def _iter_subtables(tables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the tables with their names, also those inside them: ``[tool.buildkit.tasks]``."""
    for key, value in tables.items():
        yield key, value
        if isinstance(value, dict) and key != _TABLE:
            yield from ((f"{key}.{subkey}", subvalue) for subkey, subvalue in value.items())


def _is_misnamed(parent: str, name: str, table: Any) -> bool:
    if (parent, name) == ("tool", _TABLE):
        return False
    tool, _, subtable = name.partition(".")
    if (
        subtable and tool != "invoke"
    ):  # a table in another tool's is that tool's; Invoke reads no pyproject.toml
        return _is_table(table) and _is_similar(name, _TABLE, ratio=1)
    return _is_meant(subtable or name, table)


def _is_meant(name: str, table: Any) -> bool:
    """Return True for a table that is named nearly like one with settings.

    The short name is a word that other tools use, too: such a table has one of the settings' keys.
    """
    if not _is_table(table):
        return False
    is_section = name.lower() not in _OTHER_PRODUCTS and _is_similar(name, _SECTION, ratio=_SIMILAR_SECTION)
    return _is_similar(name, _TABLE) or (is_section and _has_settings(table))


def _is_table(value: Any) -> bool:
    """Return True for a table and for an array of tables."""
    return all(isinstance(item, dict) for item in _list_tables(value))


def _has_settings(table: Any) -> bool:
    keys = {key.replace("-", "_").lower() for each in _list_tables(table) for key in each}
    return not keys.isdisjoint(SETTINGS_KEYS)


def _list_tables(value: Any) -> list[Any]:
    return value if isinstance(value, list) and value else [value]


def _is_similar(name: str, right_name: str, *, ratio: float = _SIMILAR) -> bool:
    """Return True for a typo, other separators, another case, and the same name."""
    first, second = (re.sub(r"[-_.\s]+", "", each).lower() for each in (name, right_name))
    return difflib.SequenceMatcher(None, first, second).ratio() >= ratio


def _misnamed_table_error(path: Path, name: str) -> SettingsError:
    # The extension lets it work with BSD's sed, too.
    command = f"sed -i.bak 's/\\[{name.replace('.', '[.]')}/[tool.{_TABLE}/' {shlex.quote(str(path))}"
    is_plain = re.fullmatch(r"[\w.-]+", name, re.ASCII)
    return SettingsError(
        f"{path}: nothing reads [{name}]: the settings are in [tool.{_TABLE}]",
        hint=command if is_plain else f"rename the table to [tool.{_TABLE}]",
    )


def check_section_names(sections: Mapping[str, Any]) -> None:
    """Raise :class:`SettingsError` for a section of Invoke's configuration that is nearly ``buildkit``."""
    for name, value in sections.items():
        is_meant = _is_meant(name, value) or (_is_similar(name, _SECTION, ratio=1) and _is_table(value))
        if name != _SECTION and is_meant:
            raise SettingsError(
                f"Invoke's configuration: nothing reads {name!r}: the settings are in {_SECTION!r}",
                hint=f"rename the section to {_SECTION}",
            )


def check_section_keys(sections: Mapping[str, Any]) -> None:
    """Raise :class:`SettingsError` for a name or a key in Invoke's configuration that nothing reads."""
    check_section_names(sections)
    normalize_keys(sections.get(_SECTION) or {}, _INVOKE_LABEL, SETTINGS_KEYS)


def cache_folder(settings: Settings) -> Path:
    """Return the cache directory: the private engine, packages, stand-in bases and unpacked images.

    Programs in it are run. Raises :class:`CacheError` if other users can write to it.
    """
    folder = cache_path(settings)
    if reason := _explain_untrusted(folder):
        is_own = folder.stat().st_uid == os.geteuid()
        hint = f"chmod -R go-w {shlex.quote(str(folder))}" if is_own else _new_cache_hint(settings)
        raise CacheError(f"the cache {folder} is not used, because {reason}", hint=hint)
    return folder


def cache_path(settings: Settings) -> Path:
    """Return the path of the cache directory, whoever may write there."""
    if settings.cache:
        return expand_home(settings.cache).absolute()
    import platformdirs

    try:
        return expand_home(platformdirs.user_cache_dir(_TABLE))
    except RuntimeError:  # newer versions raise it for a user without a home directory
        return expand_home(f"~/.cache/{_TABLE}")


def writable_cache_folder(settings: Settings) -> Path:
    """Return :func:`cache_folder`. Raise :class:`CacheError` if the user cannot write there."""
    folder = cache_folder(settings)
    if reason := explain_unwritable(folder):
        raise cache_error(settings, folder, reason)
    return folder


def create_cache_folder(settings: Settings) -> Path:
    """Return :func:`writable_cache_folder`, which is created if it does not exist, closed to other users."""
    folder = writable_cache_folder(settings)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster, perhaps another user's
            each.mkdir(mode=0o700)
    if missing:
        _explain_untrusted.cache_clear()
    return cache_folder(settings)


def cache_error(settings: Settings, path: Path, reason: str) -> CacheError:
    """Return the error for a path in the cache directory that cannot be written."""
    return CacheError(
        f"the cache cannot be written: {path}: {reason}; set XDG_CACHE_HOME, or the key `cache` "
        f"({_ENVIRONMENT_PREFIX}CACHE), to a folder of your own",
        hint=_new_cache_hint(settings),
    )


def _new_cache_hint(settings: Settings) -> str:
    variable = f"{_ENVIRONMENT_PREFIX}CACHE" if settings.cache else "XDG_CACHE_HOME"
    return f'export {variable}="$(mktemp -d)"'
