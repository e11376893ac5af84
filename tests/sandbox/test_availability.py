"""Kernels that do not allow a sandbox: the message names the cause, and ``auto`` uses Docker."""

from __future__ import annotations

import errno
import shlex
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.platforms import native_platform
from buildkit_tasks.report.model import Outcome
from buildkit_tasks.run.sandbox import supervisor_pool
from buildkit_tasks.run.sandbox.availability import explain_unavailable
from buildkit_tasks.run.sandbox.supervisor import ID_OFFSET, KernelRefusal, Supervisor, id_offset
from buildkit_tasks.system.command import SubprocessRunner
from tests.support.oci import write_program_image
from tests.support.project import TASKS, Project, program
from tests.support.task_server import CompletedCommand

# Run a command in a user namespace in which no other can be created, as where an administrator denies them.
_DENY_USER_NAMESPACES = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'


def run_without_sandbox(project: Project, *args: str) -> CompletedCommand:
    shell = ("sh", "-c", _DENY_USER_NAMESPACES, "sh")
    argv = ("unshare", "--user", "--map-root-user", *shell, *TASKS, *args)
    done = project.command(*argv)
    assert "unshare:" not in done.stderr, shlex.join(argv) + done.stderr
    return done


def test_sandbox_unavailable(project: Project) -> None:
    name = write_program_image(project.folder, ("linux/arm64", program("linux/arm64")))
    done = run_without_sandbox(project, "run-emulated", name, "--runner=sandbox")
    assert done.code == 3
    assert "sysctl user.max_user_namespaces is 0" in done.stderr
    assert "--runner=docker" in done.stderr
    assert "Traceback" not in done.stderr


def test_auto_falls_back_to_docker(project: Project) -> None:
    name = write_program_image(project.folder, ("linux/arm64", program("linux/arm64")))
    unreachable = project.with_env(DOCKER_HOST="unix:///nowhere/docker.sock")
    done = run_without_sandbox(unreachable, "run-emulated", name, "--engine=system")
    assert "sysctl user.max_user_namespaces is 0" in done.stderr
    assert "running in Docker" in done.stderr
    assert done.code == 3  # no engine listens on that socket
    assert "/nowhere/docker.sock" in done.stderr


def test_root_without_guest_ids(project: Project) -> None:
    """For example in a rootless container."""
    name = write_program_image(project.folder, ("linux/arm64", program("linux/arm64")))
    argv = (*TASKS, "run-emulated", name, "--runner=sandbox", "--json")
    done = project.command("unshare", "--user", "--map-root-user", *argv)
    assert done.code == 0, done.stderr
    assert done.document["results"][0]["outcome"] == "passed"


@pytest.mark.parametrize(
    ("uid", "id_map", "offset"),
    [
        (0, "0 0 4294967295", ID_OFFSET),
        (0, f"0 1000 1\n1 {ID_OFFSET} 65536", None),
        (0, f"0 1000 1\n{ID_OFFSET} 100000 65536", ID_OFFSET),
        (0, f"{ID_OFFSET} 100000 65535", None),
        (1000, "0 0 4294967295", None),
    ],
)
def test_id_offset(tmp_path: Path, uid: int, id_map: str, offset: int | None) -> None:
    for name in ("uid_map", "gid_map"):
        (tmp_path / name).write_text(id_map, encoding="ascii")
    assert id_offset(uid, tmp_path) == offset


REFUSAL = KernelRefusal("unshare user namespace", 1)


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces is 0"),
        ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone is 0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor denies user namespaces"),
    ],
)
def test_blocking_sysctl_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, cause: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(f"{value}\n", encoding="utf-8")
    assert cause in explain_unavailable(REFUSAL, tmp_path, "6.18.0")
    (tmp_path / name).write_text("7\n", encoding="utf-8")
    assert cause not in explain_unavailable(REFUSAL, tmp_path, "6.18.0")


def test_apparmor_does_not_restrict_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/apparmor_restrict_unprivileged_userns").write_text("1\n", encoding="utf-8")
    assert "AppArmor" not in explain_unavailable(REFUSAL, tmp_path, "6.18.0")


@pytest.mark.parametrize(
    ("release", "is_old"), [("6.6.87-generic", True), ("5.15.0", True), ("6.7.0", False)]
)
def test_old_kernel_is_named(tmp_path: Path, release: str, is_old: bool) -> None:
    message = explain_unavailable(KernelRefusal("mount binfmt_misc", 1), tmp_path, release)
    assert (f"Linux {release} has one binfmt_misc table for all" in message) == is_old
    assert "Operation not permitted" in message


def test_unusable_cache_directory(project: Project, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    name = write_program_image(project.folder, ("linux/amd64", program("linux/amd64")))
    project = project.with_env(INVOKE_BUILDKIT_CACHE=str(tmp_path / "file"))
    done = project.task("run-emulated", name, "--runner=sandbox", "--json", expect=3)
    assert "the cache cannot be written: " in done.document["error"]


def test_second_supervisor_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Native programs on another CPU model need a second supervisor; its refusal fails only them."""

    def refuse() -> Supervisor:
        raise KernelRefusal("unshare user namespace", errno.ENOSPC)

    native = str(native_platform())
    name = write_program_image(
        project.folder, (native, program(native)), ("linux/s390x", program("linux/s390x"))
    )
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(supervisor_pool, "Supervisor", refuse)
    pipeline = Pipeline(
        settings=load_settings({"runner": "sandbox", "cpu": "floor"}),
        commands=SubprocessRunner(),
        notify=print,
    )
    refused, passed = pipeline.run_image(name).results
    assert (refused.outcome, refused.limited) == (Outcome.FAILED, True)
    assert "could not unshare user namespace" in refused.message
    assert passed.outcome is Outcome.PASSED
