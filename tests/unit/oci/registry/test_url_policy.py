from __future__ import annotations

import pytest

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.registry.url_policy import (
    Url,
    check_redirect,
    is_loopback,
    is_trusted_realm,
    resolve_host,
)

NAMES = {
    "registry.example.com": ("93.184.216.34",),
    "cdn.example.net": ("93.184.216.35", "2606:2800::1"),
    "inside.example.net": ("93.184.216.35", "10.0.0.5"),
    "store.corp.example": ("10.0.0.6",),
    "registry.corp.example": ("10.0.0.7",),
    "back.example.net": ("127.0.0.1",),
    "2130706433": ("127.0.0.1",),
    "cloud.example.net": ("169.254.169.254",),
}


def resolve(host: str) -> tuple[str, ...]:
    return NAMES.get(host, ())


def parse_url(text: str) -> Url:
    return Url.parse(text)


def test_url_is_normalized() -> None:
    url = parse_url("HTTPS://User:pass@Registry.Example.COM:443/a/b?c=d#e")
    assert (url.scheme, url.host, url.port) == ("https", "registry.example.com", 443)
    assert url.text == "https://registry.example.com/a/b?c=d"
    assert parse_url("http://[::1]:5000").text == "http://[::1]:5000/"
    assert parse_url("https://example.com.:8443/x").origin == "https://example.com:8443"
    assert parse_url("https://a").with_target("/v2/").text == "https://a/v2/"


def test_repr_hides_query() -> None:
    assert "c2ln" not in repr(parse_url("https://cdn.example.net/x?sig=c2ln"))


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/other?x", "https://a.example/other?x"),
        ("other", "https://a.example/v2/other"),
        ("//b.example/x", "https://b.example/x"),
        ("http://b.example", "http://b.example/"),
    ],
)
def test_relative_location(location: str, url: str) -> None:
    assert Url.parse(location, parse_url("https://a.example/v2/x")).text == url


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "/x", "ftp://a/", "ftp://a:5000/", "gopher://a:80/",
        "file:///etc/passwd", "https://", "https:///x", "https://a:b/", "https://a:0x5/",
        "https://a:99999/", "https://a b/", "https://a/\n", "https://a\t/", "https://a/\x00", "https://\u00e4/",
        "https://[::1", "https://[::1%25eth0]/", "https://a\\b/", "https://a%2fb/", "https://.a/",
        "javascript:x", "https://a/" + "x" * 20000,
    ],
)  # fmt: skip
def test_invalid_url(text: str) -> None:
    with pytest.raises(RegistryError, match=r"an invalid (http or https )?URL"):
        Url.parse(text)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["localhost.example.com", "128.0.0.1", "10.0.0.1", "0.0.0.0", "::2", "a", "127.1"],  # noqa: S104
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("registry", "target"),
    [
        ("https://registry.example.com", "https://registry.example.com:8443/x"),
        ("https://registry.example.com", "https://cdn.example.net/x"),
        ("https://registry.example.com", "https://93.184.216.35/x"),
        ("https://registry.example.com", "https://unknown.example.net/x"),
        ("https://registry.corp.example", "https://store.corp.example/x"),
        ("https://registry.corp.example", "https://cdn.example.net/x"),
        ("https://10.0.0.1", "https://192.168.1.1/x"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5001/x"),
        ("http://localhost:5000", "http://127.0.0.1:5001/x"),
        ("http://127.0.0.1:5000", "https://cdn.example.net/x"),
        ("http://[::1]:5000", "http://localhost/x"),
    ],
)
def test_allowed_redirects(registry: str, target: str) -> None:
    check_redirect(parse_url(registry), parse_url(registry), parse_url(target), resolve)


