"""Faults of a configuration: diff_ids, and the program that it starts."""

from __future__ import annotations

from tests.planted_faults.bases import Parts
from tests.planted_faults.index_faults import AMD64, ARM64
from tests.planted_faults.planting import Catch, Planted, Question, fault, sound_image
from tests.support import edits
from tests.support.oci import Json, hard_link, symlink

TWO = Question(platforms=[AMD64, ARM64])
HELLO = "/usr/local/bin/hello"
TOP = 4  # the number of a layer on top of the example's four


def _starts(parts: Parts, platform: str, script: bytes, command: str = "/run") -> Planted:
    """The example started by a script; the control's names busybox's shell."""
    sound = edits.select_platforms(parts.hello, platform)
    right = edits.add_files(sound, platform, {"run": b"#!/bin/sh\nexec hello\n"})
    wrong = edits.add_files(sound, platform, {"run": script})
    return Planted(
        image=edits.set_runtime_config(wrong, platform, Entrypoint=[command], Cmd=None),
        control=edits.set_runtime_config(right, platform, Entrypoint=[command], Cmd=None),
    )


@fault("two diff_ids are swapped", Catch("integrity", AMD64), says="the config states", layer=0)
def diff_ids_swapped(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64)

    def swap(config: Json) -> None:
        ids = config["rootfs"]["diff_ids"]
        ids[0], ids[1] = ids[1], ids[0]

    return Planted(image=edits.change_config(sound, AMD64, swap), control=sound)


@fault("a diff_id is missing", Catch("integrity", AMD64), says="layers, the config")
def diff_ids_too_few(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64)
    image = edits.change_config(sound, AMD64, lambda config: config["rootfs"]["diff_ids"].pop())
    return Planted(image=image, control=sound)


@fault(
    "the program is missing in one platform",
    Catch("entrypoint-arch", ARM64, HELLO),
    Catch("parity", ARM64, warning=True),
    says=["'/usr/local/bin/hello' is not in the image", "lacks /usr/local/bin/hello"],
    task=1,
)
def program_missing(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64, ARM64)
    return Planted(image=edits.remove_files(sound, ARM64, HELLO[1:]), control=sound, question=TWO)


@fault(
    "the program may not be executed",
    Catch("entrypoint-arch", AMD64, HELLO),
    says="is not executable (mode 0644)",
)
def program_not_executable(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64)
    return Planted(image=edits.replace_file(sound, AMD64, HELLO[1:], mode=0o644), control=sound)


@fault(
    "the program is cut off in its ELF header",
    Catch("entrypoint-arch", AMD64, HELLO),
    says="a truncated ELF header",
)
def program_truncated(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64)
    data = edits.read_file(sound, AMD64, HELLO[1:])[:40]
    return Planted(image=edits.replace_file(sound, AMD64, HELLO[1:], data), control=sound)


@fault(
    "a helper is cut off in its ELF header: a file that nobody may start",
    Catch("binaries", AMD64, "/opt/tool", warning=True),
    says="starts like an ELF file and cannot be read as one: a truncated ELF header",
)
def helper_truncated(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64)
    return Planted(
        image=edits.add_files(sound, AMD64, {"opt/tool": parts.go["amd64"][:40]}),
        control=edits.add_files(sound, AMD64, {"opt/tool": parts.go["amd64"]}),
    )


@fault(
    "what is started is a script, and its interpreter is not there",
    Catch("entrypoint-arch", ARM64, "/bin/bash"),
    says="the interpreter of /run: '/bin/bash' is not in the image",
)
def interpreter_missing(parts: Parts) -> Planted:
    return _starts(parts, ARM64, b"#!/bin/bash\nexec hello\n")


@fault(
    "what is started is a script, and its interpreter is another architecture's",
    Catch("entrypoint-arch", ARM64, "/opt/sh"),
    says="/opt/sh is made for amd64, not for arm64",
    layer=TOP,
)
def interpreter_of_another_architecture(parts: Parts) -> Planted:
    sound = edits.set_runtime_config(
        edits.select_platforms(parts.hello, ARM64), ARM64, Entrypoint=["/run"], Cmd=None
    )
    files = {"run": b"#!/opt/sh\nexec hello\n"}
    return Planted(
        image=edits.add_files(sound, ARM64, {**files, "opt/sh": parts.busybox("amd64")}),
        control=edits.add_files(sound, ARM64, {**files, "opt/sh": parts.busybox("arm64")}),
    )


@fault(
    "the script was written on Windows: its #! line ends in CR LF",
    Catch("entrypoint-arch", ARM64, "/bin/sh\r"),
    says=r"'/bin/sh\r' is not in the image",
    task=1,
)
def script_with_carriage_returns(parts: Parts) -> Planted:
    return _starts(parts, ARM64, b"#!/bin/sh\r\nexec hello\r\n")


