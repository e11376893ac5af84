"""TLS: certificate authorities of the system and of Docker, and client certificates.

See Docker's documentation, "Verify repository client with certificates": in
``/etc/docker/certs.d/HOST[:PORT]/`` each ``*.crt`` is a CA certificate, and each ``*.cert`` with a
``*.key`` a client certificate. Verification cannot be disabled.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from buildkit_tasks.oci.registry.options import RegistryOptions
    from buildkit_tasks.oci.registry.url_policy import Url

__all__ = ["find_certificate_dirs", "make_ssl_context"]

_CA_BUNDLE_VARS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CERT_FILE_VAR, _CERT_DIR_VAR = "SSL_CERT_FILE", "SSL_CERT_DIR"
_SAFE_NETLOC = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9._:\[\]-]*", re.ASCII)


def find_certificate_dirs(netloc: str, options: RegistryOptions) -> Iterator[Path]:
    """Yield the existing certificate directories of a host (and port)."""
    if _SAFE_NETLOC.fullmatch(netloc):  # becomes part of a path
        yield from (folder / netloc for folder in options.certificate_dirs if (folder / netloc).is_dir())


def make_ssl_context(registry_url: Url, url: Url, options: RegistryOptions) -> ssl.SSLContext:
    """Return the TLS context for requests to ``url`` on behalf of the registry.

    As in Docker, the registry's CA certificates also apply to its token server and blob store. A client
    certificate is only used for its own host.
    """
    context = ssl.create_default_context()
    # Set since Python 3.13; Docker accepts private CA certificates without the extensions that it requires.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    for variable, path in _iter_ca_bundles(options.environ):
        _load_authorities(context, path, f"environment {variable}: {path}")
    if not context.cert_store_stats()["x509_ca"]:
        import certifi

        context.load_verify_locations(certifi.where())
    own_dirs = set(find_certificate_dirs(url.netloc, options))
    for folder in sorted({*own_dirs, *find_certificate_dirs(registry_url.netloc, options)}):
        for path in sorted(folder.glob("*.crt")):
            _load_authorities(context, path, str(path))
    for path in sorted(certificate for folder in own_dirs for certificate in folder.glob("*.cert")):
        _load_client_certificate(context, path)
    return context


def _iter_ca_bundles(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Yield the CA bundles of the environment by variable; those of OpenSSL may be missing."""
    for variable in (*_CA_BUNDLE_VARS, _CERT_FILE_VAR, _CERT_DIR_VAR):
        path = Path(environ.get(variable) or "")
        if environ.get(variable) and (variable in _CA_BUNDLE_VARS or path.exists()):
            yield variable, path


def _load_authorities(context: ssl.SSLContext, path: Path, description: str) -> None:
    try:
        if path.is_dir():
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except OSError as error:  # includes ssl.SSLError
        raise SettingsError(f"{description} has no valid certificates: {error.strerror or error}") from None


def _load_client_certificate(context: ssl.SSLContext, certificate: Path) -> None:
    key = certificate.with_suffix(".key")
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        reason = error.strerror or error
        raise SettingsError(
            f"{certificate} and {key.name} are not a valid client certificate: {reason}"
        ) from None
