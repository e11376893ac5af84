from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.model import Digest


@given(st.binary(), st.sampled_from(["sha256", "sha512"]))
def test_digest_round_trip(data: bytes, algorithm: str) -> None:
    digest = Digest.from_bytes(data, algorithm)
    assert Digest(str(digest)) == digest
    assert f"{digest.algorithm}:{digest.hex}" == str(digest)


@given(st.text() | st.from_regex(r"(sha256|sha512|SHA256):[0-9a-fA-F/.\n]{60,130}"))
def test_any_text(text: str) -> None:
    if re.fullmatch(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", text, re.ASCII):
        assert re.fullmatch("[0-9a-f]+", Digest(text).hex)
    else:
        with pytest.raises(MalformedImage):
            Digest(text)


@given(st.binary(max_size=50), st.integers(0, 70), st.characters())
def test_one_changed_character(data: bytes, at: int, character: str) -> None:
    digest = str(Digest.from_bytes(data))
    changed = digest[:at] + character + digest[at + 1 :]
    try:
        assert (Digest(changed) == Digest(digest)) == (changed == digest)
    except MalformedImage:
        assert changed != digest
