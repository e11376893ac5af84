"""What may stand under a key of the settings: types, choices and grammars, and the tables of a file.

Every function takes the words that name where a value stands, and raises a :class:`SettingsError`
that begins with them.
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
    "IMAGE_KEYS",
    "ImageSettings",
    "SmokeCheck",
    "normalize_keys",
    "read_image_tables",
    "read_smoke_checks",
    "read_value",
]

BUILDER_NAME_PATTERN = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*\Z")  # buildx's own grammar
_IMAGE_NAME_PATTERN = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")  # it is a file's name in dist/ as well
_CHOICES = {
    "driver": ("auto", "docker-container", "docker", "remote", "kubernetes"),
    "fallback": ("none", "emulate"),
    "engine": ("auto", "system", "private"),
    "emulators": ("auto", "host", "image", "none"),
    "bases": ("auto", "registry", "standin"),
    "parity": ("warn", "fail", "off"),
    "progress": ("auto", "plain", "tty", "quiet", "rawjson"),
    "runner": ("auto", "docker", "sandbox"),
}
_PATTERNS = {
    "name": (BUILDER_NAME_PATTERN, "builder name", "letters, digits, '.', '_' and '-'"),
    # QEMU's: a model's name, and features of it after commas.
    "cpu": (
        re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_.,=+-]*)?\Z"),
        "CPU",
        "max, floor, both, or a model that `qemu-ARCHITECTURE -cpu help` lists",
    ),
}
_ITEM_PATTERNS = {
    # BuildKit's entitlements; a device has a name of its own.
    "allow": (
        re.compile(r"(?:network\.host|security\.insecure|device(?:=[\w./=-]+)?)\Z", re.ASCII),
        "entitlement",
        "network.host, security.insecure or device=NAME",
    ),
}
_COMMA_SEPARATED_KEYS = ("platforms", "tags")  # whose items never hold a comma: each may be several
_SPACE_SEPARATED_KEYS = ("nodes",)  # whose items hold commas: where they are one text, blanks part them
_TYPE_DESCRIPTIONS = {
    tuple: "a list",
    str: "text",
    int: "a whole number, 0 or more",
    float: "a number, 0 or more",
}


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


_CHECK_KEYS = tuple(each.name for each in fields(SmokeCheck))
IMAGE_KEYS = ("context", "file", "tags", "target", "build_args", "platforms", "expect", "command")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """One of several images: a table of ``[[tool.buildkit-tasks.image]]``.

    ``values`` is what the table says, by :data:`IMAGE_KEYS`; what it leaves out is the settings'.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)


def normalize_keys(table: Mapping[str, Any], label: str, keys: Sequence[str]) -> dict[str, Any]:
    """The values under their Python names; None is "not given", an unknown key an error."""
    values: dict[str, Any] = {}
    for raw_key, value in table.items():
        key = raw_key.replace("-", "_")
        if key not in keys:
            matches = difflib.get_close_matches(key, keys, n=1)
            hint = (
                f"did you mean {matches[0].replace('_', '-')!r}?"
                if matches
                else f"known are {', '.join(keys)}"
            )
            raise SettingsError(f"{label}: unknown key {raw_key!r}", hint=hint)
        if value is not None:
            values[key] = value
    return values


def read_smoke_checks(raw: Any, label: str) -> tuple[SmokeCheck, ...]:
    """The checks of a list of tables, or an error that also says which table it is."""
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
    """The images of a list of tables, each with a name of its own; ``defaults`` are the settings'."""
    images = tuple(
        _read_image_table(table, table_label, defaults)
        for table, table_label in _iter_tables(raw, label, "image")
    )
    first_numbers: dict[str, int] = {}
    for number, image in enumerate(images, start=1):
        # Two files whose names differ in case alone are one on some disks.
        first = first_numbers.setdefault(image.name.lower(), number)
        if first != number:
            raise SettingsError(f"{label}: image {number}: name = {image.name!r} is that of image {first}")
    return images


def _read_image_table(table: dict[str, Any], label: str, defaults: Mapping[str, Any]) -> ImageSettings:
    raw_values = normalize_keys(table, label, ("name", *IMAGE_KEYS))
    name = raw_values.pop("name", None)
    if name is None:
        raise SettingsError(f"{label}: it has no name", hint='name = "web"')
    if not isinstance(name, str) or not _IMAGE_NAME_PATTERN.match(name):
        hint = "letters, digits, '.', '_' and '-'"
        raise SettingsError(f"{label}: name = {name!r} is no name of an image", hint=hint)
    values = {key: read_value(key, raw, label, defaults[key]) for key, raw in raw_values.items()}
    _check_regex(values.get("expect", ""), label)
    return ImageSettings(name=name, values=values)


def _iter_tables(raw: Any, label: str, key: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Each table with the words for where it stands; the first is 1."""
    if not isinstance(raw, list | tuple) or not all(isinstance(table, dict) for table in raw):
        hint = f"begin each with [[tool.buildkit-tasks.{key}]]"
        raise SettingsError(f"{label}: {key} = {raw!r} is not a list of tables", hint=hint)
    return ((table, f"{label}: {key} {number}") for number, table in enumerate(raw, start=1))


def _check_regex(pattern: str, label: str) -> None:
    try:
        re.compile(pattern)  # what stands in braces is filled in later, and makes no difference
    except re.error as error:
        raise SettingsError(f"{label}: expect = {pattern!r} is no regular expression: {error}") from error


def read_value(key: str, raw: Any, label: str, default: Any) -> Any:
    """The raw value as the type of the key's default, or an error that names where it stands."""
    if key in _SPACE_SEPARATED_KEYS and isinstance(raw, str):
        raw = raw.split()
    try:
        value = _convert_value(raw, default)
        if key in _COMMA_SEPARATED_KEYS:
            value = _split_list(",".join(value))
    except (TypeError, ValueError):
        raise SettingsError(f"{label}: {key} = {raw!r} is not {_TYPE_DESCRIPTIONS[type(default)]}") from None
    if key in _CHOICES and value not in _CHOICES[key]:
        raise SettingsError(f"{label}: {key} = {raw!r} is none of {', '.join(_CHOICES[key])}")
    pattern, noun, hint = _PATTERNS.get(key) or _ITEM_PATTERNS.get(key) or (None, "", "")
    for each in value if key in _ITEM_PATTERNS else (value,):
        if pattern is not None and not pattern.match(each):
            raise SettingsError(f"{label}: {each!r} is no {noun}", hint=hint)
    return value


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
    """A list from a list or from text with commas."""
    items = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise TypeError
    return tuple(item.strip() for item in items if item.strip())
