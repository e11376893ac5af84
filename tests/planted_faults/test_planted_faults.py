from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TEN
from tests.planted_faults import table
from tests.planted_faults.bases import Samples
from tests.planted_faults.catalogue import ALL, FAULTS, VALID_IMAGES
from tests.planted_faults.planting import Fault, Finding, PlantedImage, VerifyRequest, verify_fault
from tests.support.oci import MemoryImage, hello, write_archive
from tests.support.project import Project


@pytest.fixture(scope="session")
def samples(hello_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return Samples(directory=tmp_path_factory.mktemp("faults"), hello_archive=hello_archive)


@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.name)
def test_only_declared_findings(fault: Fault, samples: Samples) -> None:
    assert verify_fault(fault, samples).problems == []


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault.exit_status is not None], ids=lambda fault: fault.name
)
def test_task_reports_fault(fault: Fault, samples: Samples, project: Project, tmp_path: Path) -> None:
    assert fault.exit_status is not None
    planted = fault.plant(samples)
    path = write_archive(planted.image, tmp_path / "image.tar")
    options = planted.request.to_arguments(tmp_path)
    report = project.json("verify-arch", f"oci-archive:{path}", *options, expect=fault.exit_status)
    checks = [check for row in report["platforms"] for check in row["checks"]]
    messages = "\n".join(check["message"] + check.get("hint", "") for check in checks)
    assert report["ok"] == (fault.exit_status == 0)
    assert all(part in messages for part in fault.messages), messages


def test_task_passes_valid_image(samples: Samples, project: Project, tmp_path: Path) -> None:
    path = write_archive(samples.hello, tmp_path / "image.tar")
    report = project.json("verify-arch", f"oci-archive:{path}", f"--platform={','.join(TEN)}")
    assert [row["platform"] for row in report["platforms"] if row["ok"]] == list(TEN)


def find_problems(
    image: MemoryImage, control: MemoryImage, *expected: Finding, message: str = ""
) -> list[str]:
    """Return the differences from the declaration of a fault that needs no samples."""
    planted = PlantedImage(image, control, request=VerifyRequest(platforms=["linux/amd64"]))
    messages = (message,) if message else ()
    fault = Fault(name="x", text="x", plant=lambda _: planted, expected=expected, messages=messages)
    return verify_fault(fault, Samples(directory=Path())).problems


def test_wrong_declarations_are_detected() -> None:
    valid, wrong = hello(["linux/amd64"]), hello(["linux/arm64"])
    present, extra = Finding("present", "linux/amd64"), Finding("expected", "linux/arm64")
    assert find_problems(wrong, valid, present, extra, message="is not in the image") == []
    assert find_problems(valid, valid, present) == [f"not reported: {present}"]
    assert find_problems(wrong, valid, present)[0].startswith(f"not expected: {extra}")
    assert find_problems(wrong, wrong, present, extra)[0].startswith(
        "the control fails: linux/amd64 is not in"
    )
    problem = find_problems(wrong, valid, present, extra, message="other text")[0]
    assert problem.startswith("no message with 'other text'")


def test_number_of_faults() -> None:
    assert len(FAULTS) >= 45
    assert len(VALID_IMAGES) >= 6


def test_documented_table() -> None:
    page = table.PAGE.read_text(encoding="utf-8")
    rows = [table.declared_cells(number, fault) for number, fault in table.numbered_faults()]
    assert table.read_declared_cells(page) == rows
