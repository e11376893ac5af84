from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from buildkit_tasks.oci import model, strict_json
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import OCI_INDEX, Descriptor, Digest
from buildkit_tasks.platforms import MACHINES, Platform, parse_platforms
from buildkit_tasks.report.model import Check, VerifyReport, to_document
from buildkit_tasks.run.sandbox.unpack import unpack
from buildkit_tasks.verify import verify
from tests.support.elf import Elf, elf
from tests.support.oci import (
    LAYER_GZIP,
    MemoryImage,
    add_platform,
    directory,
    flip,
    hello,
    index_json,
    make_tar,
    member,
    platform_json,
    probe_program,
    put_manifest,
    single_platform_image,
    symlink,
)
from tests.unit.verify.test_attestations import add_annotated

AMD64, ARM64 = "linux/amd64", "linux/arm64"


def verify_image(memory: MemoryImage, *expected: str) -> VerifyReport:
    report = verify(memory, parse_platforms(expected), "the image")
    json.dumps(to_document(report)).encode()
    return report


def failures(report: VerifyReport) -> dict[str, list[Check]]:
    failing = {row.platform: [check for check in row.checks if not check.ok] for row in report.platforms}
    assert report.ok == (bool(failing) and not any(failing.values()))
    return {platform: checks for platform, checks in failing.items() if checks}


def single_failure(report: VerifyReport) -> Check:
    checks = [check for failing in failures(report).values() for check in failing]
    assert len(checks) == 1, checks
    return checks[0]


def arch_checks(report: VerifyReport) -> list[Check]:
    return [check for row in report.platforms for check in row.checks if check.name == "entrypoint-arch"]


def verify_files(
    files: dict[str, bytes], links: Sequence[tuple[str, str]] = (), **start: object
) -> VerifyReport:
    """Verify a linux/arm64 image with these files."""
    tar = make_tar(files, [symlink(name, target) for name, target in links])
    return verify_image(single_platform_image([tar], ARM64, **start))


def test_valid_image_of_every_architecture() -> None:
    names = [str(Platform.normalize("linux", row.architecture)) for row in MACHINES]
    report = verify_image(hello(names), *names)
    assert failures(report) == {}
    assert [row.platform for row in report.platforms] == names
    names_of_checks = [[check.name for check in row.checks] for row in report.platforms]
    names_of_all = [
        "present",
        "expected",
        "config-platform",
        "integrity",
        "entrypoint-arch",
        "starts",
        "binaries",
    ]
    assert names_of_checks[0] == [*names_of_all, "instruction-set"]
    assert names_of_checks[1:] == [[*names_of_all, "instruction-set", "parity"]] * (len(names) - 1)


def test_no_expected_platforms() -> None:
    report = verify_image(hello())
    assert report.ok
    assert report.digest == str(hello().root_descriptor().digest)
    assert all(row.digest.startswith("sha256:") for row in report.platforms)


def test_empty_index() -> None:
    assert single_failure(verify_image(MemoryImage().set_index([]))).message == "the image has no platforms"


def test_order_and_missing_platform() -> None:
    report = verify_image(hello([AMD64]), ARM64, AMD64)
    assert [row.platform for row in report.platforms] == [ARM64, AMD64]
    check = single_failure(report)
    assert check.name == "present"
    assert check.message == "linux/arm64 is not in the image, which holds linux/amd64"


def test_extra_platform() -> None:
    report = verify_image(hello([AMD64, ARM64]), AMD64)
    check = single_failure(report)
    assert (check.name, report.platforms[1].platform) == ("expected", ARM64)
    assert check.message == "linux/arm64 is in the image, but was not expected; expected: linux/amd64"
    assert len(report.platforms[1].checks) == 9


def test_extra_variant() -> None:
    report = verify_image(hello(["linux/arm/v6", "linux/arm/v7"]), "linux/arm/v7")
    assert [check.name for check in failures(report)["linux/arm/v6"]] == ["expected"]


class PartialImage(MemoryImage):
    """An image in an engine that has pulled one platform of it."""

    def is_missing(self, blob: Descriptor) -> bool:
        return str(blob.digest) not in self.blobs


