"""Faults of dynamic linking: dynamic loaders and shared libraries."""

from __future__ import annotations

from tests.planted_faults.bases import Samples
from tests.planted_faults.index_faults import AMD64, ARM64
from tests.planted_faults.planting import Finding, PlantedImage, declare_fault, declare_valid_image
from tests.support import edits
from tests.support.oci import MemoryImage, symlink

SED, TRIPLET = "/usr/bin/sed", "usr/lib/x86_64-linux-gnu"
PCRE = f"{TRIPLET}/libpcre2-8.so.0"
NEEDS_PCRE = f"/{TRIPLET}/libselinux.so.1"


def _read_library(image: MemoryImage, path: str) -> bytes:
    """Read the file that a soname link of a Debian library points to."""
    files = edits.layer_files(edits.layer_tars(image, AMD64)[0])
    return next(data for name, data in sorted(files.items()) if name.startswith(path))


def _glibc_image(samples: Samples) -> MemoryImage:
    return edits.select_platforms(samples.glibc, AMD64)


def _without_pcre(samples: Samples) -> MemoryImage:
    image = _glibc_image(samples)
    names = [name for name in edits.layer_files(edits.layer_tars(image, AMD64)[0]) if name.startswith(PCRE)]
    return edits.remove_files(image, AMD64, PCRE, *names)


@declare_fault(
    "a program linked against glibc in a musl image",
    Finding("starts", AMD64, "/usr/bin/dash"),
    message=["it was linked against glibc, and this is a musl image (Alpine)", "/lib64/ld-linux-x86-64.so.2"],
    exit_status=1,
)
def glibc_program_on_musl(samples: Samples) -> PlantedImage:
    dash = edits.read_file(samples.glibc, AMD64, "usr/bin/dash")
    image = edits.add_files(samples.musl, AMD64, {"usr/bin/dash": dash})
    return PlantedImage(edits.set_runtime_config(image, AMD64, Entrypoint=["/usr/bin/dash"]), samples.musl)


@declare_fault(
    "a program linked against musl in a glibc image",
    Finding("starts", AMD64, "/usr/bin/ninja"),
    message="it was linked against musl, and this is a glibc image",
)
def musl_program_on_glibc(samples: Samples) -> PlantedImage:
    valid = _glibc_image(samples)
    image = edits.add_files(valid, AMD64, {"usr/bin/ninja": samples.ninja})
    return PlantedImage(edits.set_runtime_config(image, AMD64, Entrypoint=["/usr/bin/ninja"]), valid)


@declare_fault(
    "a library that a library needs is missing",
    Finding("starts", AMD64, NEEDS_PCRE),
    message="/usr/lib/x86_64-linux-gnu/libselinux.so.1 needs libpcre2-8.so.0, which is not in the image",
    exit_status=1,
)
def library_missing(samples: Samples) -> PlantedImage:
    return PlantedImage(_without_pcre(samples), _glibc_image(samples))


@declare_fault(
    "a library exists only for another architecture",
    Finding("starts", AMD64, NEEDS_PCRE),
    Finding("binaries", AMD64, f"/{PCRE}"),
    message="which exists only as /usr/lib/x86_64-linux-gnu/libpcre2-8.so.0, which is made for arm64",
)
def library_only_for_another_architecture(samples: Samples) -> PlantedImage:
    wrong = samples.library("arm64", "libpcre2-8.so.0.*")
    return PlantedImage(edits.add_files(_without_pcre(samples), AMD64, {PCRE: wrong}), _glibc_image(samples))


def _with_vendored_library(samples: Samples, runpath: str) -> MemoryImage:
    """Move the library to usr/lib/vendor, and set the RUNPATH of the library that needs it."""
    image, files = (
        _without_pcre(samples),
        edits.layer_files(edits.layer_tars(_glibc_image(samples), AMD64)[0]),
    )
    selinux = samples.patch_elf(files[f"{TRIPLET}/libselinux.so.1"], "--set-rpath", runpath)
    changed = edits.replace_file(image, AMD64, f"{TRIPLET}/libselinux.so.1", selinux)
    return edits.add_files(
        changed, AMD64, {"usr/lib/vendor/libpcre2-8.so.0": _read_library(_glibc_image(samples), PCRE)}
    )


@declare_valid_image("a library is found by a RUNPATH of `$ORIGIN/../vendor`")
def runpath_right(samples: Samples) -> PlantedImage:
    return PlantedImage(_with_vendored_library(samples, "$ORIGIN/../vendor"), _glibc_image(samples))


@declare_fault(
    "a RUNPATH of `$ORIGIN/vendor` is a missing directory",
    Finding("starts", AMD64, NEEDS_PCRE),
    message="needs libpcre2-8.so.0, which is not in the image",
)
def runpath_wrong(samples: Samples) -> PlantedImage:
    return PlantedImage(
        _with_vendored_library(samples, "$ORIGIN/vendor"),
        _with_vendored_library(samples, "$ORIGIN/../vendor"),
    )


