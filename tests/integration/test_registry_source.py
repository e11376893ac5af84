from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.registry import open_registry
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.oci.source import read_blob
from tests.conftest import TEN
from tests.support.oci import hello, layout_files
from tests.support.registry import real as registry
from tests.support.registry.certificates import Certificate, make_certificate


def read(reference: str, access: RegistryOptions) -> int:
    """Read the whole image; gives the number of its layers."""
    with open_registry(reference, options=access) as source:
        image = Image(source)
        manifests = [image.manifest(entry) for _, entry in image.platform_manifests]
        for _, entry in image.platform_manifests:
            image.config(entry)
        return len([read_blob(source, layer, 1 << 20) for each in manifests for layer in each.layers])


@pytest.fixture
def access(tmp_path: Path) -> RegistryOptions:
    return RegistryOptions(environ={"DOCKER_CONFIG": str(tmp_path)}, certificate_dirs=(tmp_path / "certs.d",))


def keep(folder: Path, host: str, password: str) -> None:
    """What ``docker login`` writes."""
    auth = base64.b64encode(f"{registry.USER}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}), encoding="utf-8")


def trust(folder: Path, host: str, authority: Path) -> None:
    """What Docker's documentation says to do with an authority's certificate."""
    place = folder / "certs.d" / host
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(authority, place / "ca.crt")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry.serve(tmp_path_factory.mktemp("plain")) as host:
        yield host


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[str]:
    with registry.serve(tmp_path_factory.mktemp("secure"), tls=certificate) as host:
        registry.push(host, hello(), "team/hello", "1", tls=certificate)
        yield host


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry.serve(tmp_path_factory.mktemp("locked"), login=True) as host:
        registry.push(host, hello(), "team/hello", "1", login=True)
        yield host


def test_read_by_tag_and_digest(plain: str, access: RegistryOptions) -> None:
    memory = hello(TEN)
    digest = registry.push(plain, memory, "team/hello", "ten")
    assert Digest(digest) == memory.root_descriptor().digest
    assert read(f"{plain}/team/hello:ten", access) == 10
    assert read(f"{plain}/team/hello@{digest}", access) == 10
    assert read(f"{plain}/team/hello:other@{digest}", access) == 10


def test_blobs_are_identical(plain: str, access: RegistryOptions) -> None:
    memory = hello()
    registry.push(plain, memory, "team/bytes", "1")
    stored = {name: data for name, data in layout_files(memory).items() if name.startswith("blobs/")}
    with open_registry(f"{plain}/team/bytes:1", options=access) as source:
        root = source.root_descriptor()
        read_back = [root]
        for _, entry in Image(source).platform_manifests:
            manifest = Image(source).manifest(entry)
            read_back += [entry, manifest.config, *manifest.layers]
        got = {
            f"blobs/{str(each.digest).replace(':', '/')}": read_blob(source, each, 1 << 20)
            for each in read_back
        }
    assert got == stored


def test_missing_image_or_registry(plain: str, access: RegistryOptions) -> None:
    for name in ("team/nothing:1", "team/hello:nothing", f"team/hello@{Digest.from_bytes(b'nothing')}"):
        with pytest.raises(RegistryError, match="is unknown") as caught:
            read(f"{plain}/{name}", access)
        assert name in caught.value.message


def test_certs_d_authority(
    secure: str, certificate: Certificate, access: RegistryOptions, tmp_path: Path
) -> None:
    trust(tmp_path, secure, certificate.authority)
    assert read(f"{secure}/team/hello:1", access) == 3


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_authority_from_environment(
    secure: str, certificate: Certificate, tmp_path: Path, variable: str
) -> None:
    environ = {"DOCKER_CONFIG": str(tmp_path), variable: str(certificate.authority)}
    assert read(f"{secure}/team/hello:1", RegistryOptions(environ=environ, certificate_dirs=())) == 3


def test_unknown_authority(secure: str, access: RegistryOptions, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=f"the TLS connection to https://{secure} failed") as caught:
        read(f"{secure}/team/hello:1", access)
    assert caught.value.exit_code == 4
    assert caught.value.hint == (
        f"put the CA certificate of the registry into {tmp_path}/certs.d/{secure}/ca.crt"
    )


def test_other_authority(secure: str, access: RegistryOptions, tmp_path: Path) -> None:
    trust(tmp_path, secure, make_certificate(tmp_path / "other", "other").authority)
    with pytest.raises(
        RegistryError,
        match=r"TLS connection to .* failed: .*(unable to get local issuer|self-signed|signature)",
    ):
        read(f"{secure}/team/hello:1", access)


def test_authority_is_per_host(
    secure: str, certificate: Certificate, access: RegistryOptions, tmp_path: Path
) -> None:
    trust(tmp_path, "127.0.0.1:1", certificate.authority)
    with pytest.raises(RegistryError, match="the TLS connection to"):
        read(f"{secure}/team/hello:1", access)


def test_docker_login(locked: str, access: RegistryOptions, tmp_path: Path) -> None:
    keep(tmp_path, locked, registry.PASSWORD)
    assert read(f"{locked}/team/hello:1", access) == 3


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (
            lambda folder, host: keep(folder, host, "wrong"),
            f"denies access to team/hello for {registry.USER}",
        ),
        (lambda folder, host: keep(folder, f"x.{host}", registry.PASSWORD), "denies anonymous access"),
        (lambda _folder, _host: None, "denies anonymous access"),
    ],
    ids=["wrong", "another host's", "none"],
)
def test_missing_login(
    locked: str, access: RegistryOptions, tmp_path: Path, prepare: Callable[[Path, str], None], said: str
) -> None:
    prepare(tmp_path, locked)
    with pytest.raises(RegistryError) as caught:
        read(f"{locked}/team/hello:1", access)
    assert said in caught.value.message
    assert (caught.value.exit_code, caught.value.hint) == (4, f"docker login {locked}")
    assert registry.PASSWORD not in str(caught.value)


def test_pull_request_count(plain: str, access: RegistryOptions) -> None:
    registry.push(plain, hello(TEN), "team/speed", "1")
    read(f"{plain}/team/speed:1", access)
    started = time.monotonic()
    assert read(f"{plain}/team/speed:1", access) == 10
    assert time.monotonic() - started < 2  # 31 requests: 0.1 s where nothing else runs
