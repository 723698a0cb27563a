"""Whatever breaks, at whatever message: answers are used once and in order, nobody idles in vain,
and every run ends. Real scheduler, engine, sessions and agents, joined in memory (`joined.py`)."""

from __future__ import annotations

import os
import random

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from joined import AHEAD, KINDS, REPEATABLE, World, content
from remotes import PARAMS
from test_treefold import without

from jamtasks.errors import TaskFailed
from jamtasks.scheduler import MAX_KILLS
from jamtasks.session import OF_A_CALL
from worker_payload import frames, wire

STEPS = 60  # per example
EXAMPLES = 4200 if os.environ.get("JAM_LONG_TESTS") else 200  # 200,000 steps: 150 s of a CPU
ROUNDS = 600  # until a run must have ended, once nothing breaks any more

MANY = 20  # times as many slices, where they travel many at a time
WELL = ["answer"] * 12
LIFE = [*WELL, *WELL, *["die"] * 6, "raise"]
PICKS = st.integers(0, 1 << 16)
POISON = st.sampled_from([None, None, None, 1, 50, 333])
AMPLE = (1 << 30, 1 << 30)
TIGHT = [(20_000, 10_000), (6000, 6000), (0, 15_000), (1 << 30, 0)]  # bytes that a host keeps
BREAKS = ["cut", "freeze", "kill", "damage", "notice", "leave", "rot", "full", "memory"]


CALLS = st.fixed_dictionaries(
    {
        "count": st.sampled_from([1, 3, 8, 20, 60]),
        "kind": st.sampled_from(KINDS),
        "speculate": st.booleans(),
        "keep_going": st.booleans(),
        "room": st.sampled_from([1 << 20, 1 << 20, 1 << 20, 60]),
        "params": st.sampled_from(sorted(PARAMS)),
    }
)


def kind_of(frame):
    return wire.KINDS[frames.HEAD.unpack_from(frame)[1]]


