from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.registry import open_registry
from tests.support.oci import LAYER_GZIP, MemoryImage, platform_json, put_manifest
from tests.support.registry.certificates import make_certificate
from tests.support.registry.fake import FakeRegistry, Reply, bearer, fake_registry, redirect, token
from tests.support.registry.pulling import LAYER, Pull, one_layer, pull

__all__ = ["pull"]

SECRET = "hunter2"  # noqa: S105 - not a real one
BASIC = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()


@pytest.fixture
def login(pull: Pull, tmp_path: Path) -> None:
    """Configure a password for the registry only."""
    document = {"auths": {pull.server.host: {"username": "me", "password": SECRET}}}
    (tmp_path / "config.json").write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture
def other_host() -> Iterator[FakeRegistry]:
    """A server on another host."""
    with fake_registry("127.0.0.2") as server:
        yield server


@pytest.fixture
def other_port() -> Iterator[FakeRegistry]:
    """A server on another port of the registry's host."""
    with fake_registry() as server:
        yield server


def received_secrets(*servers: FakeRegistry) -> bool:
    requests = json.dumps(
        [
            [each.path, dict(each.headers), each.body.decode()]
            for server in servers
            for each in server.received
        ]
    )
    return any(secret in requests for secret in (SECRET, BASIC, "refresh", "mine", "Cookie"))


@pytest.mark.usefixtures("login")
def test_foreign_token_server(pull: Pull, other_host: FakeRegistry) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("/v2/*", bearer(f"http://{other_host.host}/token"))
    other_host.answer("/token*", token())
    assert pull.read(reference) == [LAYER]  # anonymous access is allowed
    assert [each.authorization for each in other_host.received] == [""]
    assert not received_secrets(other_host)


@pytest.mark.usefixtures("login")
def test_foreign_token_server_is_named(pull: Pull, other_host: FakeRegistry) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("/v2/*", bearer(f"http://{other_host.host}/token"))
    other_host.answer_always("/token*", Reply(status=401))
    error = pull.error(reference)
    assert (
        f"no credentials were sent to http://{other_host.host}, a token server of another domain"
        in error.message
    )
    assert not received_secrets(other_host)


def test_identity_token_is_not_forwarded(pull: Pull, other_host: FakeRegistry, tmp_path: Path) -> None:
    document = {"auths": {pull.server.host: {"identitytoken": "refresh"}}}
    (tmp_path / "config.json").write_text(json.dumps(document), encoding="utf-8")
    reference = pull.server.add_image(one_layer())
    pull.server.answer("/v2/*", bearer(f"http://{other_host.host}/token"))
    other_host.answer("/token*", token())
    assert pull.read(reference) == [LAYER]
    assert [each.method for each in other_host.received] == ["GET"]
    assert not received_secrets(other_host)


@pytest.mark.usefixtures("login")
def test_token_server_redirect(pull: Pull, other_host: FakeRegistry) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("/v2/*", bearer(f"http://{pull.server.host}/token"))
    pull.server.answer_always("/token*", redirect(f"http://{other_host.host}/token"))
    other_host.answer("/token*", token())
    assert pull.read(reference) == [LAYER]
    assert pull.server.requests("/token*")[0].authorization == BASIC
    assert not received_secrets(other_host)


