from __future__ import annotations

import socket
from pathlib import Path

import pytest

from buildkit_tasks.build.secrets import check_secrets, check_ssh, redact_userinfo
from buildkit_tasks.errors import UsageError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("hunter2", encoding="utf-8")
    (tmp_path / "a,b").write_text("hunter2", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    return tmp_path


def refused(text: str, **environ: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        check_secrets([text], environ)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "id=x,src=key", "id=x,source=key", "src=key,ID=x", "id=x,type=file,src=key", 'id=x,"src=a,b"',
        "id=x,env=KEY", "id=x,type=env,env=KEY", "id=x,type=env,src=KEY", "id=KEY", "id=key",
    ],
)  # fmt: skip
def test_a_secret_is_read_as_buildx_reads_it(text: str) -> None:
    check_secrets([text], {"KEY": "hunter2"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("src=key", "has no id"),
        ("id=,src=key", "has no id"),
        ("id=x,src=nowhere", "secret x: there is no nowhere"),
        ("id=x,src=folder", "secret x: folder is not a file"),
        ("id=x,env=KEY", "secret x: the variable KEY is not set"),
        ("id=x,type=env,src=KEY", "secret x: the variable KEY is not set"),
        ("id=x", "secret x: there is no x"),
        ("id=x,type=vault,src=key", "type=vault is neither file nor env"),
        ("id=x,value=hunter2", "has the unknown key 'value'"),
        ("hunter2", "is not of the form name=value"),
        ("", "is not of the form name=value"),
        ("id=x,src=key\nid=y,src=key", "has more than one line"),
        ('id=x,"src=hunter2', "is not valid CSV"),
    ],
)
def test_a_secret_that_the_build_would_miss_is_refused_before_it(text: str, said: str) -> None:
    error = refused(text)
    assert said in error.message
    assert "hunter2" not in str(error)


def test_a_variable_that_is_empty_is_as_good_as_none() -> None:
    assert "is not set" in refused("id=x,env=KEY", KEY="").message


def test_a_secret_larger_than_buildkit_takes_is_refused(here: Path) -> None:
    (here / "key").write_bytes(b"x" * (500 * 1024))
    check_secrets(["id=x,src=key"], {})
    (here / "key").write_bytes(b"x" * (500 * 1024 + 1))
    assert "the limit of BuildKit" in refused("id=x,src=key").message


def test_an_agents_socket_or_a_key_is_taken(here: Path) -> None:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(here / "agent"))
        check_ssh(["default", "mine=key", "other=agent"], {"SSH_AUTH_SOCK": str(here / "agent")})


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ("default", {}, "no agent is running"),
        ("default=", {}, "no agent is running"),
        ("default", {"SSH_AUTH_SOCK": "gone"}, "there is no gone"),
        ("mine=nowhere", {}, "ssh mine: there is no nowhere"),
        ("mine=key,nowhere", {}, "ssh mine: there is no nowhere"),
        ("=key", {}, "has no name"),
    ],
)
def test_an_agent_or_key_that_is_not_there_is_refused(text: str, environ: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_ssh([text], environ)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("keeper:hunter2@example.org/x", "***@example.org/x"),
        ("type=registry,ref=a:b@example.org/x", "type=registry,ref=***@example.org/x"),
        ("x:1@sha256:" + "0" * 64, "x:1@sha256:" + "0" * 64),
        ("example.org:5000/x:1", "example.org:5000/x:1"),
    ],
)
def test_a_user_is_taken_out_of_a_reference_and_a_digest_is_none(text: str, shown: str) -> None:
    assert redact_userinfo(text) == shown
