"""Attempts to reach a host are ended from another thread, whatever they wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from jamtasks.transport.base import Attempt, Crowded, Ended, patiently


@pytest.fixture
def ended() -> Iterator[Callable[[Attempt, Callable[[], Any]], None]]:
    """ended(attempt, wait): wait() raises Ended in its thread once the attempt is ended."""
    threads = []

    def check(attempt: Attempt, wait: Callable[[], Any]) -> None:
        outcome: Future[Any] = Future()
        begun = threading.Event()

        def run() -> None:
            begun.set()
            try:
                outcome.set_result(wait())
            except BaseException as error:
                outcome.set_exception(error)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        assert begun.wait(20)
        assert not outcome.done()
        attempt.end()
        assert isinstance(outcome.exception(timeout=20), Ended)

    yield check
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_pauses_end(ended):
    attempt = Attempt("lab1")
    ended(attempt, lambda: attempt.pause(1000))


def test_a_full_door_is_not_waited_at(ended):
    attempt, door = Attempt("lab1"), threading.BoundedSemaphore(1)
    door.acquire()
    ended(attempt, lambda: attempt.enter(door))
    door.release()
    assert door.acquire(blocking=False), "somebody who gave up went in"


def test_crowds_are_not_tried_again(ended):
    attempt = Attempt("lab1")

    def work() -> None:
        raise Crowded("lab1", "full")

    ended(attempt, lambda: patiently(work, 1000, attempt))


def test_what_cannot_be_ended_goes_on_alone(ended):
    attempt, goes_on, found = Attempt("lab1"), threading.Event(), Future()

    def work() -> str:
        goes_on.wait(20)
        return "something open"

    ended(attempt, lambda: attempt.aside(work, found.set_result))
    goes_on.set()
    assert found.result(timeout=20) == "something open"


def test_what_is_done_aside_gives_its_result_or_its_error():
    attempt = Attempt("lab1")
    assert attempt.aside(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        attempt.aside(lambda: 1 // 0)


def test_ends_are_called_once_the_latest_first_and_none_that_are_over():
    attempt, called = Attempt("lab1"), []
    attempt.ends_with(lambda: called.append("first"))
    with attempt.during(lambda: called.append("over")):
        pass
    attempt.ends_with(lambda: 1 // 0)
    attempt.ends_with(lambda: called.append("last"))
    attempt.end()
    attempt.end()
    assert called == ["last", "first"]


def test_what_comes_too_late_is_ended_at_once():
    attempt, called = Attempt("lab1"), []
    attempt.end()
    with pytest.raises(Ended):
        attempt.ends_with(lambda: called.append("closed"))
    with pytest.raises(Ended), attempt.during(lambda: called.append("cut")):
        called.append("went on")
    assert called == ["closed", "cut"]
