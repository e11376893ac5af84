"""The fuzz targets of readers of text: from images, registries, client programs, guests and repositories."""

from __future__ import annotations

import dataclasses
import functools
import http.client
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from buildkit_tasks.build.bake.plan import BakePlan, parse_bake_plan
from buildkit_tasks.build.dockerfile import BaseUse, parse_base_images
from buildkit_tasks.errors import (
    BuilderError,
    CheckFailed,
    EngineError,
    MalformedImage,
    RegistryError,
    SettingsError,
    UsageError,
)
from buildkit_tasks.host.builder.store import parse_inspect_output
from buildkit_tasks.host.engine.daemon import ClientTools, Engine, describe_engine
from buildkit_tasks.host.engine.sdk import available_manifests
from buildkit_tasks.oci.layers.rootfs import FileNode, FileType, RootFs
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.registry import credentials
from buildkit_tasks.oci.registry import http as registry_http
from buildkit_tasks.oci.registry.connection import MeteredReader
from buildkit_tasks.oci.registry.url_policy import Url
from buildkit_tasks.platforms import Platform
from buildkit_tasks.platforms.elf.reader import read_binary
from buildkit_tasks.platforms.elf.view import WholeFile
from buildkit_tasks.report.model import Check, Outcome
from buildkit_tasks.run.docker import container
from buildkit_tasks.run.outcomes import Expectation, ProcessResult, classify_outcome
from buildkit_tasks.run.qemu_env import is_invalid_cpu_model
from buildkit_tasks.run.sandbox.user import User, resolve_user
from buildkit_tasks.system.command import CommandResult
from buildkit_tasks.system.csv_fields import format_csv_row, parse_csv_row
from buildkit_tasks.verify import attestations, dynamic_linking
from tests.fuzz import mutators
from tests.fuzz.target import Target
from tests.support.elf import elf

_MIB = 1 << 20
_AMD64 = Platform.parse("linux/amd64")
_INTERPRETER = "/lib64/ld-linux-x86-64.so.2"


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


@functools.cache
def _scratch() -> Path:
    """Return a directory for files that a reader opens itself."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def _write(name: str, data: bytes) -> Path:
    path = _scratch() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# Files of an image.


def _read_users(data: bytes) -> User:
    """Resolve a USER, the first line, in passwd and group, which are separated by a zero byte."""
    user, _, files = data.partition(b"\n")
    passwd, _, group = files.partition(b"\0")
    _write("root/etc/passwd", passwd)
    _write("root/etc/group", group)
    return resolve_user(_decode(user), _scratch() / "root")


def _check_user(data: bytes, user: User) -> None:
    del data
    assert all(0 <= each <= 0xFFFF for each in (user.uid, user.gid, *user.groups))
    assert user.home


@functools.cache
def _library(rpath: str) -> FileNode:
    data = elf("amd64", interpreter=_INTERPRETER, needed=["liba.so", "libb.so"], rpath=rpath)
    return FileNode(type=FileType.FILE, binary=read_binary(WholeFile(data)), size=len(data))


def _loader_rootfs(config: bytes, program: FileNode) -> RootFs:
    folder = FileNode.make_directory
    root = folder("", 0o755)
    etc, included, library_dir = (folder("", 0o755) for _ in range(3))
    file = FileNode(type=FileType.FILE, head=config, size=len(config))
    etc.children.update({"ld.so.conf": file, "ld.so.conf.d": included})
    included.children.update({"a.conf": file, "b.conf": file})
    library_dir.children.update({"liba.so": program, "ld-linux-x86-64.so.2": program})
    root.children.update({"etc": etc, "lib": library_dir, "lib64": library_dir, "app": program})
    return RootFs(root)


def _read_loader(data: bytes) -> tuple[Check, ...]:
    """Check a program; its RPATH is before the first zero byte, LD_LIBRARY_PATH and ld.so.conf follow."""
    rpath, _, rest = data.partition(b"\0")
    search_path, _, config = rest.partition(b"\0")
    program = _library("/opt:$ORIGIN")
    assert program.binary is not None
    binary = dataclasses.replace(program.binary, rpath=tuple(_decode(rpath).split(":")), runpath=())
    program = dataclasses.replace(program, binary=binary)
    rootfs = _loader_rootfs(config, program)
    resolved = rootfs.find_file("/app")
    assert resolved is not None
    environment = [f"LD_LIBRARY_PATH={_decode(search_path)}"]
    return dynamic_linking.check_dynamic_linking(_AMD64, resolved, rootfs, environment)[0]


def _check_loader(data: bytes, checks: tuple[Check, ...]) -> None:
    del data
    assert {check.name for check in checks} <= {"starts", "limit"}
    assert all(check.message for check in checks)


_TARGET_DIGEST = Digest("sha256:" + "a" * 64)


def _read_statement(data: bytes) -> None:
    attestations._check_statement(data, _TARGET_DIGEST)


def _check_statement(data: bytes, result: None) -> None:
    del result
    subjects = json.loads(data).get("subject")
    if isinstance(subjects, list):
        digests = [each["digest"] for each in subjects if isinstance(each, dict) and each.get("digest")]
        values = [str(value) for each in digests if isinstance(each, dict) for value in each.values()]
        assert not values or _TARGET_DIGEST.hex in values


# Registries.


def _read_credentials(data: bytes) -> credentials.Credential | None:
    _write("config.json", data)
    store = credentials.load_credentials({"DOCKER_CONFIG": str(_scratch())}, _Answer(b""))
    credential = None if store.helpers or store.default_helper else store.find("registry.example.org")
    if credential is not None:
        assert credential.basic_authorization.isascii()
    return credential


def _read_helper(data: bytes) -> credentials.Credential | None:
    """Ask a credential helper that answers with these bytes; the first one is its exit status."""
    store = credentials.CredentialStore(
        commands=_Answer(data[1:], data[0] % 2 if data else 0), default_helper="x"
    )
    credential = store.find("registry.example.org")
    if credential is not None:
        assert credential.basic_authorization.isascii()
    return credential


class _Answer:
    """A command runner that answers every command with the same output."""

    dry_run = False

    def __init__(self, stdout: bytes, returncode: int = 0) -> None:
        self._stdout, self._returncode = stdout.decode("utf-8", "replace"), returncode

    def run(self, argv: Any, options: Any = None, *, mutates: bool = False) -> CommandResult:
        del options, mutates
        return CommandResult(argv=tuple(argv), returncode=self._returncode, stdout=self._stdout)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def _read_url(data: bytes) -> Url:
    base = Url(scheme="https", host="registry.example.org", port=443, target="/v2/")
    return Url.parse(_decode(data), base)


def _check_url(data: bytes, url: Url) -> None:
    del data
    assert url.scheme in ("http", "https")
    assert url.host
    assert 0 < url.port <= 0xFFFF
    assert "@" not in url.netloc
    assert Url.parse(url.text).netloc == url.netloc


class _Socket:
    """A socket from which a response is read."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(self._data))


