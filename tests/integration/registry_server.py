"""A real registry that tests push to: its access log, and what a user configures to reach it."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path

import requests

from buildkit_tasks.oci.model import MANIFEST_TYPES, OCI_INDEX, Digest
from tests.support.project import Project
from tests.support.registry import real as registry
from tests.support.registry.certificates import Certificate

_ACCESS = re.compile(r'"(GET|HEAD|POST|PUT|PATCH|DELETE) (\S+) HTTP/1\.1" (\d{3})')


@dataclass(frozen=True, kw_only=True)
class RegistryServer:
    """A registry with its log in ``folder``; it may use TLS or require a login."""

    host: str
    folder: Path
    tls: Certificate | None = None
    login: bool = False

    def configure(self, project: Project) -> Project:
        """Return the project with the login and the authority that this registry requires."""
        config = project.folder / "docker"
        config.mkdir(exist_ok=True)
        if self.login:
            write_docker_login(config, self.host, registry.PASSWORD)
        project = project.with_env(DOCKER_CONFIG=str(config))
        return project.with_env(SSL_CERT_FILE=str(self.tls.authority)) if self.tls else project

    def fetch(self, path: str) -> requests.Response:
        """GET ``/v2/PATH``, accepting manifests and indexes."""
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(self.tls.authority) if self.tls else True
            session.auth = (registry.USER, registry.PASSWORD) if self.login else None
            scheme = "https" if self.tls else "http"
            headers = {"Accept": ", ".join({OCI_INDEX, *MANIFEST_TYPES})}
            return session.get(f"{scheme}://{self.host}/v2/{path}", headers=headers, timeout=30)

    def digest(self, name: str) -> str:
        """Return the digest that ``REPOSITORY:TAG`` refers to, or an empty string if there is no such tag."""
        repository, _, tag = name.rpartition(":")
        response = self.fetch(f"{repository}/manifests/{tag}")
        return str(Digest.from_bytes(response.content)) if response.ok else ""

    def access_log(self) -> list[tuple[str, str, int]]:
        """Return method, path and status of each request, in the order of the responses."""
        text = (self.folder / "log").read_text(encoding="utf-8")
        return [(method, path, int(status)) for method, path, status in _ACCESS.findall(text)]


def write_docker_login(folder: Path, host: str, password: str) -> None:
    """Write the config.json that ``docker login`` writes."""
    auth = base64.b64encode(f"{registry.USER}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}), encoding="utf-8")
