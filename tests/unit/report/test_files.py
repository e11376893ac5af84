from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from buildkit_tasks import report as renderers
from buildkit_tasks.errors import LimitExceeded, UsageError
from buildkit_tasks.report.model import Report, to_document
from tests.support.report_samples import bad_reports, good_reports, good_run, matrix, run


@pytest.mark.parametrize("report", [*good_reports(), *bad_reports()])
def test_json_is_the_document(report: Report) -> None:
    text = renderers.to_json(report)
    assert json.loads(text) == to_document(report)
    assert list(json.loads(text)) == list(to_document(report))
    assert text.endswith("}\n")
    assert text.startswith('{\n  "schema_version": 1,\n')


def test_json_keeps_characters() -> None:
    output = 'é "\\ \x00\x1b \u2028 😀 ##[x] #[ ##'
    text = renderers.to_json(run(good_run("linux/arm64", stdout=f"{output}\udc80")))
    assert json.loads(text.encode())["results"][0]["stdout"] == f"{output}\ufffd"


def test_format_by_suffix(tmp_path: Path) -> None:
    writers = {
        "a.json": renderers.to_json,
        "new/folders/b.XML": renderers.to_junit,
        "c.md": renderers.to_markdown,
        "d.html": renderers.to_html,
        "e.svg": renderers.to_svg,
    }
    renderers.write_reports(matrix(), [tmp_path / name for name in writers])
    for name, writer in writers.items():
        assert (tmp_path / name).read_text() == writer(matrix())


@pytest.mark.parametrize("name", ["r.htm", "r.png", "r.txt", "r", "json", ".json", "html", ".svg"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.json, \.xml, \.md, \.html, \.svg") as excinfo:
        renderers.write_reports(matrix(), [tmp_path / "good.json", tmp_path / name])
    assert name in str(excinfo.value)
    assert excinfo.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_check_report_paths(tmp_path: Path) -> None:
    assert renderers.check_report_paths(["new/a.json", Path("b.md")]) == (Path("new/a.json"), Path("b.md"))
    with pytest.raises(UsageError, match=r"b\.pdf"):
        renderers.check_report_paths(["a.json", "b.pdf"])
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        renderers.check_report_paths([tmp_path / "folder.md"])


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / "r.json"
    with pytest.raises(UsageError) as excinfo:
        renderers.check_report_paths([path])
    assert excinfo.value.message == f"{path} cannot be written: {tmp_path / 'file'} is not a directory"
    assert excinfo.value.hint == '--report="$(mktemp -d)"/r.json'


def test_full_disk_keeps_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "r.json"
    old.write_text("old")

    def raise_disk_full(path: Path, _data: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", raise_disk_full)
    with pytest.raises(LimitExceeded, match="No space left"):
        renderers.write_reports(matrix(), [old])
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_report_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    with path.open() as reader:
        renderers.write_reports(matrix(), [path])
        assert reader.read() == "old"
    assert json.loads(path.read_text())["ok"] is True
    assert list(tmp_path.iterdir()) == [path]