def _read_headers(data: bytes) -> float | None:
    """Read the head of a response, through the meter, and the headers that are parsed here."""
    response = http.client.HTTPResponse(_Socket(data))  # type: ignore[arg-type]
    response.fp = io.BufferedReader(MeteredReader(response.fp.detach(), 60.0))
    response.begin()
    return registry_http._parse_retry_after(_Headers(response))  # type: ignore[arg-type]


class _Headers:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.get_header = lambda name: response.headers.get(name, "")


def _check_seconds(data: bytes, seconds: float | None) -> None:
    del data
    assert seconds is None or seconds >= 0


# Repositories.


def _read_dockerfile(data: bytes) -> tuple[BaseUse, ...]:
    bases = parse_base_images(data.decode("utf-8", "replace"), {"A": "b", "EMPTY": ""})
    return dataclasses.replace(bases, target="").list_uses(_AMD64, _AMD64)


def _check_uses(data: bytes, uses: tuple[BaseUse, ...]) -> None:
    del data
    assert all(isinstance(use.platform, Platform) for use in uses)
    assert not {use.image for use in uses} & {"scratch", "context"}


def _read_bake(data: bytes) -> BakePlan:
    plan = parse_bake_plan(data.decode("utf-8", "surrogateescape"), "docker-bake.json")
    assert {target.name for target in plan.build_order} <= plan.targets.keys()
    return plan


def _read_csv(data: bytes) -> list[str]:
    return parse_csv_row(_decode(data), "--output")


def _check_csv(data: bytes, fields: list[str]) -> None:
    del data
    if fields:
        assert parse_csv_row(format_csv_row(fields), "--output") == fields


# Client programs.


def _read_inspect(data: bytes) -> None:
    builder = parse_inspect_output(data.decode("utf-8", "replace"))
    for node in builder.nodes:
        assert all(node.platforms)


def _read_engine(data: bytes) -> Engine | dict[Platform, str]:
    """Read ``docker info``, or after a zero byte the description of an image by the API."""
    if data[:1] == b"\0":
        try:
            document = json.loads(data[1:])
        except (ValueError, RecursionError) as error:  # of the SDK, which reads the response
            raise EngineError(str(error)) from error
        return available_manifests(document)
    tools = ClientTools(docker=("docker",), buildx=("buildx",))
    return describe_engine("system", "unix:///run/docker.sock", tools, {}, _Answer(data))


