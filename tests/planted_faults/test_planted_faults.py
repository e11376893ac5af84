from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import TEN
from tests.planted_faults import table
from tests.planted_faults.bases import Parts
from tests.planted_faults.catalogue import ALL, FAULTS, SOUND_IMAGES
from tests.planted_faults.planting import Catch, Fault, Planted, Question, judge
from tests.support.oci import MemoryImage, hello, write_archive
from tests.support.project import Project


@pytest.fixture(scope="session")
def parts(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    assert engine.version
    return Parts(folder=tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_each_fault_is_caught_alone(one: Fault, parts: Parts) -> None:
    assert judge(one, parts).surprises == []


@pytest.mark.parametrize("one", [one for one in FAULTS if one.task is not None], ids=lambda one: one.name)
def test_task_reports_fault(one: Fault, parts: Parts, project: Project, tmp_path: Path) -> None:
    assert one.task is not None
    planted = one.plant(parts)
    path = write_archive(planted.image, tmp_path / "image.tar")
    options = planted.question.options(tmp_path)
    report = project.json("verify-arch", f"oci-archive:{path}", *options, expect=one.task)
    said = "\n".join(check["message"] for row in report["platforms"] for check in row["checks"])
    assert report["ok"] == (one.task == 0)
    assert all(words in said for words in one.says), said


def test_task_passes_sound_image(parts: Parts, project: Project, tmp_path: Path) -> None:
    path = write_archive(parts.hello, tmp_path / "image.tar")
    report = project.json("verify-arch", f"oci-archive:{path}", f"--platform={','.join(TEN)}")
    assert [row["platform"] for row in report["platforms"] if row["ok"]] == list(TEN)


def _asked(image: MemoryImage, control: MemoryImage, *catches: Catch, says: str = "") -> list[str]:
    """Return how the verdict on a fault without an engine differs from its declaration."""
    planted = Planted(image=image, control=control, question=Question(platforms=["linux/amd64"]))
    one = Fault(name="x", text="x", plant=lambda _: planted, catches=catches, says=(says,) if says else ())
    return judge(one, Parts(folder=Path())).surprises


def test_checker_detects_misses() -> None:
    sound, wrong = hello(["linux/amd64"]), hello(["linux/arm64"])
    present, extra = Catch("present", "linux/amd64"), Catch("expected", "linux/arm64")
    assert _asked(wrong, sound, present, extra, says="is not in the image") == []
    assert _asked(sound, sound, present) == [f"not caught: {present}"]
    assert _asked(wrong, sound, present)[0].startswith(f"caught as well: {extra}")
    assert _asked(wrong, wrong, present, extra)[0].startswith("the control fails: linux/amd64 is not in")
    assert _asked(wrong, sound, present, extra, says="other words")[0].startswith("not said: 'other words'")


def test_number_of_faults() -> None:
    assert len(FAULTS) >= 45
    assert len(SOUND_IMAGES) >= 6


def test_documented_table() -> None:
    text = table.PAGE.read_text(encoding="utf-8")
    assert table.stable_cells(text) == [table.declared_cells(number, one) for number, one in table.numbered()]
