from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from buildkit_tasks.build.outputs import OutputSpec
from buildkit_tasks.build.reproducible import (
    check_rewrite_timestamps,
    find_explicit_epoch,
    resolve_epoch,
    rewrite_timestamps,
)
from buildkit_tasks.errors import EngineError, SettingsError, UsageError
from buildkit_tasks.system.command import SubprocessRunner
from tests.support.scripted import Scripted

GIT = "git -C here log -1 --format=%ct"


def test_epoch_of_environment() -> None:
    epoch = resolve_epoch("here", [], {"SOURCE_DATE_EPOCH": "1700000000"}, Scripted())
    assert (epoch.seconds, epoch.origin) == (1700000000, "the environment")


def test_epoch_of_build_arg() -> None:
    epoch = find_explicit_epoch(["A=1", "SOURCE_DATE_EPOCH=5"], {"SOURCE_DATE_EPOCH": "7"})
    assert epoch is not None
    assert (epoch.seconds, epoch.origin) == (5, "--build-arg")


def test_build_arg_without_value() -> None:
    epoch = find_explicit_epoch(["SOURCE_DATE_EPOCH"], {"SOURCE_DATE_EPOCH": "7"})
    assert epoch is not None
    assert epoch.seconds == 7


def test_epoch_of_commit() -> None:
    epoch = resolve_epoch(
        "here", [], {"SOURCE_DATE_EPOCH": ""}, Scripted().expect(GIT, stdout="1600000000\n")
    )
    assert (epoch.seconds, epoch.origin) == (1600000000, "the last git commit")


def test_epoch_zero() -> None:
    no_commit = Scripted().expect(GIT, returncode=128, stderr="fatal: not a git repository\n")
    assert resolve_epoch("here", [], {}, no_commit).origin == "no git commit: fatal: not a git repository"
    assert resolve_epoch("here", [], {}, no_commit).seconds == 0
    no_git = Scripted().expect(GIT, error=EngineError("'git' does not exist here"))
    assert resolve_epoch("here", [], {}, no_git).origin == "git is not installed"


@pytest.mark.parametrize(
    "text", ["abc", "-5", "1.5", " 1", "1\n", "0x10", "\u0661", "253402300800", "1" * 13]
)
def test_invalid_epoch(text: str) -> None:
    with pytest.raises(SettingsError, match="environment SOURCE_DATE_EPOCH") as excinfo:
        find_explicit_epoch([], {"SOURCE_DATE_EPOCH": text})
    assert excinfo.value.exit_code == 2
    with pytest.raises(UsageError, match="--build-arg SOURCE_DATE_EPOCH"):
        find_explicit_epoch([f"SOURCE_DATE_EPOCH={text}"], {})


@pytest.mark.parametrize("text", ["0", "1700000000", "253402300799"])
def test_epoch_bounds(text: str) -> None:
    epoch = find_explicit_epoch([], {"SOURCE_DATE_EPOCH": text})
    assert epoch is not None
    assert epoch.seconds == int(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("type=oci,dest=x", "type=oci,dest=x,rewrite-timestamp=true"),
        ("type=docker,dest=x", "type=docker,dest=x,rewrite-timestamp=true"),
        ("type=image,push=true", "type=image,push=true,rewrite-timestamp=true"),
        ("type=registry", "type=registry,rewrite-timestamp=true"),
        ("type=local,dest=x", "type=local,dest=x"),
        ("type=tar,dest=x", "type=tar,dest=x"),
        ("type=oci,dest=x,rewrite-timestamp=false", "type=oci,dest=x,rewrite-timestamp=false"),
    ],
)
def test_rewrite_timestamps(text: str, expected: str) -> None:
    assert [str(output) for output in rewrite_timestamps([OutputSpec.parse(text)])] == [expected]


@pytest.mark.parametrize("text", ["type=image,name=x", "type=docker"])
def test_docker_driver_cannot_rewrite(text: str) -> None:
    with pytest.raises(UsageError, match="cannot rewrite times"):
        check_rewrite_timestamps([OutputSpec.parse(text)], "docker")
    check_rewrite_timestamps([OutputSpec.parse(text)], "docker-container")


@pytest.mark.parametrize(
    "text",
    [
        "type=oci,dest=x",
        "type=docker,dest=x",
        "type=local,dest=x",
        "type=tar,dest=x",
        "type=registry",
        "type=image,push=true",
    ],
)
def test_docker_driver_can_rewrite(text: str) -> None:
    check_rewrite_timestamps([OutputSpec.parse(text)], "docker")


def test_program_of_git_configuration(tmp_path: Path) -> None:
    """A commit with a signature, and a repository that names a program to check it."""
    mark, program = tmp_path / "mark", tmp_path / "gpg"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)

    def git(*arguments: str, data: str = "") -> str:
        argv = ["git", "-C", str(tmp_path), *arguments]
        return subprocess.run(argv, check=True, capture_output=True, text=True, input=data).stdout.strip()

    git("init", "-q")
    tree = git("mktree")
    person = "a <a@example.org> 1600000000 +0000"
    signature = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n -----END PGP SIGNATURE-----"
    commit = f"tree {tree}\nauthor {person}\ncommitter {person}\n{signature}\n\nfirst\n"
    git("update-ref", "HEAD", git("hash-object", "-t", "commit", "-w", "--stdin", data=commit))
    git("config", "gpg.program", str(program))
    git("config", "log.showSignature", "true")
    git("log", "-1")
    assert mark.exists()
    mark.unlink()
    epoch = resolve_epoch(str(tmp_path), [], {}, SubprocessRunner(dry_run_output=sys.stderr))
    assert (epoch.seconds, mark.exists()) == (1600000000, False)
