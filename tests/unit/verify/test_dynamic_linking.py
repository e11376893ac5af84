from __future__ import annotations

import tarfile
from collections.abc import Iterable, Mapping, Sequence

import pytest

from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import Check
from buildkit_tasks.verify import VerifyOptions, verify
from tests.support.elf import EXECUTABLE, ISA_NEEDED, elf
from tests.support.growth import assert_linear
from tests.support.oci import (
    MemoryImage,
    directory,
    hard_link,
    make_tar,
    single_platform_image,
    symlink,
)

AMD64, ARM_V7 = "linux/amd64", "linux/arm/v7"
GLIBC, MUSL = "/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"
TRIPLET = "lib/x86_64-linux-gnu"
LIBRARY = elf(AMD64)


def dynamic_program(*needed: str, platform: str = AMD64, interpreter: str = GLIBC, **more: str) -> bytes:
    return elf(platform, interpreter=interpreter, needed=needed, **more)  # type: ignore[arg-type]


def check_app(
    files: Mapping[str, bytes],
    others: Iterable[tarfile.TarInfo] = (),
    *,
    platform: str = AMD64,
    loader: str = GLIBC,
    env: Sequence[str] = (),
) -> Check:
    """Return the only ``starts`` check of ``/bin/app`` among these files and a loader."""
    checks = check_all(files, others, platform=platform, loader=loader, env=env)
    assert len(checks) == 1, checks
    return checks[0]


def check_all(
    files: Mapping[str, bytes],
    others: Iterable[tarfile.TarInfo] = (),
    *,
    platform: str = AMD64,
    loader: str = GLIBC,
    env: Sequence[str] = (),
) -> list[Check]:
    loader_file = {loader[1:]: elf(platform)} if loader else {}
    image = single_platform_image(
        [make_tar({**loader_file, **files}, others)], platform, Entrypoint=["/bin/app"], Env=list(env)
    )
    report = verify(image, (), "the image")
    return [check for check in report.platforms[0].checks if check.name == "starts"]


def missing_library(check: Check) -> str:
    """Return the library that a failing check is about."""
    assert not check.ok, check.message
    return check.expected


def test_object_file_has_no_libraries() -> None:
    assert check_all({"bin/app": elf(AMD64, kind=1, interpreter=GLIBC, needed=["libx.so"])}) == []


def test_libraries_that_only_musl_provides_itself() -> None:
    assert missing_library(check_app({"bin/app": dynamic_program("libm.so.6")})) == "libm.so.6"


# The loader.


def test_static_program() -> None:
    check = check_app({"bin/app": elf(AMD64, kind=EXECUTABLE)}, loader="")
    assert (check.ok, check.message) == (True, "/bin/app is static: it needs no loader")


def test_libraries_are_counted() -> None:
    files = {
        "bin/app": dynamic_program("liba.so", "libb.so"),
        f"{TRIPLET}/liba.so": LIBRARY,
        f"{TRIPLET}/libb.so": LIBRARY,
    }
    check = check_app(files)
    assert (check.ok, check.path) == (True, "/bin/app")
    assert check.message == f"/bin/app finds its loader {GLIBC} and 2 libraries"


def test_loader_without_libraries() -> None:
    assert (
        check_app({"bin/app": dynamic_program()}).message
        == f"/bin/app finds its loader {GLIBC} and no library"
    )


def test_invalid_interpreter_path() -> None:
    empty = dynamic_program(interpreter="\0")
    check = check_app({"bin/app": empty})
    assert (check.ok, check.message) == (
        False, "linux/amd64: /bin/app cannot start: it has an empty interpreter path",
    )  # fmt: skip


def test_missing_loader() -> None:
    check = check_app({"bin/app": dynamic_program()}, loader="")
    assert (check.ok, check.expected, check.path) == (False, GLIBC, "/bin/app")
    assert check.message == f"{AMD64}: /bin/app cannot start: its loader {GLIBC} is not in the image"


def test_glibc_program_in_musl_image() -> None:
    message = check_app({"bin/app": dynamic_program()}, loader=MUSL).message
    assert "it was linked against glibc, and this is a musl image (Alpine)" in message


def test_musl_program_in_glibc_image() -> None:
    check = check_app({"bin/app": dynamic_program(interpreter=MUSL)})
    assert check.message.endswith("it was linked against musl, and this is a glibc image")
    assert "link it statically" in check.hint


