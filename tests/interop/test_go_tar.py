"""Archives that are read here as Go's archive/tar reads them, since engines unpack layers with that.

A layer that means one thing to a checker and another to an engine is how a checker is deceived.
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
from tests.fuzz.mutators import change_tar

COUNT = 6000
# What is refused here and read by Go, by a piece of our message.
STRICTER = {
    "a GNU header with invalid times": "Go takes them for a part of the name",
    "sparse files are not supported": "no builder writes them, and each of four forms hides data differently",
    "a single zero block": "Go stops at two zero blocks and takes one alone for a damaged header",
    "after a metadata record, before its entry": "Go drops an extended header with nothing behind it",
    "in the middle of": "Go takes an archive that is cut inside a padding for whole",
    "a metadata record of": "Go takes longer names than Linux does",
    "too long or contains a NUL": "Go takes longer names than Linux does",
    "an invalid size of": "Go adds up what nobody can store",
}

Listed = list[tuple[bytes, str, int, bytes, int, str]]


def ask(tarlist: Path, archives: Sequence[bytes]) -> list[dict[str, Any]]:
    """Go's listing of each archive."""
    data = b"".join(struct.pack(">Q", len(archive)) + archive for archive in archives)
    done = subprocess.run([str(tarlist)], input=data, stdout=subprocess.PIPE, check=True, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines()]


def theirs(answer: dict[str, Any]) -> Listed:
    return [
        (
            base64.b64decode(each["name"]),
            chr(each["type"]),
            each["size"],
            base64.b64decode(each["link"] or ""),
            each["mode"],
            each["data"],
        )
        for each in answer["entries"]
    ]


def ours(archive: bytes) -> Listed:
    reader = TarReader(io.BytesIO(archive))
    found: Listed = []
    for entry in reader:
        held = reader.read(entry.size)
        name, link = (text.encode("utf-8", "surrogateescape") for text in (entry.name, entry.linkname))
        row = (name, entry.type, entry.size, link, entry.mode, hashlib.sha256(held).hexdigest())
        found.append(row)
    return found


def says_nothing(archive: bytes) -> bool:
    """Whether some member has a damaged number that changes no name, no data and no link.

    A link's size, an owner, a time, a mode too large; what a global header or a pax record of those says.
    """
    for header, held in oracles.members(archive):
        fields = (header[start:end] for start, end in oracles.NUMBERS)
        if header[156:157] == b"g" or any(not oracles.PLAIN.fullmatch(field) for field in fields):
            return True
        if header[156:157] == b"x" and re.search(rb"[0-9] (?:size|[ug]id|[amc]time)=", held):
            return True
    return False


def verdict(archive: bytes, answer: dict[str, Any]) -> str:
    """``same``, why the two differ with good reason, or ``PROBLEM`` and what."""
    try:
        mine = ours(archive)
    except (MalformedImage, LimitExceeded) as error:
        reasons = (reason for piece, reason in STRICTER.items() if piece in error.message)
        return "both refuse" if answer["error"] else next(reasons, f"PROBLEM refused: {error.message}")
    if answer["error"]:
        if says_nothing(archive):
            return "Go refuses a damaged field that means nothing here"
        return f"PROBLEM Go refuses what is read here: {answer['error']}"
    return "same" if mine == theirs(answer) else f"PROBLEM {mine} is not {theirs(answer)}"


def test_mutated_archives_read_alike(tarlist: Path) -> None:
    chance = random.Random(20260101)  # noqa: S311 - repeatable, not secret
    sound = list(seeds.archives())
    archives = sound + [change_tar(chance.choice(sound), chance) for _ in range(COUNT)]
    answers = ask(tarlist, archives)
    verdicts = Counter(verdict(archive, answer) for archive, answer in zip(archives, answers, strict=True))
    sys.stdout.write("".join(f"{count:6} {what}\n" for what, count in verdicts.most_common()))
    assert [what for what in verdicts if what.startswith("PROBLEM")] == []
    assert verdicts["same"] > COUNT // 10
    assert verdicts["both refuse"] > COUNT // 10
