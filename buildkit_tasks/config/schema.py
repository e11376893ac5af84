"""Validation of settings: types, choices and patterns of values, and tables.

The functions take a ``label`` that names the source of a value, such as a file; the messages of
:class:`SettingsError` start with it.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "BUILDER_NAME_PATTERN",
    "CHOICES",
    "IMAGE_KEYS",
    "IMAGE_NAME_PATTERN",
    "ITEM_PATTERNS",
    "MAX_EXIT_STATUS",
    "PATTERNS",
    "ImageSettings",
    "SmokeCheck",
    "must_be_positive",
    "normalize_keys",
    "read_image_tables",
    "read_smoke_checks",
    "read_value",
]

BUILDER_NAME_PATTERN = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*\Z")  # as in buildx
IMAGE_NAME_PATTERN = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")  # also a file name in dist/
CHOICES = {
    "driver": ("auto", "docker-container", "docker", "remote", "kubernetes"),
    "fallback": ("none", "emulate"),
    "engine": ("auto", "system", "private"),
    "emulators": ("auto", "host", "image", "none"),
    "bases": ("auto", "registry", "standin"),
    "parity": ("warn", "fail", "ignore", "off"),
    "progress": ("auto", "none", "plain", "quiet", "rawjson", "tty"),
    "runner": ("auto", "docker", "sandbox"),
}
PATTERNS = {
    "name": (BUILDER_NAME_PATTERN, "builder name", "use letters, digits, '.', '_' and '-'"),
    # As in QEMU: a model, and features separated by commas.
    "cpu": (
        re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_.,=+-]*)?\Z"),
        "CPU",
        "use max, floor, both, or a model that `qemu-ARCHITECTURE -cpu help` lists",
    ),
}
ITEM_PATTERNS = {
    # BuildKit's entitlements; devices have names.
    "allow": (
        re.compile(r"(?:network\.host|security\.insecure|device(?:=[\w./=-]+)?)\Z", re.ASCII),
        "entitlement",
        "use network.host, security.insecure or device=NAME",
    ),
}
_COMMA_SEPARATED_KEYS = ("platforms", "tags")  # items in a list are split at commas, too
_SPACE_SEPARATED_KEYS = ("nodes",)  # items contain commas: a string is split at spaces instead
_TYPE_DESCRIPTIONS = {
    tuple: "a list",
    str: "text",
    int: "a whole number, 0 or more",
    float: "a number, 0 or more",
}
MAX_EXIT_STATUS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeCheck:
    """A command to run in an image and its expected result: a ``[[tool.buildkit-tasks.check]]`` table.

    It runs on all platforms if ``platforms`` is empty, with the timeout of the settings if ``timeout`` is
    0 (seconds).
    """

    command: str = ""
    expect: str = ""
    expect_exit: int = 0
    platforms: tuple[str, ...] = ()
    timeout: float = 0.0


_CHECK_KEYS = tuple(each.name for each in fields(SmokeCheck))
IMAGE_KEYS = (
    "context", "file", "tags", "target", "build_args", "network", "add_hosts", "shm_size", "ulimits",
    "platforms", "expect", "command",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """One of several images: a ``[[tool.buildkit-tasks.image]]`` table.

    ``values`` has the keys of the table, from :data:`IMAGE_KEYS`; the settings apply to the others.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)


def normalize_keys(table: Mapping[str, Any], label: str, keys: Sequence[str]) -> dict[str, Any]:
    """Return the values by their keys with underscores, without those that are None.

    Raises :class:`SettingsError` for an unknown key.
    """
    values: dict[str, Any] = {}
    for raw_key, value in table.items():
        key = raw_key.replace("-", "_")
        if key not in keys:
            raise _unknown_key_error(label, raw_key, keys)
        if value is not None:
            values[key] = value
    return values


def _unknown_key_error(label: str, raw_key: str, keys: Sequence[str]) -> SettingsError:
    message = f"{label}: unknown key {raw_key!r}"
    if matches := difflib.get_close_matches(raw_key.replace("-", "_"), keys, n=1):
        return SettingsError(f"{message}, did you mean {matches[0].replace('_', '-')!r}?")
    return SettingsError(message, hint=f"use one of {', '.join(keys)}")


def read_smoke_checks(raw: Any, label: str) -> tuple[SmokeCheck, ...]:
    """Read a list of check tables. Messages name the table by its number."""
    return tuple(
        _read_smoke_check(table, table_label) for table, table_label in _iter_tables(raw, label, "check")
    )


