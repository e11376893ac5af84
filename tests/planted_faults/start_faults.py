"""Faults of dynamic linking: loaders and libraries."""

from __future__ import annotations

from tests.planted_faults.bases import Parts
from tests.planted_faults.index_faults import AMD64, ARM64
from tests.planted_faults.planting import Catch, Planted, fault, sound_image
from tests.support import edits
from tests.support.oci import MemoryImage, symlink

SED, TRIPLET = "/usr/bin/sed", "usr/lib/x86_64-linux-gnu"
PCRE = f"{TRIPLET}/libpcre2-8.so.0"
NEEDS_PCRE = f"/{TRIPLET}/libselinux.so.1"


def _real(image: MemoryImage, path: str) -> bytes:
    """Debian's library behind the link that bears its soname."""
    files = edits.layer_files(edits.layer_tars(image, AMD64)[0])
    return next(data for name, data in sorted(files.items()) if name.startswith(path))


def _amd64(parts: Parts) -> MemoryImage:
    return edits.select_platforms(parts.glibc, AMD64)


def _without_pcre(parts: Parts) -> MemoryImage:
    image = _amd64(parts)
    names = [name for name in edits.layer_files(edits.layer_tars(image, AMD64)[0]) if name.startswith(PCRE)]
    return edits.remove_files(image, AMD64, PCRE, *names)


@fault(
    "a program linked against glibc in a musl image",
    Catch("starts", AMD64, "/usr/bin/dash"),
    says=["it was linked against glibc, and this is a musl image (Alpine)", "/lib64/ld-linux-x86-64.so.2"],
    task=1,
)
def glibc_program_on_musl(parts: Parts) -> Planted:
    dash = edits.read_file(parts.glibc, AMD64, "usr/bin/dash")
    image = edits.add_files(parts.musl, AMD64, {"usr/bin/dash": dash})
    return Planted(
        image=edits.set_runtime_config(image, AMD64, Entrypoint=["/usr/bin/dash"]), control=parts.musl
    )


@fault(
    "a program linked against musl in a glibc image",
    Catch("starts", AMD64, "/usr/bin/ninja"),
    says="it was linked against musl, and this is a glibc image",
)
def musl_program_on_glibc(parts: Parts) -> Planted:
    sound = _amd64(parts)
    image = edits.add_files(sound, AMD64, {"usr/bin/ninja": parts.ninja})
    return Planted(image=edits.set_runtime_config(image, AMD64, Entrypoint=["/usr/bin/ninja"]), control=sound)


@fault(
    "a library that a library needs is missing",
    Catch("starts", AMD64, NEEDS_PCRE),
    says="/usr/lib/x86_64-linux-gnu/libselinux.so.1 needs libpcre2-8.so.0, which is not in the image",
    task=1,
)
def library_missing(parts: Parts) -> Planted:
    return Planted(image=_without_pcre(parts), control=_amd64(parts))


@fault(
    "a library is there only for another architecture",
    Catch("starts", AMD64, NEEDS_PCRE),
    Catch("binaries", AMD64, f"/{PCRE}"),
    says="which exists only as /usr/lib/x86_64-linux-gnu/libpcre2-8.so.0, which is made for arm64",
)
def library_only_for_another_architecture(parts: Parts) -> Planted:
    wrong = parts.library("arm64", "libpcre2-8.so.0.*")
    return Planted(image=edits.add_files(_without_pcre(parts), AMD64, {PCRE: wrong}), control=_amd64(parts))


def _vendored(parts: Parts, runpath: str) -> MemoryImage:
    """The library in a folder beside the program, which a RUNPATH leads to."""
    image, files = _without_pcre(parts), edits.layer_files(edits.layer_tars(_amd64(parts), AMD64)[0])
    selinux = parts.patched(files[f"{TRIPLET}/libselinux.so.1"], "--set-rpath", runpath)
    changed = edits.replace_file(image, AMD64, f"{TRIPLET}/libselinux.so.1", selinux)
    return edits.add_files(changed, AMD64, {"usr/lib/vendor/libpcre2-8.so.0": _real(_amd64(parts), PCRE)})


@sound_image("a RUNPATH of `$ORIGIN/../vendor` leads to the library")
def runpath_right(parts: Parts) -> Planted:
    return Planted(image=_vendored(parts, "$ORIGIN/../vendor"), control=_amd64(parts))