def test_loader_of_other_float_abi() -> None:
    soft, hard = "/lib/ld-linux.so.3", "/lib/ld-linux-armhf.so.3"
    files = {"bin/app": dynamic_program(platform=ARM_V7, interpreter=hard)}
    message = check_app(files, platform=ARM_V7, loader=soft).message
    assert f"its loader {hard} is not in the image; it has {soft}, of another ABI" in message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (elf("linux/arm64"), f"its loader {GLIBC} is made for arm64"),
        (b"a text", f"its loader {GLIBC} is not an ELF file"),
    ],
)
def test_unusable_loader(data: bytes, message: str) -> None:
    assert message in check_app({"bin/app": dynamic_program(), GLIBC[1:]: data}, loader="").message


def test_loader_is_not_executable() -> None:
    info = hard_link("lib64/unused", GLIBC[1:])
    info.name, info.type, info.mode = GLIBC[1:], tarfile.REGTYPE, 0o644
    tar = make_tar({"bin/app": dynamic_program()})[:-1024].rstrip(b"\0")
    tar += bytes(-len(tar) % 512)
    loader = elf(AMD64)
    info.size, info.linkname = len(loader), ""
    tar += info.tobuf(tarfile.USTAR_FORMAT) + loader + bytes(-len(loader) % 512 + 1024)
    report = verify(single_platform_image([tar], AMD64, Entrypoint=["/bin/app"]), (), "the image")
    messages = [check.message for check in report.platforms[0].checks if check.name == "starts"]
    assert messages == [f"{AMD64}: /bin/app cannot start: its loader {GLIBC} is not executable"]


def test_loader_behind_links() -> None:
    link = symlink("lib64", "usr/lib64")
    files = {"bin/app": dynamic_program()}
    assert check_app({**files, f"usr{GLIBC}": elf(AMD64)}, [link], loader="").ok
    dangling = symlink(GLIBC[1:], "../gone/ld.so")
    assert missing_library(check_app(files, [dangling], loader="")) == GLIBC


# Libraries.


def test_missing_library() -> None:
    files = {"bin/app": dynamic_program("liba.so"), f"{TRIPLET}/liba.so": elf(AMD64, needed=["libgone.so"])}
    check = check_app(files)
    assert missing_library(check) == "libgone.so"
    assert check.actual == "missing"
    assert check.path == f"/{TRIPLET}/liba.so"
    assert check.message == f"{AMD64}: /{TRIPLET}/liba.so needs libgone.so, which is not in the image"


def test_missing_libraries_are_reported_once() -> None:
    files = {
        "bin/app": dynamic_program("libx.so", "libx.so", "liba.so"),
        "lib/liba.so": elf(AMD64, needed=["libx.so", "liby.so"]),
    }
    assert [missing_library(check) for check in check_all(files)] == ["libx.so", "liby.so"]


@pytest.mark.parametrize(
    ("data", "message"),
    [(elf("linux/arm64"), "is made for arm64"), (b"INPUT(libm.so.6)", "is not an ELF file")],
)
def test_unusable_library(data: bytes, message: str) -> None:
    check = check_app({"bin/app": dynamic_program("liba.so"), "usr/lib/liba.so": data})
    assert missing_library(check) == "liba.so"
    assert message in check.actual
    assert "/usr/lib/liba.so" in check.message
    assert message in check.message


def test_usable_library_after_unusable_one() -> None:
    files = {
        "bin/app": dynamic_program("liba.so"),
        f"{TRIPLET}/liba.so": elf("linux/386"),
        "usr/lib/liba.so": LIBRARY,
    }
    assert check_app(files).ok


def test_circular_dependencies() -> None:
    files = {
        "bin/app": dynamic_program("liba.so"),
        "lib/liba.so": elf(AMD64, needed=["libb.so"]),
        "lib/libb.so": elf(AMD64, needed=["liba.so", "libb.so"]),
    }
    assert "and 2 libraries" in check_app(files).message


def test_library_with_two_names() -> None:
    files = {"bin/app": dynamic_program("liba.so", "liba.so.1"), "lib/liba.so.1.0": LIBRARY}
    links = [symlink("lib/liba.so", "liba.so.1.0"), symlink("lib/liba.so.1", "liba.so")]
    assert "and 1 library" in check_app(files, links).message


@pytest.mark.parametrize("folder", ["lib64", "usr/lib64", TRIPLET, f"usr/{TRIPLET}", "lib", "usr/lib"])
def test_default_directories(folder: str) -> None:
    assert check_app({"bin/app": dynamic_program("liba.so"), f"{folder}/liba.so": LIBRARY}).ok