def _read_smoke_check(table: dict[str, Any], label: str) -> SmokeCheck:
    raw_values = normalize_keys(table, label, _CHECK_KEYS)
    defaults = SmokeCheck()
    values = {key: read_value(key, raw, label, getattr(defaults, key)) for key, raw in raw_values.items()}
    check = SmokeCheck(**values)
    _check_regex(check.expect, label)
    return check


def read_image_tables(raw: Any, label: str, defaults: Mapping[str, Any]) -> tuple[ImageSettings, ...]:
    """Read a list of image tables, whose names must differ; ``defaults`` give the types of the values."""
    images = tuple(
        _read_image_table(table, table_label, defaults)
        for table, table_label in _iter_tables(raw, label, "image")
    )
    first_numbers: dict[str, int] = {}
    for number, image in enumerate(images, start=1):
        # Some file systems ignore case, and the names become file names.
        first = first_numbers.setdefault(image.name.lower(), number)
        if first != number:
            raise SettingsError(
                f"{label}: image {number}: name = {image.name!r} is already the name of image {first}"
            )
    return images


def _read_image_table(table: dict[str, Any], label: str, defaults: Mapping[str, Any]) -> ImageSettings:
    raw_values = normalize_keys(table, label, ("name", *IMAGE_KEYS))
    name = raw_values.pop("name", None)
    if name is None:
        raise SettingsError(f"{label}: it has no name", hint='add name = "web"')
    if not isinstance(name, str) or not IMAGE_NAME_PATTERN.match(name):
        hint = "use letters, digits, '.', '_' and '-'"
        raise SettingsError(f"{label}: name = {name!r} is not a valid image name", hint=hint)
    values = {key: read_value(key, raw, label, defaults[key]) for key, raw in raw_values.items()}
    _check_regex(values.get("expect", ""), label)
    return ImageSettings(name=name, values=values)


def _iter_tables(raw: Any, label: str, key: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Return each table with its label, numbered from 1."""
    if not isinstance(raw, list | tuple) or not all(isinstance(table, dict) for table in raw):
        hint = f"start each table with [[tool.buildkit-tasks.{key}]]"
        raise SettingsError(f"{label}: {key} = {raw!r} is not a list of tables", hint=hint)
    return ((table, f"{label}: {key} {number}") for number, table in enumerate(raw, start=1))


def _check_regex(pattern: str, label: str) -> None:
    try:
        re.compile(pattern)  # placeholders such as {goarch} do not change whether it is valid
    except re.error as error:
        raise SettingsError(
            f"{label}: expect = {pattern!r} is not a valid regular expression: {error}"
        ) from error


def read_value(key: str, raw: Any, label: str, default: Any) -> Any:
    """Convert a value to the type of its default and check it. Raises :class:`SettingsError`."""
    if key in _SPACE_SEPARATED_KEYS and isinstance(raw, str):
        raw = raw.split()
    try:
        value = _convert_value(raw, default)
        if key in _COMMA_SEPARATED_KEYS:
            value = _split_list(",".join(value))
        _check_range(key, value, default)
    except (TypeError, ValueError):
        raise SettingsError(f"{label}: {key} = {raw!r} is not {_describe_type(key, default)}") from None
    if key in CHOICES and value not in CHOICES[key]:
        raise SettingsError(f"{label}: {key} = {raw!r} is not one of {', '.join(CHOICES[key])}")
    pattern, noun, hint = PATTERNS.get(key) or ITEM_PATTERNS.get(key) or (None, "", "")
    for each in value if key in ITEM_PATTERNS else (value,):
        if pattern is not None and not pattern.match(each):
            raise SettingsError(f"{label}: {each!r} is not a valid {noun}", hint=hint)
    return value


def _check_range(key: str, value: Any, default: Any) -> None:
    """Raise :class:`ValueError` for a number that no run can have."""
    if (key == "expect_exit" and value > MAX_EXIT_STATUS) or (must_be_positive(key, default) and not value):
        raise ValueError


def _describe_type(key: str, default: Any) -> str:
    if key == "expect_exit":
        return f"an exit status, 0 to {MAX_EXIT_STATUS}"
    return "a number above 0" if must_be_positive(key, default) else _TYPE_DESCRIPTIONS[type(default)]


def must_be_positive(key: str, default: Any) -> bool:
    """Return True for the time limit of the settings, as 0 would kill every run; a check may have 0."""
    return key == "timeout" and bool(default)


def _convert_value(raw: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        return _split_list(raw)
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


def _split_list(raw: Any) -> tuple[str, ...]:
    """Return the items of a list, or of a string split at commas."""
    items = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise TypeError
    return tuple(item.strip() for item in items if item.strip())