@pytest.mark.parametrize(
    ("registry", "target", "message"),
    [
        ("https://registry.example.com", "http://registry.example.com/x", "plain http after https"),
        ("https://127.0.0.1:5000", "http://127.0.0.1:5000/x", "plain http after https"),
        (
            "http://127.0.0.1:5000",
            "http://cdn.example.net/x",
            "plain http is allowed on the loopback interface only",
        ),
        (
            "http://127.0.0.1:5000",
            "http://10.0.0.1/x",
            "plain http is allowed on the loopback interface only",
        ),
        ("https://registry.example.com", "https://127.0.0.1/x", "a loopback address"),
        ("https://registry.example.com", "https://localhost/x", "a loopback address"),
        ("https://registry.example.com", "https://x.localhost/x", "a loopback address"),
        ("https://registry.example.com", "https://[::1]/x", "a loopback address"),
        ("https://registry.example.com", "https://[::ffff:127.0.0.1]/x", "a loopback address"),
        ("https://registry.example.com", "https://[64:ff9b::7f00:1]/x", "a loopback address"),
        ("https://registry.example.com", "https://[2002:7f00:1::]/x", "a loopback address"),
        ("https://registry.example.com", "https://2130706433/x", "a loopback address"),
        ("https://registry.example.com", "https://back.example.net/x", "a loopback address"),
        ("https://registry.corp.example", "https://localhost/x", "a loopback address"),
        ("https://registry.example.com", "https://10.0.0.1/x", "a private address"),
        ("https://registry.example.com", "https://192.168.0.1/x", "a private address"),
        ("https://registry.example.com", "https://172.16.0.1/x", "a private address"),
        ("https://registry.example.com", "https://100.64.0.1/x", "a private address"),
        ("https://registry.example.com", "https://[fd00::1]/x", "a private address"),
        ("https://registry.example.com", "https://inside.example.net/x", "a private address"),
        (
            "https://registry.example.com",
            "https://169.254.169.254/x",
            "a link-local, multicast or unspecified address",
        ),
        (
            "https://registry.example.com",
            "https://cloud.example.net/x",
            "a link-local, multicast or unspecified address",
        ),
        (
            "http://127.0.0.1:5000",
            "https://169.254.169.254/x",
            "a link-local, multicast or unspecified address",
        ),
        (
            "https://registry.corp.example",
            "https://[fe80::1]/x",
            "a link-local, multicast or unspecified address",
        ),
        ("http://127.0.0.1:5000", "https://0.0.0.0/x", "a link-local, multicast or unspecified address"),
        ("http://127.0.0.1:5000", "https://[::]/x", "a link-local, multicast or unspecified address"),
        ("http://127.0.0.1:5000", "https://224.0.0.1/x", "a link-local, multicast or unspecified address"),
    ],
)
def test_forbidden_redirects(registry: str, target: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message) as excinfo:
        check_redirect(parse_url(registry), parse_url(registry), parse_url(target), resolve)
    assert parse_url(registry).netloc in excinfo.value.message
    assert parse_url(target).netloc in excinfo.value.message


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("https://registry-1.docker.io", "https://auth.docker.io/token"),
        ("https://ghcr.io", "https://ghcr.io/token"),
        ("https://quay.io", "https://quay.io/v2/auth"),
        ("https://gcr.io", "https://gcr.io/v2/token"),
        ("https://europe-docker.pkg.dev", "https://europe-docker.pkg.dev/v2/token"),
        ("https://mine.azurecr.io", "https://mine.azurecr.io/oauth2/token"),
        ("https://public.ecr.aws", "https://public.ecr.aws/token/"),
        ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"),
        ("https://registry.digitalocean.com", "https://api.digitalocean.com/v2/registry/auth"),
        ("https://registry.cn-hangzhou.aliyuncs.com", "https://dockerauth.cn-hangzhou.aliyuncs.com/auth"),
        (
            "https://rg.fr-par.scw.cloud",
            "https://api.scaleway.com/registry-internal/v1/regions/fr-par/tokens",
        ),
        ("https://git.example.co.uk:5050", "https://git.example.co.uk/jwt/auth"),
        ("https://registry.example.co.uk", "https://auth.example.co.uk/token"),
        ("https://10.0.0.1:5000", "https://10.0.0.1/token"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token"),
        ("http://localhost:5000", "https://localhost:5001/token"),
    ],
)
def test_trusted_realms(registry: str, realm: str) -> None:
    assert is_trusted_realm(parse_url(registry), parse_url(realm))


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("https://registry.example.com", "https://evil.example/token"),
        ("https://registry.example.com", "https://example.com.evil.example/token"),
        ("https://registry.example.com", "https://evilexample.com/token"),
        ("https://registry.example.com", "http://registry.example.com/token"),
        ("https://registry.example.com", "http://127.0.0.1/token"),
        ("https://registry-1.docker.io", "https://docker.io.evil.example/token"),
        ("https://registry.example.co.uk", "https://evil.co.uk/token"),
        ("https://co.uk", "https://evil.co.uk/token"),
        ("https://mine.azurecr.io", "https://evil.azurecr.io/token"),
        ("https://1.dkr.ecr.eu-west-1.amazonaws.com", "https://evil.s3.amazonaws.com/token"),
        ("https://me.github.io", "https://you.github.io/token"),
        ("https://10.0.0.1:5000", "https://10.0.0.2/token"),
        ("http://127.0.0.1:5000", "http://127.0.0.2:5000/token"),
        ("http://127.0.0.1:5000", "http://localhost:5000/token"),
        ("http://127.0.0.1:5000", "https://evil.example/token"),
        ("https://registry.example.com", "https://api.scaleway.com/token"),
        ("https://myhost", "https://other/token"),
    ],
)
def test_untrusted_realms(registry: str, realm: str) -> None:
    assert not is_trusted_realm(parse_url(registry), parse_url(realm))


def test_unresolved_name() -> None:
    assert "127.0.0.1" in resolve_host("127.0.0.1")
    assert resolve_host("a" * 300) == ()