def test_content_of_other_platform_is_missing() -> None:
    memory = PartialImage(**vars(hello([AMD64, ARM64])))
    del memory.blobs[str(Image(memory).platform_manifests[1][1].digest)]
    assert verify_image(memory).ok
    check = single_failure(verify_image(memory, AMD64, ARM64))
    assert check.name == "present"
    assert check.hint == "docker pull --platform linux/arm64 the image"


def test_empty_index_lacks_expected_platforms() -> None:
    failing = failures(verify_image(MemoryImage().set_index([]), AMD64, ARM64))
    assert {platform: checks[0].name for platform, checks in failing.items()} == {
        AMD64: "present",
        ARM64: "present",
    }


def test_repeated_platform() -> None:
    memory = MemoryImage()
    tar = make_tar({"main": probe_program(AMD64)})
    entries = [add_platform(memory, AMD64, [tar], Entrypoint=["/main"], User=user) for user in ("1", "2")]
    report = verify_image(memory.set_index(entries), AMD64)
    assert [check.name for check in failures(report)[AMD64]] == ["present"]
    assert [row.platform for row in report.platforms] == [AMD64, AMD64]
    assert "in the index 2 times" in failures(report)[AMD64][0].message


def test_windows_versions() -> None:
    memory = MemoryImage()
    entry = add_platform(memory, "windows/amd64", [make_tar({})])
    versions = [
        {**entry, "platform": {**entry["platform"], "os.version": text}} for text in ("10.0.1", "10.0.2")
    ]
    report = verify_image(memory.set_index(versions))
    assert all(check.ok for row in report.platforms for check in row.checks if check.name == "present")


def verify_disagreeing(index: str, config: str) -> VerifyReport:
    memory = MemoryImage()
    tar = make_tar({"main": probe_program(index)})
    return verify_image(
        memory.set_index([add_platform(memory, index, [tar], config_platform=config, Entrypoint=["/main"])])
    )


def test_config_of_other_platform() -> None:
    check = single_failure(verify_disagreeing(ARM64, AMD64))
    assert check.name == "config-platform"
    assert check.message == "the index says linux/arm64, the config says linux/amd64"
    assert (check.expected, check.actual) == (ARM64, AMD64)


@pytest.mark.parametrize(
    ("index", "config", "message"),
    [
        ("linux/arm/v6", "linux/arm/v7", "v6 against v7; programs for v7 may use instructions"),
        ("linux/arm/v7", "linux/arm/v6", "v7 against v6; programs for v7 may use instructions"),
        ("linux/amd64", "linux/amd64/v3", "v1 against v3; programs for v3 may use instructions"),
        ("linux/arm64", "linux/arm64/v99", "v8 against v99"),
    ],
)
def test_different_variants(index: str, config: str, message: str) -> None:
    check = single_failure(verify_disagreeing(index, config))
    assert message in check.message
    assert f"the index says {index}, the config says {config}" in check.message


def test_missing_variant() -> None:
    check = failures(verify_image(hello(["linux/arm/v6"]), "linux/arm/v7"))["linux/arm/v7"][0]
    assert "which holds linux/arm/v6; the variants differ, v7 against v6" in check.message


def test_config_without_variant() -> None:
    report = verify_disagreeing("linux/arm/v6", "linux/arm")
    assert report.ok
    notes = [check.message for check in report.platforms[0].checks if check.name == "config-platform"]
    assert notes == ["the index says linux/arm/v6; the config states no variant"]


@pytest.mark.parametrize("wrong", [str(Platform.normalize("linux", row.architecture)) for row in MACHINES])
def test_program_of_other_machine(wrong: str) -> None:
    report = verify_files({"main": probe_program(wrong)}, Entrypoint=["/main"])
    if wrong == ARM64:
        assert report.ok
    else:
        architecture = Platform.parse(wrong).architecture
        assert f"/main is made for {architecture}, not for arm64" in single_failure(report).message


def test_cmd_in_path() -> None:
    report = verify_files({"bin/busybox": probe_program(ARM64)}, [("bin/sh", "busybox")], Cmd=["sh"])
    assert report.ok
    assert [check.path for check in arch_checks(report)] == ["/bin/busybox"]


def test_no_entrypoint() -> None:
    report = verify_files({"main": probe_program(ARM64)})
    assert report.ok
    assert arch_checks(report)[0].message == "no ENTRYPOINT or CMD: nothing to check"


