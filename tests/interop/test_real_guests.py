"""Programs with large runtimes start, use threads and end below the filter of system calls."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_tasks.errors import EngineError
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.platforms import Platform
from tests.failures.private_binfmt import require_private_binfmt
from tests.support.debian_root import make_debian_layer
from tests.support.oci import LAYER_GZIP, Json, MemoryImage, platform_json, put_manifest, write_archive
from tests.support.project import Project

pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Guest:
    """A package of Debian, what is run of it, and what that prints to either stream."""

    package: str
    command: tuple[str, ...]
    expected: str
    exit_code: int = 0


_PYTHON = """
import concurrent.futures, socket, subprocess, sys, tempfile
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(lambda n: n * n, range(10))))
left, right = socket.socketpair()
left.send(b"x")
assert right.recv(1) == b"x"
with tempfile.TemporaryFile() as file:
    file.write(b"y")
assert subprocess.run([sys.executable, "-c", "pass"]).returncode == 0
"""
_NODE = """
const { Worker } = require("worker_threads");
const { execFileSync } = require("child_process");
execFileSync("/usr/bin/node", ["--version"]);
const worker = new Worker("require('worker_threads').parentPort.postMessage(6 * 7)", { eval: true });
worker.on("message", (number) => console.log(number));
"""
GUESTS = {
    "python": Guest("python3", ("/usr/bin/python3", "-c", _PYTHON), "285"),
    "node": Guest("nodejs", ("/usr/bin/node", "-e", _NODE), "42"),
    "java": Guest(
        "default-jre-headless", ("/usr/lib/jvm/default-java/bin/java", "-version"), "64-Bit Server VM"
    ),
    "glibc": Guest("coreutils", ("/usr/bin/seq", "3"), "1\n2\n3"),
    "musl": Guest("musl", ("/lib/ld-musl-{musl}.so.1",), "musl libc", 1),
}
_MUSL_NAMES = {"amd64": "x86_64", "arm64": "aarch64", "arm": "armhf"}
_CASES = [(platform, name) for platform in ("linux/amd64", "linux/arm64") for name in GUESTS]
_CASES += [("linux/arm/v7", name) for name in ("python", "glibc", "musl")]


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> None:
    require_private_binfmt()


def put_platform(memory: MemoryImage, platform: str, layer: bytes, command: list[str]) -> Json:
    """Store an image, compressed quickly, and return its index entry: some layers have 300 MB."""
    config = {
        **platform_json(platform),
        "config": {"Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.from_bytes(layer))]},
    }
    layers = [memory.put(gzip.compress(layer, 1), LAYER_GZIP)]
    return {**put_manifest(memory, config, layers), "platform": platform_json(platform)}


@pytest.mark.parametrize(("platform", "name"), _CASES)
def test_guest(
    platform: str, name: str, project: Project, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    guest, parsed = GUESTS[name], Platform.parse(platform)
    try:
        layer = make_debian_layer(guest.package, parsed.debian_architecture)
    except EngineError as error:
        if pytestconfig.getoption("--arch-require-engine"):
            raise
        pytest.skip(f"Debian's {guest.package} is not available: {error}")
    command = [each.replace("{musl}", _MUSL_NAMES[parsed.architecture]) for each in guest.command]
    memory = MemoryImage()
    memory.set_index([put_platform(memory, platform, layer, command)])
    archive = write_archive(memory, tmp_path / "image.tar")
    options = ("--runner=sandbox", "--timeout=300", f"--expect-exit={guest.exit_code}")
    (result,) = project.json("run-emulated", f"oci-archive:{archive}", *options)["results"]
    archive.unlink()  # some have hundreds of megabytes
    assert result["runner"] == "sandbox"
    assert guest.expected in result["stdout"] + result["stderr"]