class Faults(RuleBasedStateMachine):
    """Three hosts, one call after the other, and anything that can happen between them."""

    @initialize(
        workers=st.lists(st.integers(1, 3), min_size=3, max_size=3),
        unruly=st.booleans(),
        room=st.sampled_from([AMPLE, AMPLE, *TIGHT]),
        chosen=st.booleans(),
        full=st.sampled_from([-1, -1, -1, 0, 1]),
        call=CALLS,
        poison=POISON,
    )
    def start(self, workers, unruly, room, chosen, full, call, poison):
        self.set_up(workers, unruly, room, chosen)
        self.world.remotes["a"].shelf.full = full
        self.ample = self.ample and full < 0
        self.begin(call, poison)

    def set_up(self, workers, unruly, room=AMPLE, chosen=False):
        self.poison = None
        self.unruly = unruly  # frames are also doubled and swapped, which no channel does
        self.ample = room == AMPLE  # until something goes wrong with a store
        self.world = World(dict(zip("abc", workers, strict=True)), room, chosen=chosen)
        for name in self.world.remotes:
            self.world.connect(name)
        self.world.deliver_all()

    # --- calls -----------------------------------------------------------------------------

    @precondition(lambda self: self.world.call is None)
    @rule(call=CALLS, poison=POISON)
    def begin(self, call, poison):
        """poison: this slice kills every worker that works on it."""
        self.poison = poison
        if any(self.world.is_ready(name) for name in self.world.remotes):
            many = MANY if "map" in call["kind"] or call["kind"] == "spans" else 1
            self.world.begin(**{**call, "count": many * call["count"]})

    @precondition(lambda self: self.world.call is None and self.world.engine._last is not None)
    @rule(poison=POISON)
    def repeat(self, poison):
        if self.world.repeat():
            self.poison = poison

    @precondition(lambda self: self.world.call is not None and self.world.call.settled)
    @rule()
    def end(self):
        self.check_end()
        self.world.end()

    # --- frames and work -------------------------------------------------------------------

    def channels(self):
        found = []
        for name, remote in self.world.remotes.items():
            found += [(name, "in")] * bool(remote.to_agent)
            found += [(name, "out")] * bool(remote.to_master)
        return found

    @precondition(lambda self: self.channels())
    @rule(pick=PICKS, count=st.sampled_from([1, 2, 4, 20]))
    def arrives(self, pick, count):
        for _ in range(count):
            if found := self.channels():
                self.passes(*found[pick % len(found)])

    def passes(self, name, way):
        """One frame."""
        if way == "in":
            self.world.remotes[name].receive()
        else:
            self.world.to_master(name)

    def busy(self):
        return [
            (remote, number) for remote in self.world.remotes.values() for number in remote.busy()
        ]

    @precondition(lambda self: self.busy())
    @rule(
        pick=PICKS,
        how=st.sampled_from([*WELL, "raise", "die", "die", "stillborn"]),
        seconds=st.sampled_from([1e-5, 1e-5, 1e-5, 3.0]),
        share=st.sampled_from([1 << 16, 1 << 16, 1, 3]),
        heard=st.booleans(),
        count=st.sampled_from([1, 1, 4, 20]),
    )
    def works(self, pick, how, seconds, share, heard, count):
        for _ in range(count):
            if found := self.busy():
                remote, number = found[pick % len(found)]
                self.work(remote, number, how, seconds, share, heard)
                how = "answer"

    def work(self, remote, number, how, seconds, share=1 << 16, heard=True):
        process = remote.processes[number]
        if self.poison is not None and self.poison in self.world.slices_of(remote, process):
            how = "die"
        remote.works(number, how, seconds, share, heard)

    @rule(seed=PICKS, deadly=st.booleans())
    def goes_on(self, seed, deadly):
        """A while of ordinary life, and perhaps of deaths, in some order."""
        world, chance = self.world, random.Random(seed)
        for _ in range(20):
            what = chance.random()
            if what < 0.5 and (channels := self.channels()):
                self.passes(*chance.choice(channels))
            elif what < 0.9 and (busy := self.busy()):
                how = chance.choice(LIFE if deadly else WELL)
                seconds, share = chance.choice([1e-5, 1e-5, 1e-3]), chance.choice([1, 5, 1 << 16])
                self.work(*chance.choice(busy), how, seconds, share, chance.random() < 0.8)
            else:
                world.pass_time(chance.choice([0.001, 0.02, 0.02, 0.3]))

    @rule()
    def agents_hear(self):
        for remote in self.world.remotes.values():
            remote.hears_all()

    @rule(pick=PICKS, hasty=st.booleans(), drowsy=st.booleans())
    def workers_hurry(self, pick, hasty, drowsy):
        remotes = list(self.world.remotes.values())
        remote = remotes[pick % len(remotes)]
        remote.hasty, remote.drowsy = hasty, drowsy

    @rule(seconds=st.sampled_from([0.0, 0.02, 0.3, 1.1, 5.0]))
    def time_passes(self, seconds):
        self.world.pass_time(seconds)

    # --- faults ----------------------------------------------------------------------------

    @rule(pick=PICKS)
    def comes(self, pick):
        names = [name for name in self.world.remotes if self.world.session(name) is None]
        if names:
            self.world.connect(names[pick % len(names)])

    @rule(pick=PICKS, what=st.sampled_from(BREAKS))
    def breaks(self, pick, what):
        world = self.world
        name, remote = list(world.remotes.items())[pick % len(world.remotes)]
        if what == "damage":
            remote.damage += 1 + pick % 3
        elif what == "rot":
            remote.shelf.rot(pick, "delete" if pick & 8 else "damage")
        elif what == "full":  # the file systems, before the store's own limit
            self.ample = False
            remote.shelf.full = pick % 3 - 1
        elif what == "memory":
            self.ample = False
            world.memory = 100 if pick & 8 else 1 << 30
        elif what == "notice":
            remote.notice()
        elif what == "leave":
            if world.is_ready(name) and world.call is not None:
                world.call.scheduler.retire_host(name)
                world.act()
        elif what == "kill":
            remote.kill()
        elif world.session(name) is not None:
            remote.cut()  # frozen: the master has not noticed, and goes on sending
            if what == "cut":
                world.lose(name)

    @precondition(lambda self: self.world.call is not None)
    @rule(really=st.sampled_from([False, False, True]))
    def stops(self, really):
        """Ctrl-C, or somebody closed the iterator."""
        if really:
            self.world.end()

    @precondition(lambda self: self.unruly)
    @rule(pick=PICKS, double=st.booleans())
    def frames_go_astray(self, pick, double):
        names = [name for name in self.world.remotes if self.world.is_ready(name)]
        if not names:
            return
        remote = self.world.remotes[names[pick % len(names)]]
        if double:  # all answers on their way come twice
            remote.to_master.extend(
                frame for frame in [*remote.to_master] if frame and kind_of(frame) in OF_A_CALL
            )
        else:
            frames = remote.to_master if pick & 1 else remote.to_agent
            if frames and frames[-1] is not None:
                frames.reverse()

    # --- what must hold --------------------------------------------------------------------

    @invariant()
    def each_answer_is_used_once(self):
        world = getattr(self, "world", None)
        if world is None or world.call is None:
            return
        call = world.call
        assert all(count == 1 for count in world.used.values()), world.used
        fresh = sum(count or 1 for *_, count in call.results)
        fresh += len(call.failures) - call.failures_seen
        kept = call.combining.kept if call.combining is not None else 0
        assert call.done == len(world.used) + fresh + kept
        if call.round is not None:
            return  # looking at its scheduler would end it
        for name in world.remotes:
            assert name not in call.scheduler or world.session(name) is not None

    @invariant()
    def no_slice_waits_for_the_scheduler_while_a_worker_idles(self):
        world = getattr(self, "world", None)
        if world is None or world.call is None or world.call.settled or world.call.round:
            return
        call, sched = world.call, world.call.scheduler
        if "map" in world.kind:
            assert call.spans.cut <= world.order.next + AHEAD, "it reads too far ahead"
        assert not call.hungry or not sched.workers, "spans are not made"
        if call.head_only is None and sched.unassigned:
            for host in sched._hosts.values():
                assert len(host.held) >= host.workers, f"{sched.unassigned} wait, {host} idles"

    @rule()
    def all_arrives(self):
        """Nothing is on its way any more: then no worker idles while a slice waits elsewhere."""
        world = self.world
        for name, remote in world.remotes.items():
            remote.notice()
            if not remote.connected:
                world.lose(name)  # it was silent for too long
        for _ in range(5):
            world.deliver_all()
            world.pass_time(0.3)
        world.deliver_all()
        call = world.call
        if call is None or call.settled or call.head_only is not None or self.unruly:
            return
        if not self.ample:
            return  # workers may well wait until there is room for data
        begun = world.begun() | world.kept()
        if any(task < 0 for task in begun):
            return  # the scheduler does not know of joins, and slices may wait for their end
        waiting = [
            task
            for task in range(call.scheduler.tasks)
            if not call.scheduler._done[task] and task not in begun
        ]
        pinned = call.scheduler._pinned
        for name in [name for name in world.remotes if name in call.scheduler]:
            working = {
                process.slot
                for process in world.remotes[name].processes.values()
                if process.current is not None
            }
            # calls of workers that are not there any more run anywhere, also where one waits for
            # its own worker: then that has a place at the host, and does not work
            own = [task for task in waiting if pinned.get(task, ("",))[0] == name]
            staying = call.scheduler._hosts[name].workers - len(own)
            staying -= len(world.untold(name))  # the scheduler takes these for work under way
            for task in waiting:
                if task not in pinned:
                    assert len(working) >= staying, f"{task} of {waiting} waits, {name} idles"
                elif pinned[task][0] == name:
                    assert pinned[task][1] in working, f"{task} waits for an idle worker"

    def check_end(self):
        """The call is settled: every slice was folded once, in order; or it failed by name."""
        world, call = self.world, self.world.call
        world.take_in()
        if call.error is not None:
            if isinstance(call.error, TaskFailed) and call.error.joined > 1:
                assert call.combining is not None, "reduce raised, and there is no way round that"
            elif isinstance(call.error, TaskFailed):
                assert call.failures and not call.keep_going, call.error
            else:
                assert world.refused, call.error
            return
        failed = {failure.slice for failure in call.failures}
        assert call.keep_going or not failed
        good = [content(world.first, i, world.kind) for i in range(world.count) if i not in failed]
        assert sorted(world.used) == list(range(world.count))
        if call.combining is not None:
            if good:
                assert world.fold.result() == without(world.count, failed)
        elif world.kind == "map":
            assert world.out == good
        elif world.kind == "unordered map":
            assert sorted(world.out) == sorted(good)
        elif good and world.kind == "spans":
            assert world.fold.result() == good
        elif good:
            assert world.fold.result() == [part for one in good for part in (one, world.params)]

    def teardown(self):
        """Once nothing breaks any more, every run ends, and leaves nothing behind."""
        if not hasattr(self, "world"):
            return
        world = self.world
        try:
            for remote in world.remotes.values():
                remote.damage, remote.shelf.full = 0, -1
                remote.notice()
            for _ in range(ROUNDS):
                for name, remote in world.remotes.items():
                    if not remote.connected:
                        world.lose(name)
                    world.connect(name)
                world.deliver_all()
                if world.call is None or world.call.settled:
                    break
                for remote, number in self.busy():
                    if number in remote.processes:
                        self.work(remote, number, "answer", 1e-5)
                world.pass_time(1.0)
            if world.call is not None:
                assert world.call.settled, "the run does not end"
                self.check_end()
                world.end()
            world.pass_time(1.0)  # after which nobody repeats the last call
            world.deliver_all()
            if self.unruly:
                return  # an End that overtook its Begin leaves something, until the master leaves
            for remote in world.remotes.values():
                assert not remote.agent._calls, "a call goes on after its end"
            for _ in range(10):
                for remote, number in self.busy():
                    if number in remote.processes:
                        remote.works(number, "answer", 0.01)
                world.pass_time(4.0)  # long enough for files to be let go of
                world.deliver_all()
            self.check_nothing_is_left()
        finally:
            world.close()

    def check_nothing_is_left(self):
        world = self.world
        for name, remote in world.remotes.items():
            assert not remote.agent._tickets, "a task goes on after its call"
            assert not remote.agent._blobs, "blobs are held for nobody"
            assert not remote.keeping._writers and not remote.keeping._stalled
            assert remote.shelf.reserved == [0, 0]
            session = world.session(name)
            assert session is None or not session._unacked, "credit was lost"
        assert not len(world.files), "files are left open"


