"""How the rows about hostile images ask: the real task, on an image in each form that a file can have."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from tests.support.oci import Memory, layout_files, make_tar, write_folder
from tests.support.project import Project

FORMS = ("oci", "oci-archive", "gzip", "docker-archive")


def write(memory: Memory, folder: Path, form: str) -> str:
    """Write the image in one of :data:`FORMS`; gives the name by which the task knows it."""
    if form == "oci":
        return f"oci:{write_folder(memory, folder / 'layout')}"
    data = make_tar(layout_files(memory))
    path = folder / ("image.tar.gz" if form == "gzip" else "image.tar")
    path.write_bytes(gzip.compress(data) if form == "gzip" else data)
    return f"{'oci-archive' if form == 'gzip' else form}:{path}"


def refused(project: Project, name: str, *words: str, code: int = 1) -> list[str]:
    """Verify the image, which must fail with these words and leave everything as it was.

    Gives the platforms that failed.
    """
    before = _everything(project)
    report = project.json("verify-arch", name, expect=code, timeout=60)
    assert _everything(project) == before
    failing = {
        platform["platform"]: [check["message"] for check in platform["checks"] if not check["ok"]]
        for platform in report["platforms"]
    }
    said = "\n".join(message for messages in failing.values() for message in messages)
    assert [word for word in words if word not in said] == [], said
    assert not report["ok"]
    return [platform for platform, messages in failing.items() if messages]


def _everything(project: Project) -> dict[str, str]:
    """Every file of the project and its temporary folder, with a digest of what is in it."""
    found = {}
    for path in sorted(project.folder.parent.rglob("*")):
        whole = path.is_file() and not path.is_symlink()
        found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if whole else ""
    return found
