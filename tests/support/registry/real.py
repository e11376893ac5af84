"""A real registry on the loopback interface: Debian's docker-registry, unpacked for the tests alone."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.oci.model import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import PackageSet, install_packages
from tests.support.oci import Memory, descriptor
from tests.support.ports import free_port, listens
from tests.support.registry.certificates import Certificate

USER, PASSWORD = "keeper", "correct horse"  # of registries that live as long as a test
# What htpasswd -B writes for them; the registry reads bcrypt alone.
_HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n"
_DOCUMENTS = INDEX_TYPES | MANIFEST_TYPES


@contextlib.contextmanager
def serve(folder: Path, *, tls: Certificate | None = None, login: bool = False) -> Iterator[str]:
    """Serve an empty registry from ``folder``; gives its host and port.

    With ``tls`` over https alone; with ``login`` only to :data:`USER` with :data:`PASSWORD`.
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
            _await(port, child)
            yield f"127.0.0.1:{port}"
        finally:
            child.terminate()
            child.wait(10)


def push(  # noqa: PLR0913 - the last ones are keywords with defaults
    host: str,
    memory: Memory,
    name: str,
    tag: str = "latest",
    *,
    tls: Certificate | None = None,
    login: bool = False,
) -> str:
    """Put the image into the registry as ``HOST/name:tag``; gives the digest of its root.

    The registry refuses what is not sound (a manifest without its blobs, a digest that does not
    hold): hostile images are for :mod:`tests.support.registry.hostile` to serve.
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


def _children_first(memory: Memory, top: Descriptor) -> Iterator[Descriptor]:
    """Everything that a document reaches, each before what names it; what is not there is left out."""
    if top.media_type in _DOCUMENTS:
        document = json.loads(memory.blobs[str(top.digest)])
        config = [document["config"]] if "config" in document else []
        for entry in (*document.get("manifests", ()), *config, *document.get("layers", ())):
            yield from _children_first(memory, descriptor(entry))
    if str(top.digest) in memory.blobs:
        yield top


def _upload(session: requests.Session, base: str, what: Descriptor, data: bytes) -> None:
    if what.media_type in _DOCUMENTS:
        _put_manifest(session, f"{base}/manifests/{what.digest}", what, data)
        return
    started = session.post(f"{base}/blobs/uploads/", timeout=60)
    _expect(started, 202)
    place, query = started.headers["Location"], {"digest": str(what.digest)}
    headers = {"Content-Type": "application/octet-stream"}
    _expect(session.put(place, params=query, data=data, headers=headers, timeout=60), 201)


def _put_manifest(session: requests.Session, url: str, what: Descriptor, data: bytes) -> None:
    _expect(session.put(url, data=data, headers={"Content-Type": what.media_type}, timeout=60), 201)


def _expect(answer: requests.Response, status: int) -> None:
    assert answer.status_code == status, f"{answer.url}: {answer.status_code} {answer.text[:500]}"


def _await(port: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and child.poll() is None:
        if listens("127.0.0.1", port):
            return
        time.sleep(0.05)
    raise AssertionError("the registry did not start")
