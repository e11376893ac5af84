from __future__ import annotations

from pathlib import Path

from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.verify import verify
from tests.support.oci import MemoryImage, add_platform, make_tar, probe_program, write_archive


def test_wrong_binary_is_reported(tmp_path: Path) -> None:
    memory = MemoryImage()
    tar = make_tar({"root/main": probe_program("linux/amd64")})
    platforms = ("linux/amd64", "linux/arm64")
    memory.set_index([add_platform(memory, name, [tar], Entrypoint=["/root/main"]) for name in platforms])
    path = write_archive(memory, tmp_path / "image.tar")
    with open_image(f"oci-archive:{path}") as source:
        report = verify(source, parse_platforms(platforms), str(path))
    amd64, arm64 = report.platforms
    assert (report.ok, amd64.ok, arm64.ok) == (False, True, False)
    failing = [check for check in arm64.checks if not check.ok]
    assert [check.name for check in failing] == ["entrypoint-arch"]
    assert failing[0].path == "/root/main"
    assert failing[0].message == (
        "linux/arm64: /root/main is made for amd64, not for arm64 (it is ELF 64-bit little-endian, "
        "machine 62 (amd64); ELF 64-bit little-endian, machine 183 (arm64) is needed)"
    )
