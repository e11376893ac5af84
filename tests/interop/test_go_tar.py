"""Compare our tar reader with Go's archive/tar, which engines unpack layers with.

If a layer means one thing to a checker and another to an engine, the checker can be deceived.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import re
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.tar import TarReader
from tests.fuzz import oracles, seeds
from tests.fuzz.mutators import mutate_tar

COUNT = 6000
# Archives that only our reader rejects: part of its message, and why.
STRICTER = {
    "a GNU header with invalid times": "Go reads them as a part of the name",
    "sparse files are not supported": "no builder writes them, and their four formats can each hide data",
    "a single zero block": "Go stops at two zero blocks and reads a single one as a damaged header",
    "after a metadata record, before its entry": "Go ignores an extended header that is the last member",
    "in the middle of": "Go accepts an archive that is truncated within padding",
    "a metadata record of": "Go accepts longer names than Linux does",
    "too long or contains a NUL": "Go accepts longer names than Linux does",
    "an invalid size of": "Go accepts sizes that no file can have",
}

Listing = list[tuple[bytes, str, int, bytes, int, str]]


def list_with_go(tarlist: Path, archives: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the output of tarlist for each archive."""
    data = b"".join(struct.pack(">Q", len(archive)) + archive for archive in archives)
    result = subprocess.run([str(tarlist)], input=data, stdout=subprocess.PIPE, check=True, timeout=120)
    return [json.loads(line) for line in result.stdout.splitlines()]


def go_listing(output: dict[str, Any]) -> Listing:
    return [
        (
            base64.b64decode(each["name"]),
            chr(each["type"]),
            each["size"],
            base64.b64decode(each["link"] or ""),
            each["mode"],
            each["data"],
        )
        for each in output["entries"]
    ]


def our_listing(archive: bytes) -> Listing:
    reader = TarReader(io.BytesIO(archive))
    listing: Listing = []
    for entry in reader:
        content = reader.read(entry.size)
        name, link = (text.encode("utf-8", "surrogateescape") for text in (entry.name, entry.linkname))
        row = (name, entry.type, entry.size, link, entry.mode, hashlib.sha256(content).hexdigest())
        listing.append(row)
    return listing


def has_damaged_metadata(archive: bytes) -> bool:
    """Return True if a member may have a damaged number that changes no name, content or link.

    Such numbers are the size of a link, an owner, a time, or a mode that is too large, in a header, a
    pax record or a global header.
    """
    for header, content in oracles.iter_members(archive):
        fields = (header[start:end] for start, end in oracles.NUMERIC_FIELDS)
        if header[156:157] == b"g" or any(not oracles.OCTAL.fullmatch(field) for field in fields):
            return True
        if header[156:157] == b"x" and re.search(rb"[0-9] (?:size|[ug]id|[amc]time)=", content):
            return True
    return False


def compare(archive: bytes, output: dict[str, Any]) -> str:
    """Return ``same``, the reason for an expected difference, or ``PROBLEM`` and the difference."""
    try:
        listing = our_listing(archive)
    except (MalformedImage, LimitExceeded) as error:
        reasons = (reason for part, reason in STRICTER.items() if part in error.message)
        return "both reject" if output["error"] else next(reasons, f"PROBLEM rejected: {error.message}")
    if output["error"]:
        if has_damaged_metadata(archive):
            return "Go rejects a damaged field that our reader does not use"
        return f"PROBLEM only Go rejects it: {output['error']}"
    expected = go_listing(output)
    return "same" if listing == expected else f"PROBLEM {listing} != {expected}"


def test_mutated_archives_read_alike(tarlist: Path) -> None:
    rng = random.Random(20260101)  # noqa: S311 - repeatable, not secret
    valid = list(seeds.iter_archives())
    archives = valid + [mutate_tar(rng.choice(valid), rng) for _ in range(COUNT)]
    outputs = list_with_go(tarlist, archives)
    results = Counter(compare(archive, output) for archive, output in zip(archives, outputs, strict=True))
    sys.stdout.write("".join(f"{count:6} {result}\n" for result, count in results.most_common()))
    assert [result for result in results if result.startswith("PROBLEM")] == []
    assert results["same"] > COUNT // 10
    assert results["both reject"] > COUNT // 10
