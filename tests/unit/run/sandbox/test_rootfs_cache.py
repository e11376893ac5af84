from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from buildkit_tasks.errors import EmulatorError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import read_config, read_manifest
from buildkit_tasks.oci.model import Descriptor
from buildkit_tasks.run.sandbox import rootfs_cache as room
from buildkit_tasks.run.sandbox.rootfs_cache import RootfsCache
from tests.support.oci import Memory, one, write_archive
from tests.unit.run.sandbox.test_unpack import (
    NOBODY,
    ROOT,
    a_file,
    a_folder,
    a_link,
    as_nobody,
    descriptors,
    entry_of,
    erase,
    layer,
    listing,
    only_root,
    open_folder,
)

__all__ = ["open_folder"]  # a fixture of the unpacker's tests

MEGABYTE = 1 << 20


def image(name: str, size: int = 1000) -> Memory:
    """An image of about that size."""
    return one([layer(a_file(name, bytes(size)))], Cmd=["/" + name], WorkingDir="/w", User="5:6", Env=["A=1"])


def use(roots: RootfsCache, source: Memory) -> Path:
    with roots.acquire(source, entry_of(source)) as root:
        assert root.path.is_dir()
        return root.path


def kept(folder: Path) -> set[str]:
    """What stands in the folder of roots besides its lock."""
    return {path.name for path in folder.iterdir()} - {".lock"}


def names_in(folder: Path) -> set[str]:
    """The files that the kept roots have, which tell them apart."""
    return {name for place in kept(folder) for name in listing(folder / place / "root") if name != "w"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "roots"


@pytest.fixture(autouse=True)
def _no_lock_is_left() -> object:
    before = descriptors()
    yield
    assert descriptors() - before == set()  # another test's thread may end meanwhile, and close its own


def test_a_root_is_unpacked_once_and_found_again_with_its_config(folder: Path) -> None:
    source = image("x")
    entry = entry_of(source)
    with RootfsCache(folder, MEGABYTE, None).acquire(source, entry) as first:
        assert (first.path / "x").stat().st_size == 1000
    opened = len(source.opened)
    with RootfsCache(folder, MEGABYTE, None).acquire(source, entry) as again:
        assert again == first
    assert len(source.opened) == opened
    assert again.config == read_config(source, read_manifest(source, entry))
    assert again.config.working_dir == "/w"
    assert len(kept(folder)) == 1


def test_only_the_user_reaches_the_roots(folder: Path) -> None:
    root = use(RootfsCache(folder, MEGABYTE, None), image("x"))
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, root.parent)] == [0o700, 0o700]
    assert root.parent.parent == folder


def test_a_root_is_called_by_its_manifests_digest(folder: Path) -> None:
    source = image("x")
    assert entry_of(source).digest.hex in use(RootfsCache(folder, MEGABYTE, None), source).parent.name


@only_root
def test_another_mapping_of_owners_is_another_root(folder: Path) -> None:
    source = image("x")
    mine, shifted = (
        use(RootfsCache(folder, MEGABYTE, None), source),
        use(RootfsCache(folder, MEGABYTE, 100_000), source),
    )
    other = use(RootfsCache(folder, MEGABYTE, 200_000), source)
    assert [path.stat().st_uid for path in (mine, shifted, other)] == [0, 100_000, 200_000]


def test_finding_a_root_imports_nothing_to_unpack_with(folder: Path, tmp_path: Path) -> None:
    archive = write_archive(image("x"), tmp_path / "image.tar")
    code = f"""
import sys
import buildkit_tasks.run.sandbox.rootfs_cache as room
early = set(sys.modules)
from pathlib import Path
from buildkit_tasks.oci.transports.oci_archive import OciArchive
from buildkit_tasks.oci.image import platform_manifests
source = OciArchive(Path({str(archive)!r}))
entry = platform_manifests(source)[0][1]
before = set(sys.modules)
roots = room.RootfsCache(Path({str(folder)!r}), 1 << 20, None)
with roots.acquire(source, entry):
    print(*sorted(early), "/", *sorted(set(sys.modules) - before))
"""
    cold, warm = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(
            "/"
        )
        for _ in range(2)
    )
    assert {"ctypes", "buildkit_tasks.run.sandbox.unpack"} <= set(cold[1].split())
    assert {name for name in warm[1].split() if not name.startswith("encodings")} == set()
    assert set(warm[0].split()).isdisjoint({"msgspec", "isal", "backports", "ctypes", "filelock", "json"})


# Which are kept.


