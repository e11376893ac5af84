"""What an image's configuration says is done: ENTRYPOINT, CMD, ENV, WORKDIR, USER."""

from __future__ import annotations

import os

import pytest

from tests.sandbox.conftest import Busy, layer_of_busybox, says
from tests.support.oci import Memory, add_platform, make_tar, member, write_archive
from tests.support.project import Project

ORDINARY = os.geteuid() != 0


def test_entrypoint_and_command_are_joined(busy: Busy, project: Project) -> None:
    image = busy("linux/arm64", Entrypoint=["/bin/echo", "a"], Cmd=["b", "c d"])
    report = project.json("run-emulated", image, "--runner=sandbox")
    assert report["results"][0]["stdout"] == "a b c d\n"
    report = project.json("run-emulated", image, "--runner=sandbox", "--command=x 'y z'")
    assert report["results"][0]["stdout"] == "a x y z\n"
    assert report["results"][0]["command"] == "x 'y z'"


def test_the_environment_is_the_images_own(busy: Busy, project: Project) -> None:
    image = busy("linux/amd64", Env=["GREETING=hi there", "PATH=/bin:/usr/bin", "QEMU_CPU=nonsense"])
    lines = dict(line.split("=", 1) for line in says(project, image, "env"))
    assert lines["GREETING"] == "hi there"
    assert lines["PATH"] == "/bin:/usr/bin"
    assert lines["HOME"] == "/root"
    assert "QEMU_CPU" not in lines


def test_an_image_cannot_steer_the_emulator(busy: Busy, project: Project) -> None:
    image = busy("linux/arm64", Env=["QEMU_VERSION=1", "QEMU_CPU=nonsense"])
    assert says(project, image, "uname -m") == ["aarch64"]


@pytest.mark.parametrize("place", ["/srv", "/made/for/it"])
def test_the_working_folder_is_the_images_and_is_made(busy: Busy, project: Project, place: str) -> None:
    assert says(project, busy("linux/amd64", WorkingDir=place), "pwd") == [place]


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
def test_the_user_is_the_images(busy: Busy, project: Project, user: str, ids: str) -> None:
    (line,) = says(project, busy("linux/amd64", User=user), "id")
    assert line.partition(" groups=")[0] == ids


@pytest.mark.skipif(ORDINARY, reason="an ordinary user has no groups to give")
def test_the_users_other_groups_are_had(busy: Busy, project: Project) -> None:
    (line,) = says(project, busy("linux/amd64", User="app"), "id")
    assert line.endswith("groups=2000(extra)")


@pytest.mark.parametrize("user", ["ghost", "app:ghosts", "70000", "-1"])
def test_a_user_that_is_not_in_the_image_is_told(busy: Busy, project: Project, user: str) -> None:
    image = busy("linux/amd64", User=user)
    (row,) = project.json("run-emulated", image, "--runner=sandbox", expect=1)["results"]
    assert (row["outcome"], row["exit_code"]) == ("failed", None)
    assert f"USER {user!r}" in row["message"]


def test_the_users_home_is_in_its_environment(busy: Busy, project: Project) -> None:
    assert says(project, busy("linux/amd64", User="app"), "echo $HOME") == ["/srv"]


def test_a_script_runs_through_its_interpreter(busy: Busy, project: Project) -> None:
    image = busy("linux/ppc64le", files={"run": b"#!/bin/sh\nuname -m\n"}, Cmd=["/run"])
    report = project.json("run-emulated", image, "--runner=sandbox", "--expect=^{machine}$")
    assert report["results"][0]["stdout"] == "ppc64le\n"


def test_a_command_is_looked_for_in_the_images_path(busy: Busy, project: Project) -> None:
    script = {"opt/hello": b"#!/bin/sh\necho opt\n"}
    image = busy("linux/amd64", Cmd=["hello"], Env=["PATH=/opt:/bin"], files=script)
    report = project.json("run-emulated", image, "--runner=sandbox")
    assert report["results"][0]["stdout"] == "opt\n"


def test_files_belong_to_whom_the_image_says(project: Project) -> None:
    memory, theirs = Memory(), member("srv/theirs")
    theirs.uid, theirs.gid = 1000, 1001
    layers = [layer_of_busybox("linux/amd64", {}), make_tar({}, [theirs])]
    memory.index([add_platform(memory, "linux/amd64", layers, Cmd=["/bin/sh"])])
    name = f"oci-archive:{write_archive(memory, project.folder / 'image.tar')}"
    lines = says(project, name, "stat -c '%u:%g %a' /bin/busybox /srv/theirs")
    assert lines[0] == "0:0 755"
    assert lines[1] == ("0:0 755" if ORDINARY else "1000:1001 755")
