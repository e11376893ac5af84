from __future__ import annotations

import re
import time

from hypothesis import example, given
from hypothesis import strategies as st

from buildkit_tasks.errors import UsageError
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.reference import Reference

# The grammar of github.com/distribution/reference as one expression, for these tests only.
_PART = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
_HOST = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_WHOLE = re.compile(
    rf"(?:(?:{_HOST}(?:\.{_HOST})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?/)?{_PART}(?:/{_PART})*"
    r"(?::[\w][\w.-]{0,127})?(?:@sha(?:256:[0-9a-f]{64}|512:[0-9a-f]{128}))?",
    re.ASCII,
)

components = st.from_regex(r"\A[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}\Z")
hosts = st.sampled_from(
    ["docker.io", "localhost", "quay.io", "127.0.0.1:5000", "[::1]:5000", "Reg", "a-b.c:443"]
)
tags = st.from_regex(re.compile(r"\A\w[\w.-]{0,20}\Z", re.ASCII))
digests = st.binary(max_size=4).flatmap(
    lambda data: st.sampled_from([Digest.from_bytes(data), Digest.from_bytes(data, "sha512")])
)
odd_hosts = st.sampled_from(
    [
        *(
            "a",
            "a.b",
            "A",
            "a:1",
            "a:65535",
            "a:65536",
            "a:0",
            "a:00080",
            "a:",
            "a:x",
            "a..b",
            ".a",
            "a.",
            "-a.b",
        ),
        *(
            "a-.b",
            "a--b.c",
            "a_b.c",
            "[::1]",
            "[::1]:5",
            "[::1]:",
            "[::1]x",
            "[:::::]",
            "[::1",
            "[1::2]:99999",
        ),
        *("localhost", "localhost:5", "1.2.3.4", "1.2.3.4:5", "\u00e4.b", "a.b:\u0661", "x@a.b"),
    ]
)
near_references = st.text(alphabet="aZ09._-/:@[]%= \n\u00e4", max_size=60)


@given(hosts, st.lists(components, min_size=1, max_size=3), st.none() | tags, st.none() | digests)
def test_reference_round_trip(host: str, path: list[str], tag: str | None, digest: Digest | None) -> None:
    repository = "/".join(path)
    text = f"{host}/{repository}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    reference = Reference.parse(text)
    is_official = host == "docker.io" and len(path) == 1
    assert (reference.host, reference.repository) == (
        host,
        f"library/{repository}" if is_official else repository,
    )
    assert (reference.tag, reference.digest) == (tag or ("" if digest else "latest"), digest)
    assert Reference.parse(str(reference)) == reference


@given(near_references | st.text(max_size=80))
@example("a" * 1024)
@example("a-" * 512)
@example("a/" * 512)
@example("a" + "-" * 1000 + "!")
@example("a." * 500 + "/!")
@example(":" * 1000)
@example("@" * 1000)
def test_any_text_in_linear_time(text: str) -> None:
    started = time.thread_time()  # CPU time of this thread: the machine may be busy
    try:
        reference = Reference.parse(text)
    except UsageError as error:
        message = str(error)
        assert "try: " in message
        assert len(message) < 3000
    else:
        assert _WHOLE.fullmatch(text)
        assert Reference.parse(str(reference)) == reference
        assert not set(reference.host + reference.repository + reference.identifier) & set(" \n%@\\?#")
        assert ".." not in reference.repository.split("/")
    assert time.thread_time() - started < 0.2


@example("a_b.c", ["0"], "")
@given(odd_hosts, st.lists(components, min_size=1, max_size=3), st.sampled_from(["", ":1", ":Tag.x_-"]))
def test_matches_grammar(host: str, path: list[str], tag: str) -> None:
    text = f"{host}/{'/'.join(path)}{tag}"
    try:
        reference = Reference.parse(text)
    except UsageError:
        allowed = False
    else:
        allowed = True
        assert reference.repository.endswith("/".join(path))
    port = host.rpartition(":")[2] if re.search(r":[0-9]+\Z", host) and not host.endswith("::1") else "1"
    # Three rules are stricter than the grammar: a port is in its range, brackets contain an IPv6 address, and
    # a first component with a dot is a host, never a path component, which may have an underscore.
    expected = _WHOLE.fullmatch(text) and 0 < int(port) < 65536 and "[:::" not in host and "_" not in host
    assert allowed == bool(expected)