def test_past_the_cap_the_one_that_was_not_used_for_longest_goes_first(folder: Path) -> None:
    roots = RootfsCache(folder, 3 * MEGABYTE, None)
    sources = {name: image(name, MEGABYTE - 100_000) for name in "abcd"}
    for name in "abc":
        use(roots, sources[name])
        time.sleep(0.01)
    use(roots, sources["a"])
    time.sleep(0.01)
    use(roots, sources["d"])
    assert names_in(folder) == {"a", "c", "d"}


def test_a_root_in_use_is_never_removed_and_goes_when_it_is_not(folder: Path) -> None:
    roots, others = RootfsCache(folder, MEGABYTE, None), RootfsCache(folder, MEGABYTE, None)
    old, new = image("old", MEGABYTE - 100_000), image("new", MEGABYTE - 100_000)
    with roots.acquire(old, entry_of(old)) as held:
        with others.acquire(new, entry_of(new)) as second:
            assert held.path.is_dir()
            assert second.path.is_dir()
        assert (held.path / "old").exists()
        assert names_in(folder) == {"old"}
    assert len(kept(folder)) == 1


def test_with_a_cap_of_nothing_nothing_stays(folder: Path) -> None:
    roots, source = RootfsCache(folder, 0, None), image("x")
    with roots.acquire(source, entry_of(source)) as first, roots.acquire(source, entry_of(source)) as second:
        assert first.path == second.path
        assert (first.path / "x").exists()
    assert kept(folder) == set()


def test_a_root_larger_than_the_cap_is_used_and_not_kept(folder: Path) -> None:
    assert use(RootfsCache(folder, MEGABYTE, None), image("x", 2 * MEGABYTE)).parent.parent == folder
    assert kept(folder) == set()


def test_a_smaller_cap_counts_at_the_next_unpacking(folder: Path) -> None:
    for name in "ab":
        use(RootfsCache(folder, 9 * MEGABYTE, None), image(name, MEGABYTE))
    use(RootfsCache(folder, 2 * MEGABYTE, None), image("c", MEGABYTE - 100_000))
    assert names_in(folder) == {"b", "c"}


def test_a_root_of_an_earlier_boot_is_made_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = image("x")
    first = use(RootfsCache(folder, MEGABYTE, None), source)
    (first / "x").write_bytes(b"")  # as a power cut leaves it
    boot = tmp_path / "boot_id"
    boot.write_text("01234567-89ab-cdef-0123-456789abcdef\n")
    monkeypatch.setattr(room, "_BOOT_ID_FILE", boot)
    again = use(RootfsCache(folder, MEGABYTE, None), source)
    assert (again / "x").stat().st_size == 1000
    assert kept(folder) == {again.parent.name}


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"[]", b"null", b'{"form": 1}', b'{"form": 1, "config": [], "diff_ids": []}',
        b'{"form": 1, "config": {"os": "linux", "new": 1}, "diff_ids": []}', b"\xff",
        b'{"form": 1, "config": {"os": "linux", "architecture": "amd64"}, "diff_ids": ["x"]}', None,
    ],
)  # fmt: skip
def test_a_root_with_a_damaged_note_is_made_anew(damage: bytes | None, folder: Path) -> None:
    source = image("x")
    note = use(RootfsCache(folder, MEGABYTE, None), source).parent / "root.json"
    if damage is None:
        note.unlink()
    else:
        note.write_bytes(damage)
    (note.parent / "root/x").unlink()
    assert (use(RootfsCache(folder, MEGABYTE, None), source) / "x").exists()
    assert json.loads(note.read_bytes())["config"]["os"] == "linux"
    assert len(kept(folder)) == 1


def test_a_root_of_another_release_is_made_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = image("x")
    (use(RootfsCache(folder, MEGABYTE, None), source) / "x").unlink()
    monkeypatch.setattr(room, "_FORMAT_VERSION", 2)
    assert (use(RootfsCache(folder, MEGABYTE, None), source) / "x").exists()


def test_a_damaged_root_that_others_use_is_told_of(folder: Path) -> None:
    roots, source = RootfsCache(folder, MEGABYTE, None), image("x")
    with roots.acquire(source, entry_of(source)) as held:
        (held.path.parent / "root.json").write_bytes(b"")
        with pytest.raises(EmulatorError, match="damaged, and in use") as caught:
            use(RootfsCache(folder, MEGABYTE, None), source)
        assert caught.value.hint
        assert (held.path / "x").exists()


def test_a_folder_in_a_roots_place_that_is_none_is_replaced(folder: Path) -> None:
    source = image("x")
    root = use(RootfsCache(folder, MEGABYTE, None), source)
    (root.parent / "lock").unlink()
    (root / "x").unlink()
    assert (use(RootfsCache(folder, MEGABYTE, None), source) / "x").exists()
    assert len(kept(folder)) == 1


