"""Certificate authorities for tests, and certificates for servers on the loopback interface."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """PEM files: a certificate, its key, and the authority that signed it."""

    certificate: Path
    key: Path
    authority: Path


LOOPBACK = "IP:127.0.0.1,IP:127.0.0.2,IP:::1,DNS:localhost"
_NEW = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def make_certificate(folder: Path, name: str = "tests", names: str = LOOPBACK) -> Certificate:
    """Create an authority and a certificate for the loopback interface, for servers and clients."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, key = folder / "ca.crt", folder / "ca.key"
    subject = f"/CN={name} authority"
    _openssl(
        "req", "-x509", *_NEW, "-days", "2", "-subj", subject, "-keyout", str(key), "-out", str(authority)
    )
    return sign(folder, authority, name, names)


def sign(
    folder: Path, authority: Path, name: str = "tests", names: str = LOOPBACK, *, expired: bool = False
) -> Certificate:
    """Create a certificate of such an authority."""
    folder.mkdir(parents=True, exist_ok=True)
    request, certificate, key = folder / "server.csr", folder / "server.crt", folder / "server.key"
    extensions = [f"subjectAltName={names}", "basicConstraints=critical,CA:FALSE"]
    extension_options = [option for extension in extensions for option in ("-addext", extension)]
    _openssl(
        "req",
        "-new",
        *_NEW,
        *extension_options,
        "-subj",
        f"/CN={name}",
        "-keyout",
        str(key),
        "-out",
        str(request),
    )
    ca_options = [
        "-CA",
        str(authority),
        "-CAkey",
        str(authority.with_suffix(".key")),
        "-copy_extensions=copy",
    ]
    end = _expired_options() if expired else ["-days", "2"]
    _openssl("x509", "-req", "-in", str(request), *ca_options, *end, "-out", str(certificate))
    return Certificate(certificate=certificate, key=key, authority=authority)


def _expired_options() -> list[str]:
    """Return the options for an end in the past: OpenSSL 3.4 takes dates, and newer ones no negative days."""
    described = subprocess.run(["openssl", "x509", "-help"], check=True, capture_output=True, text=True)
    if "-not_after" in described.stderr + described.stdout:
        return ["-not_before", "20200101000000Z", "-not_after", "20200102000000Z"]
    return ["-days", "-1"]


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
