"""Generate the JSON schemas in ``buildkit_tasks/schemas`` from the types of the settings and the reports.

``python docs/schemas.py`` writes them; ``tests/unit/report/test_schemas.py`` fails if they are out of
date. Descriptions of settings come from the tables of ``settings.md``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from buildkit_tasks.config.repository import USER_KEYS
from buildkit_tasks.config.schema import (
    CHOICES,
    IMAGE_KEYS,
    IMAGE_NAME_PATTERN,
    ITEM_PATTERNS,
    MAX_EXIT_STATUS,
    PATTERNS,
    must_be_positive,
)
from buildkit_tasks.config.settings import Settings, SmokeCheck
from buildkit_tasks.report import model

__all__ = ["FOLDER", "make_schemas"]

FOLDER = Path(__file__).parents[1] / "buildkit_tasks" / "schemas"
_SETTINGS_PAGE = Path(__file__).with_name("settings.md")
_DRAFT = "https://json-schema.org/draft/2020-12/schema"

_Schema = dict[str, Any]


def make_schemas() -> dict[str, str]:
    """Return the text of each schema by its file name."""
    settings = _settings_schema()
    schemas = {"settings": settings, "pyproject": _pyproject_schema(settings)}
    schemas |= {name: _report_schema(name, report_type) for report_type, name in model.REPORT_NAMES.items()}
    return {f"{name}.json": _format_schema(name, schema) for name, schema in schemas.items()}


def _format_schema(name: str, schema: _Schema) -> str:
    identifier = f"urn:buildkit-tasks:{name}:{model.SCHEMA_VERSION}"
    return json.dumps({"$schema": _DRAFT, "$id": identifier, **schema}, indent=2) + "\n"


# Reports


def _report_schema(name: str, report_type: type) -> _Schema:
    _, components = msgspec.json.schema_components([report_type], ref_template="#/$defs/{name}")
    definitions = {key: _document_schema(getattr(model, key), value) for key, value in components.items()}
    root = definitions.pop(report_type.__name__)
    version = {"schema_version": {"const": model.SCHEMA_VERSION}}
    return {
        **root,
        "title": f"JSON report of buildkit-tasks: {name}",
        "properties": version | root["properties"],
        "required": [*version, *root["required"]],
        "$defs": definitions,
    }


def _document_schema(value_type: type, schema: _Schema) -> _Schema:
    """Return a schema of what :func:`model.to_document` writes, which differs from the fields."""
    if not dataclasses.is_dataclass(value_type):
        return schema
    optional = model.OPTIONAL_KEYS.get(value_type, {})
    ok = {"ok": {"type": "boolean"}} if isinstance(getattr(value_type, "ok", None), property) else {}
    keys = {
        key: _key_schema(value, is_optional=key in optional)
        for key, value in schema["properties"].items()
        if key not in model.HIDDEN_FIELDS
    }
    return {**schema, "properties": ok | keys, "required": [key for key in ok | keys if key not in optional]}


def _key_schema(schema: _Schema, *, is_optional: bool) -> _Schema:
    """Return a key's schema without a default, and without null if the key is left out instead."""
    schema = {name: value for name, value in schema.items() if name != "default"}
    return schema["anyOf"][0] if is_optional and "anyOf" in schema else schema


# Settings


def _pyproject_schema(settings: _Schema) -> _Schema:
    """Return the schema of a whole file. It includes the settings: taplo follows no file references."""
    keys = {key: value for key, value in settings["properties"].items() if key not in USER_KEYS}
    table = {"type": "object", "properties": {"buildkit-tasks": {**settings, "properties": keys}}}
    return {
        "title": "pyproject.toml with settings of buildkit-tasks",
        "description": "Other tables are not checked.",
        "type": "object",
        "properties": {"tool": table},
    }


def _settings_schema() -> _Schema:
    fields = {
        field.name: field.default
        for field in dataclasses.fields(Settings)
        if field.name not in ("origins", "sources")
    }
    tables = {"checks": ("check", _check_schema()), "images": ("image", _image_schema(fields))}
    descriptions = _read_descriptions("Keys")
    properties = {
        _dash(name): _value_schema(name, default, descriptions)
        for name, default in fields.items()
        if name not in tables
    }
    arrays = {key: {"type": "array", "items": table} for key, table in tables.values()}
    return {"title": "Settings of buildkit-tasks", **_table_schema(properties | arrays)}


def _check_schema() -> _Schema:
    descriptions = _read_descriptions("Checks")
    fields = dataclasses.fields(SmokeCheck)
    return _table_schema(
        {_dash(field.name): _value_schema(field.name, field.default, descriptions) for field in fields}
    )


def _image_schema(defaults: dict[str, Any]) -> _Schema:
    descriptions = _read_descriptions("Keys")
    name = {"type": "string", "pattern": _to_ecma(IMAGE_NAME_PATTERN)}
    keys = {_dash(key): _value_schema(key, defaults[key], descriptions) for key in IMAGE_KEYS}
    for schema in keys.values():
        del schema["default"]  # that of the settings
    return {**_table_schema({"name": name, **keys}), "required": ["name"]}


def _table_schema(properties: _Schema) -> _Schema:
    """Return the schema of a table, whose keys may also be written with underscores."""
    aliases = {f"^{key.replace('-', '_')}$": value for key, value in properties.items() if "-" in key}
    return {
        "type": "object",
        "properties": properties,
        **({"patternProperties": aliases} if aliases else {}),
        "additionalProperties": False,
    }


def _value_schema(key: str, default: Any, descriptions: dict[str, str]) -> _Schema:
    description = {"description": descriptions[_dash(key)]} if _dash(key) in descriptions else {}
    return {**description, **_type_schema(key, default), "default": default}


def _type_schema(key: str, default: Any) -> _Schema:
    if isinstance(default, tuple):
        pattern = {"pattern": _to_ecma(ITEM_PATTERNS[key][0])} if key in ITEM_PATTERNS else {}
        # A list may be one string with commas.
        return {"type": ["array", "string"], "items": {"type": "string", **pattern}}
    if isinstance(default, str):
        choices = {"enum": CHOICES[key]} if key in CHOICES else {}
        return {
            "type": "string",
            **choices,
            **({"pattern": _to_ecma(PATTERNS[key][0])} if key in PATTERNS else {}),
        }
    return {
        "type": "number" if isinstance(default, float) else "integer",
        "exclusiveMinimum" if must_be_positive(key, default) else "minimum": 0,
        **({"maximum": MAX_EXIT_STATUS} if key == "expect_exit" else {}),
    }


def _to_ecma(pattern: re.Pattern[str]) -> str:
    r"""Return a pattern in the dialect of JSON schemas: ECMA-262 has no ``\Z``, and searches."""
    return f"^{pattern.pattern.removesuffix(chr(92) + 'Z')}$"


def _read_descriptions(heading: str) -> dict[str, str]:
    """Return the last column of a section's table by key, as plain text. Raises :class:`LookupError`."""
    page = _SETTINGS_PAGE.read_text(encoding="utf-8")
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \|.*\| ([^|]+) \|$", section, re.MULTILINE)
    if not rows:
        raise LookupError(f"no table of keys under '## {heading}' in {_SETTINGS_PAGE}")
    return {key: _strip_links(text) for key, text in rows}


def _strip_links(text: str) -> str:
    without_references = re.sub(r":? see \[[^]]+\]\([^)]+\)$", "", text)
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", without_references)


def _dash(name: str) -> str:
    return name.replace("_", "-")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file_name, text in make_schemas().items():
        (FOLDER / file_name).write_text(text, encoding="utf-8")
