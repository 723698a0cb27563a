"""Whether to sleep until an answer comes."""

from __future__ import annotations

from jamtasks.transport.wakeful import ASLEEP, AWAKE_SECONDS, Wakeful

SOON, LATE = AWAKE_SECONDS / 2, AWAKE_SECONDS * 2


def after(*waits: float) -> bool:
    wakeful = Wakeful()
    for seconds in waits:
        wakeful.took(seconds)
    return wakeful.seconds > 0


def test_who_is_answered_soon_stays_awake():
    assert after() and after(SOON) and after(*[SOON] * 100)


def test_who_waits_for_long_sleeps_and_looks_now_and_then():
    assert not after(LATE) and not after(*[LATE] * ASLEEP)
    assert after(*[LATE] * (ASLEEP + 1)) and not after(*[LATE] * (ASLEEP + 2))
    assert sum(after(*[LATE] * waits) for waits in range(1, 1 + 10 * (ASLEEP + 1))) == 10


def test_an_answer_that_comes_soon_in_spite_of_sleep_ends_it():
    assert after(LATE, LATE, SOON)
