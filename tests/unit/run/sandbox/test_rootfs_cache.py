from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from buildkit_tasks.errors import EmulatorError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import Descriptor
from buildkit_tasks.run.sandbox import rootfs_cache
from buildkit_tasks.run.sandbox.directory_lock import LOCK_NAME
from buildkit_tasks.run.sandbox.rootfs_cache import RootfsCache
from tests.support.environment import minimal_env
from tests.support.oci import MemoryImage, single_platform_image, write_archive
from tests.support.unpacking import (
    IS_ROOT,
    NOBODY,
    call_as_nobody,
    directory,
    file,
    layer_tar,
    list_tree,
    only_root,
    platform_descriptor,
    remove_path,
    symlink,
)
from tests.support.waiting import wait_until, waits_for_flock

MIB = 1 << 20


def make_image(name: str, size: int = 1000) -> MemoryImage:
    """Return an image with one file of ``size`` bytes."""
    return single_platform_image(
        [layer_tar(file(name, bytes(size)))], Cmd=["/" + name], WorkingDir="/w", User="5:6", Env=["A=1"]
    )


def acquire_path(cache: RootfsCache, source: MemoryImage) -> Path:
    with cache.acquire(source, platform_descriptor(source)) as root:
        assert root.path.is_dir()
        return root.path


def cached_path(
    cache_dir: Path, source: MemoryImage, max_bytes: int = MIB, id_offset: int | None = None
) -> Path:
    """Return the path of the root file system of an image in a cache of this size."""
    return acquire_path(RootfsCache(cache_dir, max_bytes, id_offset), source)


def list_entries(cache_dir: Path) -> set[str]:
    """Return the names in the cache directory except the names lock."""
    return {path.name for path in cache_dir.iterdir()} - {".lock"}


def list_files(cache_dir: Path) -> set[str]:
    """Return the files of all cached images."""
    return {
        name
        for entry in list_entries(cache_dir)
        for name in list_tree(cache_dir / entry / "root")
        if name != "w"
    }


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "roots"


def test_second_use_is_a_cache_hit(cache_dir: Path) -> None:
    source = make_image("x")
    entry = platform_descriptor(source)
    with RootfsCache(cache_dir, MIB, None).acquire(source, entry) as first:
        assert (first.path / "x").stat().st_size == 1000
    opened = len(source.opened)
    with RootfsCache(cache_dir, MIB, None).acquire(source, entry) as second:
        assert second == first
    assert len(source.opened) == opened
    assert second.config == Image(source).config(entry)
    assert second.config.working_dir == "/w"
    assert len(list_entries(cache_dir)) == 1


def test_directories_are_private(cache_dir: Path) -> None:
    root = cached_path(cache_dir, make_image("x"))
    assert [stat.S_IMODE(path.stat().st_mode) for path in (cache_dir, root.parent)] == [0o700, 0o700]
    assert root.parent.parent == cache_dir


def test_entry_name_has_digest(cache_dir: Path) -> None:
    source = make_image("x")
    assert platform_descriptor(source).digest.hex in cached_path(cache_dir, source).parent.name


@only_root
def test_id_offset_is_part_of_key(cache_dir: Path) -> None:
    source = make_image("x")
    unmapped, mapped = (cached_path(cache_dir, source), cached_path(cache_dir, source, id_offset=100_000))
    other = cached_path(cache_dir, source, id_offset=200_000)
    assert [path.stat().st_uid for path in (unmapped, mapped, other)] == [0, 100_000, 200_000]


def test_cache_hit_imports_little(cache_dir: Path, tmp_path: Path) -> None:
    archive = write_archive(make_image("x"), tmp_path / "image.tar")
    code = f"""
import sys
from buildkit_tasks.run.sandbox.rootfs_cache import RootfsCache
early = set(sys.modules)
from pathlib import Path
from buildkit_tasks.oci.transports.oci_archive import OciArchive
from buildkit_tasks.oci.image import Image
source = OciArchive(Path({str(archive)!r}))
entry = Image(source).platform_manifests[0][1]
before = set(sys.modules)
cache = RootfsCache(Path({str(cache_dir)!r}), 1 << 20, None)
with cache.acquire(source, entry):
    print(*sorted(early), "/", *sorted(set(sys.modules) - before))
"""
    first_run, second_run = (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=minimal_env()
        ).stdout.split("/")
        for _ in range(2)
    )
    assert {"ctypes", "buildkit_tasks.run.sandbox.unpack"} <= set(first_run[1].split())
    assert {name for name in second_run[1].split() if not name.startswith("encodings")} == set()
    assert set(second_run[0].split()).isdisjoint(
        {"msgspec", "isal", "backports", "ctypes", "filelock", "json"}
    )


# Eviction