@fault(
    "a RUNPATH of `$ORIGIN/vendor` leads nowhere",
    Catch("starts", AMD64, NEEDS_PCRE),
    says="needs libpcre2-8.so.0, which is not in the image",
)
def runpath_wrong(parts: Parts) -> Planted:
    return Planted(image=_vendored(parts, "$ORIGIN/vendor"), control=_vendored(parts, "$ORIGIN/../vendor"))


@fault(
    "a program's RUNPATH does not count for its libraries' needs",
    Catch("starts", AMD64, NEEDS_PCRE),
    says="needs libpcre2-8.so.0, which is not in the image",
)
def runpath_of_the_program_alone(parts: Parts) -> Planted:
    image, control = (_with_path(parts, *kind) for kind in ((), ("--force-rpath",)))
    return Planted(image=image, control=control)


def _with_path(parts: Parts, *kind: str) -> MemoryImage:
    """The library in a folder that the program itself names, as RUNPATH or as RPATH."""
    image, where = _without_pcre(parts), "usr/lib/vendor"
    sed = parts.patched(edits.read_file(image, AMD64, "usr/bin/sed"), *kind, "--set-rpath", f"/{where}")
    changed = edits.replace_file(image, AMD64, "usr/bin/sed", sed)
    return edits.add_files(changed, AMD64, {f"{where}/libpcre2-8.so.0": _real(_amd64(parts), PCRE)})


def _configured(parts: Parts) -> MemoryImage:
    """The library in a folder that only a file of ld.so.conf.d names."""
    files = {
        "opt/pcre/libpcre2-8.so.0": _real(_amd64(parts), PCRE),
        "etc/ld.so.conf": b"include /etc/ld.so.conf.d/*.conf\n",
        "etc/ld.so.conf.d/pcre.conf": b"# added by hand\n/opt/pcre\n",
    }
    return edits.add_files(_without_pcre(parts), AMD64, files)


@sound_image("a file of /etc/ld.so.conf.d names the library's folder")
def configured(parts: Parts) -> Planted:
    return Planted(image=_configured(parts), control=_amd64(parts))


@fault(
    "the file of /etc/ld.so.conf.d is gone that named the library's folder",
    Catch("starts", AMD64, NEEDS_PCRE),
    says="needs libpcre2-8.so.0, which is not in the image",
)
def configuration_gone(parts: Parts) -> Planted:
    control = _configured(parts)
    return Planted(image=edits.remove_files(control, AMD64, "etc/ld.so.conf.d/pcre.conf"), control=control)


@fault(
    "the loader is a link that leads nowhere",
    Catch("starts", AMD64, SED),
    says="its loader /lib64/ld-linux-x86-64.so.2 is not in the image",
)
def loader_dangling(parts: Parts) -> Planted:
    link = symlink("usr/lib64/ld-linux-x86-64.so.2", "../lib/gone/ld-linux-x86-64.so.2")
    return Planted(image=edits.add_files(_amd64(parts), AMD64, {}, [link]), control=_amd64(parts))


@fault(
    "the loader is another architecture's",
    Catch("starts", AMD64, SED),
    Catch("binaries", AMD64, "/usr/lib64/ld-linux-x86-64.so.2"),
    says="its loader /usr/lib64/ld-linux-x86-64.so.2 is made for arm64",
)
def loader_of_another_architecture(parts: Parts) -> Planted:
    wrong = parts.library("arm64", "ld-linux-aarch64.so.1")
    image = edits.add_files(_amd64(parts), AMD64, {"usr/lib64/ld-linux-x86-64.so.2": wrong})
    return Planted(image=image, control=_amd64(parts))


@fault(
    "the loader may not be executed",
    Catch("starts", AMD64, SED),
    says="ld-linux-x86-64.so.2 is not executable",
)
def loader_not_executable(parts: Parts) -> Planted:
    path = f"{TRIPLET}/ld-linux-x86-64.so.2"
    return Planted(image=edits.replace_file(_amd64(parts), AMD64, path, mode=0o644), control=_amd64(parts))


@fault(
    "a program that patchelf gave another machine's loader",
    Catch("starts", ARM64, "/usr/bin/dash"),
    says="its loader /lib64/ld-linux-x86-64.so.2 is not in the image",
)
def loader_of_another_name(parts: Parts) -> Planted:
    sound = edits.set_runtime_config(
        edits.select_platforms(parts.glibc, ARM64), ARM64, Entrypoint=["/usr/bin/dash"]
    )
    dash = edits.read_file(sound, ARM64, "usr/bin/dash")
    wrong = parts.patched(dash, "--set-interpreter", "/lib64/ld-linux-x86-64.so.2")
    return Planted(image=edits.replace_file(sound, ARM64, "usr/bin/dash", wrong), control=sound)
