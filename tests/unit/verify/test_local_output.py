from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_tasks.errors import UsageError
from buildkit_tasks.oci.limits import Limits
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import Check, VerifyReport
from buildkit_tasks.verify import VerifyOptions, local_output
from buildkit_tasks.verify.local_output import verify_local_output
from tests.support.oci import probe_program


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o755)
    return folder


def verify_directory(folder: Path, *expected: str, options: VerifyOptions | None = None) -> VerifyReport:
    return verify_local_output(folder, parse_platforms(expected), f"dir:{folder}", options)


def failures(report: VerifyReport) -> dict[str, list[Check]]:
    failed_checks = {
        row.platform: [check for check in row.checks if not check.ok] for row in report.platforms
    }
    return {platform: checks for platform, checks in failed_checks.items() if checks}


def test_platforms_are_checked(tmp_path: Path) -> None:
    files = {
        "linux_amd64/bin/a": probe_program("linux/amd64"),
        "linux_arm_v7/bin/a": probe_program("linux/arm/v7"),
    }
    report = verify_directory(write_files(tmp_path, files), "linux/amd64", "linux/arm/v7")
    assert report.ok
    assert [row.platform for row in report.platforms] == ["linux/amd64", "linux/arm/v7"]


def test_foreign_binary(tmp_path: Path) -> None:
    files = {
        "linux_amd64/a": probe_program("linux/amd64"),
        "linux_arm64/deep/er/a": probe_program("linux/amd64"),
    }
    failed_checks = failures(verify_directory(write_files(tmp_path, files)))
    assert [check.name for check in failed_checks["linux/arm64"] if check.path] == ["binaries"]
    assert failed_checks["linux/arm64"][0].path == "/deep/er/a"


def test_missing_and_extra_platforms(tmp_path: Path) -> None:
    files = {"linux_amd64/a": b"", "linux_arm64/a": b""}
    failed_checks = failures(verify_directory(write_files(tmp_path, files), "linux/amd64", "linux/s390x"))
    assert (
        failed_checks["linux/s390x"][0].message
        == "linux/s390x is not in the image, which holds linux/amd64, linux/arm64"
    )
    assert [check.name for check in failed_checks["linux/arm64"]] == ["expected"]


def test_unnamed_platform(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "out", {"bin/a": probe_program("linux/arm64")})
    with pytest.raises(UsageError, match=r"cannot tell which platform the folder .*/out was built for"):
        verify_directory(folder)
    with pytest.raises(UsageError, match=r"cannot tell which platform the folder .*/out was built for"):
        verify_directory(folder, "linux/arm64", "linux/amd64")
    assert verify_directory(folder, "linux/arm64").ok
    assert not verify_directory(folder, "linux/amd64").ok


def test_known_platform(tmp_path: Path) -> None:
    arm64 = Platform.parse("linux/arm64")
    for name in ("out", "linux_amd64"):  # whatever the folder is called
        folder = write_files(tmp_path / name, {"bin/a": probe_program("linux/arm64")})
        assert verify_local_output(folder, (), "out", built_for=arm64).ok
        report = verify_local_output(folder, parse_platforms(["linux/amd64"]), "out", built_for=arm64)
        assert {row.platform: row.ok for row in report.platforms} == {
            "linux/amd64": False,
            "linux/arm64": False,
        }


def test_link_out_of_directory(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(probe_program("linux/amd64"))
    folder = write_files(tmp_path / "linux_arm64", {"a": probe_program("linux/arm64")})
    (folder / "b").symlink_to("../secret")
    (folder / "c").symlink_to(tmp_path)
    assert verify_directory(folder).ok


def test_host(tmp_path: Path) -> None:
    files = {"linux_amd64/a": probe_program("linux/arm64"), "linux_arm64/a": probe_program("linux/arm64")}
    hosts = {Platform.parse(name): 0 for name in ("linux/arm64", "linux/s390x")}
    report = verify_directory(write_files(tmp_path, files), options=VerifyOptions(hosts=hosts))
    assert [(row.platform, row.ok) for row in report.platforms] == [
        ("linux/arm64", True),
        ("linux/s390x", False),
    ]


def test_directory_beyond_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_output, "LIMITS", Limits(nodes=1))
    files = {f"linux_arm64/{name}": probe_program("linux/arm64") for name in ("a", "b")}
    failed_checks = failures(verify_directory(write_files(tmp_path, files)))
    assert [(check.name, check.message) for check in failed_checks["linux/arm64"]] == [
        ("integrity", "the layer has too many executables and directories")
    ]
