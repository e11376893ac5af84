"""Our verdict on generated images beside that of `crane validate`, which the field goes by."""

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
from tests.interop.random_images import Case, cases
from tests.support.registry.serving import ImageServer, serve

SEED, SOUND, EACH = 20260101, 60, 4

pytestmark = pytest.mark.timeout(1800)  # on a new machine crane is compiled first

# Where the two may differ: what was planted, and why crane passes what is refused here.
STRICTER = {
    "other blanks in tagged document": "of a tag, crane does not compare the registry's digest header",
    "manifest size wrong": "crane never compares the size of a manifest with what the index states",
    "gzip called plain": "crane unpacks every layer as gzip, whatever its media type says",
    "manifest calls itself something else": "crane takes the header's word (CVE-2021-41190)",
    "manifest calls itself the other kind": "crane takes the header's word (CVE-2021-41190)",
    "index and manifest at once": "crane reads the keys that it expects (CVE-2021-41190)",
    "layers twice": "of two keys Go takes the last",
    "config key twice": "of two keys Go takes the last",
    "config with more behind": "crane stops reading where the first document ends",
    "manifest of schema 1": "crane never looks at schemaVersion",
    "index of schema 1": "crane never looks at schemaVersion",
    "index without entries": "for crane an image of no platform is a sound one; it starts nowhere",
    "platform twice": "crane never compares an index's entries with each other",
    "program of another platform": "crane never looks at what an image runs",
    "no such entrypoint": "crane never looks at what an image runs",
}
# And why crane refuses what passes here.
LAXER = {
    "layers of zstd": "`crane validate` unpacks gzip alone",
    "layers not packed": "`crane validate` unpacks gzip alone",
}


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What both say of one image: whether it is sound, and in what words if not."""

    case: Case
    ours: bool
    theirs: bool
    words: str
    their_words: str

    @property
    def reason(self) -> str:
        """Why the two differ; nothing if they may not."""
        return (STRICTER if self.theirs else LAXER).get(self.case.fault, "")

    def __str__(self) -> str:
        return f"{self.case}\n  ours {self.ours}: {self.words}\n  crane {self.theirs}: {self.their_words}"


def judge(crane: Path, server: ImageServer, case: Case) -> Verdicts:
    reference = server.put(case.name, case.memory)
    ours, words = ask_us(reference)
    done = subprocess.run(
        [str(crane), "validate", "--insecure", "--remote", reference],
        capture_output=True,
        check=False,
        timeout=60,
        env={"PATH": os.defpath, "HOME": os.devnull},
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    return Verdicts(case=case, ours=ours, theirs=done.returncode == 0, words=words, their_words=said)


def ask_us(reference: str) -> tuple[bool, str]:
    try:
        with open_registry(reference) as source:
            report = verify(source, (), reference)
    except BuildkitTasksError as error:
        return False, error.message
    failed = [check.message for each in report.platforms for check in each.checks if not check.ok]
    return report.ok, "; ".join(failed)


@pytest.fixture(scope="module")
def verdicts(crane: Path) -> list[Verdicts]:
    images = cases(SEED, SOUND, EACH)
    with serve() as server, ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) + 1) as pool:
        return list(pool.map(lambda case: judge(crane, server, case), images))


def test_verdicts_agree(verdicts: list[Verdicts]) -> None:
    agree = [each for each in verdicts if each.ours == each.theirs]
    differ = [each for each in verdicts if each.ours != each.theirs]
    reasons = Counter(f"{each.case.fault}: {each.reason}" for each in differ)
    lines = [
        f"{len(verdicts)} images: the same verdict on {len(agree)}, another and a reason on {len(differ)}"
    ]
    lines += [f"{count:4} {reason}" for reason, count in sorted(reasons.items())]
    sys.stdout.write("\n".join(lines) + "\n")
    assert len(verdicts) >= 200
    assert [str(each) for each in differ if not each.reason] == []


def test_faults_are_found(
    verdicts: list[Verdicts],
) -> None:
    sound = [each for each in verdicts if each.case.fault == "none"]
    assert [str(each) for each in sound if not (each.ours and each.theirs)] == []
    wrong = [each for each in verdicts if each.ours != (each.case.fault in ("none", *LAXER))]
    assert [str(each) for each in wrong] == []


def test_refusal_has_a_message(verdicts: list[Verdicts]) -> None:
    assert [str(each.case) for each in verdicts if not each.ours and not each.words] == []


@pytest.mark.parametrize("fault", [*STRICTER, *LAXER])
def test_each_reason_explains_something(verdicts: list[Verdicts], fault: str) -> None:
    assert any(each.ours != each.theirs for each in verdicts if each.case.fault == fault)
