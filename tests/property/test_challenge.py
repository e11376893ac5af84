from __future__ import annotations

import re
import time
from email.message import Message

from hypothesis import example, given
from hypothesis import strategies as st

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.registry.challenge import Challenge, parse_challenges

tokens = st.from_regex(re.compile(r"\A[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}\Z"))
texts = st.text(alphabet=[chr(code) for code in (9, *range(32, 127), *range(160, 256))], max_size=30)
parameter_sets = st.dictionaries(tokens.map(str.lower), texts, min_size=1, max_size=6)
challenge_lists = st.lists(st.tuples(tokens, st.just({}) | parameter_sets), max_size=5)
separators = st.sampled_from([",", ", ", " ,\t", ",,"])


def quote(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def format_parameters(parameters: dict[str, str], separator: str) -> str:
    return separator.join(f"{name}={quote(value)}" for name, value in parameters.items())


@given(challenge_lists, separators, separators)
def test_round_trip(
    challenges: list[tuple[str, dict[str, str]]], separator: str, parameter_separator: str
) -> None:
    header = separator.join(
        f"{scheme} {format_parameters(parameters, parameter_separator)}".rstrip(" ")
        for scheme, parameters in challenges
    )
    expected = tuple(
        Challenge(scheme=scheme.lower(), parameters=parameters) for scheme, parameters in challenges
    )
    assert parse_challenges(header) == expected


def is_plain(value: str) -> bool:
    """Return True for values that the email parser reads like HTTP."""
    return bool(value) and value == value.strip() and not set(value) & set(',=;"\\\t')


# Names without characters that RFC 2231, which does not apply to HTTP, treats specially.
plain_names = tokens.map(str.lower).filter(lambda name: not set(name) & set("*'%"))


@given(st.dictionaries(plain_names, texts.filter(is_plain), min_size=1, max_size=6))
def test_agrees_with_email_parser(parameters: dict[str, str]) -> None:
    message = Message()
    message["Content-Type"] = f"x/y; {format_parameters(parameters, '; ')}"
    (challenge,) = parse_challenges(f"Scheme {format_parameters(parameters, ',')}")
    assert dict(challenge.parameters) == dict(message.get_params([])[1:])


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
    started = time.thread_time()  # CPU time: the machine may be busy
    try:
        challenges = parse_challenges(text)
    except RegistryError as error:
        message = str(error)
        assert len(message) < 1000
    else:
        assert len(challenges) <= 16
        assert all(each.scheme == each.scheme.lower() for each in challenges)
    assert time.thread_time() - started < 0.5