@pytest.mark.parametrize("folder", ["usr/local/lib", "opt/lib", "bin", "lib/i386-linux-gnu"])
def test_other_directories_are_not_searched(folder: str) -> None:
    assert (
        missing_library(check_app({"bin/app": dynamic_program("liba.so"), f"{folder}/liba.so": LIBRARY}))
        == "liba.so"
    )


@pytest.mark.parametrize("name", ["/opt/liba.so", "opt/liba.so", "$ORIGIN/../opt/liba.so"])
def test_needed_path(name: str) -> None:
    assert check_app({"bin/app": dynamic_program(name), "opt/liba.so": LIBRARY}).ok


def test_needed_path_is_not_searched() -> None:
    assert (
        missing_library(check_app({"bin/app": dynamic_program("/opt/liba.so"), "lib/liba.so": LIBRARY}))
        == "/opt/liba.so"
    )


# RPATH, RUNPATH and LD_LIBRARY_PATH (ld.so(8)).


@pytest.mark.parametrize("text", ["$ORIGIN/../opt", "${ORIGIN}/../opt", "/gone:/opt", "/opt/"])
@pytest.mark.parametrize("kind", ["rpath", "runpath"])
def test_rpath_and_runpath(kind: str, text: str) -> None:
    assert check_app({"bin/app": dynamic_program("liba.so", **{kind: text}), "opt/liba.so": LIBRARY}).ok


def test_lib_and_platform_tokens() -> None:
    files = {
        "bin/app": dynamic_program("liba.so", runpath="/x/$LIB/$PLATFORM"),
        f"x/{TRIPLET}/x86_64/liba.so": LIBRARY,
    }
    assert check_app({**files, f"{TRIPLET}/other.so": LIBRARY}).ok


def test_useless_rpath() -> None:
    files = {"bin/app": dynamic_program("liba.so", runpath="$ORIGIN/opt"), "opt/liba.so": LIBRARY}
    assert missing_library(check_app(files)) == "liba.so"


def test_origin_behind_link() -> None:
    files = {
        "srv/app/bin/app": dynamic_program("liba.so", runpath="$ORIGIN/../lib"),
        "srv/app/lib/liba.so": LIBRARY,
    }
    assert check_app(files, [symlink("bin/app", "../srv/app/bin/app")]).ok


def _chain(kind: str) -> dict[str, bytes]:
    return {
        "bin/app": dynamic_program("liba.so", **{kind: "/opt"}),
        "opt/liba.so": elf(AMD64, needed=["libb.so"]),
        "opt/libb.so": LIBRARY,
    }


def test_rpath_is_inherited() -> None:
    assert check_app(_chain("rpath")).ok
    assert missing_library(check_app(_chain("runpath"))) == "libb.so"


def test_musl_inherits_runpath() -> None:
    files = {**_chain("runpath"), "bin/app": dynamic_program("liba.so", interpreter=MUSL, runpath="/opt")}
    assert check_app(files, loader=MUSL).ok


def test_rpath_beside_runpath() -> None:
    program = dynamic_program("liba.so", rpath="/opt", runpath="/gone")
    assert missing_library(check_app({"bin/app": program, "opt/liba.so": LIBRARY})) == "liba.so"


def test_rpath_beside_runpath_is_not_inherited() -> None:
    files = {**_chain("runpath"), "bin/app": dynamic_program("liba.so", rpath="/more", runpath="/opt")}
    assert missing_library(check_app({**files, "more/libb.so": LIBRARY})) == "libb.so"


def test_runpath_of_library_ends_inheritance() -> None:
    files = {**_chain("rpath"), "opt/liba.so": elf(AMD64, needed=["libb.so"], runpath="/gone")}
    assert missing_library(check_app(files)) == "libb.so"


def test_ld_library_path() -> None:
    env = ["LD_LIBRARY_PATH=/gone", "LD_LIBRARY_PATH=/else:/opt"]
    files = {**_chain("soname"), "opt/liba.so": elf(AMD64, needed=["libb.so"], runpath="/gone")}
    assert check_app(files, env=env).ok
    assert missing_library(check_app(files, env=env[:1])) == "liba.so"


# Configuration of the loaders.


def _configured(**files: bytes) -> dict[str, bytes]:
    return {"bin/app": dynamic_program("liba.so"), "opt/lib/liba.so": LIBRARY, **files}