@declare_fault(
    "a library is only in the RUNPATH of the program, which does not apply to indirect dependencies",
    Finding("starts", AMD64, NEEDS_PCRE),
    message="needs libpcre2-8.so.0, which is not in the image",
)
def runpath_of_program_only(samples: Samples) -> PlantedImage:
    image, control = (_with_search_path(samples, *kind) for kind in ((), ("--force-rpath",)))
    return PlantedImage(image, control)


def _with_search_path(samples: Samples, *kind: str) -> MemoryImage:
    """Move the library to usr/lib/vendor, and set the RUNPATH (or RPATH) of the program."""
    image, directory = _without_pcre(samples), "usr/lib/vendor"
    sed = samples.patch_elf(
        edits.read_file(image, AMD64, "usr/bin/sed"), *kind, "--set-rpath", f"/{directory}"
    )
    changed = edits.replace_file(image, AMD64, "usr/bin/sed", sed)
    return edits.add_files(
        changed, AMD64, {f"{directory}/libpcre2-8.so.0": _read_library(_glibc_image(samples), PCRE)}
    )


def _with_ld_so_conf(samples: Samples) -> MemoryImage:
    """Move the library to a directory that is listed in /etc/ld.so.conf.d."""
    files = {
        "opt/pcre/libpcre2-8.so.0": _read_library(_glibc_image(samples), PCRE),
        "etc/ld.so.conf": b"include /etc/ld.so.conf.d/*.conf\n",
        "etc/ld.so.conf.d/pcre.conf": b"# a comment\n/opt/pcre\n",
    }
    return edits.add_files(_without_pcre(samples), AMD64, files)


@declare_valid_image("a library is found by a file in /etc/ld.so.conf.d")
def ld_so_conf_directory(samples: Samples) -> PlantedImage:
    return PlantedImage(_with_ld_so_conf(samples), _glibc_image(samples))


@declare_fault(
    "the file in /etc/ld.so.conf.d for a library is missing",
    Finding("starts", AMD64, NEEDS_PCRE),
    message="needs libpcre2-8.so.0, which is not in the image",
)
def ld_so_conf_missing(samples: Samples) -> PlantedImage:
    control = _with_ld_so_conf(samples)
    return PlantedImage(edits.remove_files(control, AMD64, "etc/ld.so.conf.d/pcre.conf"), control)


@declare_fault(
    "the loader is a dangling symlink",
    Finding("starts", AMD64, SED),
    message="its loader /lib64/ld-linux-x86-64.so.2 is not in the image",
)
def loader_dangling(samples: Samples) -> PlantedImage:
    link = symlink("usr/lib64/ld-linux-x86-64.so.2", "../lib/gone/ld-linux-x86-64.so.2")
    return PlantedImage(edits.add_files(_glibc_image(samples), AMD64, {}, [link]), _glibc_image(samples))


@declare_fault(
    "the loader is made for another architecture",
    Finding("starts", AMD64, SED),
    Finding("binaries", AMD64, "/usr/lib64/ld-linux-x86-64.so.2"),
    message="its loader /usr/lib64/ld-linux-x86-64.so.2 is made for arm64",
)
def loader_of_another_architecture(samples: Samples) -> PlantedImage:
    wrong = samples.library("arm64", "ld-linux-aarch64.so.1")
    image = edits.add_files(_glibc_image(samples), AMD64, {"usr/lib64/ld-linux-x86-64.so.2": wrong})
    return PlantedImage(image, _glibc_image(samples))


@declare_fault(
    "the loader is not executable",
    Finding("starts", AMD64, SED),
    message="ld-linux-x86-64.so.2 is not executable",
)
def loader_not_executable(samples: Samples) -> PlantedImage:
    path = f"{TRIPLET}/ld-linux-x86-64.so.2"
    return PlantedImage(
        edits.replace_file(_glibc_image(samples), AMD64, path, mode=0o644), _glibc_image(samples)
    )


@declare_fault(
    "PT_INTERP of a program is the loader of another architecture",
    Finding("starts", ARM64, "/usr/bin/dash"),
    message="its loader /lib64/ld-linux-x86-64.so.2 is not in the image",
)
def loader_of_another_name(samples: Samples) -> PlantedImage:
    valid = edits.set_runtime_config(
        edits.select_platforms(samples.glibc, ARM64), ARM64, Entrypoint=["/usr/bin/dash"]
    )
    dash = edits.read_file(valid, ARM64, "usr/bin/dash")
    wrong = samples.patch_elf(dash, "--set-interpreter", "/lib64/ld-linux-x86-64.so.2")
    return PlantedImage(edits.replace_file(valid, ARM64, "usr/bin/dash", wrong), valid)