@pytest.mark.parametrize(
    "text", ["/root/main", "exec /root/main -v", "A=1 B=2 /root/main; true", "/root/main&&ls"]
)
def test_shell_form(text: str) -> None:
    files = {"bin/sh": probe_program(ARM64), "root/main": probe_program(AMD64)}
    report = verify_files(files, Cmd=["/bin/sh", "-c", text])
    assert [check.path for check in arch_checks(report)] == ["/bin/sh", "/root/main"]
    assert single_failure(report).path == "/root/main"


@pytest.mark.parametrize("text", ["cd /x && ./y", "echo 'unclosed", "$APP", "", "if true; then x; fi"])
def test_complex_shell_form(text: str) -> None:
    report = verify_files({"bin/sh": probe_program(ARM64)}, Entrypoint=["/bin/sh", "-ec", text])
    assert [(check.path, check.ok) for check in arch_checks(report)] == [("/bin/sh", True)]


def test_cmd_and_child_of_init() -> None:
    files = {
        "init/tini": probe_program(ARM64),
        "bin/app": probe_program(AMD64),
        "bin/tool": probe_program("linux/386"),
    }
    report = verify_files(files, Entrypoint=["/init/tini", "-g", "--", "app"], Cmd=["tool"])
    assert [(check.path, check.ok) for check in arch_checks(report)] == [
        ("/init/tini", True),
        ("/bin/tool", False),
        ("/bin/app", False),
    ]


def test_script_interpreter() -> None:
    files = {"run": b"#! /bin/sh -e\nexec main\n", "bin/sh": probe_program(AMD64)}
    assert single_failure(verify_files(files, Entrypoint=["/run"])).path == "/bin/sh"


def test_script_run_by_env() -> None:
    files = {
        "run": b"#!/usr/bin/env -S A=1 python3 -u\n",
        "usr/bin/env": probe_program(ARM64),
        "bin/python3": probe_program(AMD64),
    }
    report = verify_files(files, Entrypoint=["run"], Env=["PATH=/:/bin"])
    assert [check.path for check in arch_checks(report)] == ["/usr/bin/env", "/bin/python3"]
    assert single_failure(report).path == "/bin/python3"


@pytest.mark.parametrize(("count", "ok"), [(5, True), (6, False)])
def test_scripts_run_by_scripts(count: int, *, ok: bool) -> None:
    scripts = {f"s{number}": f"#!/s{number + 1}\n".encode() for number in range(count)}
    assert verify_files({**scripts, f"s{count}": probe_program(ARM64)}, Entrypoint=["/s0"]).ok is ok


def test_last_path_variable_wins() -> None:
    files = {"b/main": probe_program(ARM64)}
    assert verify_files(files, Entrypoint=["main"], Env=["PATH=/a", "PATH=/b"]).ok


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (b"#!/bin/missing\n", "the interpreter of /run: '/bin/missing' is not in the image"),
        (b"#!\n", "the script /run names no interpreter"),
        (b"#!/run\n", "is nested more than 5 interpreters deep"),
        (b"#!/bin\n", "the interpreter of /run: '/bin' is a directory, not a program"),
        (b"#!/bin/\xff\n", "is not in the image"),
    ],
)
def test_script_without_interpreter(script: bytes, message: str) -> None:
    assert (
        message
        in single_failure(
            verify_files({"run": script, "bin/sh": probe_program(ARM64)}, Entrypoint=["/run"])
        ).message
    )


@pytest.mark.parametrize(
    "line",
    ["#!/bin/sh", "#! /bin/sh", "#!/usr/bin/env app", "#!/usr/bin/env -S app -u", "#!/bin/sh -e", "#!/gone"],
)
def test_windows_line_ending(line: str) -> None:
    files = {name: probe_program(ARM64) for name in ("bin/sh", "usr/bin/env", "bin/app")}
    script = {"opt/it's.sh": f"{line}\r\nexec app\r\n".encode()}
    report = verify_files({**files, **script}, Entrypoint=["/opt/it's.sh"], Env=["PATH=/bin"])
    if line.endswith("-u"):
        assert report.ok  # not every interpreter minds
        return
    check = single_failure(report)
    assert check.message == (
        "linux/arm64: /opt/it's.sh cannot start: its first line has a Windows line ending"
    )
    assert (check.path, check.hint) == ("/opt/it's.sh", """dos2unix 'it'"'"'s.sh'""")