# Trouble.


def test_a_malformed_image_leaves_nothing(folder: Path) -> None:
    source = one([layer(a_file("a/b")), layer(a_file("../x"))])
    roots = RootfsCache(folder, MEGABYTE, None)
    for _ in range(2):
        with pytest.raises(MalformedImage, match="leads out"):
            use(roots, source)
        assert kept(folder) == set()


def test_a_failing_use_lets_go_of_the_root(folder: Path) -> None:
    roots, source = RootfsCache(folder, 0, None), image("x")
    with pytest.raises(ZeroDivisionError), roots.acquire(source, entry_of(source)):
        raise ZeroDivisionError
    assert kept(folder) == set()


def test_a_place_that_cannot_be_used_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmulatorError, match="cannot be used to unpack") as caught:
        use(RootfsCache(tmp_path / "file" / "roots", MEGABYTE, None), image("x"))
    assert caught.value.hint


def test_a_full_disk_is_told_of_with_what_to_look_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(
        LimitExceeded, match=r"the disk is full while unpacking linux/amd64 .*1000 bytes more"
    ) as caught:
        use(RootfsCache(folder, MEGABYTE, None), image("x"))
    assert caught.value.hint == f"df -h {folder}"
    assert kept(folder) == set()
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(LimitExceeded, match="No space left"):
        use(RootfsCache(folder, MEGABYTE, None), image("x"))
    assert kept(folder) == set()


def test_what_a_killed_process_left_goes_with_the_next_run_of_any_image(folder: Path) -> None:
    use(RootfsCache(folder, MEGABYTE, None), image("x"))
    for name in (".staging-sha256-dead", ".gone-dead", ".staging-without-lock"):
        (folder / name / "root/a").mkdir(parents=True)
        (folder / name / "root/a/file").touch()
    for name in (".staging-sha256-dead", ".gone-dead"):
        (folder / name / "lock").touch()
    use(RootfsCache(folder, MEGABYTE, None), image("y"))
    assert names_in(folder) == {"x", "y"}
    assert not any(name.startswith(".") for name in kept(folder))


