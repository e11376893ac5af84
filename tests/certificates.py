"""A certificate authority of the tests' own, and certificates for servers on the loopback interface."""

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


def make_certificate(folder: Path, name: str = "tests") -> Certificate:
    """A new authority and a certificate of it for 127.0.0.1, 127.0.0.2, ::1, localhost (and clients)."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, authority_key = folder / "ca.crt", folder / "ca.key"
    certificate, key = folder / "server.crt", folder / "server.key"
    new = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    _openssl(*new, "-subj", f"/CN={name} authority", "-keyout", str(authority_key), "-out", str(authority))
    signed = ["-CA", str(authority), "-CAkey", str(authority_key)]
    extensions = [
        "subjectAltName=IP:127.0.0.1,IP:127.0.0.2,IP:::1,DNS:localhost",
        "basicConstraints=critical,CA:FALSE",
    ]
    added = [word for extension in extensions for word in ("-addext", extension)]
    _openssl(*new, *signed, *added, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate))
    return Certificate(certificate=certificate, key=key, authority=authority)


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)
