from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import Check, VerifyReport
from buildkit_tasks.verify import VerifyOptions, verify
from buildkit_tasks.verify.host_match import baseline_for, match_hosts, read_cluster_nodes, read_hosts
from tests.support.elf import ISA_NEEDED, Elf, attributes, elf
from tests.support.oci import MemoryImage, add_platform, hello, make_tar, probe_program


def platform(text: str) -> Platform:
    return Platform.parse(text)


def select_platform(
    host: str, available: str, node_count: int = 0, subject: str = "docker://app:1"
) -> tuple[str, Check]:
    hosts = {platform(host): node_count}
    ((selected, check),) = match_hosts(hosts, parse_platforms([available]), subject).values()
    assert check.ok == (selected is not None)
    assert (check.name, check.expected) == ("for", str(platform(host)))
    return str(selected or ""), check


def write_nodes(tmp_path: Path, document: Any) -> Path:
    path = tmp_path / "nodes.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def node(architecture: str, system: str = "linux") -> dict[str, Any]:
    info = {"operatingSystem": system, "architecture": architecture, "kernelVersion": "6.1"}
    return {"kind": "Node", "metadata": {"name": "n"}, "status": {"nodeInfo": info}}


@pytest.mark.parametrize(
    ("host", "available", "selected", "message"),
    [
        ("linux/arm64", "linux/amd64,linux/arm64", "linux/arm64", "linux/arm64 takes linux/arm64"),
        ("linux/arm/v7", "linux/arm/v6", "linux/arm/v6", "takes linux/arm/v6, a compatible platform"),
        ("linux/arm/v7", "linux/arm/v6,linux/arm/v7", "linux/arm/v7", "takes linux/arm/v7"),
        ("linux/amd64", "linux/386", "linux/386", "takes linux/386, a compatible platform"),
        ("linux/amd64/v3", "linux/amd64,linux/amd64/v2", "linux/amd64/v2", "a compatible platform"),
    ],
)
def test_host_selects_as_containerd(host: str, available: str, selected: str, message: str) -> None:
    platform, check = select_platform(host, available)
    assert platform == selected == check.actual
    assert message in check.message


@pytest.mark.parametrize(
    ("host", "available"),
    [("linux/amd64", "linux/arm64"), ("linux/arm/v6", "linux/arm/v7"), ("linux/amd64", "linux/amd64/v2")],
)
def test_no_match_has_hint(host: str, available: str) -> None:
    _, check = select_platform(host, available)
    assert check.actual == available
    assert f"{host} cannot start docker://app:1: it holds {available}." in check.message
    assert "exec format error" in check.message
    assert check.hint.endswith(f" build-multiarch --platform {available},{host} --push -t app:1")


def test_image_without_platforms() -> None:
    _, check = select_platform("linux/amd64", "")
    assert "it holds no platform." in check.message
    assert "--platform linux/amd64 --push" in check.hint


@pytest.mark.parametrize(
    ("subject", "ending"),
    [
        ("docker://r.example:5000/app@sha256:00", " --push -t r.example:5000/app"),
        ("docker://a;b", " --push -t 'a;b'"),
        ("dist/app.tar", " --platform linux/amd64,linux/arm64"),
        ("docker-daemon:app:1", " --platform linux/amd64,linux/arm64"),
    ],
)
def test_build_hint_of_image(subject: str, ending: str) -> None:
    assert select_platform("linux/arm64", "linux/amd64", subject=subject)[1].hint.endswith(ending)


def hints_of(hosts: list[Platform], *available: Platform) -> list[str]:
    matches = match_hosts(dict.fromkeys(hosts, 1), available, "docker://app:1").values()
    return [check.hint for _, check in matches]


def test_one_hint_for_all_nodes() -> None:
    hosts = [platform(name) for name in ("linux/amd64", "linux/arm64", "linux/s390x")]
    matching, *others = hints_of(hosts, hosts[0])
    assert (matching, len(set(others))) == ("", 1)
    assert "--platform linux/amd64,linux/arm64,linux/s390x --push" in others[0]


def test_windows_is_not_proposed() -> None:
    windows = Platform("windows", "amd64")
    first, second = hints_of([windows, platform("linux/arm64")], platform("linux/amd64"))
    assert "windows" not in first + second
    assert "nodeSelector" in first
    assert "--platform linux/amd64,linux/arm64 --push" in second


def test_windows_image_is_kept() -> None:
    (hint,) = hints_of([platform("linux/arm64")], platform("linux/amd64"), Platform("windows", "amd64"))
    assert hint.endswith("--platform linux/amd64,linux/arm64")