@pytest.mark.parametrize(
    "realm",
    [
        "http://169.254.169.254/latest/meta-data/", "https://169.254.169.254/x", "https://[fe80::1]/x",
        "http://registry.example.com/token", "https://0.0.0.0/x", "file:///etc/passwd", "/token", "", "gopher://x/",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("login")
def test_invalid_realm(pull: Pull, realm: str) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("/v2/*", bearer(realm))
    assert pull.server.host in pull.error(reference).message
    assert len(pull.server.received) == 1


def with_cookie(reply: Reply) -> Reply:
    return dataclasses.replace(reply, headers={**reply.headers, "Set-Cookie": "mine=1"})


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.usefixtures("login")
def test_redirect_drops_authorization(
    pull: Pull, other_host: FakeRegistry, other_port: FakeRegistry, scheme: str, status: int
) -> None:
    reference = pull.server.add_image(one_layer())
    challenge = bearer(f"http://{pull.server.host}/token")
    if scheme == "Basic":
        challenge = Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
    to_host = redirect(f"http://{other_host.host}/v2/team/image/manifests/v1", status)
    to_port = redirect(f"http://{other_port.host}/blob", status)
    pull.server.answer("/token*", token("mine"))
    pull.server.answer("*/manifests/v1", challenge, with_cookie(to_host))
    pull.server.answer("*/blobs/*", with_cookie(to_port))
    other_host.add_image(one_layer())
    other_port.answer("/blob", Reply(body=LAYER))
    assert pull.read(reference) == [LAYER]
    assert other_host.received
    assert other_port.received
    assert any(each.authorization for each in pull.server.received)
    assert not any(each.authorization for each in (*other_host.received, *other_port.received))
    assert not received_secrets(other_host, other_port)


@pytest.mark.usefixtures("login")
def test_redirect_back_has_no_authorization(pull: Pull, other_host: FakeRegistry) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("*/manifests/v1", Reply(status=401, headers={"WWW-Authenticate": "Basic"}))
    pull.server.answer("*/blobs/*", redirect(f"http://{other_host.host}/there"))
    other_host.answer("/there", redirect(f"http://{pull.server.host}/back?echo=1"))
    pull.server.answer("/back*", Reply(body=LAYER))
    assert pull.read(reference) == [LAYER]
    assert pull.server.requests("*/blobs/*")[0].authorization == BASIC
    assert pull.server.requests("/back*")[0].authorization == ""


@pytest.mark.usefixtures("login")
def test_redirect_within_registry(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("*/manifests/v1", Reply(status=401, headers={"WWW-Authenticate": "Basic"}))
    pull.server.answer("*/blobs/*", redirect("/elsewhere"))
    pull.server.answer("/elsewhere", Reply(body=LAYER))
    assert pull.read(reference) == [LAYER]
    assert pull.server.requests("/elsewhere")[0].authorization == BASIC


def test_redirect_drops_user_info(pull: Pull, other_host: FakeRegistry) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("*/blobs/*", redirect(f"http://admin:{SECRET}@{other_host.host}/blob"))
    other_host.answer("/blob", Reply(body=LAYER))
    assert pull.read(reference) == [LAYER]
    assert not received_secrets(other_host)


@pytest.mark.parametrize(
    ("target", "message"),
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
def test_forbidden_redirect(pull: Pull, target: str, message: str) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("*/blobs/*", redirect(target))
    error = pull.error(reference)
    assert message in error.message
    assert pull.server.host in error.message


def test_redirect_loop(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("*/blobs/*", redirect("/round"))
    pull.server.answer_always("/round", redirect("/round"))
    assert "redirects more than 5 times" in pull.error(reference).message
    assert len(pull.server.requests("/round")) == 5


def test_five_redirects(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("*/blobs/*", redirect("/1"))
    for number in range(1, 5):
        pull.server.answer(f"/{number}", redirect(f"/{number + 1}"))
    pull.server.answer("/5", Reply(body=LAYER))
    assert pull.read(reference) == [LAYER]


def test_https_never_leads_to_http(pull: Pull, other_port: FakeRegistry, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "tls")
    with fake_registry(tls=certificate) as secure:
        folder = tmp_path / "certs" / secure.host
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(certificate.authority.read_bytes())
        pull.options = dataclasses.replace(pull.options, certificate_dirs=(tmp_path / "certs",))
        reference = secure.add_image(one_layer())
        assert pull.read(reference) == [LAYER]
        secure.answer_always("*/blobs/*", redirect(f"http://{other_port.host}/blob"))
        assert "plain http after https" in pull.error(reference).message
        secure.answer_always("/v2/*", bearer(f"http://{other_port.host}/token"))
        assert "plain http after https" in pull.error(reference).message
    assert other_port.received == []


def test_signed_url_is_hidden(pull: Pull, other_host: FakeRegistry) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("*/blobs/*", redirect(f"http://{other_host.host}/blob?X-Signature={SECRET}"))
    for reply in (
        Reply(status=403),
        Reply(status=404),
        Reply(status=500),
        Reply(reset=True),
        redirect("/" * 20000),
    ):
        other_host.answer("/blob*", *[reply] * 30)
        with pytest.raises(Exception, match="127") as caught:
            pull.read(reference)
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(caught.value.__cause__)


def test_descriptor_urls_are_ignored(pull: Pull, other_host: FakeRegistry) -> None:
    memory = MemoryImage()
    layer = memory.put(LAYER, LAYER_GZIP, urls=[f"http://{other_host.host}/layer"])
    memory.set_root(put_manifest(memory, platform_json("linux/amd64"), [layer]))
    del memory.blobs[layer["digest"]]
    with open_registry(pull.server.add_image(memory), options=pull.options) as source:
        (descriptor,) = Image(source).manifest(source.root_descriptor()).layers
        with pytest.raises(MalformedImage, match="is missing"):
            source.open(descriptor)
    assert other_host.received == []


@pytest.mark.usefixtures("login")
def test_loopback_ignores_netrc_and_proxy(
    pull: Pull, other_host: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"default login me password {SECRET}\n", encoding="utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{other_host.host}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert pull.read(pull.server.add_image(one_layer())) == [LAYER]
    assert not received_secrets(pull.server, other_host)
    assert other_host.received == []


def test_proxy_error(pull: Pull, other_host: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"http://me:{SECRET}@{other_host.host}")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    error = pull.error("registry.invalid/team/image")
    # The server does not support CONNECT.
    assert "the proxy for https://registry.invalid failed" in error.message
    assert SECRET not in str(error)
