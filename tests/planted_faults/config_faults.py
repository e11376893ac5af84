"""Faults of an image configuration: diff_ids, the program, and differences between platforms."""

from __future__ import annotations

from tests.planted_faults.bases import Samples
from tests.planted_faults.index_faults import AMD64, ARM64
from tests.planted_faults.planting import (
    Finding,
    PlantedImage,
    VerifyRequest,
    declare_fault,
    declare_valid_image,
)
from tests.support import edits
from tests.support.oci import Json, hard_link, symlink

TWO_PLATFORMS = VerifyRequest(platforms=[AMD64, ARM64])
HELLO = "/usr/local/bin/hello"
TOP = 4  # index of a layer that is added to the four of examples/hello


def _with_script(samples: Samples, platform: str, script: bytes, command: str = "/run") -> PlantedImage:
    """Run a script in examples/hello; the script of the control is run by busybox's shell."""
    valid = edits.select_platforms(samples.hello, platform)
    right = edits.add_files(valid, platform, {"run": b"#!/bin/sh\nexec hello\n"})
    wrong = edits.add_files(valid, platform, {"run": script})
    return PlantedImage(
        edits.set_runtime_config(wrong, platform, Entrypoint=[command], Cmd=None),
        edits.set_runtime_config(right, platform, Entrypoint=[command], Cmd=None),
    )


@declare_fault("two diff_ids are swapped", Finding("integrity", AMD64), message="the config states", layer=0)
def diff_ids_swapped(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64)

    def swap(config: Json) -> None:
        ids = config["rootfs"]["diff_ids"]
        ids[0], ids[1] = ids[1], ids[0]

    return PlantedImage(edits.change_config(valid, AMD64, swap), valid)


@declare_fault("a diff_id is missing", Finding("integrity", AMD64), message="layers, the config")
def diff_ids_too_few(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64)
    image = edits.change_config(valid, AMD64, lambda config: config["rootfs"]["diff_ids"].pop())
    return PlantedImage(image, valid)


@declare_fault(
    "the program is missing in one platform",
    Finding("entrypoint-arch", ARM64, HELLO),
    Finding("parity", ARM64, warning=True),
    message=["'/usr/local/bin/hello' is not in the image", "lacks /usr/local/bin/hello"],
    exit_status=1,
)
def program_missing(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64, ARM64)
    return PlantedImage(edits.remove_files(valid, ARM64, HELLO[1:]), valid, request=TWO_PLATFORMS)


@declare_fault(
    "the program is not executable",
    Finding("entrypoint-arch", AMD64, HELLO),
    message="is not executable (mode 0644)",
)
def program_not_executable(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64)
    return PlantedImage(edits.replace_file(valid, AMD64, HELLO[1:], mode=0o644), valid)


@declare_fault(
    "the ELF header of the program is truncated",
    Finding("entrypoint-arch", AMD64, HELLO),
    message="a truncated ELF header",
)
def program_truncated(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64)
    data = edits.read_file(valid, AMD64, HELLO[1:])[:40]
    return PlantedImage(edits.replace_file(valid, AMD64, HELLO[1:], data), valid)


@declare_fault(
    "the ELF header of another file is truncated",
    Finding("binaries", AMD64, "/opt/tool", warning=True),
    message="starts like an ELF file and cannot be read as one: a truncated ELF header",
)
def other_file_truncated(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64)
    return PlantedImage(
        edits.add_files(valid, AMD64, {"opt/tool": samples.go["amd64"][:40]}),
        edits.add_files(valid, AMD64, {"opt/tool": samples.go["amd64"]}),
    )


@declare_fault(
    "the interpreter of the entrypoint script is missing",
    Finding("entrypoint-arch", ARM64, "/bin/bash"),
    message="the interpreter of /run: '/bin/bash' is not in the image",
)
def interpreter_missing(samples: Samples) -> PlantedImage:
    return _with_script(samples, ARM64, b"#!/bin/bash\nexec hello\n")


@declare_fault(
    "the interpreter of the entrypoint script is made for another architecture",
    Finding("entrypoint-arch", ARM64, "/opt/sh"),
    message="/opt/sh is made for amd64, not for arm64",
    layer=TOP,
)
def interpreter_of_another_architecture(samples: Samples) -> PlantedImage:
    valid = edits.set_runtime_config(
        edits.select_platforms(samples.hello, ARM64), ARM64, Entrypoint=["/run"], Cmd=None
    )
    files = {"run": b"#!/opt/sh\nexec hello\n"}
    return PlantedImage(
        edits.add_files(valid, ARM64, {**files, "opt/sh": samples.busybox("amd64")}),
        edits.add_files(valid, ARM64, {**files, "opt/sh": samples.busybox("arm64")}),
    )


@declare_fault(
    "the #! line of the entrypoint script ends in CR LF, as on Windows",
    Finding("entrypoint-arch", ARM64, "/run"),
    message="/run cannot start: its first line has a Windows line ending",
    exit_status=1,
)
def script_with_crlf(samples: Samples) -> PlantedImage:
    return _with_script(samples, ARM64, b"#!/bin/sh\r\nexec hello\r\n")


