"""A real registry on the loopback interface: Debian's docker-registry."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.oci.model import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import PackageSet, install_packages
from tests.support.oci import MemoryImage, descriptor
from tests.support.ports import free_port, listens
from tests.support.registry.certificates import Certificate
from tests.support.waiting import wait_until

USER, PASSWORD = "keeper", "correct horse"  # of test registries
# Written by `htpasswd -B`; the registry supports bcrypt only.
_HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n"
_DOCUMENTS = INDEX_TYPES | MANIFEST_TYPES


@contextlib.contextmanager
def serve(folder: Path, *, tls: Certificate | None = None, login: bool = False) -> Iterator[str]:
    """Serve an empty registry with its data in ``folder``; yield its host and port.

    With ``tls`` over https only; with ``login`` only for :data:`USER` with :data:`PASSWORD`.
    """
    prefix = cache_folder(load_settings()) / "debian/docker-registry"
    run = SubprocessRunner(dry_run_output=sys.stderr)
    install_packages(prefix, [PackageSet(names=("docker-registry",), suite="host")], run, lambda _: None)
    port = free_port()
    configuration = folder / "config.yml"
    # JSON is YAML.
    configuration.write_text(json.dumps(_configuration(folder, port, tls, login=login)), encoding="utf-8")
    with (folder / "log").open("wb") as log:
        argv = [str(prefix / "usr/bin/docker-registry"), "serve", str(configuration)]
        child = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            _wait_until_ready(port, child)
            yield f"127.0.0.1:{port}"
        finally:
            child.terminate()
            child.wait(10)


def push(  # noqa: PLR0913 - the last two are keywords
    host: str,
    memory: MemoryImage,
    name: str,
    tag: str = "latest",
    *,
    tls: Certificate | None = None,
    login: bool = False,
) -> str:
    """Push an image as ``HOST/name:tag``; return its digest.

    The registry rejects invalid images; :mod:`tests.support.registry.fake` serves them.
    """
    root = memory.root_descriptor()
    with requests.Session() as session:
        session.trust_env = False
        if tls is not None:
            session.verify = str(tls.authority)
        if login:
            session.auth = (USER, PASSWORD)
        base = f"{'http' if tls is None else 'https'}://{host}/v2/{name}"
        for each in _children_first(memory, root):
            _upload(session, base, each, memory.blobs[str(each.digest)])
        _put_manifest(session, f"{base}/manifests/{tag}", root, memory.blobs[str(root.digest)])
    return str(root.digest)


def _configuration(folder: Path, port: int, tls: Certificate | None, *, login: bool) -> dict[str, Any]:
    http: dict[str, Any] = {"addr": f"127.0.0.1:{port}"}
    if tls is not None:
        http["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
    storage = {"filesystem": {"rootdirectory": str(folder / "data")}}
    configuration: dict[str, Any] = {"version": 0.1, "storage": storage, "http": http}
    if login:
        (folder / "htpasswd").write_text(_HTPASSWD, encoding="utf-8")
        configuration["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    return configuration


def _children_first(memory: MemoryImage, top: Descriptor) -> Iterator[Descriptor]:
    """Yield the blobs that a document reaches, children before parents, without missing ones."""
    if top.media_type in _DOCUMENTS:
        document = json.loads(memory.blobs[str(top.digest)])
        config = [document["config"]] if "config" in document else []
        for entry in (*document.get("manifests", ()), *config, *document.get("layers", ())):
            yield from _children_first(memory, descriptor(entry))
    if str(top.digest) in memory.blobs:
        yield top


def _upload(session: requests.Session, base: str, blob: Descriptor, data: bytes) -> None:
    if blob.media_type in _DOCUMENTS:
        _put_manifest(session, f"{base}/manifests/{blob.digest}", blob, data)
        return
    response = session.post(f"{base}/blobs/uploads/", timeout=60)
    _check_status(response, 202)
    url, query = response.headers["Location"], {"digest": str(blob.digest)}
    headers = {"Content-Type": "application/octet-stream"}
    _check_status(session.put(url, params=query, data=data, headers=headers, timeout=60), 201)


def _put_manifest(session: requests.Session, url: str, manifest: Descriptor, data: bytes) -> None:
    headers = {"Content-Type": manifest.media_type}
    _check_status(session.put(url, data=data, headers=headers, timeout=60), 201)


def _check_status(response: requests.Response, status: int) -> None:
    assert response.status_code == status, f"{response.url}: {response.status_code} {response.text[:500]}"


def _wait_until_ready(port: int, child: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: listens("127.0.0.1", port) or child.poll() is not None)
    assert child.poll() is None, "the registry did not start"
