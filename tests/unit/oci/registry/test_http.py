from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from buildkit_tasks.errors import BuildkitTasksError, LimitExceeded, MalformedImage, RegistryError, UsageError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import OCI_INDEX, OCI_MANIFEST, Descriptor, Digest
from buildkit_tasks.oci.registry import open_registry
from buildkit_tasks.oci.registry import pull as registry
from buildkit_tasks.oci.registry.connection import MIN_BYTES_PER_SECOND, MeteredReader
from buildkit_tasks.oci.registry.errors import ManifestUnknown
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.oci.source import open_verified, read_blob
from tests.conftest import TEN
from tests.support import oci as images
from tests.support.docker_login import AUTH, write_login
from tests.support.oci import LAYER_GZIP, MemoryImage, hello
from tests.support.registry.fake import FakeRegistry, Reply, bearer, fake_registry, redirect, token
from tests.support.scripted import Scripted

DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

Config = Callable[[object], RegistryOptions]


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with fake_registry() as registry:
        yield registry


@pytest.fixture
def options(tmp_path: Path) -> RegistryOptions:
    """Return options without credentials, certificates and waits."""
    environ = {"DOCKER_CONFIG": str(tmp_path)}
    return RegistryOptions(
        environ=environ,
        certificate_dirs=(),
        commands=Scripted(),
        sleep=lambda _: None,
        connect_timeout=2,
        read_timeout=2,
    )


def read_all(reference: str, options: RegistryOptions) -> list[bytes]:
    """Read a whole image; return its verified layers."""
    with open_registry(reference, options=options) as source:
        image = Image(source)
        manifests = [image.manifest(entry) for _, entry in image.platform_manifests]
        for _, entry in image.platform_manifests:
            image.config(entry)
        return [read_blob(source, layer, 1 << 20) for manifest in manifests for layer in manifest.layers]


def read_error(reference: str, options: RegistryOptions) -> BuildkitTasksError:
    with pytest.raises(BuildkitTasksError) as excinfo:
        read_all(reference, options)
    return excinfo.value


def test_pull_uses_one_connection(server: FakeRegistry, options: RegistryOptions) -> None:
    names = ("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/s390x")
    assert len(read_all(server.add_image(hello(names)), options)) == 4
    assert (len(server.received), server.connections) == (13, 1)


