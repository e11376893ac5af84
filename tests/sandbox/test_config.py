"""The sandbox applies the image's configuration: ENTRYPOINT, CMD, ENV, WORKDIR and USER."""

from __future__ import annotations

import os

import pytest

from tests.sandbox.conftest import BusyboxImage, make_busybox_layer, run_command
from tests.support.oci import MemoryImage, add_platform, make_tar, member, write_archive
from tests.support.project import Project

UNPRIVILEGED = os.geteuid() != 0


def test_entrypoint_and_cmd(busybox_image: BusyboxImage, project: Project) -> None:
    name = busybox_image("linux/arm64", Entrypoint=["/bin/echo", "a"], Cmd=["b", "c d"])
    report = project.json("run-emulated", name, "--runner=sandbox")
    assert report["results"][0]["stdout"] == "a b c d\n"
    report = project.json("run-emulated", name, "--runner=sandbox", "--command=x 'y z'")
    assert report["results"][0]["stdout"] == "a x y z\n"
    assert report["results"][0]["command"] == "x 'y z'"


def test_environment(busybox_image: BusyboxImage, project: Project) -> None:
    name = busybox_image("linux/amd64", Env=["GREETING=hi there", "PATH=/bin:/usr/bin", "QEMU_CPU=nonsense"])
    lines = dict(line.split("=", 1) for line in run_command(project, name, "env"))
    assert lines["GREETING"] == "hi there"
    assert lines["PATH"] == "/bin:/usr/bin"
    assert lines["HOME"] == "/root"
    assert "QEMU_CPU" not in lines


def test_qemu_variables_are_dropped(busybox_image: BusyboxImage, project: Project) -> None:
    name = busybox_image("linux/arm64", Env=["QEMU_VERSION=1", "QEMU_CPU=nonsense"])
    assert run_command(project, name, "uname -m") == ["aarch64"]


@pytest.mark.parametrize("working_dir", ["/srv", "/made/for/it"])
def test_working_dir(busybox_image: BusyboxImage, project: Project, working_dir: str) -> None:
    assert run_command(project, busybox_image("linux/amd64", WorkingDir=working_dir), "pwd") == [working_dir]


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("", "uid=0(root) gid=0(root)"),
        ("app", "uid=1000(app) gid=1001(app)"),
        ("1000", "uid=1000(app) gid=1001(app)"),
        ("app:other", "uid=1000(app) gid=2001(other)"),
        ("1000:5", "uid=1000(app) gid=5"),
        ("4711", "uid=4711 gid=0(root)"),
        ("0:0", "uid=0(root) gid=0(root)"),
    ],
)
def test_user(busybox_image: BusyboxImage, project: Project, user: str, ids: str) -> None:
    (line,) = run_command(project, busybox_image("linux/amd64", User=user), "id")
    assert line.partition(" groups=")[0] == ids


@pytest.mark.skipif(UNPRIVILEGED, reason="an ordinary user cannot set groups")
def test_supplementary_groups(busybox_image: BusyboxImage, project: Project) -> None:
    (line,) = run_command(project, busybox_image("linux/amd64", User="app"), "id")
    assert line.endswith("groups=2000(extra)")


@pytest.mark.parametrize("user", ["ghost", "app:ghosts", "70000", "-1"])
def test_unknown_user(busybox_image: BusyboxImage, project: Project, user: str) -> None:
    name = busybox_image("linux/amd64", User=user)
    (result,) = project.json("run-emulated", name, "--runner=sandbox", expect=1)["results"]
    assert (result["outcome"], result["exit_code"]) == ("failed", None)
    assert f"USER {user!r}" in result["message"]


def test_home(busybox_image: BusyboxImage, project: Project) -> None:
    assert run_command(project, busybox_image("linux/amd64", User="app"), "echo $HOME") == ["/srv"]


def test_script(busybox_image: BusyboxImage, project: Project) -> None:
    name = busybox_image("linux/ppc64le", files={"run": b"#!/bin/sh\nuname -m\n"}, Cmd=["/run"])
    report = project.json("run-emulated", name, "--runner=sandbox", "--expect=^{machine}$")
    assert report["results"][0]["stdout"] == "ppc64le\n"


def test_path_of_image(busybox_image: BusyboxImage, project: Project) -> None:
    script = {"opt/hello": b"#!/bin/sh\necho opt\n"}
    name = busybox_image("linux/amd64", Cmd=["hello"], Env=["PATH=/opt:/bin"], files=script)
    report = project.json("run-emulated", name, "--runner=sandbox")
    assert report["results"][0]["stdout"] == "opt\n"


def test_file_owners(project: Project) -> None:
    memory, other_file = MemoryImage(), member("srv/other")
    other_file.uid, other_file.gid = 1000, 1001
    layers = [make_busybox_layer("linux/amd64", {}), make_tar({}, [other_file])]
    memory.set_index([add_platform(memory, "linux/amd64", layers, Cmd=["/bin/sh"])])
    name = f"oci-archive:{write_archive(memory, project.folder / 'image.tar')}"
    lines = run_command(project, name, "stat -c '%u:%g %a' /bin/busybox /srv/other")
    assert lines[0] == "0:0 755"
    assert lines[1] == ("0:0 755" if UNPRIVILEGED else "1000:1001 755")
