from __future__ import annotations

import socket
from pathlib import Path

import pytest

from buildkit_tasks.build.secrets import check_secrets, check_ssh, redact_userinfo
from buildkit_tasks.errors import UsageError


@pytest.fixture(autouse=True)
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("hunter2", encoding="utf-8")
    (tmp_path / "a,b").write_text("hunter2", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    return tmp_path


def usage_error(text: str, **environ: str) -> UsageError:
    with pytest.raises(UsageError) as excinfo:
        check_secrets([text], environ)
    assert excinfo.value.exit_code == 2
    return excinfo.value


@pytest.mark.parametrize(
    "text",
    [
        "id=x,src=key", "id=x,source=key", "src=key,ID=x", "id=x,type=file,src=key", 'id=x,"src=a,b"',
        "id=x,env=KEY", "id=x,type=env,env=KEY", "id=x,type=env,src=KEY", "id=KEY", "id=key",
    ],
)  # fmt: skip
def test_valid_secret(text: str) -> None:
    check_secrets([text], {"KEY": "hunter2"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("src=key", "has no id"),
        ("id=,src=key", "has no id"),
        ("id=x,src=nowhere", "secret x: there is no nowhere"),
        ("id=x,src=folder", "secret x: folder is not a file"),
        ("id=x,env=KEY", "secret x: the variable KEY is not set"),
        ("id=x,type=env,src=KEY", "secret x: the variable KEY is not set"),
        ("id=x", "secret x: neither a variable nor a file of that name was found"),
        ("id=x,type=vault,src=key", "type=vault is neither file nor env"),
        ("id=x,value=hunter2", "has the unknown key 'value'"),
        ("hunter2", "is not of the form name=value"),
        ("", "is not of the form name=value"),
        ("id=x,src=key\nid=y,src=key", "has more than one line"),
        ('id=x,"src=hunter2', "is not valid CSV"),
    ],
)
def test_invalid_secret(text: str, message: str) -> None:
    error = usage_error(text)
    assert message in error.message
    assert "hunter2" not in str(error)


def test_empty_variable() -> None:
    assert "is not set" in usage_error("id=x,env=KEY", KEY="").message


def test_secret_size_limit(work_dir: Path) -> None:
    (work_dir / "key").write_bytes(b"x" * (500 * 1024))
    check_secrets(["id=x,src=key"], {})
    (work_dir / "key").write_bytes(b"x" * (500 * 1024 + 1))
    assert "the limit of BuildKit" in usage_error("id=x,src=key").message


def test_valid_ssh(work_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(work_dir / "agent"))
        check_ssh(["default", "mine=key", "other=agent"], {"SSH_AUTH_SOCK": str(work_dir / "agent")})


@pytest.mark.parametrize(
    ("text", "environ", "message"),
    [
        ("default", {}, "no agent is running"),
        ("default=", {}, "no agent is running"),
        ("default", {"SSH_AUTH_SOCK": "gone"}, "there is no gone"),
        ("mine=nowhere", {}, "ssh mine: there is no nowhere"),
        ("mine=key,nowhere", {}, "ssh mine: there is no nowhere"),
        ("=key", {}, "has no name"),
    ],
)
def test_invalid_ssh(text: str, environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_ssh([text], environ)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("keeper:hunter2@example.org/x", "***@example.org/x"),
        ("type=registry,ref=a:b@example.org/x", "type=registry,ref=***@example.org/x"),
        ("x:1@sha256:" + "0" * 64, "x:1@sha256:" + "0" * 64),
        ("example.org:5000/x:1", "example.org:5000/x:1"),
    ],
)
def test_redact_userinfo(text: str, redacted: str) -> None:
    assert redact_userinfo(text) == redacted
