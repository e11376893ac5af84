from __future__ import annotations

import re
import time
from email.message import Message

from hypothesis import assume, example, given
from hypothesis import strategies as st

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.registry.challenge import Challenge, parse_challenges

tokens = st.from_regex(re.compile(r"\A[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}\Z"))
texts = st.text(alphabet=[chr(code) for code in (9, *range(32, 127), *range(160, 256))], max_size=30)
parameters = st.dictionaries(tokens.map(str.lower), texts, min_size=1, max_size=6)
challenges = st.lists(st.tuples(tokens, st.just({}) | parameters), max_size=5)
separators = st.sampled_from([",", ", ", " ,\t", ",,"])


def quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


@given(challenges, separators, separators)
def test_round_trip(meant: list[tuple[str, dict[str, str]]], between: str, within: str) -> None:
    # A scheme alone before another scheme is two challenges only because of the comma.
    written = [
        " ".join([scheme, within.join(f"{name}={quoted(value)}" for name, value in given.items())]).rstrip(
            " "
        )
        for scheme, given in meant
    ]
    expected = tuple(Challenge(scheme=scheme.lower(), parameters=given) for scheme, given in meant)
    assert parse_challenges(between.join(written)) == expected


@given(parameters.filter(lambda given: not any("," in text or "=" in text for text in given.values())))
def test_agrees_with_email_parser(given: dict[str, str]) -> None:
    assume(not any(set("*'%;") & set(name) for name in given))  # RFC 2231 is none of HTTP's business
    assume(
        not any(set(';"\\\t') & set(value) or value != value.strip() or not value for value in given.values())
    )
    message = Message()
    message["Content-Type"] = "x/y; " + "; ".join(f"{name}={quoted(value)}" for name, value in given.items())
    oracle = dict(message.get_params([])[1:])
    (found,) = parse_challenges(
        "Scheme " + ",".join(f"{name}={quoted(value)}" for name, value in given.items())
    )
    assert dict(found.parameters) == oracle


@given(st.text(max_size=200) | st.text(alphabet='aB ="\\,\t=', max_size=60))
@example('Bearer a="' + "\\" * 16000)
@example('Bearer a="' + "x" * 16000)
@example("a " * 8000)
@example("a=" * 8000)
@example("a," * 8000)
@example("a" + " " * 16000 + "b")
@example("," * 16384)
@example(" " * 16384 + "x")
@example("x" * 1_000_000)
def test_any_text_is_handled_quickly(text: str) -> None:
    started = time.thread_time()  # our own: the machine may be busy
    try:
        found = parse_challenges(text)
    except RegistryError as error:
        told = str(error)
        assert len(told) < 1000
    else:
        assert len(found) <= 16
        assert all(each.scheme == each.scheme.lower() for each in found)
    assert time.thread_time() - started < 0.5