@pytest.mark.parametrize(
    "files",
    [
        {"etc/ld.so.conf": b"/opt/lib\n"},
        {"etc/ld.so.conf": b"\t/opt/lib # ours\n"},
        {"etc/ld.so.conf": b"include /etc/ld.so.conf.d/*.conf\n", "etc/ld.so.conf.d/a.conf": b"/opt/lib"},
        {"etc/ld.so.conf": b"include ld.so.conf.d/*.conf\n", "etc/ld.so.conf.d/a.conf": b"/opt/lib"},
        {
            "etc/ld.so.conf": b"include ld.so.conf\ninclude ld.so.conf.d/a.conf\n",
            "etc/ld.so.conf.d/a.conf": b"/opt/lib",
        },
    ],
)
def test_ld_so_conf(files: dict[str, bytes]) -> None:
    assert check_app(_configured(**files)).ok


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"etc/ld.so.conf": b"# /opt/lib\n"},
        {"etc/ld.so.conf": b"opt/lib\n"},
        {"etc/ld.so.conf.d/a.conf": b"/opt/lib\n"},  # not included
        {"etc/ld.so.conf": b"include ld.so.conf.d/*.conf\n", "etc/ld.so.conf.d/a.txt": b"/opt/lib\n"},
        {"etc/ld.so.conf": b"include ld.so.conf.d/*.conf\n", "etc/ld.so.conf.d/.a.conf": b"/opt/lib\n"},
    ],
)
def test_directory_outside_ld_so_conf(files: dict[str, bytes]) -> None:
    assert missing_library(check_app(_configured(**files))) == "liba.so"


def test_patterns_of_ld_so_conf_take_linear_time() -> None:
    def check(stars: int) -> None:
        pattern = b"*a" * stars + b"b.conf"
        files = {
            "etc/ld.so.conf": b"include ld.so.conf.d/" + pattern + b"\n",
            f"etc/ld.so.conf.d/{'a' * 200}.conf": b"/opt/lib\n",
        }
        assert missing_library(check_app(_configured(**files))) == "liba.so"

    assert_linear(check, lambda size: size, 200)


def test_recursive_ld_so_conf() -> None:
    files = {"etc/ld.so.conf": b"include ld.so.conf\n" * 100}
    assert missing_library(check_app(_configured(**files))) == "liba.so"


def _of_musl(*needed: str, **files: bytes) -> Check:
    return check_app({"bin/app": dynamic_program(*needed, interpreter=MUSL), **files}, loader=MUSL)


@pytest.mark.parametrize("folder", ["lib", "usr/local/lib", "usr/lib"])
def test_musl_default_directories(folder: str) -> None:
    assert _of_musl("liba.so", **{f"{folder}/liba.so": LIBRARY}).ok


def test_musl_ignores_multiarch_directories() -> None:
    assert missing_library(_of_musl("liba.so", **{f"{TRIPLET}/liba.so": LIBRARY})) == "liba.so"


@pytest.mark.parametrize("text", [b"/opt\n/lib\n", b"/lib:/opt"])
def test_musl_path_file(text: bytes) -> None:
    settings = {"etc/ld-musl-x86_64.path": text}
    assert _of_musl("liba.so", **settings, **{"opt/liba.so": LIBRARY}).ok
    assert missing_library(_of_musl("liba.so", **settings, **{"usr/lib/liba.so": LIBRARY})) == "liba.so"


def test_musl_builtin_libraries() -> None:
    assert _of_musl("libc.so", "libc.musl-x86_64.so.1", "libpthread.so.0", "libm.so.6").ok
    assert missing_library(_of_musl("libcrypt.so.1")) == "libcrypt.so.1"


# Loaded files and `--for`.


def test_library_above_host_baseline() -> None:
    needy = elf(AMD64, isa=[(ISA_NEEDED, 0b100)])
    files = {
        "bin/app": dynamic_program("liba.so"),
        GLIBC[1:]: LIBRARY,
        "lib/liba.so": needy,
        "lib/unused.so": needy,
    }
    image = single_platform_image([make_tar(files)], AMD64, Entrypoint=["/bin/app"])
    host = Platform.parse(AMD64)
    report = verify(image, (), "the image", VerifyOptions(hosts={host: 0}))
    failing = [check for check in report.platforms[0].checks if not check.ok]
    assert [(check.name, check.path) for check in failing] == [("instruction-set", "/lib/liba.so")]
    assert "needs x86-64-v3 (x86 ISA note: needed x86-64-v3)" in failing[0].message


