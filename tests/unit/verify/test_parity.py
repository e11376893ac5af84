from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from buildkit_tasks.report.model import Check, VerifyReport
from buildkit_tasks.verify import VerifyOptions, verify
from buildkit_tasks.verify import parity as parity_module
from tests.support.oci import MemoryImage, add_platform, directory, make_tar, symlink

AMD64, ARM64 = "linux/amd64", "linux/arm64"
Files = Mapping[str, bytes]


def parity_checks(report: VerifyReport, index: int = 1) -> list[Check]:
    return [check for check in report.platforms[index].checks if check.name == "parity"]


def parity(
    amd64: Files, arm64: Files, *, rule: str = "warn", start: Mapping[str, Any] | None = None
) -> list[Check]:
    """Return the ``parity`` checks of linux/arm64, whose config is ``start``."""
    memory = MemoryImage()
    first = add_platform(memory, AMD64, [make_tar(amd64)])
    second = add_platform(memory, ARM64, [make_tar(arm64)], **(start or {}))
    report = verify(memory.set_index([first, second]), (), "the image", VerifyOptions(parity=rule))
    assert parity_checks(report, 0) == []
    return parity_checks(report)


def single_message(checks: list[Check]) -> str:
    assert len(checks) == 1, checks
    return checks[0].message


def test_equal_platforms() -> None:
    files = {"a": b"1", "b/c": b"2"}
    checks = parity(files, {"a": b"other content", "b/c": b""})
    assert (checks[0].ok, checks[0].warning) == (True, False)
    assert single_message(checks).endswith("starts the same and has the files of linux/amd64")


def test_missing_file() -> None:
    warned, failed = (parity({"a": b"", "b": b""}, {"a": b""}, rule=rule) for rule in ("warn", "fail"))
    assert (warned[0].ok, warned[0].warning) == (True, True)
    assert (failed[0].ok, failed[0].warning) == (False, False)
    assert single_message(warned) == single_message(failed) == "linux/arm64 lacks /b, which linux/amd64 has"


@pytest.mark.parametrize("rule", ["ignore", "off"])
def test_ignored_differences(rule: str) -> None:
    assert parity({"a": b""}, {"b": b""}, rule=rule) == []


def test_missing_and_extra_files() -> None:
    checks = parity({"x/a": b"", "x/same": b""}, {"x/b": b"", "x/same": b""})
    assert [check.message for check in checks] == [
        "linux/arm64 lacks /x/a, which linux/amd64 has",
        "linux/arm64 has /x/b, which linux/amd64 lacks",
    ]


def test_file_instead_of_directory() -> None:
    assert [check.message for check in parity({"x/y": b""}, {"x": b""})] == [
        "linux/arm64 lacks /x/, which linux/amd64 has",
        "linux/arm64 has /x, which linux/amd64 lacks",
    ]


def test_many_differences() -> None:
    many = {f"f{number}": b"" for number in range(9)}
    assert single_message(parity(many, {})) == (
        "linux/arm64 lacks /f0, /f1, /f2, /f3, /f4 and 4 more, which linux/amd64 has"
    )


def test_too_large_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_module, "_MAX_DIRECTORY_NAMES", 2)
    assert single_message(parity({"a": b"", "b": b"", "c": b""}, {})) == (
        "linux/arm64 or linux/amd64 has more than 2 files in /: they were not compared by name"
    )


def test_executables_and_plain_files() -> None:
    checks = parity({"bin/tool": b"#!/bin/sh\n"}, {"bin/tool": b"plain"})
    assert single_message(checks).endswith("has the files of linux/amd64")


@pytest.mark.parametrize(
    ("amd64", "arm64"),
    [
        ("lib/ld-musl-x86_64.so.1", "lib/ld-musl-aarch64.so.1"),
        ("lib/x86_64-linux-gnu/libc.so.6", "lib/aarch64-linux-gnu/libc.so.6"),
        ("opt/app-amd64", "opt/app-arm64"),
        ("var/lib/dpkg/info/libc6:amd64.list", "var/lib/dpkg/info/libc6:arm64.list"),
        ("usr/bin/qemu-x86_64", "usr/bin/qemu-aarch64"),
        ("lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-aarch64.so.1"),
    ],
)
def test_architecture_in_name_is_ignored(amd64: str, arm64: str) -> None:
    assert single_message(parity({amd64: b""}, {arm64: b""})).endswith("has the files of linux/amd64")


