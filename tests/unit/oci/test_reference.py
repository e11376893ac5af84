from __future__ import annotations

import pytest

from buildkit_tasks.errors import UsageError
from buildkit_tasks.oci.reference import Reference

HEX = "0123456789abcdef" * 4
SHA = f"sha256:{HEX}"
SHA_512 = f"sha512:{HEX}{HEX}"


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
        ("docker.io/team/app:1", "docker.io/team/app:1"),
        ("quay.io", "docker.io/library/quay.io:latest"),
        ("quay.io/team/app", "quay.io/team/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("host:1/app", "host:1/app:latest"),
        ("host:65535/app", "host:65535/app:latest"),
        ("[2001:db8::1]/app:x", "[2001:db8::1]/app:x"),
        ("Registry/app", "Registry/app:latest"),
        ("REG.Example.com/app", "REG.Example.com/app:latest"),
        (f"alpine@{SHA}", f"docker.io/library/alpine@{SHA}"),
        (f"alpine:3@{SHA}", f"docker.io/library/alpine:3@{SHA}"),
        (f"localhost:5000/app@{SHA_512}", f"localhost:5000/app@{SHA_512}"),
        ("x/a.b_c__d-e---f", "docker.io/x/a.b_c__d-e---f:latest"),
        ("app:V1_x.y-z", "docker.io/library/app:V1_x.y-z"),
        (f"x/{HEX}", f"docker.io/x/{HEX}:latest"),
        (f"app:{'t' * 128}", f"docker.io/library/app:{'t' * 128}"),
        (f"example.com/{'a' * 255}", f"example.com/{'a' * 255}:latest"),
    ],
)
def test_parse_reference(text: str, full: str) -> None:
    assert str(Reference.parse(text)) == full
    assert Reference.parse(full) == Reference.parse(text)


def test_digest_is_the_identifier() -> None:
    both = Reference.parse(f"alpine:3@{SHA}")
    assert (both.tag, str(both.digest), both.identifier) == ("3", SHA, SHA)
    assert Reference.parse("alpine:3").identifier == "3"
    assert Reference.parse("alpine").identifier == "latest"
    assert Reference.parse(f"alpine@{SHA}").tag == ""
    assert both.name == "docker.io/library/alpine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("a" * 1025, "longer than 1024"),
        (":tag", "a component is empty"),
        ("/app", "a component is empty"),
        ("team//app", "a component is empty"),
        ("team/app/", "a component is empty"),
        ("app:", "not a valid tag"),
        ("app:-x", "not a valid tag"),
        (f"app:{'t' * 129}", "not a valid tag"),
        ("app:tag:tag", "not a valid path component"),
        ("-app", "not a valid path component"),
        ("app-", "not a valid path component"),
        ("a..b/", "not a valid registry host"),
        ("team/a..b", "not a valid path component"),
        ("team/a___b", "not a valid path component"),
        ("team/a._b", "not a valid path component"),
        ("team/\u00e4", "not a valid path component"),
        ("team/app\n", "not a valid path component"),
        ("team/app:1\n", "not a valid tag"),
        ("team/app:\u0663", "not a valid tag"),
        ("../../etc/passwd", "not a valid registry host"),
        ("--privileged", "not a valid path component"),
        ("-x.io/app", "not a valid registry host"),
        ("x-.io/app", "not a valid registry host"),
        ("a.b_c/x", "not a valid registry host"),
        ("host:0/app", "not a valid registry host"),
        ("host:65536/app", "not a valid registry host"),
        ("host:5x/app", "not a valid registry host"),
        ("host:\u0665/app", "not a valid registry host"),
        ("[::1/app", "not a valid registry host"),
        ("[::1]x/app", "not a valid registry host"),
        ("[::1]5000/app", "not a valid registry host"),
        ("[::1]:x/app", "not a valid registry host"),
        ("[::1]]:5000/app", "not a valid registry host"),
        ("[::1%25lo]:5/app", "not a valid registry host"),
        ("[:::::]/app", "not a valid registry host"),
        ("user@host.io/app", r"'\*\*\*@host.io/app' contains a login"),
        ("user@app", "not a valid digest"),
        ("host.io:5:5/app", "not a valid registry host"),
        (HEX, "an image ID"),
        (f"example.com/{'a' * 256}", "longer than 255"),
        (f"app@{SHA}x", "not a valid digest"),
        (f"app@{SHA}\n", "not a valid digest"),
        (f"app@{SHA}@{SHA}", "not a valid digest"),
        ("app@sha256:abc", "not a valid digest"),
        (f"app@sha256:{HEX.upper()}", "not a valid digest"),
        (f"app@md5:{HEX}", "not a valid digest"),
        ("app@", "not a valid digest"),
        ("https://example.com/app", "is a URL"),
        ("docker://alpine", "is a URL"),
    ],
)
def test_invalid_reference(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as excinfo:
        Reference.parse(text)
    assert excinfo.value.exit_code == 2
    assert excinfo.value.hint
    assert len(str(excinfo.value)) < 2000


def test_quoted_text_is_shortened() -> None:
    for text, quoted in (("-" * 160, "-" * 160), ("-" * 161, "-" * 160 + "...")):
        with pytest.raises(UsageError) as excinfo:
            Reference.parse(text)
        assert excinfo.value.message.startswith(f"'{quoted}' is not a valid image reference: ")


def test_hint_for_invalid_digest() -> None:
    with pytest.raises(UsageError) as excinfo:
        Reference.parse("alpine@sha256:abc")
    assert excinfo.value.hint == "write it as registry/name:tag or registry/name@sha256:..."


def test_equals_sign_in_digest() -> None:
    with pytest.raises(UsageError) as excinfo:
        Reference.parse(f"alpine@sha256={HEX}")
    assert excinfo.value.hint == f"write the digest with a colon: alpine@{SHA}"


def test_upper_case_repository() -> None:
    with pytest.raises(UsageError, match="lower case") as excinfo:
        Reference.parse("quay.io/Team/app")
    assert excinfo.value.hint == "write team instead of Team"
    with pytest.raises(UsageError, match="lower case"):
        Reference.parse("Alpine")
