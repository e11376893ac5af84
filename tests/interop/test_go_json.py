"""Compare our folding of keys with that of Go's encoding/json, which engines read images with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from buildkit_tasks.oci.document_keys import fold_key


def test_keys_fold_alike(foldkeys: Path) -> None:
    smallest = json.loads(subprocess.run([foldkeys], capture_output=True, check=True, timeout=60).stdout)
    assert len(smallest) > 2500
    assert smallest["\u017f"] == "S"
    by_fold: dict[str, set[str]] = {}
    for code in range(sys.maxunicode + 1):
        by_fold.setdefault(fold_key(chr(code)), set()).add(chr(code))
    ours = {character: min(group) for group in by_fold.values() for character in group if len(group) > 1}
    # Python and Go may know different versions of Unicode: newer characters fold in one of them only.
    assert {each for each in smallest.keys() & ours.keys() if smallest[each] != ours[each]} == set()
    assert all(ord(each) > 0x7FF for each in smallest.keys() ^ ours.keys())
