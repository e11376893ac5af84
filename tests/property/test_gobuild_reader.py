from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms.elf.go_buildinfo import GO_MAGIC, read_go_build_info
from buildkit_tasks.platforms.elf.reader import read_binary
from buildkit_tasks.platforms.elf.view import WholeFile
from tests.support.elf import BASE, PT_OTHER, Elf, go_info

plain = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"='), max_size=30)
keys = st.text(st.sampled_from("GOARMabc-_"), min_size=1, max_size=12)


@given(plain, plain, st.dictionaries(keys, plain, max_size=20))
def test_build_info_round_trip(version: str, path: str, settings: dict[str, str]) -> None:
    lines = [f"path\t{path}\n", *(f"build\t{key}={value}\n" for key, value in settings.items())]
    view = WholeFile(go_info(version, "".join(lines)))
    build = read_go_build_info(0, view.read_at, view.read_at)
    assert build is not None
    assert (build.version, build.path, build.settings) == (version, path, settings)


@given(st.binary(max_size=200), st.booleans(), st.sampled_from([0, 4, 8, 255]))
def test_any_bytes_after_magic(data: bytes, inline: bool, size: int) -> None:
    view = WholeFile(GO_MAGIC + bytes([size, 2 if inline else 0]) + data)
    with contextlib.suppress(MalformedImage):
        read_go_build_info(0, view.read_at, lambda address, count: view.read_at(address - BASE, count))
    with contextlib.suppress(MalformedImage):
        read_go_build_info(0, view.read_at, view.read_at)


INFO = go_info("go1.26.8", "path\texample.org/x\nbuild\tGOARM=7\nbuild\tGOOS=linux\n")


@given(st.lists(st.tuples(st.integers(0, len(INFO) - 1), st.integers(0, 255)), max_size=8), st.booleans())
def test_mutated_build_info(damage: list[tuple[int, int]], as_section: bool) -> None:
    data = bytearray(INFO)
    for at, byte in damage:
        data[at] = byte
    elf = (
        Elf(machine="arm", sections={".go.buildinfo": bytes(data)})
        if as_section
        else Elf(machine="arm", segments=[(PT_OTHER, bytes(data))], load_flags=6)
    )
    assert len(read_binary(WholeFile(elf.build())).problems) <= 1
