from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.image import read_manifest
from buildkit_tasks.oci.registry import open_registry
from tests.failures.pulling import LAYER, Bench, bench, one_layer
from tests.support.oci import LAYER_GZIP, Memory, platform_json, put_manifest
from tests.support.registry.certificates import make_certificate
from tests.support.registry.hostile import Hostile, Reply, bearer, hostile, redirect, token

__all__ = ["bench"]

SECRET = "hunter2"  # noqa: S105 - nobody's
BASIC = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()


@pytest.fixture
def login(bench: Bench, tmp_path: Path) -> None:
    """We have a password for the registry, and for no other host."""
    document = {"auths": {bench.server.host: {"username": "me", "password": SECRET}}}
    (tmp_path / "config.json").write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture
def stranger() -> Iterator[Hostile]:
    """A server on another host."""
    with hostile("127.0.0.2") as server:
        yield server


@pytest.fixture
def neighbour() -> Iterator[Hostile]:
    """A server on another port of the registry's host."""
    with hostile() as server:
        yield server


def saw_secrets(*servers: Hostile) -> bool:
    told = json.dumps(
        [[each.path, dict(each.headers), each.body.decode()] for it in servers for each in it.asked]
    )
    return any(word in told for word in (SECRET, BASIC, "refresh", "mine", "Cookie"))


@pytest.mark.usefixtures("login")
def test_foreign_token_server(bench: Bench, stranger: Hostile) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("/v2/*", bearer(f"http://{stranger.host}/token"))
    stranger.answer("/token*", token())
    assert bench.read(reference) == [LAYER]  # what a stranger may read, may be read
    assert [each.authorization for each in stranger.asked] == [""]
    assert not saw_secrets(stranger)


@pytest.mark.usefixtures("login")
def test_foreign_token_server_is_named(bench: Bench, stranger: Hostile) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("/v2/*", bearer(f"http://{stranger.host}/token"))
    stranger.always("/token*", Reply(status=401))
    found = bench.refused(reference)
    assert (
        f"no credentials were sent to http://{stranger.host}, a token server of another domain"
        in found.message
    )
    assert not saw_secrets(stranger)


def test_identity_token_stays_home(bench: Bench, stranger: Hostile, tmp_path: Path) -> None:
    document = {"auths": {bench.server.host: {"identitytoken": "refresh"}}}
    (tmp_path / "config.json").write_text(json.dumps(document), encoding="utf-8")
    reference = bench.server.hold(one_layer())
    bench.server.answer("/v2/*", bearer(f"http://{stranger.host}/token"))
    stranger.answer("/token*", token())
    assert bench.read(reference) == [LAYER]
    assert [each.method for each in stranger.asked] == ["GET"]
    assert not saw_secrets(stranger)


@pytest.mark.usefixtures("login")
def test_token_server_redirect(bench: Bench, stranger: Hostile) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("/v2/*", bearer(f"http://{bench.server.host}/token"))
    bench.server.always("/token*", redirect(f"http://{stranger.host}/token"))
    stranger.answer("/token*", token())
    assert bench.read(reference) == [LAYER]
    assert bench.server.requests("/token*")[0].authorization == BASIC
    assert not saw_secrets(stranger)


