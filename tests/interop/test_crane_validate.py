"""Compare `verify` with `crane validate` on generated images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_tasks.errors import BuildkitTasksError
from buildkit_tasks.oci.registry import open_registry
from buildkit_tasks.verify import verify
from tests.interop.random_images import Case, make_cases
from tests.support.registry.image_server import ImageServer, serve

SEED, VALID_COUNT, COUNT_PER_FAULT = 20260101, 60, 4

pytestmark = pytest.mark.timeout(1800)  # crane may have to be compiled first

# Faults that crane accepts, and why.
STRICTER = {
    "whitespace in tagged document": "crane does not compare the digest header of a tag with the document",
    "manifest size wrong": "crane does not compare the size of a manifest with its descriptor",
    "gzip layer as tar": "crane decompresses every layer as gzip and ignores its media type",
    "manifest with index media type": "crane uses the Content-Type header (CVE-2021-41190)",
    "manifest with other media type": "crane uses the Content-Type header (CVE-2021-41190)",
    "both index and manifest": "crane reads only the keys that it expects (CVE-2021-41190)",
    "duplicate layers key": "Go uses the last of two keys",
    "duplicate config key": "Go uses the last of two keys",
    "bytes after config": "crane stops reading at the end of the first document",
    "manifest of schema 1": "crane ignores schemaVersion",
    "index of schema 1": "crane ignores schemaVersion",
    "index without entries": "crane accepts an image without platforms, which cannot be run",
    "duplicate platform": "crane does not compare the entries of an index",
    "program of another platform": "crane does not read programs",
    "missing entrypoint": "crane does not read programs",
}
# Valid images that crane rejects, and why.
LAXER = {
    "zstd layers": "`crane validate` decompresses only gzip",
    "uncompressed layers": "`crane validate` decompresses only gzip",
}


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The results of both tools for one image, and their messages."""

    case: Case
    we_accept: bool
    crane_accepts: bool
    our_message: str
    crane_output: str

    @property
    def reason(self) -> str:
        """Why the two may differ; empty if they may not."""
        return (STRICTER if self.crane_accepts else LAXER).get(self.case.fault, "")

    def __str__(self) -> str:
        return (
            f"{self.case}\n  we accept: {self.we_accept}: {self.our_message}"
            f"\n  crane accepts: {self.crane_accepts}: {self.crane_output}"
        )


def compare(crane: Path, server: ImageServer, case: Case) -> Verdicts:
    reference = server.put(case.name, case.memory)
    we_accept, message = verify_image(reference)
    result = subprocess.run(
        [str(crane), "validate", "--insecure", "--remote", reference],
        capture_output=True,
        check=False,
        timeout=60,
        env={"PATH": os.defpath, "HOME": os.devnull},
    )
    return Verdicts(
        case=case,
        we_accept=we_accept,
        crane_accepts=result.returncode == 0,
        our_message=message,
        crane_output=(result.stdout + result.stderr).decode(errors="replace"),
    )


def verify_image(reference: str) -> tuple[bool, str]:
    try:
        with open_registry(reference) as source:
            report = verify(source, (), reference)
    except BuildkitTasksError as error:
        return False, error.message
    failed = [check.message for each in report.platforms for check in each.checks if not check.ok]
    return report.ok, "; ".join(failed)


@pytest.fixture(scope="module")
def verdicts(crane: Path) -> list[Verdicts]:
    images = make_cases(SEED, VALID_COUNT, COUNT_PER_FAULT)
    with serve() as server, ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) + 1) as pool:
        return list(pool.map(lambda case: compare(crane, server, case), images))


def test_verdicts_agree(verdicts: list[Verdicts]) -> None:
    agree = [each for each in verdicts if each.we_accept == each.crane_accepts]
    differ = [each for each in verdicts if each.we_accept != each.crane_accepts]
    reasons = Counter(f"{each.case.fault}: {each.reason}" for each in differ)
    lines = [f"{len(verdicts)} images: the tools agree on {len(agree)} and differ on {len(differ)}"]
    lines += [f"{count:4} {reason}" for reason, count in sorted(reasons.items())]
    sys.stdout.write("\n".join(lines) + "\n")
    assert len(verdicts) >= 200
    assert [str(each) for each in differ if not each.reason] == []


def test_faults_are_detected(verdicts: list[Verdicts]) -> None:
    valid = [each for each in verdicts if each.case.fault == "none"]
    assert [str(each) for each in valid if not (each.we_accept and each.crane_accepts)] == []
    wrong = [each for each in verdicts if each.we_accept != (each.case.fault in ("none", *LAXER))]
    assert [str(each) for each in wrong] == []


def test_rejection_has_a_message(verdicts: list[Verdicts]) -> None:
    assert [str(each.case) for each in verdicts if not each.we_accept and not each.our_message] == []


@pytest.mark.parametrize("fault", [*STRICTER, *LAXER])
def test_each_difference_occurs(verdicts: list[Verdicts], fault: str) -> None:
    assert any(each.we_accept != each.crane_accepts for each in verdicts if each.case.fault == fault)