def _read_outcome(data: bytes) -> tuple[Outcome, str]:
    """Classify a guest: exit status, flags, then standard output and error, separated by a zero byte."""
    status, flags = (*data[:2], 0, 0)[:2]
    stdout, _, stderr = data[2:].partition(b"\0")
    result = ProcessResult(
        exit_code=status,
        stdout=stdout.decode("utf-8", "replace"),
        stderr=stderr.decode("utf-8", "replace"),
        emulated=bool(flags & 1),
        out_of_memory=bool(flags & 2),
        cpu="max" if flags & 4 else "",
        timeout_exceeded=1.0 if flags & 8 else 0.0,
    )
    is_invalid_cpu_model(result.stderr)
    container._explain_fork_error(result.stderr)
    return classify_outcome(result, Expectation(pattern="Hello from {goarch}"), _AMD64)


def _check_outcome(data: bytes, result: tuple[Outcome, str]) -> None:
    outcome, message = result
    assert outcome is Outcome.PASSED or message
    if data[:1] != b"\0":
        assert outcome is not Outcome.PASSED


_PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/srv:/bin/sh\n\0root:x:0:\nwheel:x:10:app,root\n"
_INSPECT = b"""Name:          multi
Driver:        docker-container

Nodes:
Name:             multi0
Endpoint:         unix:///var/run/docker.sock
Driver Options:   network="host" image="x"
Status:           running
BuildKit version: v0.26.0
Platforms:        linux/amd64*, linux/arm64
Error:            none
"""
_STATEMENT = {
    "_type": "https://in-toto.io/Statement/v0.1",
    "subject": [{"name": "a", "digest": {"sha256": "a" * 64}}],
    "predicateType": "https://slsa.dev/provenance/v0.2",
    "predicate": {},
}
_BAKE = {
    "group": {"default": {"targets": ["web", "all"]}, "all": {"targets": ["web", "db"]}},
    "target": {
        "web": {"context": ".", "dockerfile": "Dockerfile", "args": {"A": "1"}, "tags": ["r.example/a:1"],
                "platforms": ["linux/amd64"], "contexts": {"base": "target:db"},
                "output": [{"type": "oci", "dest": "a.tar"}]},
        "db": {"context": ".", "dockerfile-inline": "FROM a", "labels": {"a": "b"},
               "cache-from": [{"type": "registry", "ref": "r.example/c"}]},
    },
}  # fmt: skip
_INFO = {
    "ServerVersion": "28.5.2", "Architecture": "x86_64", "KernelVersion": "6.18.0",
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "RegistryConfig": {"Mirrors": ["https://mirror.example.org/"]},
}  # fmt: skip
_IMAGE_INFO = {
    "Manifests": [
        {"ID": "sha256:" + "0" * 64, "Kind": "image", "Available": True,
         "ImageData": {"Platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}},
    ],
}  # fmt: skip
_CONFIG = {
    "auths": {"registry.example.org": {"auth": "YTpi"},
              "https://index.docker.io/v1/": {"username": "a", "password": "b"}},
    "credHelpers": {"gcr.io": "gcloud"},
}  # fmt: skip
_RESPONSE = (
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nContent-Type: a/b\r\nContent-Length: 0\r\n\r\n"
)

TEXT_TARGETS = (
    Target(
        name="users", read=_read_users, check_result=_check_user,
        allowed_errors=(CheckFailed, MalformedImage), max_len=2 * _MIB,
        seeds=lambda: [user + b"\n" + _PASSWD for user in (b"app", b"0", b"app:wheel", b"1000:10", b"")],
        tokens=(b":x:0:0:", b":", b",", b"\n", b"\0", b"65535", b"65536", "٣".encode()),
    ),
    Target(
        name="loader", read=_read_loader, check_result=_check_loader, max_len=64 << 10,
        seeds=lambda: [
            b"/opt:$ORIGIN/../lib\0/lib\0/opt/lib\ninclude ld.so.conf.d/*.conf\n", b"\0\0include *\n",
            b"${LIB}:$PLATFORM\0:\0# comment\n",
        ],
        tokens=(b"include ", b"*", b"[a-", b"]", b"/lib\n", b"$ORIGIN", b"${", b"..", b"\0", b":"),
    ),
    Target(
        name="statement", read=_read_statement, check_result=_check_statement,
        allowed_errors=(MalformedImage,), max_len=_MIB, mutate=mutators.mutate_json,
        seeds=lambda: [json.dumps(_STATEMENT).encode(), b'{"subject":[]}', b"{}"],
        tokens=(b'"subject":', b'"digest":', b'"sha256":', b"null", b'"Subject":'),
    ),
    Target(
        name="dockerconfig", read=_read_credentials, allowed_errors=(SettingsError,), max_len=_MIB,
        seeds=lambda: [json.dumps(_CONFIG).encode(), b'{"credsStore":"desktop"}', b""],
        mutate=mutators.mutate_json,
        tokens=(b'"auths":', b'"auth":', b'"identitytoken":', b"\\ud800", b"\xff"),
    ),
    Target(
        name="helper", read=_read_helper, allowed_errors=(RegistryError,), max_len=_MIB,
        mutate=mutators.mutate_json_after_selector,
        seeds=lambda: [
            b'\0{"ServerURL":"x","Username":"a","Secret":"b"}', b'\0{"Username":"<token>","Secret":"b"}',
            b"\1credentials not found in native keychain",
        ],
        tokens=(b'"Username":', b'"Secret":', b"<token>", b"\\ud800", b"credentials not found"),
    ),
    Target(
        name="url", read=_read_url, check_result=_check_url, allowed_errors=(RegistryError,), max_len=17_000,
        seeds=lambda: [
            b"https://cdn.example.org/blob?x=1", b"/v2/a/blobs/uploads/1", b"http://[::1]:50/a", b"//h:80/x",
            b"ftp://h:5000/", b"https://user:p@h.example/", b"../x?y#z",
        ],
        tokens=(b"://", b"@", b"[", b"]", b":0", b":65536", b"%", b"\\", b"//", b"xn--", "。".encode()),
    ),
    Target(
        name="headers", read=_read_headers, check_result=_check_seconds,
        allowed_errors=(http.client.HTTPException, OSError, ValueError), max_len=64 << 10,
        seeds=lambda: [
            _RESPONSE, b"HTTP/1.0 200 OK\n\n",
            _RESPONSE.replace(b": 3", b": Fri, 31 Dec 1999 23:59:59 GMT"),
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ],
        tokens=(b"Retry-After: ", b"HTTP/1.1 ", b"\r\n", b"\r\n ", b"Content-Length: ", b" GMT"),
    ),
    Target(
        name="dockerfile", read=_read_dockerfile, check_result=_check_uses, max_len=_MIB,
        seeds=lambda: [
            b"# syntax=a/b:1\nARG A=x\nFROM --platform=$BUILDPLATFORM go:$A AS b\nRUN --mount=from=c ls\n",
            b"FROM a AS b\nFROM b\nCOPY --from=b / /\nCOPY --from=0 / /\n",
            b"# escape=`\nFROM `\n a\n", b"FROM ${A:-x}\nFROM scratch\nADD --from=q x /\n",
        ],
        tokens=(b"FROM ", b" AS ", b"COPY --from=", b"--mount=", b"from=", b"${", b":-", b"\\\n", b"ARG "),
    ),
    Target(
        name="bake", read=_read_bake, allowed_errors=(BuilderError, UsageError), max_len=_MIB,
        mutate=mutators.mutate_json, seeds=lambda: [json.dumps(_BAKE).encode()],
        tokens=(b'"group":', b'"target":', b'"contexts":', b"target:", b"null", b'"output":', b"${"),
    ),
    Target(
        name="csv", read=_read_csv, check_result=_check_csv, allowed_errors=(UsageError,), max_len=_MIB,
        seeds=lambda: [b"type=oci,dest=a.tar", b'type=oci,"dest=a,b.tar"', b'""""', b""],
        tokens=(b'"', b'""', b",", b"\n", b"\r", b"\0"),
    ),
    Target(
        name="inspect", read=_read_inspect, max_len=_MIB,
        seeds=lambda: [_INSPECT, _INSPECT.replace(b"linux/arm64", b""), b"Name: x\n"],
        tokens=(b"Name:", b"\nNodes:", b"Driver Options:", b'"', b"\\", b"Platforms:"),
    ),
    Target(
        name="engine", read=_read_engine, max_len=_MIB,
        allowed_errors=(EngineError,), mutate=mutators.mutate_json_after_zero,
        seeds=lambda: [json.dumps(_INFO).encode(), b"\0" + json.dumps(_IMAGE_INFO).encode(), b"{}"],
        tokens=(b'"ServerVersion":', b'"ServerErrors":', b'"DriverStatus":', b"null"),
    ),
    Target(
        name="outcome", read=_read_outcome, check_result=_check_outcome, max_len=_MIB,
        seeds=lambda: [
            b"\0\0Hello from amd64\n", b"\1\1x\0qemu-arm: uncaught target signal 4", b"\x84\1\0SIGILL: ill",
            b"\1\0\0fork: Resource temporarily unavailable", b"\x89\1\0** ERROR: tcg", b"\xff\2a\0b",
        ],
        tokens=(b"qemu-x86_64: ", b"QEMU internal SIG", b"Assertion", b"fork", b"errno=11", b"\n"),
    ),
)  # fmt: skip