def test_root_is_fetched_once(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello()
    with open_registry(server.add_image(memory), options=options) as source:
        assert source.root_descriptor() == source.root_descriptor() == memory.root_descriptor()
        assert (
            source.open(memory.root_descriptor()).read() == memory.blobs[str(memory.root_descriptor().digest)]
        )
    assert [request.path for request in server.received] == ["/v2/team/image/manifests/v1"]


def test_request_paths(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello(["linux/amd64"])
    read_all(server.add_image(memory), options)
    kinds = [request.path.split("/")[4] for request in server.received]
    assert kinds == ["manifests", "manifests", "blobs", "blobs"]
    first = server.received[0].headers
    assert set(first["Accept"].split(", ")) == {OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST}
    assert first["Accept-Encoding"] == "identity"  # digests are of the stored bytes
    assert first["User-Agent"].startswith("buildkit-tasks/")
    assert server.received[1].headers["Accept"] == OCI_MANIFEST


def test_pull_by_digest(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello()
    server.add_image(memory)
    digest = memory.root_descriptor().digest
    read_all(f"{server.host}/team/image@{digest}", options)
    assert server.received[0].path.endswith(f"/manifests/{digest}")


def test_pull_by_sha512_digest(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello()
    data = memory.blobs[str(memory.root_descriptor().digest)]
    digest = Digest.from_bytes(data, "sha512")
    server.answer_always("*/manifests/sha512:*", Reply(headers={"Content-Type": OCI_INDEX}, body=data))
    with open_registry(f"{server.host}/team/image@{digest}", options=options) as source:
        assert source.root_descriptor() == Descriptor(media_type=OCI_INDEX, digest=digest, size=len(data))


def test_manifest_digest_mismatch(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello()
    server.add_image(memory)
    data = images.flip(memory.blobs[str(memory.root_descriptor().digest)])
    server.answer_always("*/manifests/*", Reply(headers={"Content-Type": OCI_INDEX}, body=data))
    error = read_error(f"{server.host}/team/image@{memory.root_descriptor().digest}", options)
    assert isinstance(error, MalformedImage)
    assert f"sent {Digest.from_bytes(data)} for" in error.message


@pytest.mark.parametrize("stated", [str(Digest.from_bytes(b"")), "sha256:../../x", "md5:1"])
def test_stated_digest_mismatch(server: FakeRegistry, options: RegistryOptions, stated: str) -> None:
    headers = {"Content-Type": OCI_INDEX, "Docker-Content-Digest": stated}
    server.answer_always("*/manifests/*", Reply(headers=headers, body=b'{"schemaVersion":2,"manifests":[]}'))
    assert isinstance(read_error(f"{server.host}/team/image", options), MalformedImage)


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ("application/vnd.docker.distribution.manifest.v1+json", "", "schema 1"),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", "", "schema 1"),
        ("text/html", "<html>", "not an index or manifest"),
        ("application/json", "{}", "not an index or manifest"),
        ("", "{}", "states no media type"),
        (OCI_INDEX, json.dumps({"mediaType": OCI_MANIFEST}), "has the mediaType"),
        (OCI_MANIFEST, json.dumps({"mediaType": 7}), "has the mediaType"),
        (OCI_INDEX, "[]", "JSON"),
        (OCI_INDEX, "{" * 1000, "JSON"),
    ],
)
def test_media_type_mismatch(
    server: FakeRegistry, options: RegistryOptions, header: str, body: str, message: str
) -> None:
    headers = {"Content-Type": header} if header else {}
    server.answer_always("*", Reply(headers=headers, body=body.encode()))
    with (
        open_registry(f"{server.host}/team/image", options=options) as source,
        pytest.raises(MalformedImage, match=message),
    ):
        source.root_descriptor()


def test_content_type_parameters(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello()
    data = memory.blobs[str(memory.root_descriptor().digest)]
    headers = {"Content-Type": f"{OCI_INDEX.upper()}; charset=utf-8"}
    server.add_image(memory)
    server.answer_always("*/manifests/v1", Reply(headers=headers, body=data))
    assert read_all(f"{server.host}/team/image:v1", options)


def test_docker_media_types(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = MemoryImage()
    config = {**images.platform_json("linux/amd64"), "rootfs": {"type": "layers", "diff_ids": []}}
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": memory.put(config, "application/vnd.docker.container.image.v1+json"),
        "layers": [],
    }
    entry = {**memory.put(document, DOCKER_MANIFEST), "platform": images.platform_json("linux/amd64")}
    index = {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [entry]}
    memory.set_root(memory.put(index, DOCKER_LIST))
    with open_registry(server.add_image(memory), options=options) as source:
        ((platform, manifest),) = Image(source).platform_manifests
        assert str(platform) == "linux/amd64"
        assert Image(source).manifest(manifest).media_type == DOCKER_MANIFEST


def test_oversized_manifest(server: FakeRegistry, options: RegistryOptions) -> None:
    server.answer_always("*", Reply(headers={"Content-Type": OCI_INDEX}, body=bytes(20 << 20)))
    error = read_error(f"{server.host}/team/image", options)
    assert isinstance(error, LimitExceeded)
    assert error.exit_code == 5


def test_unknown_image(server: FakeRegistry, options: RegistryOptions) -> None:
    error = read_error(f"{server.host}/team/nothing:v9", options)
    assert (type(error), error.exit_code) == (ManifestUnknown, 4)
    assert f"{server.host} has no {server.host}/team/nothing:v9" in error.message
    assert "docker login" in (error.hint or "")


def test_missing_blob(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello(["linux/amd64"])
    layer = next(digest for digest, data in memory.blobs.items() if data.startswith(b"\x1f\x8b"))
    del memory.blobs[layer]
    error = read_error(server.add_image(memory), options)
    assert isinstance(error, MalformedImage)
    assert f"{layer} is missing from {server.host}/team/image" in error.message


def test_descriptor_urls_are_ignored(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello(["linux/amd64"])
    entry = memory.put(b"layer", LAYER_GZIP)
    del memory.blobs[entry["digest"]]
    with fake_registry() as elsewhere:
        entry["urls"] = [f"http://{elsewhere.host}/layer"]
        manifest = images.put_manifest(memory, images.platform_json("linux/amd64"), [entry])
        memory.set_root(manifest)
        with open_registry(server.add_image(memory), options=options) as source:
            layer = Image(source).manifest(source.root_descriptor()).layers[0]
            with pytest.raises(MalformedImage, match="is missing"):
                source.open(layer)
        assert elsewhere.received == []


@pytest.mark.parametrize("size", [0, 1, 100])
def test_blob_size_limit(server: FakeRegistry, options: RegistryOptions, size: int) -> None:
    memory = hello()
    entry = memory.put(bytes(100), LAYER_GZIP)
    server.add_image(memory)
    layer = images.descriptor({**entry, "size": size})
    with open_registry(f"{server.host}/team/image:v1", options=options) as source:
        data = source.open(layer).read()
        assert len(data) == min(size + 1, 100)
        if size < 100:
            with pytest.raises(MalformedImage, match="longer than"):
                read_blob(source, layer, 1000)


def test_request_count(server: FakeRegistry, options: RegistryOptions) -> None:
    read_all(server.add_image(hello(TEN)), options)
    assert len(server.received) <= 1 + 10 + 2 * 10  # the index, manifests, configurations and layers
    assert server.connections == 1


def test_short_blob(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello()
    entry = memory.put(b"short", LAYER_GZIP)
    server.add_image(memory)
    with (
        open_registry(f"{server.host}/team/image:v1", options=options) as source,
        pytest.raises(MalformedImage, match="has 5 bytes; 6 are stated"),
    ):
        read_blob(source, images.descriptor({**entry, "size": 6}), 1000)
    assert len(server.requests("*/blobs/*")) == 1


def test_corrupt_blob(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello(["linux/amd64"])
    layer = next(digest for digest, data in memory.blobs.items() if data.startswith(b"\x1f\x8b"))
    memory.blobs[layer] = images.flip(memory.blobs[layer])
    assert "holds other bytes" in read_error(server.add_image(memory), options).message


def test_early_close(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello()
    entry = memory.put(bytes(1 << 20), LAYER_GZIP)
    server.add_image(memory)
    server.answer("*/blobs/*", Reply(body=bytes(1 << 20), cut=1000, silent=True))
    slow_options = dataclasses.replace(options, read_timeout=30)
    with open_registry(f"{server.host}/team/image:v1", options=slow_options) as source:
        with open_verified(source, images.descriptor(entry), 100) as stream:
            assert stream.read(10) == bytes(10)
        assert len(read_blob(source, images.descriptor(entry), 1 << 20)) == 1 << 20
    assert not server.has_closed_silent
    assert server.connections == 2


def test_two_open_streams(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello()
    one, two = (memory.put(bytes([each]) * 300_000, LAYER_GZIP) for each in (1, 2))
    server.add_image(memory)
    with open_registry(f"{server.host}/team/image:v1", options=options) as source:
        streams = [source.open(images.descriptor(each)) for each in (one, two)]
        assert [stream.read(10) for stream in streams] == [b"\x01" * 10, b"\x02" * 10]
        assert [len(stream.read()) for stream in streams] == [299_990] * 2
        for stream in streams:
            stream.close()


def test_large_blob_memory(server: FakeRegistry, options: RegistryOptions) -> None:
    memory = hello()
    entry = memory.put(bytes(64 << 20), LAYER_GZIP)
    server.add_image(memory)
    with open_registry(f"{server.host}/team/image:v1", options=options) as source:
        stream = source.open(images.descriptor(entry))
        tracemalloc.start()
        size = 0
        while data := stream.read(1 << 18):
            size += len(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert size == 64 << 20
    assert peak < 4 << 20


def test_token_scope(server: FakeRegistry, options: RegistryOptions) -> None:
    reference = server.add_image(hello())
    require_token(server, "first")
    read_all(reference, options)
    (request,) = server.requests("/token*")
    assert parse_qs(urlsplit(request.path).query) == {
        "service": ["tests"],
        "scope": ["repository:team/image:pull"],
    }
    assert request.authorization == ""
    assert server.connections == 1


def test_expired_token_is_renewed(server: FakeRegistry, options: RegistryOptions) -> None:
    reference = server.add_image(hello())
    server.answer("/token*", token("first"), token("second"))
    challenge = bearer(f"http://{server.host}/token")
    server.answer("*/manifests/v1", challenge)
    server.answer("*/blobs/*", challenge)
    read_all(reference, options)
    assert len(server.requests("/token*")) == 2
    assert server.requests("/v2/*")[-1].authorization == "Bearer second"


def test_rejected_token(server: FakeRegistry, options: RegistryOptions) -> None:
    server.answer_always("/token*", token())
    server.answer_always("/v2/*", bearer(f"http://{server.host}/token"))
    error = read_error(server.add_image(hello()), options)
    assert f"docker login {server.host}" == error.hint
    assert "denies anonymous access to team/image" in error.message
    assert len(server.requests("/token*")) == 1


def test_challenge_scopes_and_query(server: FakeRegistry, options: RegistryOptions) -> None:
    server.answer("/token*", token())
    scope = "repository:a:pull repository:b:pull,push"
    server.answer("/v2/*", bearer(f"http://{server.host}/token?x=1", scope=scope))
    read_all(server.add_image(hello()), options)
    query = parse_qs(urlsplit(server.requests("/token*")[0].path).query)
    assert query == {"x": ["1"], "service": ["tests"], "scope": scope.split()}


def test_token_server_gets_password(server: FakeRegistry, options: RegistryOptions, tmp_path: Path) -> None:
    write_login(tmp_path, server.host)
    require_token(server, "mine")
    read_all(server.add_image(hello()), options)
    (request,) = server.requests("/token*")
    assert request.authorization == f"Basic {AUTH}"
    assert "account=me" in request.path
    assert {each.authorization for each in server.requests("/v2/*")} == {"", "Bearer mine"}


def test_identity_token_exchange(server: FakeRegistry, options: RegistryOptions, tmp_path: Path) -> None:
    write_login(tmp_path, server.host, identitytoken="refresh me")
    require_token(server, "traded")
    read_all(server.add_image(hello()), options)
    (request,) = server.requests("/token*")
    assert (request.method, request.path, request.authorization) == ("POST", "/token", "")
    form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
    assert form == {
        "grant_type": "refresh_token",
        "service": "tests",
        "client_id": "buildkit-tasks",
        "scope": "repository:team/image:pull",
        "refresh_token": "refresh me",
    }


def test_registry_token(server: FakeRegistry, options: RegistryOptions, tmp_path: Path) -> None:
    write_login(tmp_path, server.host, registrytoken="ready")
    require_token(server, "ready")
    read_all(server.add_image(hello()), options)
    assert server.requests("/token*") == []


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(body=b"{}"), "returned no token"),
        (Reply(body=b'{"token": 7}'), "returned no token"),
        (Reply(body=b'{"token": ""}'), "returned no token"),
        (Reply(body=b'{"token": "a\\r\\nX: y"}'), "not a valid header value"),
        (Reply(body=b'{"token": "' + b"x" * 70_000 + b'"}'), "not a valid header value"),
        (Reply(body=b"<html>"), "JSON"),
        (Reply(status=404), "answers 404"),
        (Reply(status=401), "docker login"),
        (Reply(status=403), "docker login"),
    ],
)
def test_bad_token_response(
    server: FakeRegistry, options: RegistryOptions, reply: Reply, message: str
) -> None:
    server.answer_always("/token*", reply)
    server.answer_always("/v2/*", bearer(f"http://{server.host}/token"))
    error = read_error(server.add_image(hello()), options)
    assert isinstance(error, RegistryError)
    assert error.exit_code == 4
    assert message in str(error)


def test_oversized_token_response(server: FakeRegistry, options: RegistryOptions) -> None:
    server.answer_always("/token*", Reply(body=bytes(5 << 20)))
    server.answer_always("/v2/*", bearer(f"http://{server.host}/token"))
    assert isinstance(read_error(server.add_image(hello()), options), LimitExceeded)


def test_basic_auth(server: FakeRegistry, options: RegistryOptions, tmp_path: Path) -> None:
    write_login(tmp_path, server.host)
    server.answer("/v2/*", Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}))
    read_all(server.add_image(hello()), options)
    headers = [request.authorization for request in server.received]
    assert headers == ["", *[f"Basic {AUTH}"] * (len(headers) - 1)]


def test_challenge_of_redirect_target(server: FakeRegistry, options: RegistryOptions, tmp_path: Path) -> None:
    write_login(tmp_path, server.host)
    reference = server.add_image(hello())
    with fake_registry("127.0.0.2") as other:
        server.answer_always("*/blobs/*", redirect(f"http://{other.host}/blob"))
        other.answer_always("*", Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}))
        error = read_error(reference, options)
        assert f"http://{other.host} answers 401" in error.message
        assert {request.authorization for request in (*server.received, *other.received)} == {""}


@pytest.mark.parametrize(
    "challenge", ["", "Negotiate", "Digest realm=x", "Bearer", 'Bearer realm="/x"', "{}"]
)
def test_unsupported_challenge(server: FakeRegistry, options: RegistryOptions, challenge: str) -> None:
    server.answer_always("*", Reply(status=401, headers={"WWW-Authenticate": challenge} if challenge else {}))
    error = read_error(server.add_image(hello()), options)
    assert (type(error), error.exit_code) == (RegistryError, 4)


def test_broken_helper_pulls_anonymously(
    server: FakeRegistry, options: RegistryOptions, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"credsStore": "gone"}', encoding="utf-8")
    commands = options.commands
    assert isinstance(commands, Scripted)
    commands.expect("docker-credential-gone get", returncode=2)
    require_token(server, "t")
    assert read_all(server.add_image(hello()), options)
    server.answer_always("/v2/*", bearer(f"http://{server.host}/token")).answer_always(
        "/token*", Reply(status=401)
    )
    error = read_error(server.add_image(hello(), "team/other"), options)
    assert "docker-credential-gone" in error.message


def require_token(server: FakeRegistry, text: str) -> None:
    """Require a token for the first request, and serve it at /token."""
    server.answer("/token*", token(text))
    server.answer("/v2/*", bearer(f"http://{server.host}/token"))


def test_tls_server_on_loopback(options: RegistryOptions, server: FakeRegistry) -> None:
    body = b"Client sent an HTTP request to an HTTPS server.\n"
    server.answer_always("*", Reply(status=400, body=body))
    error = read_error(f"{server.host}/team/image", options)
    assert f"https://{server.host}" in error.message  # the retry with TLS fails


def test_mirrors_come_first(
    server: FakeRegistry, options: RegistryOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = hello()
    with fake_registry() as empty, fake_registry() as hub:
        server.add_image(memory, "library/alpine", "3")
        hub.add_image(memory, "library/alpine", "4")
        monkeypatch.setattr(registry, "_DOCKER_HUB_HOST", hub.host)
        mirrors = (f"http://{empty.host}/", "http://127.0.0.1:1", f"http://{server.host}")
        for tag, source_server in (("3", server), ("4", hub)):
            with open_registry(f"alpine:{tag}", mirrors=mirrors, options=options) as source:
                assert len(Image(source).platform_manifests) == 3
                for _, entry in Image(source).platform_manifests:
                    Image(source).config(entry)
            assert len(source_server.received) > 3
        assert [request.path for request in empty.received] == [
            f"/v2/library/alpine/manifests/{tag}" for tag in "34"
        ]


def test_mirror_with_wrong_digest(
    server: FakeRegistry, options: RegistryOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = hello()
    digest = memory.root_descriptor().digest
    monkeypatch.setattr(registry, "_DOCKER_HUB_HOST", server.host)
    server.add_image(memory, "library/alpine")
    with fake_registry() as mirror:
        mirror.answer_always("*", Reply(headers={"Content-Type": OCI_INDEX}, body=b"{}"))
        with open_registry(f"alpine@{digest}", mirrors=[f"http://{mirror.host}"], options=options) as source:
            assert source.root_descriptor().digest == digest
        assert len(mirror.received) == 1


def test_other_registries_have_no_mirrors(server: FakeRegistry, options: RegistryOptions) -> None:
    reference = server.add_image(hello())
    with (
        fake_registry() as mirror,
        open_registry(reference, mirrors=[f"http://{mirror.host}"], options=options) as source,
    ):
        assert source.root_descriptor()
        assert mirror.received == []


@pytest.mark.parametrize(
    "text", ["http://mirror.example.com", "https://a/path", "ftp://a", "", "https://me:pw@a b"]
)
def test_invalid_mirror(options: RegistryOptions, text: str) -> None:
    with pytest.raises(UsageError) as excinfo, open_registry("alpine", mirrors=[text], options=options):
        pass
    assert "pw" not in str(excinfo.value)


@pytest.mark.parametrize("text", ["", "Alpine", "--privileged", "https://x/y"])
def test_invalid_reference(options: RegistryOptions, text: str) -> None:
    with pytest.raises(UsageError), open_registry(text, options=options):
        pass


def test_requests_is_imported_lazily(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom buildkit_tasks.oci.registry import open_registry\n"
        "assert not {'requests', 'urllib3'} & set(sys.modules)\n"
        "with open_registry('alpine'): assert 'requests' in sys.modules\n"
    )
    argv, env = [sys.executable, "-c", code], {"DOCKER_CONFIG": str(tmp_path)}
    result = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")


class SlowStream(io.RawIOBase):
    """A socket file that returns one byte per read and advances a fake clock."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        self.clock[0] += self.seconds
        buffer[0] = 120
        return 1


def test_slow_trickle_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    meter = MeteredReader(SlowStream(clock, 10), timeout=60)
    for _ in range(6):
        meter.read(1)
        clock[0] += 1000  # the caller's time does not count
    with pytest.raises(TimeoutError):
        meter.read(1)


def test_steady_slow_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    meter = MeteredReader(SlowStream(clock, 0.9 / MIN_BYTES_PER_SECOND), timeout=0.01)
    for _ in range(10_000):
        meter.read(1)


def test_excess_data_is_rejected() -> None:
    meter = MeteredReader(io.FileIO("/dev/zero"), timeout=60)
    meter.allow_body(1 << 20)
    with pytest.raises(OSError, match="more than was requested"):
        meter.readall()
    meter.close()