@declare_fault(
    "the program is a hard link to a file for another architecture",
    Finding("entrypoint-arch", ARM64, "/opt/app"),
    message="/opt/app is made for amd64, not for arm64",
    layer=TOP,
)
def program_is_hard_link(samples: Samples) -> PlantedImage:
    def image_of(program: bytes) -> PlantedImage:
        valid = edits.set_runtime_config(
            edits.select_platforms(samples.hello, ARM64), ARM64, Cmd=["/opt/app"]
        )
        # Remove the original name, so that only the hard link is left.
        linked = edits.add_files(
            valid, ARM64, {"opt/original": program}, [hard_link("opt/app", "opt/original")]
        )
        image = edits.add_files(linked, ARM64, {"opt/.wh.original": b""})
        return PlantedImage(image, image)

    return PlantedImage(image_of(samples.go["amd64"]).image, image_of(samples.go["arm64-v8.0"]).image)


@declare_fault(
    "the path of the program has a symlink, and its target is made for another architecture",
    Finding("entrypoint-arch", ARM64, "/opt/app-1.2/bin/app"),
    message="/opt/app-1.2/bin/app is made for amd64",
    layer=TOP,
)
def program_in_linked_directory(samples: Samples) -> PlantedImage:
    valid = edits.set_runtime_config(
        edits.select_platforms(samples.hello, ARM64), ARM64, Cmd=["/opt/app/bin/app"]
    )
    link, path = symlink("opt/app", "app-1.2"), "opt/app-1.2/bin/app"
    return PlantedImage(
        edits.add_files(valid, ARM64, {path: samples.go["amd64"]}, [link]),
        edits.add_files(valid, ARM64, {path: samples.go["arm64-v8.0"]}, [link]),
    )


@declare_valid_image("a whiteout hides a program for another architecture")
def whiteout_hides_program(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, ARM64)
    lower = edits.add_files(valid, ARM64, {"opt/tool": samples.go["amd64"]})
    return PlantedImage(edits.add_files(lower, ARM64, {"opt/.wh.tool": b""}), valid)


@declare_valid_image("an opaque whiteout hides a program for another architecture")
def opaque_whiteout_hides_program(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, ARM64)
    lower = edits.add_files(valid, ARM64, {"opt/vendor/tool": samples.go["amd64"]})
    return PlantedImage(edits.add_files(lower, ARM64, {"opt/vendor/.wh..wh..opq": b""}), valid)


@declare_fault(
    "a layer adds a program for another architecture again after a whiteout",
    Finding("binaries", ARM64, "/opt/tool"),
    message="/opt/tool is made for amd64, not for arm64",
    layer=TOP + 2,
)
def program_after_whiteout(samples: Samples) -> PlantedImage:
    control = whiteout_hides_program(samples).image
    image = edits.add_files(control, ARM64, {"opt/tool": samples.go["amd64"], "opt/tool.new": b""})
    return PlantedImage(image, control)


# Differences between platforms.


@declare_fault(
    "ENTRYPOINT differs between platforms (`--parity fail`)",
    Finding("parity", ARM64),
    message="has ENTRYPOINT ['/bin/sh']; linux/amd64 has",
    exit_status=1,
)
def entrypoint_differs(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64, ARM64)
    request = VerifyRequest(platforms=[AMD64, ARM64], parity="fail")
    return PlantedImage(
        edits.set_runtime_config(valid, ARM64, Entrypoint=["/bin/sh"]), valid, request=request
    )


@declare_fault(
    "one platform has no CMD (`--parity fail`)",
    Finding("parity", ARM64),
    message="has CMD []; linux/amd64 has",
)
def cmd_missing(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64, ARM64)
    request = VerifyRequest(platforms=[AMD64, ARM64], parity="fail")
    return PlantedImage(edits.set_runtime_config(valid, ARM64, Cmd=None), valid, request=request)


@declare_fault(
    "ENV differs between platforms",
    Finding("parity", ARM64, warning=True),
    message="'DEBUG=1']; linux/amd64 has",
)
def environment_differs(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64, ARM64)

    def debug(config: Json) -> None:
        config["config"]["Env"].append("DEBUG=1")

    return PlantedImage(edits.change_config(valid, ARM64, debug), valid, request=TWO_PLATFORMS)


def _without_file(samples: Samples, parity: str) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64, ARM64)
    request = VerifyRequest(platforms=[AMD64, ARM64], parity=parity)
    return PlantedImage(edits.remove_files(valid, ARM64, "etc/nsswitch.conf"), valid, request=request)


@declare_fault(
    "a file is missing in one platform",
    Finding("parity", ARM64, warning=True),
    message="linux/arm64 lacks /etc/nsswitch.conf, which linux/amd64 has",
    exit_status=0,
)
def file_missing(samples: Samples) -> PlantedImage:
    return _without_file(samples, "warn")


@declare_fault(
    "a file is missing in one platform (`--parity fail`)",
    Finding("parity", ARM64),
    message="linux/arm64 lacks /etc/nsswitch.conf, which linux/amd64 has",
    exit_status=1,
)
def file_missing_fails(samples: Samples) -> PlantedImage:
    return _without_file(samples, "fail")