class Rounds(Faults):
    """The same, where calls go well at first: so there is always one that may be repeated."""

    @initialize(
        workers=st.lists(st.integers(1, 3), min_size=3, max_size=3),
        count=st.sampled_from([1, 2, 5, 9]),
        kind=st.sampled_from(REPEATABLE),
    )
    def start(self, workers, count, kind):
        self.set_up(workers, False)
        self.go_well(count, kind)

    @precondition(lambda self: self.world.call is None)
    @rule(count=st.sampled_from([1, 2, 5, 9]), kind=st.sampled_from(REPEATABLE))
    def goes_well(self, count, kind):
        self.go_well(count, kind)

    def go_well(self, count, kind):
        world = self.world
        self.poison = None
        for name, remote in world.remotes.items():
            remote.damage = 0
            remote.notice()
            if not remote.connected:
                world.lose(name)
            world.connect(name)
        world.deliver_all()
        world.begin(count, kind=kind, speculate=True)
        self.go_on_well()

    def go_on_well(self):
        """As far as it goes: hosts may be frozen."""
        for _ in range(20):
            self.world.deliver_all()
            if self.world.call.settled:
                self.end()
                return
            for remote, number in self.busy():
                if number in remote.processes:
                    self.work(remote, number, "answer", 0.01)

    @precondition(lambda self: self.world.call is None)
    @rule(times=st.integers(1, 4))
    def repeat_well(self, times):
        self.world.pass_time(0.01)  # nothing is left to be told: the hosts may go short ways
        for _ in range(times):
            if self.world.call is None and self.world.repeat():
                self.poison = None
                self.go_on_well()