@pytest.mark.parametrize(
    ("i386", "armv6"),
    [
        ("lib/i386-linux-gnu/a", "lib/arm-linux-gnueabi/a"),
        ("opt/app-i686", "opt/app-armv6l"),
        ("opt/libc6:i386.list", "opt/libc6:armel.list"),
        ("opt/libc6:i386.list", "opt/libc6:armhf.list"),
        ("opt/386", "opt/arm"),
    ],
)
def test_all_architecture_names(i386: str, armv6: str) -> None:
    names = {"linux/386": i386, "linux/arm/v6": armv6}
    memory = MemoryImage()
    entries = [add_platform(memory, name, [make_tar({path: b""})]) for name, path in names.items()]
    report = verify(memory.set_index(entries), (), "the image")
    assert [check.warning for check in parity_checks(report)] == [False]


def test_name_of_file_and_directory() -> None:
    for one, other in (({"x": b""}, {"x/y": b""}), ({"x": b"#!/a"}, {"x/y": b""})):
        assert all(check.ok for check in (*parity(one, other), *parity(other, one)))


@pytest.mark.parametrize(
    ("amd64", "arm64"),
    [
        ("opt/arm64", "opt/amd64"),  # the name of the other architecture
        ("opt/myamd64x", "opt/myarm64x"),  # inside another word
        ("opt/myamd64", "opt/myarm64"),
        ("opt/386", "opt/arm"),
    ],
)
def test_similar_name_differs(amd64: str, arm64: str) -> None:
    assert len(parity({amd64: b""}, {arm64: b""})) == 2


def test_whiteout() -> None:
    memory = MemoryImage()
    lower = make_tar({"a": b"", "b": b""})
    first = add_platform(memory, AMD64, [lower])
    second = add_platform(memory, ARM64, [lower, make_tar({".wh.a": b""})])
    report = verify(memory.set_index([first, second]), (), "the image")
    messages = [check.message for check in parity_checks(report)]
    assert messages == ["linux/arm64 lacks /a, which linux/amd64 has"]


def test_missing_directory() -> None:
    memory = MemoryImage()
    full = make_tar({"x/y/z": b""}, [directory("empty"), symlink("link", "x")])
    first = add_platform(memory, AMD64, [full])
    second = add_platform(memory, ARM64, [make_tar({"a": b""})])
    report = verify(memory.set_index([first, second]), (), "the image")
    messages = " ".join(check.message for check in parity_checks(report))
    assert all(path in messages for path in ("/empty", "/link", "/x")), messages


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"Entrypoint": ["/a"]}, "linux/arm64 has ENTRYPOINT ['/a']; linux/amd64 has []"),
        ({"Cmd": ["/a", "-x"]}, "linux/arm64 has CMD ['/a', '-x']; linux/amd64 has []"),
        ({"User": "nobody"}, "linux/arm64 has USER 'nobody'; linux/amd64 has ''"),
        ({"WorkingDir": "/srv"}, "linux/arm64 has WORKDIR '/srv'; linux/amd64 has ''"),
        ({"Env": ["A=1"]}, "linux/arm64 has ENV ['A=1']; linux/amd64 has []"),
    ],
)
def test_different_settings(start: dict[str, object], message: str) -> None:
    files = {"a": b"#!/a\n"}
    assert single_message(parity(files, files, start=start)) == message


def test_first_platform_is_reference() -> None:
    memory = MemoryImage()
    names = {AMD64: {"a": b""}, ARM64: {"a": b"", "b": b""}, "linux/s390x": {"a": b"", "b": b""}}
    entries = [add_platform(memory, name, [make_tar(files)]) for name, files in names.items()]
    report = verify(memory.set_index(entries), (), "the image")
    messages = [check.message for row in report.platforms for check in row.checks if check.name == "parity"]
    assert messages == [
        "linux/arm64 has /b, which linux/amd64 lacks",
        "linux/s390x has /b, which linux/amd64 lacks",
    ]


def test_name_that_is_not_utf8() -> None:
    tar = make_tar({"caf?": b""}).replace(b"caf?", b"caf\xe9")
    tar = tar[:148] + b"%06o\0 " % (sum(tar[:148]) + sum(tar[156:512]) + 8 * 32) + tar[156:]
    memory = MemoryImage()
    entries = [add_platform(memory, name, [data]) for name, data in ((AMD64, tar), (ARM64, make_tar({})))]
    report = verify(memory.set_index(entries), (), "the image")
    messages = [check.message for check in parity_checks(report)]
    assert len(messages) == 1
    assert "\\udce9" in messages[0] or "\\xe9" in messages[0]
    messages[0].encode()