@pytest.mark.parametrize(
    "realm",
    [
        "http://169.254.169.254/latest/meta-data/", "https://169.254.169.254/x", "https://[fe80::1]/x",
        "http://registry.example.com/token", "https://0.0.0.0/x", "file:///etc/passwd", "/token", "", "gopher://x/",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("login")
def test_invalid_realm(bench: Bench, realm: str) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("/v2/*", bearer(realm))
    assert bench.server.host in bench.refused(reference).message
    assert len(bench.server.asked) == 1


@pytest.mark.parametrize("wanted", ["Basic", "Bearer"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.usefixtures("login")
def test_redirect_drops_authorization(
    bench: Bench, stranger: Hostile, neighbour: Hostile, wanted: str, status: int
) -> None:
    reference = bench.server.hold(one_layer())
    challenge = bearer(f"http://{bench.server.host}/token")
    if wanted == "Basic":
        challenge = Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
    bench.server.answer("/token*", token("mine"))
    bench.server.answer("*/manifests/v1", challenge)
    cookie = {"Set-Cookie": "mine=1"}
    for path, where in (("*/manifests/v1", stranger), ("*/blobs/*", neighbour)):
        where.hold(one_layer())
        target = redirect(
            f"http://{where.host}{'/v2/team/image/manifests/v1' if where is stranger else '/blob'}", status
        )
        bench.server.answer(
            path,
            challenge if where is stranger else target,
            dataclasses.replace(target, headers={**target.headers, **cookie}),
        )
    neighbour.answer("/blob", Reply(body=LAYER))
    assert bench.read(reference) == [LAYER]
    assert stranger.asked
    assert neighbour.asked
    assert any(each.authorization for each in bench.server.asked)
    assert not any(each.authorization for each in (*stranger.asked, *neighbour.asked))
    assert not saw_secrets(stranger, neighbour)


@pytest.mark.usefixtures("login")
def test_redirect_back_has_no_authorization(bench: Bench, stranger: Hostile) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("*/manifests/v1", Reply(status=401, headers={"WWW-Authenticate": "Basic"}))
    bench.server.answer("*/blobs/*", redirect(f"http://{stranger.host}/there"))
    stranger.answer("/there", redirect(f"http://{bench.server.host}/back?echo=1"))
    bench.server.answer("/back*", Reply(body=LAYER))
    assert bench.read(reference) == [LAYER]
    assert bench.server.requests("*/blobs/*")[0].authorization == BASIC
    assert bench.server.requests("/back*")[0].authorization == ""


@pytest.mark.usefixtures("login")
def test_redirect_within_registry(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("*/manifests/v1", Reply(status=401, headers={"WWW-Authenticate": "Basic"}))
    bench.server.answer("*/blobs/*", redirect("/elsewhere"))
    bench.server.answer("/elsewhere", Reply(body=LAYER))
    assert bench.read(reference) == [LAYER]
    assert bench.server.requests("/elsewhere")[0].authorization == BASIC


def test_redirect_drops_user_info(bench: Bench, stranger: Hostile) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("*/blobs/*", redirect(f"http://admin:{SECRET}@{stranger.host}/blob"))
    stranger.answer("/blob", Reply(body=LAYER))
    assert bench.read(reference) == [LAYER]
    assert not saw_secrets(stranger)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("https://169.254.169.254/latest/meta-data/", "a link-local, multicast or unspecified address"),
        ("http://169.254.169.254/latest/meta-data/", "plain http is allowed on the loopback interface only"),
        ("http://10.0.0.1/", "plain http is allowed on the loopback interface only"),
        ("http://example.com/", "plain http is allowed on the loopback interface only"),
        ("https://0.0.0.0/", "a link-local, multicast or unspecified address"),
        ("file:///etc/passwd", "an invalid http or https URL"),
        ("http://a b/", "an invalid URL"),
        ("http://[::1", "an invalid http or https URL"),
    ],
)
def test_forbidden_redirect(bench: Bench, target: str, why: str) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("*/blobs/*", redirect(target))
    found = bench.refused(reference)
    assert why in found.message
    assert bench.server.host in found.message


def test_redirect_loop(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("*/blobs/*", redirect("/round"))
    bench.server.always("/round", redirect("/round"))
    assert "redirects more than 5 times" in bench.refused(reference).message
    assert len(bench.server.requests("/round")) == 5


def test_five_redirects(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("*/blobs/*", redirect("/1"))
    for number in range(1, 5):
        bench.server.answer(f"/{number}", redirect(f"/{number + 1}"))
    bench.server.answer("/5", Reply(body=LAYER))
    assert bench.read(reference) == [LAYER]


def test_https_never_leads_to_http(bench: Bench, neighbour: Hostile, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "tls")
    with hostile(tls=certificate) as secure:
        folder = tmp_path / "certs" / secure.host
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(certificate.authority.read_bytes())
        bench.access = dataclasses.replace(bench.access, certificate_dirs=(tmp_path / "certs",))
        reference = secure.hold(one_layer())
        assert bench.read(reference) == [LAYER]
        secure.always("*/blobs/*", redirect(f"http://{neighbour.host}/blob"))
        assert "plain http after https" in bench.refused(reference).message
        secure.always("/v2/*", bearer(f"http://{neighbour.host}/token"))
        assert "plain http after https" in bench.refused(reference).message
    assert neighbour.asked == []


def test_signed_url_is_hidden(bench: Bench, stranger: Hostile) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("*/blobs/*", redirect(f"http://{stranger.host}/blob?X-Signature={SECRET}"))
    for reply in (
        Reply(status=403),
        Reply(status=404),
        Reply(status=500),
        Reply(reset=True),
        redirect("/" * 20000),
    ):
        stranger.answer("/blob*", *[reply] * 30)
        with pytest.raises(Exception, match="127") as caught:
            bench.read(reference)
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(caught.value.__cause__)


def test_descriptor_urls_are_ignored(bench: Bench, stranger: Hostile) -> None:
    memory = Memory()
    layer = memory.put(LAYER, LAYER_GZIP, urls=[f"http://{stranger.host}/layer"])
    memory.point(put_manifest(memory, platform_json("linux/amd64"), [layer]))
    del memory.blobs[layer["digest"]]
    with open_registry(bench.server.hold(memory), options=bench.access) as source:
        (found,) = read_manifest(source, source.root_descriptor()).layers
        with pytest.raises(MalformedImage, match="is missing"):
            source.open(found)
    assert stranger.asked == []


@pytest.mark.usefixtures("login")
def test_loopback_ignores_netrc_and_proxy(
    bench: Bench, stranger: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"default login me password {SECRET}\n", encoding="utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{stranger.host}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert bench.read(bench.server.hold(one_layer())) == [LAYER]
    assert not saw_secrets(bench.server, stranger)
    assert stranger.asked == []


def test_proxy_error(bench: Bench, stranger: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"http://me:{SECRET}@{stranger.host}")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    found = bench.refused("registry.invalid/team/image")
    assert "the proxy for https://registry.invalid failed" in found.message  # it knows no CONNECT
    assert SECRET not in str(found)