@pytest.mark.parametrize(
    ("count", "message"), [(1, "1 linux/arm64 node takes"), (3, "3 linux/arm64 nodes take linux")]
)
def test_node_count(count: int, message: str) -> None:
    assert select_platform("linux/arm64", "linux/arm64", count)[1].message.startswith(message)


def test_cluster_nodes_are_counted(tmp_path: Path) -> None:
    items = [node("amd64"), node("arm64"), node("amd64"), node("amd64", "windows")]
    counts = read_cluster_nodes(write_nodes(tmp_path, {"kind": "List", "items": items}))
    assert counts == {platform("linux/amd64"): 2, platform("linux/arm64"): 1, Platform("windows", "amd64"): 1}


def test_single_node(tmp_path: Path) -> None:
    assert read_cluster_nodes(write_nodes(tmp_path, node("riscv64"))) == {platform("linux/riscv64"): 1}


def test_arm_node_is_v7(tmp_path: Path) -> None:
    assert read_cluster_nodes(write_nodes(tmp_path, node("arm"))) == {platform("linux/arm/v7"): 1}


@pytest.mark.parametrize(
    ("host", "available", "count", "note"),
    [
        (
            "linux/arm/v7",
            "linux/arm/v7",
            1,
            "; a node states no variant: taken as linux/arm/v7; --for linux/",
        ),
        (
            "linux/arm/v7",
            "linux/arm64",
            2,
            "; nodes state no variant: taken as linux/arm/v7; --for linux/arm/v6",
        ),
        ("linux/arm/v7", "linux/arm/v7", 0, ""),
        ("linux/arm64", "linux/arm64", 1, ""),
    ],
)
def test_assumed_variant_of_node(host: str, available: str, count: int, note: str) -> None:
    _, check = select_platform(host, available, count)
    assert note in check.message
    assert ("no variant" in check.message) == bool(note)
    assert check.warning == (check.ok and bool(note))


@pytest.mark.parametrize(
    "document",
    [
        "",
        "NAME STATUS ROLES",
        "[" * 200_000,
        [],
        1,
        None,
        {"items": 1},
        {"items": [1]},
        {"items": [{"kind": "Pod", "status": {}}]},
        {"items": [{"status": {"nodeInfo": {"architecture": "amd64"}}}]},
        {"items": [{"status": {"nodeInfo": []}}]},
    ],
)
def test_invalid_nodes_file(tmp_path: Path, document: Any) -> None:
    with pytest.raises(UsageError, match="does not hold the nodes of a cluster as JSON") as excinfo:
        read_cluster_nodes(write_nodes(tmp_path, document))
    assert excinfo.value.hint == "kubectl get nodes -o json > nodes.json"


def test_nodes_file_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    path.write_bytes(b'{"items": "\xff"}')
    with pytest.raises(UsageError, match="as JSON"):
        read_cluster_nodes(path)


def test_empty_and_missing_nodes_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no node"):
        read_cluster_nodes(write_nodes(tmp_path, {"items": []}))
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_cluster_nodes(tmp_path / "missing.json")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_cluster_nodes(tmp_path)


def test_read_hosts(tmp_path: Path) -> None:
    path = write_nodes(tmp_path, {"items": [node("arm64"), node("arm64")]})
    assert read_hosts(["amd64,arm/v7"], str(path)) == {
        platform("linux/amd64"): 0,
        platform("linux/arm/v7"): 0,
        platform("linux/arm64"): 2,
    }
    assert read_hosts([], "") == {}


def verify_for_hosts(*hosts: str) -> VerifyReport:
    options = VerifyOptions(hosts={platform(host): 0 for host in hosts})
    return verify(hello(["linux/amd64", "linux/arm64"]), (), "app:1", options)


def test_verdict_for_each_host() -> None:
    report = verify_for_hosts("linux/arm64", "linux/s390x")
    assert [(row.platform, row.ok) for row in report.platforms] == [
        ("linux/arm64", True),
        ("linux/s390x", False),
    ]
    assert [check.name for check in report.platforms[0].checks] == [
        "for",
        "integrity",
        "entrypoint-arch",
        "starts",
        "binaries",
    ]
    assert [check.name for check in report.platforms[1].checks] == ["for"]


def test_selected_platform_is_checked() -> None:
    row = verify_for_hosts("linux/arm64/v9").platforms[0]
    assert (row.platform, row.ok) == ("linux/arm64/v9", True)
    assert row.digest == verify_for_hosts("linux/arm64").platforms[0].digest


