from __future__ import annotations

import pytest

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.registry.challenge import Challenge, parse_challenges

HUB = (
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
    'scope="repository:library/alpine:pull,push"'
)


def test_docker_hub_challenge() -> None:
    assert parse_challenges(HUB) == (
        Challenge(
            scheme="bearer",
            parameters={
                "realm": "https://auth.docker.io/token",
                "service": "registry.docker.io",
                "scope": "repository:library/alpine:pull,push",
            },
        ),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" , ,\t", []),
        ("Basic", [("basic", {})]),
        ("Basic realm=simple", [("basic", {"realm": "simple"})]),
        ('BASIC Realm="a, b"', [("basic", {"realm": "a, b"})]),
        (r'Basic realm="a \"b\" \\ c"', [("basic", {"realm": r'a "b" \ c'})]),
        ('Basic realm=""', [("basic", {"realm": ""})]),
        ('Basic realm = "x" , charset\t=\t"UTF-8"', [("basic", {"realm": "x", "charset": "UTF-8"})]),
        ('Newauth realm="apps", type=1, title="x", Basic realm="simple"',
         [("newauth", {"realm": "apps", "type": "1", "title": "x"}), ("basic", {"realm": "simple"})]),
        ("Negotiate, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("Negotiate YWJjZA==, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("Negotiate a/b+c", [("negotiate", {})]),
        (",Bearer realm=x,,Basic realm=y,", [("bearer", {"realm": "x"}), ("basic", {"realm": "y"})]),
        ('Bearer realm="x",error="y"', [("bearer", {"realm": "x", "error": "y"})]),
    ],
)  # fmt: skip
def test_rfc_9110_challenges(text: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [
        (challenge.scheme, dict(challenge.parameters)) for challenge in parse_challenges(text)
    ] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('Bearer realm="never closed', "expected a value"),
        ('Bearer realm="x" service="y"', "expected a comma"),
        ("realm=x", "without a scheme"),
        ("Bearer realm=x, realm=y", "duplicate parameter"),
        ("Bearer Realm=x, realm=y", "duplicate parameter"),
        ("Negotiate YWJj=, realm=x", "without a scheme"),
        ("Bearer realm=,x=y", "without a scheme"),
        ("Bearer a=b,realm=,x=y", "expected a value"),
        ("Bearer {}", "after a scheme"),
        ("Basic Bearer realm=x", "after a scheme"),
        ("\u00e4", "expected a scheme"),
        ('Bearer realm="a\nb"', "expected a value"),
        ('Bearer realm="\x00"', "expected a value"),
        ("," * 16385, "is longer than"),
        ("x," * 17, "more than 16 challenges"),
        ("x " + ",".join(f"p{number}=1" for number in range(33)), "more than 32 parameters"),
    ],
)
def test_invalid_challenges(text: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        parse_challenges(text)
