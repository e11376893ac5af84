"""Where the kernel gives no sandbox: the reason is told, and ``auto`` goes to Docker."""

from __future__ import annotations

import errno
import shlex
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.platforms import native_platform
from buildkit_tasks.report.model import Outcome
from buildkit_tasks.run.sandbox import supervisor_pool as emulators
from buildkit_tasks.run.sandbox.availability import explain_unavailable
from buildkit_tasks.run.sandbox.supervisor import ID_OFFSET, KernelRefusal, Supervisor, id_offset
from buildkit_tasks.system.command import SubprocessRunner
from tests.integration.test_runs import image
from tests.support.project import TASKS, Done, Project, program

# A user namespace in which none can be made, as where an administrator has closed them.
_CLOSED = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'


def closed(project: Project, *words: str) -> Done:
    argv = ("unshare", "--user", "--map-root-user", "sh", "-c", _CLOSED, "sh", *TASKS, *words)
    done = project.command(*argv)
    assert "unshare:" not in done.stderr, shlex.join(argv) + done.stderr
    return done


def test_a_sandbox_that_was_asked_for_and_cannot_be_had_ends_with_3(project: Project) -> None:
    name = image(project, ("linux/arm64", program("linux/arm64")))
    done = closed(project, "run-emulated", name, "--runner=sandbox")
    assert done.code == 3
    assert "sysctl user.max_user_namespaces is 0" in done.stderr
    assert "--runner=docker" in done.stderr
    assert "Traceback" not in done.stderr


def test_auto_says_why_and_turns_to_an_engine(project: Project) -> None:
    name = image(project, ("linux/arm64", program("linux/arm64")))
    nowhere = project.with_env(DOCKER_HOST="unix:///nowhere/docker.sock")
    done = closed(nowhere, "run-emulated", name, "--engine=system")
    assert "sysctl user.max_user_namespaces is 0" in done.stderr
    assert "running in Docker" in done.stderr
    assert done.code == 3  # there is no engine at that socket
    assert "/nowhere/docker.sock" in done.stderr


def test_who_has_none_of_the_ids_for_guests_runs_them_under_its_own(project: Project) -> None:
    """Such as the root of a rootless container."""
    name = image(project, ("linux/arm64", program("linux/arm64")))
    words = (*TASKS, "run-emulated", name, "--runner=sandbox", "--json")
    done = project.command("unshare", "--user", "--map-root-user", *words)
    assert done.code == 0, done.stderr
    assert done.document["results"][0]["outcome"] == "passed"


@pytest.mark.parametrize(
    ("user", "ids", "shift"),
    [
        (0, "0 0 4294967295", ID_OFFSET),
        (0, f"0 1000 1\n1 {ID_OFFSET} 65536", None),
        (0, f"0 1000 1\n{ID_OFFSET} 100000 65536", ID_OFFSET),
        (0, f"{ID_OFFSET} 100000 65535", None),
        (1000, "0 0 4294967295", None),
    ],
)
def test_guests_have_ids_of_their_own_where_there_are_any(
    tmp_path: Path, user: int, ids: str, shift: int | None
) -> None:
    for name in ("uid_map", "gid_map"):
        (tmp_path / name).write_text(ids, encoding="ascii")
    assert id_offset(user, tmp_path) == shift


REFUSED = KernelRefusal("unshare user namespace", 1)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces is 0"),
        ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone is 0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor closes user namespaces"),
    ],
)
def test_a_closed_setting_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(f"{value}\n", encoding="utf-8")
    assert words in explain_unavailable(REFUSED, tmp_path, "6.18.0")
    (tmp_path / name).write_text("7\n", encoding="utf-8")
    assert words not in explain_unavailable(REFUSED, tmp_path, "6.18.0")


def test_a_setting_that_binds_ordinary_users_is_no_reason_for_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/apparmor_restrict_unprivileged_userns").write_text("1\n", encoding="utf-8")
    assert "AppArmor" not in explain_unavailable(REFUSED, tmp_path, "6.18.0")


@pytest.mark.parametrize(("release", "old"), [("6.6.87-generic", True), ("5.15.0", True), ("6.7.0", False)])
def test_a_kernel_with_one_table_for_all_is_named(tmp_path: Path, release: str, old: bool) -> None:
    told = explain_unavailable(KernelRefusal("mount binfmt_misc", 1), tmp_path, release)
    assert (f"Linux {release} has one handler table for all" in told) == old
    assert "Operation not permitted" in told


def test_a_cache_that_cannot_be_used_is_no_lack_of_an_emulator(project: Project, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    name = image(project, ("linux/amd64", program("linux/amd64")))
    apart = project.with_env(INVOKE_BUILDKIT_CACHE=str(tmp_path / "file"))
    done = apart.task("run-emulated", name, "--runner=sandbox", "--json", expect=3)
    assert "cannot be used to unpack images" in done.document["error"]


def test_a_second_sandbox_that_is_refused_fails_its_platform_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's own programs on another CPU have one of their own."""

    def refuse() -> Supervisor:
        raise KernelRefusal("unshare user namespace", errno.ENOSPC)

    native = str(native_platform())
    name = image(project, (native, program(native)), ("linux/s390x", program("linux/s390x")))
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(emulators, "Supervisor", refuse)
    line = Pipeline(
        settings=load_settings({"runner": "sandbox", "cpu": "floor"}),
        commands=SubprocessRunner(),
        notify=print,
    )
    refused, passed = line.run_image(name).results
    assert (refused.outcome, refused.limited) == (Outcome.FAILED, True)
    assert "could not unshare user namespace" in refused.message
    assert passed.outcome is Outcome.PASSED