def test_name_with_carriage_return() -> None:
    files = {"run": b"#!/bin/sh\r\n", "bin/sh\r": probe_program(ARM64)}
    assert verify_files(files, Entrypoint=["/run"]).ok


@pytest.mark.parametrize(
    ("cmd", "ok"),
    [
        ("/app/data", True),
        ("/app/plain", True),
        ("/app/script", True),
        ("/app/other", False),
        ("/gone", True),
    ],
)
def test_argument_of_entrypoint(cmd: str, *, ok: bool) -> None:
    files = {
        "bin/python3": probe_program(ARM64),
        "app/plain": b"print(1)",
        "app/script": b"#!/usr/bin/env python3\n",
        "app/other": probe_program(AMD64),
    }
    tars = [make_tar(files), make_tar_with_mode("app/data", b"#!/usr/bin/env python3\n", 0o644)]
    image = single_platform_image(tars, ARM64, Entrypoint=["python3"], Cmd=[cmd])
    assert all(check.ok for check in arch_checks(verify_image(image))) is ok


def test_shell_runs_plain_script() -> None:
    files = {"bin/sh": probe_program(ARM64), "run": b"echo plain"}
    assert verify_files(files, Cmd=["/bin/sh", "-c", "/run"]).ok


def test_shell_cannot_run_data() -> None:
    tars = [make_tar({"bin/sh": probe_program(ARM64)}), make_tar_with_mode("run", b"echo", 0o644)]
    check = single_failure(verify_image(single_platform_image(tars, ARM64, Cmd=["/bin/sh", "-c", "/run"])))
    assert check.message == "linux/arm64: /run is not executable (mode 0644)"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/missing", "linux/arm64: '/missing' is not in the image"),
        ("missing", "'missing' is not in the image (PATH is /a:/b)"),
        ("/folder", "'/folder' is a directory, not a program"),
        ("srv/..", "'/srv/..' is a directory, not a program"),
        ("app", "'/b/app' is a directory, not a program"),
        ("/dangling", "'/dangling' is not in the image"),
        ("/cycle", "'/cycle' is not in the image"),
        ("", "'' is not in the image"),
    ],
)
def test_missing_command(command: str, message: str) -> None:
    others = [*map(directory, ("folder", "srv", "b", "b/app"))]
    tar = make_tar({}, [*others, symlink("dangling", "x"), symlink("cycle", "cycle")])
    assert (
        message
        in single_failure(
            verify_image(single_platform_image([tar], ARM64, Entrypoint=[command], Env=["PATH=/a:/b"]))
        ).message
    )


def test_command_in_working_directory() -> None:
    assert verify_files({"srv/main": probe_program(ARM64)}, Entrypoint=["./main"], WorkingDir="/srv").ok


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"hello, world", "(exec format error): no ELF header and no '#!' line"),
        (b"\xef\xbb\xbf#!/bin/sh\n", "(exec format error): it begins with a byte order mark"),
        (b"\xcf\xfa\xed\xfe" + bytes(28), "/main is made for macOS, not for linux"),
        (b"MZ" + bytes(62), "/main is made for Windows, not for linux"),
        (probe_program(ARM64)[:30], "(exec format error): a truncated ELF header"),
        (b"\x7fELF" + b"\xff" * 60, "class 255"),
        (
            probe_program(ARM64)[:16] + b"\x01\0" + probe_program(ARM64)[18:],
            "ELF file of type 1: it cannot be started (exec format error)",
        ),
    ],
)
def test_file_is_not_a_program(data: bytes, message: str) -> None:
    assert message in single_failure(verify_files({"main": data}, Entrypoint=["/main"])).message


LATIN_1 = "echo grüß\n".encode("latin-1")


