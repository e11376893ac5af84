"""Verify hostile images with the real task, in each file format of an image."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from tests.support.oci import MemoryImage, layout_files, make_tar, write_layout_dir
from tests.support.project import Project

FORMATS = ("oci", "oci-archive", "gzip", "docker-archive")


def write_image(memory: MemoryImage, folder: Path, file_format: str) -> str:
    """Write the image in one of :data:`FORMATS`, and return its name for the task."""
    if file_format == "oci":
        return f"oci:{write_layout_dir(memory, folder / 'layout')}"
    data = make_tar(layout_files(memory))
    path = folder / ("image.tar.gz" if file_format == "gzip" else "image.tar")
    path.write_bytes(gzip.compress(data) if file_format == "gzip" else data)
    return f"{'oci-archive' if file_format == 'gzip' else file_format}:{path}"


def verify_rejects(project: Project, name: str, *texts: str, code: int = 1) -> list[str]:
    """Verify the image, which must fail with these texts and change no file.

    Return the platforms that failed.
    """
    before = _hash_files(project)
    report = project.json("verify-arch", name, expect=code, timeout=60)
    assert _hash_files(project) == before
    failing = {
        platform["platform"]: [check["message"] for check in platform["checks"] if not check["ok"]]
        for platform in report["platforms"]
    }
    output = "\n".join(message for messages in failing.values() for message in messages)
    assert [text for text in texts if text not in output] == [], output
    assert not report["ok"]
    return [platform for platform, messages in failing.items() if messages]


def _hash_files(project: Project) -> dict[str, str]:
    """Return the files of the project and its temporary directory, with their digests."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file() and not path.is_symlink()
        else ""
        for path in project.folder.parent.rglob("*")
    }
