"""Who is taken for dead, and who never."""

from __future__ import annotations

import json

import hypothesis.strategies as st
from hypothesis import given

from worker_payload.jobs import names
from worker_payload.jobs.leases import LEASE, MISSES, Leases
from worker_payload.jobs.names import Pod

OWNER = "host-w1-0123456789ab"
ONE = Pod(names.new_pod(1), 3, 0, names.NO_CUT, OWNER)
TWO = Pod(names.new_pod(2), 3, 0, names.NO_CUT, OWNER)


def beat(number: int, *claims: Pod) -> bytes:
    return json.dumps({"beats": number, "claims": [pod.pod for pod in claims]}).encode()


def test_who_does_not_change_for_a_lease_is_dead():
    leases = Leases(90, 3)
    for now in range(0, 90, 10):
        assert leases.look(OWNER, beat(1, ONE), {ONE}, now) == set()
    assert leases.look(OWNER, beat(1, ONE), {ONE}, 90) == {ONE}
    assert leases.look(OWNER, beat(1, ONE), {ONE, TWO}, 100) == {ONE, TWO}, "claims that land late"


def test_who_changes_lives_whatever_the_clocks_say():
    leases = Leases(90, 3)
    for number in range(100):
        assert leases.look(OWNER, beat(number, ONE), {ONE}, number * 25.0) == set()


def test_who_was_thought_dead_may_show_that_he_lives():
    leases = Leases(90, 3)
    for now in range(0, 91, 30):
        leases.look(OWNER, beat(1, ONE), {ONE}, now)
    assert leases.look(OWNER, beat(2, ONE), {ONE}, 100) == set()


def test_a_reader_who_was_stopped_finds_nobody_dead_for_it():
    leases = Leases(90, 3)
    leases.look(OWNER, beat(1, ONE), {ONE}, 0)
    assert leases.look(OWNER, beat(1, ONE), {ONE}, 3600) == set()
    assert leases.look(OWNER, beat(2, ONE), {ONE}, 3610) == set()


def test_a_clock_that_goes_back_counts_nothing():
    leases = Leases(90, 3)
    assert not any(leases.look(OWNER, None, {ONE}, now) for now in (100, 0, 50, 20, 60))


def test_who_has_no_heartbeat_is_dead_after_a_lease():
    leases = Leases(90, 3)
    assert leases.look(OWNER, None, {ONE}, 0) == set()
    assert leases.look(OWNER, None, {ONE}, 30) == set()
    assert leases.look(OWNER, None, {ONE}, 60) == set()
    assert leases.look(OWNER, None, {ONE}, 90) == {ONE}


def test_a_heartbeat_that_goes_is_no_sign_of_life():
    leases = Leases(90, 3)
    for now in (0, 30, 60):
        assert leases.look(OWNER, beat(1, ONE), {ONE}, now) == set()
    assert leases.look(OWNER, None, {ONE}, 90) == {ONE}


def test_a_claim_that_its_living_owner_does_not_know_is_swept_at_the_third_heartbeat():
    leases = Leases(90, 3)
    assert leases.look(OWNER, beat(1, ONE), {ONE, TWO}, 0) == set()
    assert leases.look(OWNER, beat(1, ONE), {ONE, TWO}, 5) == set(), "the same heartbeat again"
    assert leases.look(OWNER, beat(2, ONE), {ONE, TWO}, 10) == set()
    assert leases.look(OWNER, beat(3, ONE), {ONE, TWO}, 20) == {TWO}


def test_three_times_means_running():
    leases = Leases(90, 3)
    told = [(), (), (TWO,), (), (), ()]
    found = [
        leases.look(OWNER, beat(n, ONE, *more), {ONE, TWO}, n * 10) for n, more in enumerate(told)
    ]
    assert found == [set()] * 5 + [{TWO}]


def test_what_is_narrowed_is_another_claim():
    """Its owner has just renamed it, so he knows of it."""
    leases = Leases(90, 3)
    leases.look(OWNER, beat(1), {ONE}, 0)
    leases.look(OWNER, beat(2), {ONE}, 10)
    narrow = ONE._replace(jobs=1, child="0123456789ab.2")
    assert leases.look(OWNER, beat(3), {narrow}, 20) == set()


def test_a_heartbeat_read_half_written_lists_nothing_and_misses_nothing():
    leases = Leases(90, 3)
    for number in range(9):
        half = beat(number, ONE)[: 5 + number]
        assert leases.look(OWNER, half, {ONE}, number * 10) == set()
    for text in (b"", b"[]", b'{"claims": 3}', b"\xff"):
        assert leases.look(OWNER, text, {ONE}, 100) == set()


def test_who_holds_nothing_is_forgotten_and_starts_anew():
    leases = Leases(90, 3)
    for now in (0, 30, 60):
        leases.look(OWNER, beat(1), {ONE}, now)
    assert leases.look(OWNER, beat(1), set(), 70) == set()
    assert leases.look(OWNER, beat(1), {ONE}, 90) == set()


def test_forget_keeps_who_is_named():
    leases = Leases(90, 3)
    other = "host-w2-0123456789ab"
    for now in (0, 30, 60):
        leases.look(OWNER, None, {ONE}, now)
        leases.look(other, None, {TWO}, now)
    leases.forget([OWNER])
    assert leases.look(OWNER, None, {ONE}, 90) == {ONE}
    assert leases.look(other, None, {TWO}, 90) == set()


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 40)), max_size=60))
def test_nobody_is_swept_who_was_seen_to_change_within_a_lease(history):
    leases = Leases()
    number, now, changed = 0, 0.0, 0.0
    for changes, pause in history:
        now += pause
        if changes:
            number += 1
            changed = now
        swept = leases.look(OWNER, beat(number, ONE), {ONE}, now)
        assert not swept or now - changed >= LEASE - 1e-6


@given(st.lists(st.sets(st.sampled_from([ONE, TWO])), max_size=30))
def test_misses_are_counted_as_they_run(history):
    leases = Leases()
    for number, listed in enumerate(history):
        swept = leases.look(OWNER, beat(number, *listed), {ONE, TWO}, number)
        for claim in (ONE, TWO):
            last = history[max(0, number - MISSES + 1) : number + 1]
            missed = len(last) == MISSES and not any(claim in listed for listed in last)
            assert (claim in swept) == missed