@pytest.mark.parametrize(
    ("data", "reason", "hint"),
    [
        (gzip.compress(b"x", mtime=0), "it is packed by gzip", "unpack it in the Dockerfile"),
        (b"PK\3\4" + bytes(26), "it is packed by zip", "unpack it"),
        (lzma.compress(b"x"), "it is packed by xz", "unpack it"),
        (bz2.compress(b"x"), "it is packed by bzip2", "unpack it"),
        (b"\x28\xb5\x2f\xfd" + bytes(9), "it is packed by zstd", "unpack it"),
        (make_tar({"a-name-longer-than-a-short-head/" * 3: b"x"}), "it is packed by tar", "unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid x\n", "a pointer of Git LFS", "git lfs pull"),
        (b"\0\1\2\3", "binary data without an ELF header", "build main again"),
        ("echo".encode("utf-16"), "binary data without an ELF header", "build main again"),
        (LATIN_1, "binary data without an ELF header", "build main again"),
        (b"\x7fELF" + b"\xff" * 60, "class 255", "build main again"),
        (probe_program(ARM64)[:30], "truncated ELF header", "build main again"),
        (elf(ARM64, kind=1), "of type 1", "link it"),
        (elf(ARM64, kind=4), "of type 4", "build main again"),
        ("é".encode() * 40, "no ELF header and no '#!' line", "sed -i '1i #!/bin/sh' main"),
        (b"a" + "é".encode() * 40, "no ELF header and no '#!' line", "sed -i"),
    ],
)
def test_hint_for_other_data(data: bytes, reason: str, hint: str) -> None:
    check = single_failure(verify_files({"main": data}, Entrypoint=["/main"]))
    assert reason in check.message
    assert "exec format error" in check.message
    assert check.hint.startswith(hint)


@pytest.mark.parametrize("platform", ["linux/arm64", "linux/arm/v7"])
def test_incomplete_program(platform: str) -> None:
    whole = Elf(machine=platform, segments=[(1, b"x" * 100)]).build()

    def verify_program(data: bytes) -> VerifyReport:
        return verify_image(single_platform_image([make_tar({"a": data})], platform, Entrypoint=["/a"]))

    assert verify_program(whole).ok
    check = single_failure(verify_program(whole[:-1]))
    end = f"its segments end at byte {len(whole)}, the file has {len(whole) - 1} bytes"
    assert check.message == f"{platform}: /a is incomplete: {end}"