@fault(
    "the program is reached through a hard link, and is another architecture's",
    Catch("entrypoint-arch", ARM64, "/opt/app"),
    says="/opt/app is made for amd64, not for arm64",
    layer=TOP,
)
def behind_a_hard_link(parts: Parts) -> Planted:
    def image_of(program: bytes) -> Planted:
        sound = edits.set_runtime_config(edits.select_platforms(parts.hello, ARM64), ARM64, Cmd=["/opt/app"])
        # The name that the file came under is gone again: only the link is left.
        linked = edits.add_files(
            sound, ARM64, {"opt/original": program}, [hard_link("opt/app", "opt/original")]
        )
        image = edits.add_files(linked, ARM64, {"opt/.wh.original": b""})
        return Planted(image=image, control=image)

    return Planted(image=image_of(parts.go["amd64"]).image, control=image_of(parts.go["arm64-v8.0"]).image)


@fault(
    "the program is reached through a linked folder, and is another architecture's",
    Catch("entrypoint-arch", ARM64, "/opt/app-1.2/bin/app"),
    says="/opt/app-1.2/bin/app is made for amd64",
    layer=TOP,
)
def in_a_linked_folder(parts: Parts) -> Planted:
    sound = edits.set_runtime_config(
        edits.select_platforms(parts.hello, ARM64), ARM64, Cmd=["/opt/app/bin/app"]
    )
    link, path = symlink("opt/app", "app-1.2"), "opt/app-1.2/bin/app"
    return Planted(
        image=edits.add_files(sound, ARM64, {path: parts.go["amd64"]}, [link]),
        control=edits.add_files(sound, ARM64, {path: parts.go["arm64-v8.0"]}, [link]),
    )


@sound_image("a whiteout hides a program of another architecture")
def hidden_by_a_whiteout(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, ARM64)
    lower = edits.add_files(sound, ARM64, {"opt/tool": parts.go["amd64"]})
    return Planted(image=edits.add_files(lower, ARM64, {"opt/.wh.tool": b""}), control=sound)


@sound_image("an opaque folder hides a program of another architecture")
def hidden_by_an_opaque_folder(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, ARM64)
    lower = edits.add_files(sound, ARM64, {"opt/vendor/tool": parts.go["amd64"]})
    return Planted(image=edits.add_files(lower, ARM64, {"opt/vendor/.wh..wh..opq": b""}), control=sound)


@fault(
    "a whiteout hides it, and a later layer brings it back",
    Catch("binaries", ARM64, "/opt/tool"),
    says="/opt/tool is made for amd64, not for arm64",
    layer=TOP + 2,
)
def brought_back(parts: Parts) -> Planted:
    control = hidden_by_a_whiteout(parts).image
    image = edits.add_files(control, ARM64, {"opt/tool": parts.go["amd64"], "opt/tool.new": b""})
    return Planted(image=image, control=control)


# What differs between platforms.


@fault(
    "ENTRYPOINT differs between platforms (`--parity fail`)",
    Catch("parity", ARM64),
    says="has ENTRYPOINT ['/bin/sh']; linux/amd64 has",
    task=1,
)
def entrypoint_differs(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64, ARM64)
    question = Question(platforms=[AMD64, ARM64], parity="fail")
    return Planted(
        image=edits.set_runtime_config(sound, ARM64, Entrypoint=["/bin/sh"]), control=sound, question=question
    )


@fault(
    "one platform starts nothing (`--parity fail`)",
    Catch("parity", ARM64),
    says="has CMD []; linux/amd64 has",
)
def nothing_started(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64, ARM64)
    question = Question(platforms=[AMD64, ARM64], parity="fail")
    return Planted(image=edits.set_runtime_config(sound, ARM64, Cmd=None), control=sound, question=question)


@fault(
    "ENV differs between platforms",
    Catch("parity", ARM64, warning=True),
    says="'DEBUG=1']; linux/amd64 has",
)
def environment_differs(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64, ARM64)

    def debug(config: Json) -> None:
        config["config"]["Env"].append("DEBUG=1")

    return Planted(image=edits.change_config(sound, ARM64, debug), control=sound, question=TWO)


def _lacking(parts: Parts, parity: str) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64, ARM64)
    question = Question(platforms=[AMD64, ARM64], parity=parity)
    return Planted(
        image=edits.remove_files(sound, ARM64, "etc/nsswitch.conf"), control=sound, question=question
    )


@fault(
    "a file is missing in one platform",
    Catch("parity", ARM64, warning=True),
    says="linux/arm64 lacks /etc/nsswitch.conf, which linux/amd64 has",
    task=0,
)
def file_missing(parts: Parts) -> Planted:
    return _lacking(parts, "warn")


@fault(
    "a file is missing in one platform (`--parity fail`)",
    Catch("parity", ARM64),
    says="linux/arm64 lacks /etc/nsswitch.conf, which linux/amd64 has",
    task=1,
)
def file_missing_fails(parts: Parts) -> Planted:
    return _lacking(parts, "fail")