def test_other_architecture_is_checked_as_itself() -> None:
    hosts = {platform("linux/amd64"): 0}
    report = verify(hello(["linux/386"]), (), "app:1", VerifyOptions(hosts=hosts))
    assert (report.ok, report.platforms[0].platform) == (True, "linux/amd64")


def test_program_of_entry_script() -> None:
    memory = MemoryImage()
    files = {
        "entry": b'#!/bin/sh\nexec /app "$@"\n',
        "bin/sh": probe_program("linux/arm64"),
        "app": probe_program("linux/amd64"),
    }
    memory.set_index([add_platform(memory, "linux/arm64", [make_tar(files)], Entrypoint=["/entry"])])
    hosts = {platform("linux/arm64"): 0}
    (row,) = verify(memory, (), "app:1", VerifyOptions(hosts=hosts)).platforms
    assert [(check.name, check.path) for check in row.checks if not check.ok] == [("binaries", "/app")]
    allowed = VerifyOptions(hosts=hosts, allow_foreign=("/app",))
    assert verify(memory, (), "app:1", allowed).ok


def test_host_without_command() -> None:
    memory = MemoryImage()
    files = make_tar({"a": probe_program("linux/arm64")})
    memory.set_index([add_platform(memory, "linux/arm64", [files])])
    report = verify(memory, (), "app:1", VerifyOptions(hosts={platform("linux/arm64"): 0}))
    (warning,) = report.platforms[0].warnings
    assert report.ok
    assert "no ENTRYPOINT or CMD" in warning.message
    assert "a pod needs `command:`" in warning.message


@pytest.mark.parametrize(
    ("host", "selected", "baseline"),
    [
        ("linux/arm64", "linux/arm/v6", "linux/arm/v8"),
        ("linux/arm64/v9", "linux/arm/v6", "linux/arm/v9"),
        ("linux/arm64/v9", "linux/arm64", "linux/arm64/v9"),
        ("linux/arm/v7", "linux/arm/v6", "linux/arm/v7"),
        ("linux/amd64", "linux/386", "linux/386"),
        ("linux/amd64/v3", "linux/386", "linux/386/x86-64-v3"),
    ],
)
def test_baseline_of_host(host: str, selected: str, baseline: str) -> None:
    result = baseline_for(platform(host), platform(selected))
    assert str(result) == baseline
    assert result is not None
    assert result.baseline is not None
    assert (result.baseline.title == "ARMv8") == (baseline == "linux/arm/v8")


def test_baseline_without_selection() -> None:
    windows = Platform("windows", "386")
    assert baseline_for(platform("linux/amd64"), None) is None
    assert baseline_for(Platform("windows", "amd64"), windows) == windows


@pytest.mark.parametrize(
    ("host", "image", "ok"),
    [
        ("linux/arm64", "linux/arm/v6", True),
        ("linux/arm/v7", "linux/arm/v6", True),
        ("linux/arm/v6", "linux/arm/v6", False),
    ],
)
def test_newer_program_of_older_image(host: str, image: str, *, ok: bool) -> None:
    program = Elf(machine=image, sections={".ARM.attributes": attributes("aeabi", [(6, 10)])}).build()
    memory = MemoryImage()
    memory.set_index([add_platform(memory, image, [make_tar({"a": program})], Entrypoint=["/a"])])
    report = verify(memory, (), "app:1", VerifyOptions(hosts={platform(host): 0}))
    assert report.ok is ok


@pytest.mark.parametrize(("level", "ok"), [("linux/amd64", False), ("linux/amd64/v3", True)])
def test_32_bit_program_on_newer_cpu(level: str, *, ok: bool) -> None:
    memory = MemoryImage()
    program = make_tar({"a": elf("linux/386", isa=[(ISA_NEEDED, 4)])})
    memory.set_index([add_platform(memory, "linux/386", [program], Entrypoint=["/a"])])
    assert verify(memory, (), "app:1", VerifyOptions(hosts={platform(level): 0})).ok is ok


def test_host_baseline_is_used() -> None:
    memory = MemoryImage()
    v2 = elf("linux/amd64", isa=[(ISA_NEEDED, 2)])
    memory.set_index([add_platform(memory, "linux/amd64", [make_tar({"a": v2})], Entrypoint=["/a"])])
    hosts = {platform("linux/amd64"): 0, platform("linux/amd64/v3"): 0}
    report = verify(memory, (), "app:1", VerifyOptions(hosts=hosts))
    assert [(row.platform, row.ok) for row in report.platforms] == [
        ("linux/amd64", False),
        ("linux/amd64/v3", True),
    ]
