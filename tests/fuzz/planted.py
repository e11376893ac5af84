"""Targets with a planted bug each, to see that the drivers catch it; none is found by its seed alone."""

from __future__ import annotations

import time

from tests.fuzz.target import Target

_SEED = b"seed"


def _raises(data: bytes) -> None:
    if data[:1] == b"k":
        raise KeyError("planted")


def _sleeps(data: bytes) -> None:
    if data[:1] == b"k":
        time.sleep(2.2)


def _hangs(data: bytes) -> None:
    while data[:1] == b"k":
        pass


def _allocates(data: bytes) -> int:
    return len(bytes(300 << 20)) if data[:1] == b"k" else 0


def _refused_wrongly(data: bytes) -> None:
    raise ValueError(data)


def _lies(data: bytes) -> int:
    return len(data) + (data[:1] == b"k")


def _check_length(data: bytes, found: int) -> None:
    assert found == len(data)


def _check_refusal(data: bytes, error: Exception) -> None:
    assert data[:1] != b"k", error


TARGETS = {
    target.name: target
    for target in (
        Target(name="sound", read=bytes.hex, seeds=lambda: [_SEED], tokens=(b"k",)),
        Target(name="raises", read=_raises, seeds=lambda: [_SEED], tokens=(b"k",), allowed=(ValueError,)),
        Target(name="sleeps", read=_sleeps, seeds=lambda: [_SEED], tokens=(b"k",)),
        Target(name="hangs", read=_hangs, seeds=lambda: [_SEED], tokens=(b"k",)),
        Target(name="allocates", read=_allocates, seeds=lambda: [_SEED], tokens=(b"k",)),
        Target(name="lies", read=_lies, check=_check_length, seeds=lambda: [_SEED], tokens=(b"k",)),
        Target(
            name="refuses",
            read=_refused_wrongly,
            refused=_check_refusal,
            allowed=(ValueError,),
            seeds=lambda: [_SEED],
            tokens=(b"k",),
        ),
    )
}