def test_script_on_host() -> None:
    files = {"bin/app": b"#!/bin/sh\n", "bin/sh": dynamic_program(), GLIBC[1:]: LIBRARY}
    image = single_platform_image([make_tar(files)], AMD64, Entrypoint=["/bin/app"])
    rules = VerifyOptions(hosts={Platform.parse(AMD64): 0})
    row = verify(image, (), "the image", rules).platforms[0]
    assert row.ok
    assert [check.path for check in row.checks if check.name == "starts"] == ["/bin/sh"]


# Limits.


def limit_message(files: Mapping[str, bytes], others: Iterable[tarfile.TarInfo] = ()) -> str:
    """Return the message of the failing check ``limit``, which must be the only failure."""
    image = single_platform_image(
        [make_tar({GLIBC[1:]: elf(AMD64), **files}, others)], AMD64, Entrypoint=["/bin/app"]
    )
    (check,) = (check for check in verify(image, (), "the image").platforms[0].checks if not check.ok)
    assert (check.name, check.path) == ("limit", "/bin/app")
    return check.message


def include_lines(count: int) -> bytes:
    return b"".join(b"include none-%d.conf\n" % number for number in range(count))


def test_pattern_after_many_is_used() -> None:
    late = include_lines(199) + b"include ld.so.conf.d/z.conf\n"
    assert check_app(_configured(**{"etc/ld.so.conf": late, "etc/ld.so.conf.d/z.conf": b"/opt/lib"})).ok


def test_too_many_patterns() -> None:
    message = limit_message(_configured(**{"etc/ld.so.conf": include_lines(201)}))
    assert message.endswith("/etc/ld.so.conf includes more than 200 files or patterns")


def test_too_many_included_files() -> None:
    files = {f"etc/ld.so.conf.d/{number}.conf": b"# empty\n" for number in range(200)}
    message = limit_message(_configured(**files, **{"etc/ld.so.conf": b"include ld.so.conf.d/*.conf\n"}))
    assert "more than 200 files or patterns" in message


def test_too_long_ld_so_conf() -> None:
    long = b"#\n" * (40 << 10) + b"/opt/lib\n"
    assert "/etc/ld.so.conf has more than 65536 bytes" in limit_message(
        _configured(**{"etc/ld.so.conf": long})
    )


def test_too_many_libraries() -> None:
    names = [f"lib{number}.so" for number in range(2001)]
    files = {"bin/app": dynamic_program(*names), **{f"lib/{name}": LIBRARY for name in names}}
    assert "it needs more than 2000 libraries" in limit_message(files)


def test_too_many_rpaths() -> None:
    first, second = (":".join(f"/{start + number}" for number in range(501)) for start in (0, 1000))
    files = {
        "bin/app": dynamic_program("liba.so", rpath=first),
        "lib/liba.so": elf(AMD64, needed=["libb.so"], rpath=second),
    }
    assert "RPATH of more than 1000 directories" in limit_message(files)


def folders_and_libraries(count: int) -> tuple[dict[str, bytes], list[tarfile.TarInfo]]:
    """Return a program that needs ``count`` libraries, which the last of ``count`` directories has."""
    names = [f"lib{number}.so" for number in range(count)]
    folders = [directory(f"opt/{number}") for number in range(count)]
    files = {
        "bin/app": dynamic_program(*names),
        "etc/ld.so.conf": b"".join(b"/opt/%d\n" % number for number in range(count)),
        **{f"opt/{count - 1}/{name}": LIBRARY for name in names},
    }
    return files, folders


def test_folders_times_libraries() -> None:
    assert check_app(*folders_and_libraries(300)).ok
    assert "takes more than 300000 look-ups" in limit_message(*folders_and_libraries(600))


def test_cost_of_folders_times_libraries() -> None:
    """At four times the size both numbers are four times as large, and the look-ups reach their limit."""

    def check(image: MemoryImage) -> None:
        verify(image, (), "the image")

    def make(count: int) -> MemoryImage:
        files, folders = folders_and_libraries(count)
        tar = make_tar({GLIBC[1:]: elf(AMD64), **files}, folders)
        return single_platform_image([tar], AMD64, Entrypoint=["/bin/app"])

    assert_linear(check, make, 1600)


def test_directory_is_searched_once() -> None:
    program = dynamic_program(*(f"lib{number}.so" for number in range(200)))
    same = b"/opt/lib\n/opt/./lib\n/opt/link\n" * 1000
    links = [symlink("opt/link", "lib")]
    checks = check_all(_configured(**{"bin/app": program, "etc/ld.so.conf": same}), links)
    assert len(checks) == 200
    assert {check.name for check in checks} == {"starts"}