def test_evicts_least_recently_used(cache_dir: Path) -> None:
    cache = RootfsCache(cache_dir, 3 * MIB, None)
    sources = {name: make_image(name, MIB - 100_000) for name in "abcd"}
    for seconds, name in enumerate("abc"):
        entry_path = acquire_path(cache, sources[name]).parent
        os.utime(entry_path / LOCK_NAME, (seconds, seconds))
    acquire_path(cache, sources["a"])
    acquire_path(cache, sources["d"])
    assert list_files(cache_dir) == {"a", "c", "d"}


def test_entry_in_use_is_not_evicted(cache_dir: Path) -> None:
    cache, other_cache = RootfsCache(cache_dir, MIB, None), RootfsCache(cache_dir, MIB, None)
    old, new = make_image("old", MIB - 100_000), make_image("new", MIB - 100_000)
    with cache.acquire(old, platform_descriptor(old)) as first:
        with other_cache.acquire(new, platform_descriptor(new)) as second:
            assert first.path.is_dir()
            assert second.path.is_dir()
        assert (first.path / "old").exists()
        assert list_files(cache_dir) == {"old"}
    assert len(list_entries(cache_dir)) == 1


def test_zero_limit_keeps_nothing(cache_dir: Path) -> None:
    cache, source = RootfsCache(cache_dir, 0, None), make_image("x")
    with (
        cache.acquire(source, platform_descriptor(source)) as first,
        cache.acquire(source, platform_descriptor(source)) as second,
    ):
        assert first.path == second.path
        assert (first.path / "x").exists()
    assert list_entries(cache_dir) == set()


def test_oversized_entry_is_not_kept(cache_dir: Path) -> None:
    assert cached_path(cache_dir, make_image("x", 2 * MIB)).parent.parent == cache_dir
    assert list_entries(cache_dir) == set()


def test_lowered_limit_evicts(cache_dir: Path) -> None:
    for name in "ab":
        cached_path(cache_dir, make_image(name, MIB), 9 * MIB)
    cached_path(cache_dir, make_image("c", MIB - 100_000), 2 * MIB)
    assert list_files(cache_dir) == {"b", "c"}