def make_tar_with_mode(name: str, data: bytes, mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = member(name, mode=mode)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("command", ["/bin/main", "main"])
def test_program_is_not_executable(command: str) -> None:
    tar = make_tar_with_mode("bin/main", probe_program(ARM64), 0o644)
    check = single_failure(verify_image(single_platform_image([tar], ARM64, Entrypoint=[command])))
    assert check.message == "linux/arm64: /bin/main is not executable (mode 0644)"
    assert check.hint == "chmod +x main"


@pytest.mark.parametrize("platform", ["linux/z80", "windows/amd64", "linux/ppc64"])
def test_unknown_machine(platform: str) -> None:
    memory = single_platform_image([make_tar({"main": probe_program(AMD64)})], platform, Entrypoint=["/main"])
    assert "the machine of this platform is not known" in single_failure(verify_image(memory)).message


def test_layer_of_program() -> None:
    tars = [make_tar({"main": probe_program(ARM64)}), make_tar({"main": probe_program(AMD64)})]
    check = single_failure(verify_image(single_platform_image(tars, ARM64, Entrypoint=["/main"])))
    assert check.layer == str(Digest.from_bytes(gzip.compress(tars[1], mtime=0)))


def test_damaged_blobs() -> None:
    memory = hello([AMD64, ARM64])
    for digest in list(memory.blobs):
        whole = memory.blobs[digest]
        memory.blobs[digest] = flip(whole, len(whole) // 2)
        failing = failures(verify_image(memory, AMD64, ARM64))
        assert failing, digest
        assert all(check.name == "integrity" for checks in failing.values() for check in checks)
        assert all(digest in check.message for checks in failing.values() for check in checks)
        assert len(failing) == (2 if digest == str(memory.root_descriptor().digest) else 1)
        memory.blobs[digest] = whole


def test_all_problems_are_collected() -> None:
    memory = MemoryImage()
    tars = [make_tar({"a": b"1"}), make_tar({"main": probe_program(AMD64)})]
    first = add_platform(
        memory, AMD64, tars, diff_ids=[str(Digest.from_bytes(b"1")), str(Digest.from_bytes(b"2"))]
    )
    second = add_platform(memory, ARM64, tars, Entrypoint=["/main"])
    failing = failures(verify_image(memory.set_index([first, second])))
    assert [check.name for check in failing[AMD64]] == ["integrity", "integrity"]
    assert all("the config states" in check.message and check.layer for check in failing[AMD64])
    assert [check.name for check in failing[ARM64]] == ["entrypoint-arch"]


def test_wrong_number_of_diff_ids() -> None:
    memory = MemoryImage()
    memory.set_index([add_platform(memory, AMD64, [make_tar({})], diff_ids=[])])
    assert "0 diff_ids" in single_failure(verify_image(memory)).message


@pytest.mark.parametrize(
    ("data", "cause"),
    [(b"{}", "schemaVersion"), (b"", "JSON"), (json.dumps(index_json([], layers=[])).encode(), "at once")],
)
def test_unreadable_index(data: bytes, cause: str) -> None:
    memory = MemoryImage()
    memory.set_root(memory.put(data, OCI_INDEX))
    assert cause in failures(verify_image(memory))["unknown"][0].message
    assert set(failures(verify_image(memory, AMD64, ARM64))) == {AMD64, ARM64}


def test_hostile_layer() -> None:
    assert (
        "contains '..'"
        in single_failure(verify_image(single_platform_image([make_tar({"../x": b""})], AMD64))).message
    )


def test_exceeded_limit() -> None:
    memory = MemoryImage()
    config = {**platform_json(AMD64), "rootfs": {"diff_ids": []}, "padding": "x" * (5 << 20)}
    memory.set_index([{**put_manifest(memory, config, []), "platform": platform_json(AMD64)}])
    check = single_failure(verify_image(memory))
    assert check.name == "limit"
    assert "at most 4194304 are read" in check.message


def test_shared_layer_is_read_once() -> None:
    memory = MemoryImage()
    tar = make_tar({"share": b"x" * 10_000})
    names = [AMD64, ARM64, "linux/s390x"]
    entries = [
        add_platform(memory, name, [tar, make_tar({"main": probe_program(name)})], Entrypoint=["/main"])
        for name in names
    ]
    shared = str(Digest.from_bytes(gzip.compress(tar, mtime=0)))
    assert verify_image(memory.set_index(entries)).ok
    assert memory.opened.count(shared) == 1


def test_shared_layer_with_wrong_size() -> None:
    memory = MemoryImage()
    tar = make_tar({"main": probe_program(AMD64)})
    valid = add_platform(memory, AMD64, [tar], Entrypoint=["/main"])
    layer = memory.put(gzip.compress(tar, mtime=0), LAYER_GZIP)
    config = {**platform_json(ARM64), "rootfs": {"diff_ids": [str(Digest.from_bytes(tar))]}}
    wrong = put_manifest(memory, config, [{**layer, "size": layer["size"] + 1}])
    failing = failures(verify_image(memory.set_index([valid, {**wrong, "platform": platform_json(ARM64)}])))
    assert list(failing) == [ARM64]
    assert "are stated" in failing[ARM64][0].message


def mixed_image() -> MemoryImage:
    """Return an image with a nested index, an entry without a platform, and an attestation."""
    memory = MemoryImage()
    first, second, third = (
        add_platform(memory, name, [make_tar({"main": probe_program(name)})], Entrypoint=["/main"])
        for name in (AMD64, ARM64, "linux/s390x")
    )
    del second["platform"]
    nested = memory.put(index_json([third]), OCI_INDEX)
    return memory.set_index([first, second, nested, add_annotated(memory, first["digest"])])


def test_every_blob_is_read_once() -> None:
    memory = mixed_image()
    report = verify_image(memory)
    assert report.ok
    assert [row.platform for row in report.platforms] == [AMD64, ARM64, "linux/s390x"]
    assert Counter(memory.opened) == dict.fromkeys(memory.blobs, 1)


def test_every_document_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, parsed = mixed_image(), Counter[bytes]()

    def load_object(data: bytes, description: str) -> dict[str, object]:
        parsed[data] += 1
        return strict_json.load_object(data, description)

    monkeypatch.setattr(model, "load_object", load_object)
    assert verify_image(memory).ok
    assert len(parsed) == 9  # two indexes, four manifests, three configurations
    assert set(parsed.values()) == {1}


def test_documents_are_shared_with_a_run(tmp_path: Path) -> None:
    memory = mixed_image()
    image = Image(memory)
    assert verify(image, (), "the image").ok
    (layer,) = image.manifest(image.platform_manifests[1][1]).layers
    unpack(image, image.platform_manifests[1][1], tmp_path / "root")
    assert Counter(memory.opened) == dict.fromkeys(memory.blobs, 1) | {str(layer.digest): 2}
