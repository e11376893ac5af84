# ruff: noqa: S105, S106 - not real passwords
from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from buildkit_tasks.errors import EngineError, RegistryError, SettingsError
from buildkit_tasks.oci.registry.credentials import Credential, CredentialStore, load_credentials
from buildkit_tasks.system.command import SubprocessRunner
from tests.support.scripted import Scripted

HUB_KEY = "https://index.docker.io/v1/"
SECRET = "hunter2:and a colon"


def encode_auth(username: str = "me", password: str = SECRET) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def load_store(
    folder: Path, document: object, commands: Scripted | SubprocessRunner | None = None
) -> CredentialStore:
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return load_credentials({"DOCKER_CONFIG": str(folder)}, commands or Scripted())


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("127.0.0.1:5000", "127.0.0.1:5000"),
        ("https://ghcr.io", "ghcr.io"),
        ("http://ghcr.io/v2/", "ghcr.io"),
        (HUB_KEY, "docker.io"),
        ("index.docker.io", "docker.io"),
    ],
)
def test_docker_login_is_found_by_host(tmp_path: Path, key: str, host: str) -> None:
    credential = load_store(tmp_path, {"auths": {key: {"auth": encode_auth()}}}).find(host)
    assert credential == Credential(username="me", password=SECRET)
    assert credential.basic_authorization == "Basic " + encode_auth()


def test_other_host_has_no_credentials(tmp_path: Path) -> None:
    credentials = load_store(
        tmp_path, {"auths": {"ghcr.io": {"auth": encode_auth()}, HUB_KEY: {"auth": encode_auth("hub")}}}
    )
    assert credentials.find("ghcr.io.evil.example") is None
    assert credentials.find("evil.example") is None
    assert credentials.find("io") is None
    assert credentials.find("ghcr.io:5000") is None
    assert credentials.find("docker.io") == Credential(username="hub", password=SECRET)


def test_exact_key_wins(tmp_path: Path) -> None:
    both = {"https://ghcr.io": {"auth": encode_auth("url")}, "ghcr.io": {"auth": encode_auth("host")}}
    credential = load_store(tmp_path, {"auths": both}).find("ghcr.io")
    assert credential is not None
    assert credential.username == "host"


def test_plain_credentials_and_tokens(tmp_path: Path) -> None:
    entries = {
        "a": {"username": "me", "password": "p"},
        "b": {"auth": encode_auth("<token>", ""), "identitytoken": "refresh"},
        "c": {"registrytoken": "bearer"},
        "d": {},
        "e": {"auth": encode_auth("me", "p\x00")},
    }
    credentials = load_store(tmp_path, {"auths": entries})
    assert credentials.find("a") == Credential(username="me", password="p")
    assert credentials.find("b") == Credential(username="<token>", identity_token="refresh")
    assert credentials.find("c") == Credential(registry_token="bearer")
    assert credentials.find("d") == Credential()
    assert credentials.find("e") == Credential(username="me", password="p")


def test_helper_protocol(tmp_path: Path) -> None:
    output = json.dumps({"ServerURL": "x", "Username": "me", "Secret": SECRET})
    commands = Scripted().expect("docker-credential-keep get", stdout=output)
    credentials = load_store(tmp_path, {"credsStore": "keep", "auths": {"ghcr.io": {}}}, commands)
    assert credentials.find("ghcr.io") == Credential(username="me", password=SECRET)
    assert credentials.find("docker.io") == Credential(username="me", password=SECRET)
    assert [call.argv for call in commands.calls] == [("docker-credential-keep", "get")] * 2
    assert [call.options.stdin for call in commands.calls] == [b"ghcr.io", HUB_KEY.encode()]
    assert all(call.options.timeout and not call.mutates for call in commands.calls)


def test_host_helper_wins(tmp_path: Path) -> None:
    commands = Scripted().expect("docker-credential-own get", stdout='{"Username":"own","Secret":"s"}')
    commands.expect("docker-credential-all get", stdout='{"Username":"all","Secret":"s"}')
    credentials = load_store(tmp_path, {"credsStore": "all", "credHelpers": {"ghcr.io": "own"}}, commands)
    names = [credential.username for host in ("ghcr.io", "quay.io") if (credential := credentials.find(host))]
    assert names == ["own", "all"]


def test_helper_identity_token(tmp_path: Path) -> None:
    commands = Scripted().expect(
        "docker-credential-keep get", stdout='{"Username":"<token>","Secret":"refresh"}'
    )
    credentials = load_store(tmp_path, {"credsStore": "keep"}, commands)
    assert credentials.find("x.azurecr.io") == Credential(identity_token="refresh")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_helper_without_credentials(tmp_path: Path, stream: str) -> None:
    message = "credentials not found in native keychain\n"
    commands = Scripted().expect(
        "docker-credential-keep get",
        returncode=1,
        stdout=message if stream == "stdout" else "",
        stderr=message if stream == "stderr" else "",
    )
    credentials = load_store(
        tmp_path, {"credsStore": "keep", "auths": {"ghcr.io": {"auth": encode_auth()}}}, commands
    )
    assert credentials.find("ghcr.io") is None  # as in Docker, the file is not used with a helper


