"""Reading images from a real registry: TLS authorities, logins and request counts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.registry import open_registry
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.oci.source import read_blob
from tests.conftest import TEN
from tests.integration.registry_server import write_docker_login
from tests.support.oci import hello, layout_files
from tests.support.registry import real as registry
from tests.support.registry.certificates import Certificate, make_certificate


def read_layers(reference: str, access: RegistryOptions) -> int:
    """Read the whole image and return the number of its layers."""
    with open_registry(reference, options=access) as source:
        image = Image(source)
        manifests = [image.manifest(entry) for _, entry in image.platform_manifests]
        for _, entry in image.platform_manifests:
            image.config(entry)
        return len([read_blob(source, layer, 1 << 20) for each in manifests for layer in each.layers])


@pytest.fixture
def access(tmp_path: Path) -> RegistryOptions:
    return RegistryOptions(environ={"DOCKER_CONFIG": str(tmp_path)}, certificate_dirs=(tmp_path / "certs.d",))


def trust(folder: Path, host: str, authority: Path) -> None:
    """Install an authority for a registry (Docker docs, "Verify repository client with certificates")."""
    certificates = folder / "certs.d" / host
    certificates.mkdir(parents=True, exist_ok=True)
    shutil.copy(authority, certificates / "ca.crt")


@pytest.fixture(scope="module")
def tls_host(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[str]:
    """The host of a registry with TLS."""
    with registry.serve(tmp_path_factory.mktemp("secure"), tls=certificate) as host:
        registry.push(host, hello(), "team/hello", "1", tls=certificate)
        yield host


@pytest.fixture(scope="module")
def login_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host of a registry that requires a login."""
    with registry.serve(tmp_path_factory.mktemp("login"), login=True) as host:
        registry.push(host, hello(), "team/hello", "1", login=True)
        yield host


def test_read_by_tag_and_digest(registry_host: str, access: RegistryOptions) -> None:
    memory = hello(TEN)
    digest = registry.push(registry_host, memory, "team/hello", "ten")
    assert Digest(digest) == memory.root_descriptor().digest
    assert read_layers(f"{registry_host}/team/hello:ten", access) == 10
    assert read_layers(f"{registry_host}/team/hello@{digest}", access) == 10
    assert read_layers(f"{registry_host}/team/hello:other@{digest}", access) == 10


def test_blobs_are_identical(registry_host: str, access: RegistryOptions) -> None:
    memory = hello()
    registry.push(registry_host, memory, "team/bytes", "1")
    stored = {name: data for name, data in layout_files(memory).items() if name.startswith("blobs/")}
    with open_registry(f"{registry_host}/team/bytes:1", options=access) as source:
        root = source.root_descriptor()
        descriptors = [root]
        for _, entry in Image(source).platform_manifests:
            manifest = Image(source).manifest(entry)
            descriptors += [entry, manifest.config, *manifest.layers]
        pulled = {
            f"blobs/{str(each.digest).replace(':', '/')}": read_blob(source, each, 1 << 20)
            for each in descriptors
        }
    assert pulled == stored


def test_missing_image_or_registry(registry_host: str, access: RegistryOptions) -> None:
    for name in ("team/nothing:1", "team/hello:nothing", f"team/hello@{Digest.from_bytes(b'nothing')}"):
        with pytest.raises(RegistryError, match="is unknown") as caught:
            read_layers(f"{registry_host}/{name}", access)
        assert name in caught.value.message


def test_certs_d_authority(
    tls_host: str, certificate: Certificate, access: RegistryOptions, tmp_path: Path
) -> None:
    trust(tmp_path, tls_host, certificate.authority)
    assert read_layers(f"{tls_host}/team/hello:1", access) == 3


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_authority_from_environment(
    tls_host: str, certificate: Certificate, tmp_path: Path, variable: str
) -> None:
    environ = {"DOCKER_CONFIG": str(tmp_path), variable: str(certificate.authority)}
    assert read_layers(f"{tls_host}/team/hello:1", RegistryOptions(environ=environ, certificate_dirs=())) == 3


def test_unknown_authority(tls_host: str, access: RegistryOptions, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=f"the TLS connection to https://{tls_host} failed") as caught:
        read_layers(f"{tls_host}/team/hello:1", access)
    assert caught.value.exit_code == 4
    assert caught.value.hint == (
        f"put the CA certificate of the registry into {tmp_path}/certs.d/{tls_host}/ca.crt"
    )


def test_other_authority(tls_host: str, access: RegistryOptions, tmp_path: Path) -> None:
    trust(tmp_path, tls_host, make_certificate(tmp_path / "other", "other").authority)
    with pytest.raises(
        RegistryError,
        match=r"TLS connection to .* failed: .*(unable to get local issuer|self-signed|signature)",
    ):
        read_layers(f"{tls_host}/team/hello:1", access)


def test_authority_is_per_host(
    tls_host: str, certificate: Certificate, access: RegistryOptions, tmp_path: Path
) -> None:
    trust(tmp_path, "127.0.0.1:1", certificate.authority)
    with pytest.raises(RegistryError, match="the TLS connection to"):
        read_layers(f"{tls_host}/team/hello:1", access)


def test_docker_login(login_host: str, access: RegistryOptions, tmp_path: Path) -> None:
    write_docker_login(tmp_path, login_host, registry.PASSWORD)
    assert read_layers(f"{login_host}/team/hello:1", access) == 3


@pytest.mark.parametrize(
    ("login", "message"),
    [
        (("", "wrong"), f"denies access to team/hello for {registry.USER}"),
        (("other.", registry.PASSWORD), "denies anonymous access"),
        (None, "denies anonymous access"),
    ],
    ids=["wrong", "another host's", "none"],
)
def test_missing_login(
    login_host: str, access: RegistryOptions, tmp_path: Path, login: tuple[str, str] | None, message: str
) -> None:
    if login:
        prefix, password = login
        write_docker_login(tmp_path, prefix + login_host, password)
    with pytest.raises(RegistryError) as caught:
        read_layers(f"{login_host}/team/hello:1", access)
    assert message in caught.value.message
    assert (caught.value.exit_code, caught.value.hint) == (4, f"docker login {login_host}")
    assert registry.PASSWORD not in str(caught.value)
