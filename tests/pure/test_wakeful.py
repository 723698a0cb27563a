"""Whether to sleep until an answer comes."""

from __future__ import annotations

import pytest

from jamtasks.transport.wakeful import AWAKE_SECONDS, TRY, Wakeful

SOON, LATER, LATE = AWAKE_SECONDS / 3, AWAKE_SECONDS / 2, AWAKE_SECONDS * 10


def awake(wakeful: Wakeful, waits: int, if_awake: float, if_asleep: float) -> int:
    """How often somebody stays awake, where waits take so long if they do, and if they sleep."""
    times = 0
    for _ in range(waits):
        staying = wakeful.seconds > 0
        times += staying
        wakeful.took(if_awake if staying else if_asleep)
    return times


@pytest.mark.parametrize(
    ("if_awake", "if_asleep", "stays"),
    [
        (SOON, LATER, True),
        (SOON, LATE, True),
        (LATER, SOON, False),  # as where the answer needs the processor that looks for it
        (LATE, LATE, False),
        (LATE, SOON, False),
    ],
)
def test_what_is_quicker_is_done_and_the_other_way_is_tried_now_and_then(
    if_awake, if_asleep, stays
):
    wakeful = Wakeful()
    awake(wakeful, 2 * TRY, if_awake, if_asleep)
    times = awake(wakeful, 10 * TRY, if_awake, if_asleep)
    assert times == (10 * TRY - 10 if stays else 10)


def test_who_slept_through_a_long_time_wakes_up_again():
    wakeful = Wakeful()
    awake(wakeful, 10 * TRY, LATE, LATE)
    awake(wakeful, 60 * TRY, SOON, LATER)  # each try tells a little more
    assert awake(wakeful, 10 * TRY, SOON, LATER) > 9 * TRY


@pytest.mark.parametrize("late", [1, 2])
def test_a_wait_now_and_then_that_takes_long_changes_little(late):
    wakeful = Wakeful()
    times = 0
    for _ in range(40):  # bursts, of which the first are slow
        awake(wakeful, late, LATE, LATE)
        times += awake(wakeful, 18, SOON, LATER)
    assert times > 30 * 18