@pytest.mark.parametrize(
    ("returncode", "stdout", "error", "message"),
    [
        (1, SECRET, None, "exited with status 1"),
        (0, SECRET, None, "not a JSON credential"),
        (0, "[" * 100_000, None, "not a JSON credential"),
        (0, '{"Username": 1, "Secret": "x"}', None, "not a JSON credential"),
        (0, "[]", None, "not a JSON credential"),
        (0, '{"Username": "\\ud800", "Secret": "x"}', None, "not a JSON credential"),
        (0, '{"Username": "x", "Secret": "\\udc00"}', None, "not a JSON credential"),
        (0, "", EngineError("'docker-credential-keep' does not exist here"), "does not exist here"),
        (0, "", PermissionError(13, "Permission denied"), "Permission denied"),
    ],
)
def test_broken_helper_hides_output(
    tmp_path: Path, returncode: int, stdout: str, error: BaseException | None, message: str
) -> None:
    commands = Scripted().expect(
        "docker-credential-keep get", returncode=returncode, stdout=stdout, error=error
    )
    with pytest.raises(RegistryError, match=message) as excinfo:
        load_store(tmp_path, {"credsStore": "keep"}, commands).find("ghcr.io")
    assert "docker-credential-keep" in excinfo.value.message
    assert SECRET not in str(excinfo.value)


def test_real_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/docker-credential-mine"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nread host\necho "{\\"Username\\":\\"$1-$host\\",\\"Secret\\":\\"s\\"}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    credential = load_store(tmp_path, {"credsStore": "mine"}, SubprocessRunner()).find("ghcr.io")
    assert credential == Credential(username="get-ghcr.io", password="s")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '{"auths": []}',
        '{"auths": {"x": "y"}}',
        '{"auths": {"x": {"auth": 1}}}',
        '{"auths": {"x": {"auth": "!!!"}}}',
        '{"auths": {"x": {"auth": "bm9jb2xvbg=="}}}',
        '{"auths": {"x": {"auth": "\u00fc:\u00e9"}}}',
        '{"auths": {"x": {"auth": "\\ud800"}}}',
        '{"auths": {"x": {"username": "\\ud800"}}}',
        '{"auths": {"x": {"password": "\\udfff"}}}',
        '{"auths": {"x": {"identitytoken": "a\\udc00b"}}}',
        '{"auths": {"x": {"registrytoken": "\\ud800"}}}',
        '{"credsStore": "../../bin/sh"}',
        '{"credsStore": "a b"}',
        '{"credsStore": "-x"}',
        '{"credsStore": ["x"]}',
        '{"credsStore": []}',
        '{"auths": {"x": null}}',
        '{"auths": {"x": {"identitytoken": 0}}}',
        '{"credHelpers": {"x": ""}}',
        '{"credHelpers": "x"}',
        "[" * 100_000,
        '{"a": ' + "1" * 5000 + "}",
        "\ud800",
    ],
)
def test_malformed_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    raw = text.encode("utf-8", "surrogatepass")
    path.write_bytes(raw)
    with pytest.raises(SettingsError) as excinfo:
        load_credentials({"DOCKER_CONFIG": str(tmp_path)}, Scripted())
    assert excinfo.value.exit_code == 2
    assert str(path) in excinfo.value.message
    assert path.read_bytes() == raw


def test_config_is_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(SettingsError, match="Is a directory"):
        load_credentials({"DOCKER_CONFIG": str(tmp_path)}, Scripted())


@pytest.mark.parametrize("text", ["", " \n", "{}", '{"auths": null, "credsStore": ""}'])
def test_missing_docker_config_is_anonymous(tmp_path: Path, text: str) -> None:
    assert load_credentials({"DOCKER_CONFIG": str(tmp_path)}, Scripted()).find("ghcr.io") is None
    assert load_store(tmp_path, text).find("ghcr.io") is None


def test_config_in_home(tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(json.dumps({"auths": {"x": {"auth": encode_auth()}}}))
    assert load_credentials({"HOME": str(tmp_path)}, Scripted()).find("x") is not None


def test_repr_hides_secrets(tmp_path: Path) -> None:
    entries = {"a": {"auth": encode_auth()}, "b": {"identitytoken": SECRET}, "c": {"registrytoken": SECRET}}
    credentials = load_store(tmp_path, {"auths": entries})
    text = repr(credentials) + "".join(repr(credentials.find(host)) for host in entries)
    assert SECRET not in text
    assert encode_auth() not in text
