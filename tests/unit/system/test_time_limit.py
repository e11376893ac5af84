from __future__ import annotations

import contextlib
import re
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from buildkit_tasks.errors import UsageError
from buildkit_tasks.system.time_limit import TimeOver, time_limit


def alarm_state() -> tuple[object, bool]:
    """Return the handler of SIGALRM, and whether a timer runs."""
    return signal.getsignal(signal.SIGALRM), any(signal.getitimer(signal.ITIMER_REAL))


def test_zero_sets_no_timer() -> None:
    before = alarm_state()
    with time_limit(0):
        assert alarm_state() == before


def spin() -> None:
    while True:
        pass


def wait_for_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def wait_for_socket() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.recv(1)


def backtrack() -> None:
    re.fullmatch("(a*)*b", "a" * 64)


@pytest.mark.parametrize("work", [spin, wait_for_lock, wait_for_socket, backtrack])
def test_work_is_interrupted(work: Callable[[], None]) -> None:
    before = alarm_state()
    with pytest.raises(TimeOver), time_limit(0.05):
        work()
    assert alarm_state() == before


def test_extreme_limits() -> None:
    with time_limit(1e300):  # more than a timer can have
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 1e6
    with pytest.raises(TimeOver), time_limit(1e-12):  # less than it can have, and not 0
        spin()


def test_swallowed_signal_is_repeated() -> None:
    def swallow() -> None:
        with contextlib.suppress(BaseException):  # as the interpreter does it in a finalizer
            spin()
        spin()

    with pytest.raises(TimeOver), time_limit(0.05):
        swallow()


def test_clean_up_is_not_interrupted() -> None:
    finished = []

    def clean_up() -> None:
        started = time.monotonic()
        while time.monotonic() < started + 0.7:  # some repetitions of the signal
            with contextlib.suppress(ValueError):
                int("an error of its own")
        finished.append(True)

    def work() -> None:
        try:
            spin()
        finally:
            clean_up()

    with pytest.raises(TimeOver), time_limit(0.05):
        work()
    assert finished


def test_timer_of_caller_is_restored() -> None:
    signals: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, _: signals.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 1000, 3)
        with pytest.raises(TimeOver), time_limit(0.05):
            spin()
        delay, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 900 < delay <= 1000
        assert interval == 3
        signal.raise_signal(signal.SIGALRM)
        assert signals == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_other_thread_is_refused() -> None:
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with time_limit(1):
                pass
        except UsageError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in str(errors)