def settings_for(examples):
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


Faults.TestCase.settings = settings_for(EXAMPLES)
Rounds.TestCase.settings = settings_for(max(100, EXAMPLES // 5))
TestFaults = pytest.mark.timeout(900)(Faults.TestCase)
TestRounds = pytest.mark.timeout(900)(Rounds.TestCase)


def test_what_a_stuck_worker_has_in_hand_goes_elsewhere():
    world = World({"a": 1, "b": 1})
    try:
        for name in world.remotes:
            world.connect(name)
        world.deliver_all()
        world.begin(60)
        world.deliver_all()
        a, b = world.remotes.values()
        for _ in range(3):
            for remote in (a, b):
                remote.works(remote.busy()[0], "answer", 1e-5)
            world.deliver_all()
        assert next(iter(a.processes.values())).commands, "nothing waits in a hand"
        while b.busy():  # b does all that it can get, a is stuck at once
            b.works(b.busy()[0], "answer", 1e-5)
            world.deliver_all()
        for _ in range(20):
            world.pass_time(0.3)
            world.deliver_all()
            while b.busy():
                b.works(b.busy()[0], "answer", 1e-5)
                world.deliver_all()
        assert world.call.scheduler.left == 1, "only what a is stuck in is left"
        a.works(a.busy()[0], "answer", 10.0)
        world.deliver_all()
        assert world.call.settled
        world.end()
    finally:
        world.close()


def until_settled(world):
    """Nothing breaks, and workers work."""
    for _ in range(50):
        world.deliver_all()
        if world.call.settled:
            return
        for remote in world.remotes.values():
            for number in remote.busy():
                if number in remote.processes:
                    remote.works(number, "answer", 0.01)
        world.pass_time(0.3)
    raise AssertionError("the run does not end")


def test_what_an_ended_call_asked_for_does_not_keep_the_next_one_waiting():
    world = World({"a": 1})
    try:
        world.connect("a")
        world.deliver_all()
        world.begin(1)
        remote = world.remotes["a"]
        while remote.to_agent:  # the host has begun, and asks for code and slice
            remote.receive()
        world.end()
        while remote.to_master:  # what is asked for is nobody's any more
            world.to_master("a")
        world.begin(1)
        until_settled(world)
    finally:
        world.close()


def test_a_call_that_is_repeated_goes_past_the_host_until_something_else_happens():
    world = World({"a": 3})
    remote = world.remotes["a"]

    def work_on():
        for _ in range(10):
            world.deliver_all()
            for number in remote.busy():
                remote.works(number, "answer", 1e-4)
        assert world.call.settled
        world.end()

    try:
        world.connect("a")
        world.deliver_all()
        world.begin(3, kind="slices")
        work_on()
        world.pass_time(0.01)  # what was taken in is told to the master
        laps = []
        for number in range(7):
            assert world.repeat()
            if number == 6:  # a worker dies in the midst of a lap
                world.deliver_all()
                remote.works(remote.busy()[0], "answer", 1e-4)
                remote.works(remote.busy()[0], "die", 0.0)
            work_on()
            laps.append(remote.laps)
        assert laps == [0, 1, 2, 3, 4, 5, 6]
    finally:
        world.close()


@pytest.mark.parametrize("slices", [3, 4, 7, 12])
@pytest.mark.parametrize("how", ["well", "died", "raised", "unheard", "wrote"])
def test_a_call_that_is_combined_goes_past_the_host_too(slices, how):
    world = World({"a": 4})
    remote = world.remotes["a"]

    def works(number, what="answer", share=1 << 16, heard=True):
        remote.works(number, what, 1e-4, share, heard)

    def work():
        for _ in range(30):
            world.deliver_all()
            for number in remote.busy():
                works(number)

    def work_on():
        work()
        assert world.call.settled and world.call.error is None
        world.take_in()
        assert world.fold.result() == without(slices, ())
        assert sorted(world.used.elements()) == list(range(slices))
        world.end()

    try:
        world.connect("a")
        world.deliver_all()
        world.begin(slices, kind="combined")
        work_on()
        world.pass_time(0.01)
        done = how == "well"
        for number in range(16):
            if not world.repeat():  # a worker died in the last one
                world.begin(slices, kind="combined")
            if number > 3 and not done and remote.lap is not None:
                done = True
                world.deliver_all()
                works(remote.busy()[0], share=2)
                if how == "died":
                    works(remote.busy()[0], "die")
                elif how == "unheard":
                    for one in remote.busy():
                        while one in remote.busy():
                            works(one, heard=False)
                    world.pass_time(0.03)
                elif how == "raised":
                    works(remote.busy()[0], "raise")
                    work()
                    assert world.call.error is not None
                    break
                else:
                    works(remote.busy()[0], share=3)
            work_on()
        assert done and remote.laps > 2, "one in three times a host is left to join them itself"
    finally:
        world.close()


def test_a_worker_repeats_all_that_it_did_if_that_is_not_more_than_its_share():
    world = World({"a": 2})
    remote = world.remotes["a"]

    def work_on(numbers):
        for _ in range(20):
            world.deliver_all()
            for number in [number for number in numbers if number in remote.busy()]:
                remote.works(number, "answer", 0.01)
        return world.call.settled

    try:
        world.connect("a")
        world.deliver_all()
        world.begin(4, kind="slices")
        world.deliver_all()
        one, two = remote.busy()
        assert work_on([one, two])
        world.end()
        for _ in range(3):
            assert world.repeat()
            world.deliver_all()
            assert [len(process.commands) for process in remote.processes.values()] == [1, 1]
            assert work_on([one, two])
            world.take_in()
            assert sorted(world.used.elements()) == list(range(4))
            world.end()
        assert world.repeat()
        world.deliver_all()
        remote.works(one, "die", 0.0)  # with two in its hand
        assert work_on([two, *remote.processes])
        world.take_in()
        assert sorted(world.used.elements()) == list(range(4))
        world.end()
        # all by one worker, which is more than its share: the other one takes over again
        world.begin(4, kind="slices")
        world.deliver_all()
        one, two = remote.busy()
        for _ in range(3):
            remote.works(one, "answer", 0.01)
            world.deliver_all()
        assert work_on([one, two])
        world.end()
        assert world.repeat()
        world.deliver_all()
        assert sorted(remote.busy()) == sorted([one, two])
        assert max(len(process.commands) for process in remote.processes.values()) <= 1
        assert work_on([one, two])
        world.end()
    finally:
        world.close()


@pytest.mark.parametrize("seed", range(40))
def test_answers_that_come_together_while_their_tasks_move_elsewhere(seed):
    """Workers stand still and go on, and begin with what is being taken back from them; answers
    for several slices then hold some that others were given meanwhile."""
    chance, deaths = random.Random(seed), 0
    world = World({"a": 3, "b": 2})
    try:
        for name in world.remotes:
            world.connect(name)
        world.deliver_all()
        world.begin(60, kind="combined")
        for _ in range(5000):
            if world.call.settled:
                break
            remote = chance.choice(list(world.remotes.values()))
            what = chance.random()
            if what < 0.1:
                world.pass_time(chance.choice([0.005, 0.02, 0.02, 0.2]))
            elif what < 0.2:
                remote.hasty = not remote.hasty
            elif what < 0.22 and remote.busy() and deaths < MAX_KILLS - 1:
                deaths += 1
                remote.works(chance.choice(remote.busy()), "die", 0.0)
            elif what < 0.5:
                world.deliver_all()
            elif busy := remote.busy():
                remote.works(chance.choice(busy), "answer", chance.choice([1e-5, 1e-5, 2e-4]))
        assert world.call.settled and world.call.error is None
        world.take_in()
        assert world.fold.result() == without(60, ())
        assert sorted(world.used.elements()) == list(range(60))
        world.end()
        world.deliver_all()
        assert not any(remote.agent._calls for remote in world.remotes.values())
    finally:
        world.close()
