from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from buildkit_tasks.errors import RegistryError, SettingsError
from buildkit_tasks.oci.model import Descriptor
from buildkit_tasks.oci.registry import open_registry
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.oci.registry.tls import find_certificate_dirs
from tests.support.oci import hello
from tests.support.registry.certificates import Certificate, make_certificate
from tests.support.registry.fake import bearer, fake_registry, token
from tests.support.scripted import Scripted


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def pull_root(reference: str, folder: Path, **environ: str) -> Descriptor:
    options = RegistryOptions(
        environ={"DOCKER_CONFIG": str(folder), **environ},
        certificate_dirs=(folder / "certs.d",),
        commands=Scripted(),
        connect_timeout=5,
        read_timeout=5,
    )
    with open_registry(reference, options=options) as source:
        return source.root_descriptor()


def install_certificates(folder: Path, host: str, **files: Path) -> Path:
    """Copy files to the directory of a host, ``ca_crt`` as ``ca.crt``."""
    directory = folder / "certs.d" / host
    directory.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        shutil.copy(path, directory / name.replace("_", "."))
    return directory


def test_client_certificate(certificate: Certificate, tmp_path: Path) -> None:
    with fake_registry(tls=certificate, require_client_certificate=True) as server:
        reference = server.add_image(hello())
        install_certificates(tmp_path, server.host, ca_crt=certificate.authority)
        with pytest.raises(RegistryError):
            pull_root(reference, tmp_path)
        install_certificates(
            tmp_path, server.host, client_cert=certificate.certificate, client_key=certificate.key
        )
        assert pull_root(reference, tmp_path)


def test_authority_covers_token_server(certificate: Certificate, tmp_path: Path) -> None:
    with fake_registry(tls=certificate) as server, fake_registry("127.0.0.2", tls=certificate) as tokens:
        reference = server.add_image(hello())
        install_certificates(tmp_path, server.host, ca_crt=certificate.authority)
        server.answer("/v2/*", bearer(f"https://{tokens.host}/token"))
        tokens.answer("/token*", token())
        assert pull_root(reference, tmp_path)
        assert len(tokens.received) == 1


def test_client_certificate_per_host(certificate: Certificate, tmp_path: Path) -> None:
    with (
        fake_registry(tls=certificate) as server,
        fake_registry("127.0.0.2", tls=certificate, require_client_certificate=True) as tokens,
    ):
        reference = server.add_image(hello())
        client_files = {"client_cert": certificate.certificate, "client_key": certificate.key}
        install_certificates(tmp_path, server.host, ca_crt=certificate.authority, **client_files)
        server.answer_always("/v2/*", bearer(f"https://{tokens.host}/token"))
        tokens.answer("/token*", token())
        with pytest.raises(RegistryError):
            pull_root(reference, tmp_path)
        assert tokens.received == []


@pytest.mark.parametrize("name", ["ca.crt", "client.cert"])
def test_invalid_certificate_file(certificate: Certificate, tmp_path: Path, name: str) -> None:
    with fake_registry(tls=certificate) as server:
        directory = install_certificates(tmp_path, server.host, ca_crt=certificate.authority)
        (directory / name).write_text("invalid", encoding="utf-8")
        with pytest.raises(SettingsError, match=name) as excinfo:
            pull_root(server.add_image(hello()), tmp_path)
        assert str(directory) in excinfo.value.message


def test_missing_ca_bundle(certificate: Certificate, tmp_path: Path) -> None:
    with fake_registry(tls=certificate) as server:
        install_certificates(tmp_path, server.host, ca_crt=certificate.authority)
        with pytest.raises(SettingsError, match="environment REQUESTS_CA_BUNDLE"):
            pull_root(server.add_image(hello()), tmp_path, REQUESTS_CA_BUNDLE=str(tmp_path / "missing"))


@pytest.mark.parametrize("netloc", ["..", ".", "../x", "", "a/b", "-x", "a\n"])
def test_unsafe_certificate_host(tmp_path: Path, netloc: str) -> None:
    (tmp_path / "certs.d/a/b").mkdir(parents=True)
    options = RegistryOptions(certificate_dirs=(tmp_path / "certs.d",), commands=Scripted())
    assert list(find_certificate_dirs(netloc, options)) == []