def test_what_a_living_process_is_at_is_left_alone(folder: Path) -> None:
    busy = folder / ".staging-sha256-busy"
    busy.mkdir(parents=True)
    with (busy / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        use(RootfsCache(folder, MEGABYTE, None), image("x"))
        assert busy.exists()
    use(RootfsCache(folder, MEGABYTE, None), image("x"))
    assert not busy.exists()


def test_a_new_roots_finds_leftovers_also_where_the_root_is_there(folder: Path) -> None:
    source = image("x")
    use(RootfsCache(folder, MEGABYTE, None), source)
    (folder / ".gone-dead/root").mkdir(parents=True)
    use(RootfsCache(folder, MEGABYTE, None), source)
    assert len(kept(folder)) == 1


class Slow(Memory):
    """A source whose layers are given only when that is allowed; counts how often they were asked for."""

    def __init__(self, inner: Memory) -> None:
        super().__init__(inner.blobs, inner.top)
        self.asked = threading.Event()
        self.allowed = threading.Event()
        self.layers = 0

    def open(self, descriptor: Descriptor) -> BinaryIO:
        if descriptor.media_type.endswith("gzip"):
            self.layers += 1
            self.asked.set()
            assert self.allowed.wait(20)
        return super().open(descriptor)


def running(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


@pytest.mark.parametrize("cap", [0, MEGABYTE])
def test_of_many_at_once_one_unpacks_and_the_others_wait(cap: int, folder: Path) -> None:
    source, roots, found = Slow(image("x")), RootfsCache(folder, cap, None), []
    everyone = threading.Barrier(9)

    def one_of_them() -> None:
        with roots.acquire(source, entry_of(source)) as root:
            found.append((root.path / "x").stat().st_size)
            everyone.wait(20)

    threads = [running(one_of_them) for _ in range(8)]
    assert source.asked.wait(20)
    time.sleep(0.1)
    assert found == []
    source.allowed.set()
    everyone.wait(20)
    for thread in threads:
        thread.join()
    assert found == [1000] * 8
    assert source.layers == 1
    assert len(kept(folder)) == (1 if cap else 0)


def test_who_waited_for_one_that_failed_tries_it_itself(folder: Path) -> None:
    source, failures = Slow(one([layer(a_file("../x"))])), []

    def failing() -> None:
        with pytest.raises(MalformedImage) as caught:
            use(RootfsCache(folder, MEGABYTE, None), source)
        failures.append(caught.value)

    threads = [running(failing) for _ in range(3)]
    source.allowed.set()
    for thread in threads:
        thread.join()
    assert len(failures) == 3
    assert kept(folder) == set()


def test_who_waited_while_a_root_was_replaced_holds_the_new_one(folder: Path) -> None:
    roots, source = RootfsCache(folder, 9 * MEGABYTE, None), image("x")
    place = use(roots, source).parent
    ready, go = threading.Event(), threading.Event()

    def waiting() -> None:
        with roots.acquire(source, entry_of(source)) as root:
            assert (root.path / "x").exists()
            ready.set()
            assert go.wait(20)
            assert (root.path / "x").exists()

    with (place / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as one does that removes it
        thread = running(waiting)
        time.sleep(0.2)
        place.rename(folder / ".gone-x")
        use(RootfsCache(folder, 9 * MEGABYTE, None), source)
    assert ready.wait(20)
    use(RootfsCache(folder, 0, None), image("y"))
    assert names_in(folder) == {"x"}
    go.set()
    thread.join()
    use(RootfsCache(folder, 0, None), image("y"))
    assert not any("sha256" in name for name in kept(folder))


def test_many_that_find_a_root_damaged_make_one_anew(folder: Path) -> None:
    source, found = image("x"), []
    (use(RootfsCache(folder, MEGABYTE, None), source).parent / "root.json").write_bytes(b"")
    threads = [
        running(lambda: found.append(use(RootfsCache(folder, MEGABYTE, None), source))) for _ in range(8)
    ]
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(kept(folder)) == 1


def test_a_root_that_comes_while_it_is_looked_for_is_taken_for_no_strangers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = Slow(image("x")), Slow(image("x"))
    other.allowed.set()
    maker = running(lambda: use(RootfsCache(folder, MEGABYTE, None), slow))
    assert slow.asked.wait(20)
    exists = Path.exists

    def comes(path: Path) -> bool:
        found = exists(path)
        if path.name == room._LOCK_NAME and path.parent.parent == folder and not found:
            slow.allowed.set()
            maker.join()
        return found

    monkeypatch.setattr(Path, "exists", comes)
    threading.Timer(0.2, slow.allowed.set).start()
    use(RootfsCache(folder, MEGABYTE, None), other)
    maker.join()
    assert other.layers == 0


def test_different_images_are_unpacked_side_by_side(folder: Path) -> None:
    slow, fast = Slow(image("slow")), image("fast")
    roots = RootfsCache(folder, MEGABYTE, None)
    thread = running(lambda: use(roots, slow))
    assert slow.asked.wait(20)
    use(roots, fast)
    slow.allowed.set()
    thread.join()
    assert names_in(folder) == {"slow", "fast"}


def test_a_child_that_lives_on_keeps_no_root_in_use(folder: Path) -> None:
    roots, source = RootfsCache(folder, 0, None), image("x")
    read, write = os.pipe()
    with roots.acquire(source, entry_of(source)):
        child = subprocess.Popen(["cat"], stdin=read, pass_fds=_locks(folder))
    os.close(read)
    try:
        assert kept(folder) == set()
    finally:
        os.close(write)
        child.wait()


def _locks(folder: Path) -> list[int]:
    """The descriptors that we have open below the folder."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the names are links that lead nowhere
        link = Path("/proc/self/fd") / name
        if link.is_symlink() and str(link.readlink()).startswith(str(folder)):
            found.append(int(name))
    assert found
    return found


def test_an_ordinary_users_roots_are_removed_whatever_their_modes(open_folder: Path) -> None:
    canary = open_folder / "canary"
    canary.write_text("alive")
    source = one(
        [layer(a_folder("a", mode=0), a_file("a/b/c"), a_link("a/l", str(canary)), a_folder("d", mode=0o500))]
    )
    folder = open_folder / "roots"
    as_nobody(lambda: str(use(RootfsCache(folder, 0, None), source)))
    assert kept(folder) == set()
    assert canary.read_text() == "alive"
    assert folder.stat().st_uid == (NOBODY if ROOT else os.geteuid())
    erase(folder)


@only_root
def test_a_user_does_not_take_the_roots_of_another(open_folder: Path) -> None:
    source, folder = image("x"), open_folder / "roots"
    as_nobody(lambda: str(use(RootfsCache(folder, MEGABYTE, None), source)))
    use(RootfsCache(folder, 0, None), source)
    assert [(folder / name).stat().st_uid for name in kept(folder)] == [NOBODY]
