"""The JSON schemas in the package are up to date, and real documents are valid under them."""

from __future__ import annotations

import json
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.errors import SettingsError
from buildkit_tasks.report import to_json
from buildkit_tasks.report.model import REPORT_NAMES, Report, report_name
from tests.support.report_samples import bad_reports, good_reports, warning_reports

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "buildkit_tasks" / "schemas"
REPORTS = [*good_reports(), *bad_reports(), *warning_reports()]


def read_schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return schema


def forbid_other_keys(schema: Any) -> Any:
    """Return the schema with every object closed: a schema of a report allows keys of later versions."""
    if isinstance(schema, list):
        return [forbid_other_keys(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: forbid_other_keys(value) for key, value in schema.items()}
    return {"additionalProperties": False, **closed} if schema.get("type") == "object" else closed


def is_valid_table(table: dict[str, Any]) -> bool:
    return bool(Draft202012Validator(read_schema("settings")).is_valid(table))


def test_schemas_are_current() -> None:
    schemas = runpy.run_path(str(ROOT / "docs" / "schemas.py"))["make_schemas"]()
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert committed == schemas, "run python docs/schemas.py"


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_schema_is_valid(path: Path) -> None:
    schema = json.loads(path.read_text(encoding="utf-8"))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)


def test_samples_have_every_kind() -> None:
    assert {type(report) for report in REPORTS} == set(REPORT_NAMES)


@pytest.mark.parametrize("report", REPORTS, ids=report_name)
def test_document_is_valid(report: Report) -> None:
    schema = forbid_other_keys(read_schema(report_name(report)))
    Draft202012Validator(schema).validate(json.loads(to_json(report)))


@pytest.mark.parametrize("report", REPORTS, ids=report_name)
def test_every_key_is_required(report: Report) -> None:
    validator = Draft202012Validator(read_schema(report_name(report)))
    document = json.loads(to_json(report))
    for key in document.keys() - {"pushed"}:
        assert not validator.is_valid({name: value for name, value in document.items() if name != key})


def test_other_version_is_invalid() -> None:
    document = json.loads(to_json(REPORTS[0])) | {"schema_version": 2}
    assert not Draft202012Validator(read_schema("setup")).is_valid(document)


def test_own_settings_are_valid() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    Draft202012Validator(read_schema("settings")).validate(pyproject["tool"]["buildkit-tasks"])
    Draft202012Validator(read_schema("pyproject")).validate(pyproject)


@pytest.mark.parametrize(
    "table",
    [
        "",
        "platforms = 'linux/amd64,linux/arm64'\nbuild-args = ['A=1']\nbuild_args = ['A=1']",
        "driver = 'remote'\nname = 'my-builder'\ncpu = 'cortex-a53,sve=off'\ntimeout = 1\njobs = 3",
        "allow = ['network.host', 'device=a/b']\nexpect-exit = 3",
        "[[check]]\ncommand = 'uname -m'\nexpect-exit = 1\nplatforms = ['linux/386']\ntimeout = 0.5",
        "[[check]]\ntimeout = 0\nexpect-exit = 255",
        "[[image]]\nname = 'web'\nbuild-args = ['A=1']\nbuild_args = ['A=1']\ntags = 'a,b'",
    ],
)
def test_settings_are_valid(table: str) -> None:
    values = tomllib.loads(table)
    assert is_valid_table(values)
    load_settings(invoke=values, environ={}, folder=Path("/"))


@pytest.mark.parametrize(
    "table",
    [
        "plaforms = []",
        "platforms = 3",
        "driver = 'none'",
        "name = '-'",
        "cpu = 'a b'",
        "timeout = -1",
        "timeout = 0",
        "expect-exit = 256",
        "[[check]]\nexpect-exit = 256",
        "jobs = 1.5",
        "context = []",
        "allow = ['all']",
        "check = 'x'",
        "[[check]]\ncommands = 'x'",
        "[[image]]\ncontext = '.'",
        "[[image]]\nname = 'a/b'",
        "[[image]]\nname = 'a'\nrunner = 'docker'",
    ],
)
def test_settings_are_invalid(table: str) -> None:
    values = tomllib.loads(table)
    assert not is_valid_table(values)
    with pytest.raises(SettingsError):
        load_settings(invoke=values, environ={}, folder=Path("/"))