def test_entry_of_earlier_boot_is_replaced(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = make_image("x")
    first = cached_path(cache_dir, source)
    (first / "x").write_bytes(b"")  # as after a power cut
    boot = tmp_path / "boot_id"
    boot.write_text("01234567-89ab-cdef-0123-456789abcdef\n")
    monkeypatch.setattr(rootfs_cache, "_BOOT_ID_FILE", boot)
    second_path = cached_path(cache_dir, source)
    assert (second_path / "x").stat().st_size == 1000
    assert list_entries(cache_dir) == {second_path.parent.name}


@pytest.mark.parametrize(
    "metadata_bytes",
    [
        b"", b"{", b"[]", b"null", b'{"form": 1}', b'{"form": 1, "config": [], "diff_ids": []}',
        b'{"form": 1, "config": {"os": "linux", "new": 1}, "diff_ids": []}', b"\xff",
        b'{"form": 1, "config": {"os": "linux", "architecture": "amd64"}, "diff_ids": ["x"]}', None,
    ],
)  # fmt: skip
def test_damaged_entry_is_replaced(metadata_bytes: bytes | None, cache_dir: Path) -> None:
    source = make_image("x")
    metadata = cached_path(cache_dir, source).parent / "root.json"
    if metadata_bytes is None:
        metadata.unlink()
    else:
        metadata.write_bytes(metadata_bytes)
    (metadata.parent / "root/x").unlink()
    assert (cached_path(cache_dir, source) / "x").exists()
    assert json.loads(metadata.read_bytes())["config"]["os"] == "linux"
    assert len(list_entries(cache_dir)) == 1


def test_other_format_is_replaced(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_image("x")
    (cached_path(cache_dir, source) / "x").unlink()
    monkeypatch.setattr(rootfs_cache, "_FORMAT_VERSION", 2)
    assert (cached_path(cache_dir, source) / "x").exists()


def test_damaged_entry_in_use(cache_dir: Path) -> None:
    cache, source = RootfsCache(cache_dir, MIB, None), make_image("x")
    with cache.acquire(source, platform_descriptor(source)) as root:
        (root.path.parent / "root.json").write_bytes(b"")
        with pytest.raises(EmulatorError, match="damaged and in use") as excinfo:
            cached_path(cache_dir, source)
        assert excinfo.value.hint
        assert (root.path / "x").exists()


def test_directory_without_lock_file(cache_dir: Path) -> None:
    source = make_image("x")
    root = cached_path(cache_dir, source)
    (root.parent / "lock").unlink()
    (root / "x").unlink()
    assert (cached_path(cache_dir, source) / "x").exists()
    assert len(list_entries(cache_dir)) == 1


# Errors and concurrency


def test_malformed_image_cleanup(cache_dir: Path) -> None:
    source = single_platform_image([layer_tar(file("a/b")), layer_tar(file("../x"))])
    cache = RootfsCache(cache_dir, MIB, None)
    for _ in range(2):
        with pytest.raises(MalformedImage, match="leads out"):
            acquire_path(cache, source)
        assert list_entries(cache_dir) == set()


def test_error_in_body_releases_lock(cache_dir: Path) -> None:
    cache, source = RootfsCache(cache_dir, 0, None), make_image("x")
    with pytest.raises(ZeroDivisionError), cache.acquire(source, platform_descriptor(source)):
        raise ZeroDivisionError
    assert list_entries(cache_dir) == set()


def test_unusable_cache_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmulatorError, match="cannot be used to unpack") as excinfo:
        acquire_path(RootfsCache(tmp_path / "file" / "roots", MIB, None), make_image("x"))
    assert excinfo.value.hint


def test_disk_full(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", raise_disk_full)
    with pytest.raises(
        LimitExceeded, match=r"the disk is full while unpacking linux/amd64 .*1000 bytes more"
    ) as excinfo:
        cached_path(cache_dir, make_image("x"))
    assert excinfo.value.hint == f"df -h {cache_dir}"
    assert list_entries(cache_dir) == set()
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_text", raise_disk_full)
    with pytest.raises(LimitExceeded, match="No space left"):
        cached_path(cache_dir, make_image("x"))
    assert list_entries(cache_dir) == set()


def test_removes_abandoned_directories(cache_dir: Path) -> None:
    cached_path(cache_dir, make_image("x"))
    for name in (".staging-sha256-dead", ".gone-dead", ".staging-without-lock"):
        (cache_dir / name / "root/a").mkdir(parents=True)
        (cache_dir / name / "root/a/file").touch()
    for name in (".staging-sha256-dead", ".gone-dead"):
        (cache_dir / name / "lock").touch()
    cached_path(cache_dir, make_image("y"))
    assert list_files(cache_dir) == {"x", "y"}
    assert not any(name.startswith(".") for name in list_entries(cache_dir))


def test_keeps_locked_staging(cache_dir: Path) -> None:
    staging = cache_dir / ".staging-sha256-busy"
    staging.mkdir(parents=True)
    with (staging / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cached_path(cache_dir, make_image("x"))
        assert staging.exists()
    cached_path(cache_dir, make_image("x"))
    assert not staging.exists()


def test_cache_hit_removes_abandoned(cache_dir: Path) -> None:
    source = make_image("x")
    cached_path(cache_dir, source)
    (cache_dir / ".gone-dead/root").mkdir(parents=True)
    cached_path(cache_dir, source)
    assert len(list_entries(cache_dir)) == 1


class BlockingSource(MemoryImage):
    """A source that opens layers only once ``allowed`` is set, and counts them."""

    def __init__(self, inner: MemoryImage) -> None:
        super().__init__(inner.blobs, inner.root)
        self.opening = threading.Event()
        self.allowed = threading.Event()
        self.layers = 0

    def open(self, descriptor: Descriptor) -> BinaryIO:
        if descriptor.media_type.endswith("gzip"):
            self.layers += 1
            self.opening.set()
            assert self.allowed.wait(120)
        return super().open(descriptor)


def start_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


@pytest.mark.parametrize("max_bytes", [0, MIB])
def test_concurrent_use_unpacks_once(max_bytes: int, cache_dir: Path) -> None:
    source, cache, sizes = BlockingSource(make_image("x")), RootfsCache(cache_dir, max_bytes, None), []
    barrier = threading.Barrier(9)

    def use_cache() -> None:
        with cache.acquire(source, platform_descriptor(source)) as root:
            sizes.append((root.path / "x").stat().st_size)
            barrier.wait(120)

    threads = [start_thread(use_cache) for _ in range(8)]
    assert source.opening.wait(120)
    assert sizes == []
    source.allowed.set()
    barrier.wait(120)
    for thread in threads:
        thread.join()
    assert sizes == [1000] * 8
    assert source.layers == 1
    assert len(list_entries(cache_dir)) == (1 if max_bytes else 0)


def test_waiter_retries_after_failure(cache_dir: Path) -> None:
    source, failures = BlockingSource(single_platform_image([layer_tar(file("../x"))])), []

    def expect_failure() -> None:
        with pytest.raises(MalformedImage) as excinfo:
            cached_path(cache_dir, source)
        failures.append(excinfo.value)

    threads = [start_thread(expect_failure) for _ in range(3)]
    source.allowed.set()
    for thread in threads:
        thread.join()
    assert len(failures) == 3
    assert list_entries(cache_dir) == set()


def test_waiter_locks_replacement(cache_dir: Path) -> None:
    cache, source = RootfsCache(cache_dir, 9 * MIB, None), make_image("x")
    entry_path = acquire_path(cache, source).parent
    ready, may_finish = threading.Event(), threading.Event()

    def wait_and_use() -> None:
        with cache.acquire(source, platform_descriptor(source)) as root:
            assert (root.path / "x").exists()
            ready.set()
            assert may_finish.wait(120)
            assert (root.path / "x").exists()

    with (entry_path / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as for removal
        thread = start_thread(wait_and_use)
        wait_until(lambda: waits_for_flock(os.getpid()))
        entry_path.rename(cache_dir / ".gone-x")
        cached_path(cache_dir, source, 9 * MIB)
    assert ready.wait(120)
    cached_path(cache_dir, make_image("y"), 0)
    assert list_files(cache_dir) == {"x"}
    may_finish.set()
    thread.join()
    cached_path(cache_dir, make_image("y"), 0)
    assert not any("sha256" in name for name in list_entries(cache_dir))


def test_concurrent_replacement(cache_dir: Path) -> None:
    source, paths = make_image("x"), []
    (cached_path(cache_dir, source).parent / "root.json").write_bytes(b"")
    threads = [start_thread(lambda: paths.append(cached_path(cache_dir, source))) for _ in range(8)]
    for thread in threads:
        thread.join()
    assert len(paths) == 8
    assert len(list_entries(cache_dir)) == 1


def test_entry_ready_during_staging(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocking_source, other = BlockingSource(make_image("x")), BlockingSource(make_image("x"))
    other.allowed.set()
    unpacker = start_thread(lambda: cached_path(cache_dir, blocking_source))
    assert blocking_source.opening.wait(120)
    exists = Path.exists

    def finish_unpacking(path: Path) -> bool:
        result = exists(path)
        if path.name == LOCK_NAME and path.parent.parent == cache_dir and not result:
            blocking_source.allowed.set()
            unpacker.join()
        return result

    monkeypatch.setattr(Path, "exists", finish_unpacking)
    threading.Timer(0.2, blocking_source.allowed.set).start()
    cached_path(cache_dir, other)
    unpacker.join()
    assert other.layers == 0


def test_images_unpack_in_parallel(cache_dir: Path) -> None:
    blocking_source, other_image = BlockingSource(make_image("slow")), make_image("fast")
    cache = RootfsCache(cache_dir, MIB, None)
    thread = start_thread(lambda: acquire_path(cache, blocking_source))
    assert blocking_source.opening.wait(120)
    acquire_path(cache, other_image)
    blocking_source.allowed.set()
    thread.join()
    assert list_files(cache_dir) == {"slow", "fast"}


def test_forked_child_holds_no_lock(cache_dir: Path) -> None:
    cache, source = RootfsCache(cache_dir, 0, None), make_image("x")
    read, write = os.pipe()
    with cache.acquire(source, platform_descriptor(source)):
        child = subprocess.Popen(["cat"], stdin=read, pass_fds=_open_fds(cache_dir))
    os.close(read)
    try:
        assert list_entries(cache_dir) == set()
    finally:
        os.close(write)
        child.wait()


def _open_fds(cache_dir: Path) -> list[int]:
    """Return our open descriptors of files below the cache directory."""
    fds = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the names are links that lead nowhere
        link = Path("/proc/self/fd") / name
        if link.is_symlink() and str(link.readlink()).startswith(str(cache_dir)):
            fds.append(int(name))
    assert fds
    return fds


def test_unprivileged_removal(nobody_dir: Path) -> None:
    canary = nobody_dir / "canary"
    canary.write_text("alive")
    source = single_platform_image(
        [
            layer_tar(
                directory("a", mode=0), file("a/b/c"), symlink("a/l", str(canary)), directory("d", mode=0o500)
            )
        ]
    )
    cache_dir = nobody_dir / "roots"
    call_as_nobody(lambda: str(cached_path(cache_dir, source, 0)))
    assert list_entries(cache_dir) == set()
    assert canary.read_text() == "alive"
    assert cache_dir.stat().st_uid == (NOBODY if IS_ROOT else os.geteuid())
    remove_path(cache_dir)


@only_root
def test_users_do_not_share_entries(nobody_dir: Path) -> None:
    source, cache_dir = make_image("x"), nobody_dir / "roots"
    call_as_nobody(lambda: str(cached_path(cache_dir, source)))
    cached_path(cache_dir, source, 0)
    assert [(cache_dir / name).stat().st_uid for name in list_entries(cache_dir)] == [NOBODY]
