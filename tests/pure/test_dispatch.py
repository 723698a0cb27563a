"""What a dispatcher decides, in histories that nobody has to wait for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable

import pytest

from jamtasks.errors import UsageError
from jamtasks.ledger import Counts, Look
from jamtasks.sweep import (
    LEASE,
    NETWORK_WAIT,
    AllEnded,
    Halt,
    Publish,
    Rate,
    Refill,
    Say,
    Sight,
    Stop,
    Sweep,
    Take,
)
from worker_payload.jobs import names
from worker_payload.jobs.names import Pod

OWNER = names.new_owner("lab1", 1)
OTHER = names.new_owner("lab2", 2)


def pod(number: int = 0, jobs: int = 1, owner: str = "", **changes) -> Pod:
    identity = f"p5000.{1000:013d}.{number:06d}.{number:012x}"
    return Pod(identity, jobs, changes.pop("attempt", 0), "-", owner, **changes)


def heart(beats: int = 1, label: str = "localhost", state: str = "idle", **more) -> bytes:
    return json.dumps({"beats": beats, "label": label, "state": state, "pid": 7, **more}).encode()


class World:
    """A folder as a ledger would show it, and a sweep that looks at it."""

    def __init__(self, halt: str = "never", *, project: str = "p", **options):
        options.setdefault("network", False)
        self.sweep = Sweep(project, Halt.parse(halt), **options)
        self.now = 0.0
        self.queue: set[Pod] = set()
        self.claims: set[Pod] = set()
        self.done: set[Pod] = set()
        self.dropped: set[str] = set()
        self.hearts: dict[str, bytes] = {}
        self.hired: dict[str, int] = {}
        self.failed = 0
        self.unread = 0
        self.submissions = 0
        self.steady = True
        self._seen: tuple[set[Pod], set[Pod]] = set(), set()
        self._beats = 0

    def beat(self, *owners: str, **more) -> None:
        self._beats += 1
        for owner in owners:
            self.hearts[owner] = heart(self._beats, **more)

    def look(self) -> Look:
        here = self.queue | self.claims
        arrived = tuple(sorted(here - self._seen[0]))
        ended = tuple(sorted(self.done - self._seen[1]))
        self._seen = here, set(self.done)
        counts = Counts(
            sum(p.jobs for p in self.queue) + len(self.dropped),
            sum(p.jobs for p in self.claims) + self.unread,
            0,
            sum(p.jobs for p in self.done) - self.failed,
            self.failed,
        )
        return Look(
            counts, tuple(sorted(self.claims)), arrived, ended, (), frozenset(self.dropped),
            not here and not self.submissions, self.steady, bool(arrived or ended),
            self.submissions,
        )  # fmt: skip

    def see(self, seconds: float = 0.0) -> list:
        """What is to be done that much later."""
        self.now += seconds
        return self.sweep.see(Sight(self.now, self.look(), dict(self.hearts), dict(self.hired)))

    def until(self, kind: type, seconds: float, step: float = 1.0, beating: Iterable[str] = ()):
        """The first action of that kind, and when it came; None if it does not come in time."""
        end = self.now + seconds
        while self.now < end:
            self.beat(*beating)
            for action in self.see(step):
                if isinstance(action, kind):
                    return action, self.now
        return None


def said(actions: list) -> list[str]:
    return [action.text for action in actions if isinstance(action, Say)]


# --- the end -----------------------------------------------------------------------------------


def test_a_sweep_ends_as_soon_as_every_job_it_saw_is_done():
    world = World()
    world.beat(OWNER)
    world.queue = {pod(0, 5), pod(1, 5)}
    assert world.see() == []
    world.queue, world.claims = {pod(1, 5)}, {pod(0, 5, OWNER)}
    assert world.see(1) == []
    world.queue, world.claims, world.done = set(), {pod(1, 5, OWNER)}, {pod(0, 5, OWNER)}
    assert world.see(1) == []
    world.claims, world.done = set(), {pod(0, 5, OWNER), pod(1, 5, OWNER)}
    assert world.see(0.1) == [AllEnded()]


def test_a_project_without_jobs_ends_at_once():
    assert World().see() == [AllEnded()]


def test_listings_that_are_not_of_one_moment_prove_nothing():
    world = World()
    world.steady = False
    assert world.see() == []
    world.steady = True
    assert world.see(0.1) == [AllEnded()]


def test_a_pod_that_is_nowhere_is_waited_for_until_it_must_have_been_removed():
    world = World()
    world.queue = {pod(0, 7)}
    world.beat(OWNER)
    world.see()
    world.queue = set()
    assert world.see(0.1) == []
    world.queue = {pod(0, 7, attempt=1)}  # it was on its way
    assert world.see(1) == []
    world.queue = set()
    assert world.see(0.1) == []
    assert world.see(3) == [AllEnded(removed=7)]


def test_a_tail_that_was_given_back_belongs_to_the_sweep():
    world = World()
    world.beat(OWNER)
    world.claims = {pod(0, 9, OWNER)}
    world.see()
    child = pod(0)._replace(pod=pod(0).pod[:-12] + "c" * 12, jobs=5)
    narrow = pod(0, 4, OWNER, child="c" * 12 + ".5")
    world.claims, world.done = set(), {narrow}
    assert world.see(0.1) == []  # the child has not shown itself yet
    world.queue = {child}
    assert world.see(5) == []
    world.queue, world.done = set(), {narrow, child._replace(owner=OTHER)}
    assert world.see(0.1) == [AllEnded()]


def test_a_tail_that_was_seen_only_in_a_claims_name_belongs_to_the_sweep():
    world = World()
    world.beat(OWNER)
    world.claims = {pod(0, 4, OWNER, child="c" * 12 + ".5")}
    world.see()
    world.claims, world.queue = set(), {pod(0, 4, attempt=1)}  # taken from its owner
    world.see(0.1)
    world.queue, world.done = set(), {pod(0, 4, OTHER, attempt=1)}
    assert world.see(0.1) == []  # the child has not shown itself yet
    world.queue = {pod(0)._replace(pod=pod(0).pod[:-12] + "c" * 12, jobs=5)}
    assert world.see(5) == []


def test_a_claim_that_names_a_child_which_is_done_does_not_wait_for_it_again():
    world = World()
    world.beat(OWNER)
    child = pod(0)._replace(pod=pod(0).pod[:-12] + "c" * 12, owner=OTHER)
    parent = pod(0, 1, OWNER, child="c" * 12 + ".1")
    world.done = {child}
    world.claims = {parent}
    world.see()
    world.claims, world.done = set(), {child, parent}
    assert world.see(0.1) == [AllEnded()]


def test_the_token_of_a_file_that_never_came_is_no_job():
    world = World()
    world.beat(OWNER)
    world.claims = {pod(0, 0, OWNER)}
    assert world.see() == []
    world.claims = set()
    assert world.see(0.1) == [AllEnded()]


def test_results_that_are_not_yet_in_sight_are_waited_for_but_not_for_ever():
    world = World()
    world.done = {pod(0, 3, OWNER)}
    world.unread = 3
    assert world.see() == []
    world.unread = 0
    assert world.see(1) == [AllEnded()]
    world = World()
    world.unread = 3
    assert world.until(AllEnded, 300) is not None


def test_a_file_that_is_no_job_does_not_keep_a_sweep_from_ending():
    world = World()
    world.dropped = {"README", "job1"}
    world.beat(OWNER, complaints={"README": "no program"})
    (text,) = said(world.see())
    assert "README" in text
    assert "no job" in text
    assert world.sweep.counts(world.look()).queued == 1
    world.dropped = {"README"}
    assert world.see(1) == [AllEnded()]


def test_on_a_network_nothing_is_over_before_a_minute_has_shown_nothing_new():
    world = World(network=True)
    world.steady = False
    world.beat(OWNER)
    (text,) = said(world.see())
    assert "network file system" in text
    assert world.see(NETWORK_WAIT / 2) == []
    world.queue = {pod(0)}
    assert world.see(1) == []
    world.queue, world.done = set(), {pod(0, owner=OWNER)}
    world.see(1)
    assert world.see(NETWORK_WAIT - 1) == []
    assert world.see(2) == [AllEnded()]


def test_who_keeps_is_told_of_every_end_once():
    world = World(keep=True)
    world.beat(OWNER)
    assert world.see() == [AllEnded()]
    assert world.see(1) == []
    world.queue = {pod(0)}
    assert world.see(1) == []
    world.queue, world.done = set(), {pod(0, owner=OWNER)}
    assert world.see(1) == [AllEnded()]
    assert world.see(1) == []


# --- workers that die --------------------------------------------------------------------------


def test_claims_of_a_worker_that_is_silent_for_a_lease_are_taken():
    world = World()
    claim = pod(0, 3, OWNER)
    world.claims = {claim}
    world.beat(OWNER, claims=[claim.pod])
    world.see()
    found = world.until(Take, 2 * LEASE)
    assert found is not None
    action, when = found
    assert action.claim == claim
    assert LEASE <= when <= LEASE + 5


def test_a_worker_that_beats_keeps_its_claims_however_long_a_job_takes():
    world = World()
    claim = pod(0, 3, OWNER)
    world.claims = {claim}
    for beats in range(1000):
        world.hearts[OWNER] = heart(beats, claims=[claim.pod])
        assert not any(isinstance(action, Take) for action in world.see(10))


def test_a_claim_that_its_living_owner_does_not_know_of_is_taken():
    world = World()
    known, forgotten = pod(0, 3, OWNER), pod(1, 2, OWNER)
    world.claims = {known, forgotten}
    taken = []
    for beats in range(6):
        world.hearts[OWNER] = heart(beats, claims=[known.pod])
        taken += [action for action in world.see(10) if isinstance(action, Take)]
    assert {action.claim for action in taken} == {forgotten}
    world = World()
    world.claims = {forgotten}
    for beats in range(30):  # each new claim may be missing in a heartbeat or two
        world.claims = {pod(beats // 2, 1, OWNER)}
        world.hearts[OWNER] = heart(beats, claims=[])
        assert not any(isinstance(action, Take) for action in world.see(10))


def test_it_is_said_who_is_gone_and_how_much_it_had():
    world = World()
    world.claims = {pod(0, 3, OWNER), pod(1, 2, OWNER)}
    world.see()
    texts = [text for _ in range(20) for text in said(world.see(10))]
    assert any("w1 on lab1 is gone: 5 jobs" in text for text in texts)


def test_a_sweep_that_its_sweeper_left_half_done_is_taken_over():
    world = World()
    taken = pod(0, 3, OWNER, sweeper="f" * 16)
    world.claims = {taken}
    world.beat(OTHER)
    world.see()
    found = world.until(Take, 2 * LEASE, beating=[OTHER])
    assert found is not None
    assert (found[0].claim, found[1]) == (taken, pytest.approx(LEASE, abs=2))


def test_a_submission_whose_submitter_died_is_completed():
    world = World()
    world.beat(OWNER)
    world.submissions = 1
    assert world.see() == []
    assert Publish() in world.see(5)
    world.submissions = 0
    world.queue = {pod(0)}
    assert world.see(1) == []


# --- workers that are missing ------------------------------------------------------------------


def test_without_workers_it_is_said_how_to_hire_and_not_too_often():
    world = World(project="sweep")
    world.queue = {pod(0, 10)}
    texts = []
    for _ in range(200):
        texts += said(world.see(1))
    assert 2 <= len(texts) <= 4
    assert "inv hire --project sweep" in texts[0]
    assert "10 jobs wait" in texts[0]
    assert "--project" not in said(World(project="default").see())[:1]


def test_a_project_with_workers_is_not_told_to_hire():
    world = World()
    world.queue = {pod(0, 10)}
    for _ in range(200):
        world.beat(OWNER)
        assert said(world.see(1)) == []


def test_workers_that_died_long_ago_are_none():
    world = World()
    world.queue = {pod(0, 10)}
    world.hearts[OWNER] = heart()
    found = world.until(Say, 3 * LEASE)
    assert found is not None
    assert found[1] == pytest.approx(LEASE, abs=5)


def test_missing_workers_are_hired_anew_with_growing_pauses():
    world = World()
    world.queue = {pod(0, 10)}
    world.hired = {"lab1": 2, "lab2": 1}
    times = []
    for _ in range(600):
        world.beat(OWNER, label="lab1")
        world.beat(OTHER, label="lab2")
        for action in world.see(1):
            if isinstance(action, Refill):
                assert action == Refill("lab1", 2)
                times.append(world.now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 10 <= times[0] <= 20
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(5, abs=1)
    assert pauses[-1] > 100


def test_a_host_that_lacked_nobody_is_asked_again_before_long():
    """Its workers were in a pause between two starts; a keeper may die in that time."""
    world = World()
    world.queue = {pod(0, 10)}
    world.hired = {"lab1": 2}
    times = []
    for _ in range(600):
        world.beat(OWNER, label="lab1")
        for action in world.see(1):
            if isinstance(action, Refill):
                times.append(world.now)
                world.sweep.none_was_missing("lab1")
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(pauses) <= 25 and pauses[-1] > 15


def test_who_is_there_again_begins_with_short_pauses():
    world = World()
    world.queue = {pod(0)}
    world.hired = {"lab1": 1}
    for _ in range(600):
        world.see(1)
    for _ in range(5):
        world.beat(OWNER, label="lab1")
        assert not any(isinstance(action, Refill) for action in world.see(1))
    del world.hearts[OWNER]
    start = world.now
    times = []
    while len(times) < 2 and world.now < start + 100:
        times += [world.now for action in world.see(1) if isinstance(action, Refill)]
    assert [when - start for when in times] == pytest.approx([16, 21], abs=2)


def test_a_worker_that_is_ending_counts_as_missing():
    world = World()
    world.queue = {pod(0)}
    world.hired = {"lab1": 1}
    found = None
    for _ in range(30):
        world.beat(OWNER, label="lab1", state="ending")
        found = found or [action for action in world.see(1) if isinstance(action, Refill)]
    assert found


def test_a_worker_that_holds_is_told_of_once():
    world = World()
    world.queue = {pod(0)}
    texts = []
    for _ in range(20):
        world.beat(OWNER, state="held", note="no space left on device")
        texts += said(world.see(1))
    assert texts == ["w1 on lab1 holds: no space left on device"]


# --- halting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "halt"),
    [
        ("never", Halt()), ("0", Halt()), ("1", Halt("soon", "fail", 1)),
        ("2", Halt("now", "fail", 1)), ("-1", Halt("soon", "success", 1)),
        ("-2", Halt("now", "success", 1)), ("now,fail=3", Halt("now", "fail", 3)),
        ("soon,done=10%", Halt("soon", "done", 0, 10)), ("5%", Halt("soon", "fail", 0, 5)),
    ],
)  # fmt: skip
def test_halting_in_gnu_parallels_words(text, halt):
    assert Halt.parse(text) == halt


@pytest.mark.parametrize(
    "text", ["later", "now", "now,fail", "now,fail=0", "now,fail=x", "soon,fail=101%", "3", "-3"]
)
def test_halts_that_cannot_be(text):
    with pytest.raises(UsageError, match="halt"):
        Halt.parse(text)


@pytest.mark.parametrize(
    ("text", "done", "failed", "total", "reached"),
    [
        ("now,fail=2", 9, 1, 20, False), ("now,fail=2", 0, 2, 20, True),
        ("now,success=2", 1, 9, 20, False), ("now,success=2", 2, 0, 20, True),
        ("now,done=3", 1, 1, 20, False), ("now,done=3", 1, 2, 20, True),
        ("soon,fail=10%", 5, 1, 20, False), ("soon,fail=10%", 5, 2, 20, True),
        ("soon,fail=3%", 0, 0, 20, False), ("soon,fail=3%", 0, 1, 20, True),
        ("never", 0, 20, 20, False), ("soon,done=10%", 0, 0, 0, False),
    ],
)  # fmt: skip
def test_when_a_halt_is_reached(text, done, failed, total, reached):
    counts = Counts(queued=total - done - failed, done=done, failed=failed)
    assert bool(Halt.parse(text).reached(counts)) is reached


def test_a_halt_is_ordered_once_and_ends_hiring():
    world = World("soon,fail=1")
    world.queue = {pod(0, 10), pod(1)}
    world.hired = {"lab1": 5}
    world.beat(OWNER)
    assert world.see() == []
    world.queue, world.done, world.failed = {pod(0, 10)}, {pod(1, owner=OWNER)}, 1
    assert world.see(1) == [Stop(soon=True, why="1 job failed")]
    for _ in range(100):
        assert world.see(1) == []


# --- how fast ----------------------------------------------------------------------------------


def test_the_rate_is_that_of_late():
    rate = Rate()
    assert rate.see(0.0, 0) == 0.0
    assert rate.see(1.0, 10) == pytest.approx(10)
    for second in range(2, 100):
        late = rate.see(float(second), 10 + 2 * second)
    assert late == pytest.approx(2, rel=0.1)
    assert rate.see(200.0, 10) == 0.0
