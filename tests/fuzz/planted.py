"""Targets with one planted bug each, which both drivers must find; no seed triggers a bug."""

from __future__ import annotations

import time

from tests.fuzz.target import Target

_SEED = b"seed"


def _raise(data: bytes) -> None:
    if data[:1] == b"k":
        raise KeyError("planted")


def _compute(data: bytes) -> None:
    end = time.process_time() + 2.2
    while data[:1] == b"k" and time.process_time() < end:
        pass


def _hang(data: bytes) -> None:
    while data[:1] == b"k":
        pass


def _allocate(data: bytes) -> int:
    return len(bytes(300 << 20)) if data[:1] == b"k" else 0


def _reject(data: bytes) -> None:
    raise ValueError(data)


def _return_wrong_length(data: bytes) -> int:
    return len(data) + (data[:1] == b"k")


def _check_length(data: bytes, length: int) -> None:
    assert length == len(data)


def _check_rejection(data: bytes, error: Exception) -> None:
    assert data[:1] != b"k", error


TARGETS = {
    target.name: target
    for target in (
        Target(name="correct", read=bytes.hex, seeds=lambda: [_SEED], tokens=(b"k",)),
        Target(
            name="raises", read=_raise, seeds=lambda: [_SEED], tokens=(b"k",), allowed_errors=(ValueError,)
        ),
        Target(name="computes", read=_compute, seeds=lambda: [_SEED], tokens=(b"k",)),
        Target(name="hangs", read=_hang, seeds=lambda: [_SEED], tokens=(b"k",)),
        Target(name="allocates", read=_allocate, seeds=lambda: [_SEED], tokens=(b"k",)),
        Target(
            name="wrong-result",
            read=_return_wrong_length,
            check_result=_check_length,
            seeds=lambda: [_SEED],
            tokens=(b"k",),
        ),
        Target(
            name="wrong-error",
            read=_reject,
            check_error=_check_rejection,
            allowed_errors=(ValueError,),
            seeds=lambda: [_SEED],
            tokens=(b"k",),
        ),
    )
}
