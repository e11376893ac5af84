from __future__ import annotations

import pytest

from buildkit_tasks.errors import UsageError
from buildkit_tasks.system.csv_fields import format_csv_row, parse_csv_row

ROWS: list[tuple[str, list[str]]] = [
    ("type=oci,dest=a.tar", ["type=oci", "dest=a.tar"]),
    ('type=oci,"dest=a,b.tar"', ["type=oci", "dest=a,b.tar"]),
    ('"a ""quoted"" value"', ['a "quoted" value']),
    ('"two\nlines",b', ["two\nlines", "b"]),
]


@pytest.mark.parametrize(("text", "fields"), ROWS)
def test_round_trip(text: str, fields: list[str]) -> None:
    assert parse_csv_row(text, "it") == fields
    assert format_csv_row(fields) == text


def test_empty_row() -> None:
    assert parse_csv_row("", "it") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"a', "--output is not valid CSV"),
        ('"a"b', "--output is not valid CSV"),
        ("a\nb", "more than one line"),
    ],
)
def test_invalid_row(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_csv_row(text, "--output")
