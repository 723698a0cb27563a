"""The scheduler: its rules one by one, then hosts that come, die, revoke and answer at random."""

from __future__ import annotations

import time

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jamtasks.scheduler import MAX_KILLS, Assign, Cancel, Revoke, Scheduler


def assigned(actions):
    """host -> tasks handed to it."""
    out = {}
    for action in actions:
        if isinstance(action, Assign):
            out.setdefault(action.host, []).extend(action.tasks)
    return out


def test_tasks_are_split_in_proportion_to_the_workers():
    sched = Scheduler(12)
    sched.add_host("a", 1)
    sched.add_host("b", 2)
    assert assigned(sched.actions(0.0)) == {"a": [0, 1], "b": [4, 5, 6, 7]}


def test_the_same_tasks_on_the_same_hosts_go_to_the_same_places():
    def places():
        sched, where = Scheduler(16), {}
        sched.add_host("a", 2)
        sched.add_host("b", 2)
        while sched.left:
            for host, tasks in assigned(sched.actions(0.0)).items():
                for task in tasks:
                    where[task] = host
                    sched.finished(host, task, 0.01)
        return where

    assert places() == places()
    assert set(list(places().items())[:8]) != set()


def test_an_idle_host_takes_from_the_longest_queue():
    sched = Scheduler(40)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    given = assigned(sched.actions(0.0))
    seen = set(given["a"]) | set(given["b"])
    for _ in range(40):  # b is never heard of again, a does its own and then b's queue
        for task in list(given.get("a", [])):
            sched.finished("a", task, 10.0)
        given = assigned(sched.actions(0.0))
        seen |= set(given.get("a", []))
        if not given.get("a"):
            break
    assert seen == set(range(40))


def test_what_a_busy_host_has_not_started_is_revoked_for_an_idle_one():
    sched = Scheduler(4, speculate=False)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    sched.actions(0.0)
    sched.finished("b", 2, 1.0)
    sched.finished("b", 3, 1.0)
    assert Revoke("a", (1,)) in sched.actions(1.0)
    assert not [a for a in sched.actions(1.0) if isinstance(a, Revoke)], "asked once is enough"
    sched.revoked("a", [1])
    assert assigned(sched.actions(1.0)) == {"b": [1]}


def test_a_task_that_was_started_after_all_is_not_asked_for_again():
    sched = Scheduler(4, speculate=False)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    sched.actions(0.0)
    sched.finished("b", 2, 1.0)
    sched.finished("b", 3, 1.0)
    sched.actions(1.0)
    sched.revoked("a", [])
    actions = sched.actions(1.0)
    assert all(1 not in action.tasks for action in actions if isinstance(action, Revoke))


def test_what_waits_behind_a_task_that_takes_long_is_asked_for_again():
    sched = Scheduler(4, speculate=False)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    sched.actions(0.0)
    sched.finished("b", 2, 1e-5)
    sched.finished("b", 3, 1e-5)
    assert Revoke("a", (1,)) in sched.actions(0.1)
    sched.revoked("a", [])  # a worker has it in hand, behind task 0
    assert Revoke("a", (0,)) in sched.actions(0.1)
    sched.revoked("a", [])
    assert not sched.actions(0.2)
    sched.running("a", [0], 0.3)
    assert Revoke("a", (1,)) in sched.actions(0.3)


def test_a_slow_task_gets_a_second_copy_and_the_first_answer_wins():
    sched = Scheduler(8)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    sched.actions(0.0)
    for task in (1, 2, 3, 4, 5, 6, 7):
        host = "a" if task < 4 else "b"
        sched.actions(0.1 * task)
        sched.finished(host, task, 0.1)
    assert not assigned(sched.actions(0.9)), "not yet slow"
    assert assigned(sched.actions(5.0)) == {"b": [0]}
    assert sched.finished("b", 0, 0.1)
    assert not sched.finished("a", 0, 6.0), "the late answer is not used"
    assert sched.left == 0


def test_the_loser_of_two_copies_is_cancelled():
    sched = Scheduler(6)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    sched.actions(0.0)
    for task, host in ((1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "b")):
        sched.actions(0.0)
        sched.finished(host, task, 0.1)
    sched.actions(9.0)
    sched.finished("b", 0, 0.1)
    assert Cancel("a", (0,)) in sched.actions(9.1)


def test_speculation_can_be_switched_off():
    sched = Scheduler(8, speculate=False)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    sched.actions(0.0)
    for task in range(1, 8):
        sched.actions(0.0)
        sched.finished("a" if task < 4 else "b", task, 0.1)
    assert not assigned(sched.actions(99.0))


def test_a_task_that_kills_its_workers_is_given_up():
    sched = Scheduler(2)
    sched.add_host("a", 2)
    for n in range(MAX_KILLS):
        sched.actions(float(n))
        assert sched.killed("a", 0) is (n + 1 < MAX_KILLS)
    assert sched.kills(0) == MAX_KILLS


def test_the_death_of_a_host_is_not_held_against_its_tasks():
    sched = Scheduler(2)
    sched.add_host("b", 1)
    for n in range(10):
        sched.add_host("a", 1)
        sched.actions(float(n))
        sched.remove_host("a")
    assert sched.kills(0) == sched.kills(1) == 0
    assert sched.left == 2


def test_pinned_tasks_stay_with_their_worker_until_its_host_is_lost():
    sched = Scheduler(4)
    for host in "ab":
        sched.add_host(host, 2, settle=False)
    sched.pin([("a", 0), ("a", 1), ("b", 0), ("b", 1)])
    actions = sched.actions(0.0)
    assert Assign("a", (0, 1), (0, 1)) in actions and Assign("b", (2, 3), (0, 1)) in actions
    sched.finished("a", 0, 0.1)
    sched.finished("a", 1, 0.1)
    assert not sched.actions(100.0), "neither revoked nor copied"
    sched.remove_host("b")
    assert Assign("a", (2, 3), (None, None)) in sched.actions(101.0)
    assert sched.moved == {2, 3}


def test_tasks_go_where_their_data_is():
    sched = Scheduler(
        6, homes={0: ("b",), 1: ("b",), 2: ("gone", "b"), 5: ("a",), 4: ("gone",)}, move_seconds=1.0
    )
    sched.add_host("a", 3)
    sched.add_host("b", 3)
    given = assigned(sched.actions(0.0))
    assert {5, 3} <= set(given["a"]) and {0, 1, 2, 4} <= set(given["b"])


def test_many_tasks_find_their_homes_at_once():
    homes = {task: ["ab"[task % 2]] for task in reversed(range(50_000))}
    began = time.perf_counter()
    sched = Scheduler(50_000, homes=homes, move_seconds=1.0)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    assert time.perf_counter() - began < 1.0  # half a minute, looking each one up
    given = assigned(sched.actions(0.0))
    assert (given["a"][0], given["b"][0]) == (0, 1)


def moved(now, seconds=1e-4, *, move_seconds=0.1, lacked=0, homes=None):
    """Whether b, which has done its own tasks in so many seconds each, gets one of a's, which has
    not got on until now."""
    sched = Scheduler(40, homes=homes, move_seconds=move_seconds, speculate=False)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    given = assigned(sched.actions(0.0))
    sched.lacked("a", lacked)
    while given.get("b"):
        for task in given["b"]:
            sched.finished("b", task, seconds)
        actions = sched.actions(now)
        given = assigned(actions)
        if any(isinstance(action, Revoke) for action in actions):
            return True
        if any(task < 20 for task in given.get("b", [])):
            return True
    return False


def test_a_task_moves_only_if_it_would_wait_longer_where_it_is():
    assert moved(0.0, 0.5, move_seconds=1.0), "18 tasks of half a second wait at a"
    assert not moved(0.0, 0.001, move_seconds=1.0)
    assert moved(2.0, 0.001, move_seconds=1.0), "but a has not got on for two seconds"


def test_what_a_host_has_already_is_not_sent_to_another_for_little():
    assert not moved(0.3), "a was given tasks and asked for no data: it has them"
    assert moved(0.3, lacked=2), "a has none of it, so it has to be sent in any case"
    assert moved(1.0), "it would take much longer where it is"


def test_what_the_idle_host_has_too_costs_nothing_to_move():
    everywhere = {task: ("ab", "ba")[task >= 20] for task in range(40)}
    assert moved(0.0, homes=everywhere)
    assert not moved(0.0, homes={task: "ab"[task >= 20] for task in range(40)})


def test_the_head_goes_where_its_data_is_and_elsewhere_only_after_a_while():
    sched = Scheduler(10, homes={5: ("b",)}, move_seconds=0.1)
    for host in "abc":
        sched.add_host(host, 1)
    assert assigned(sched.actions(0.0, only=5)) == {"b": [5]}
    assert not sched.actions(0.3, only=5)
    assert set(assigned(sched.actions(1.0, only=5))) <= {"a", "c"}
    assert not sched.actions(9.0, only=5), "two are enough"
    nowhere = Scheduler(10)
    for host in "abc":
        nowhere.add_host(host, 1)
    assert len(assigned(nowhere.actions(0.0, only=5))) == 2, "it costs nothing"


def test_short_tasks_are_held_ahead_and_long_ones_are_not():
    def held(seconds):
        sched = Scheduler(10_000)
        sched.add_host("a", 2)
        for task in assigned(sched.actions(0.0))["a"]:
            sched.finished("a", task, seconds)
        sched.actions(0.0)
        return sched.outstanding("a")

    assert held(10.0) == 4
    assert held(0.0001) > 500


def test_only_the_head_is_handed_out_when_the_fold_is_full():
    sched = Scheduler(10)
    sched.add_host("a", 1)
    assert assigned(sched.actions(0.0, only=5)) == {"a": [5]}
    assert not sched.actions(0.0, only=5)


def test_more_tasks_go_where_there_is_least_to_do():
    sched = Scheduler(0)
    assert sched.extend(2) == range(2) and sched.left == 2
    sched.add_host("a", 1)
    sched.add_host("b", 3)
    sched.extend(6)
    counts = {host: len(tasks) for host, tasks in assigned(sched.actions(0.0)).items()}
    assert counts == {"a": 2, "b": 6}
    for task in range(8):
        assert sched.finished("a" if task in sched._hosts["a"].held else "b", task, 0.1)
    assert sched.left == 0
    assert list(sched.extend(1)) == [8] and sched.left == 1
    assert list(assigned(sched.actions(0.1)).values()) == [[8]]


def test_a_host_that_leaves_may_end_what_it_runs_and_gets_no_more():
    sched = Scheduler(8)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    first = assigned(sched.actions(0.0))
    sched.retire_host("a")
    later = assigned(sched.actions(0.1))
    assert "a" not in later and sched.outstanding("a") == len(first["a"])
    assert sched.queued()["a"] == 0
    for task in first["a"]:
        assert sched.finished("a", task, 0.1)
    assert sched.outstanding("a") == 0
    sched.remove_host("a")
    assert sched.retried == 0
    now = 0.2
    while sched.left:
        task = next(task for task, host, _, _ in sched.held() if host == "b")
        sched.finished("b", task, 0.1)
        now += 0.1
        sched.actions(now)


def test_the_last_host_may_leave_too():
    sched = Scheduler(4)
    sched.add_host("a", 1)
    sched.actions(0.0)
    sched.retire_host("a")
    held = len(list(sched.held()))
    assert held and sched.queued() == {"a": 0, None: 4 - held}
    sched.add_host("b", 1)
    assert assigned(sched.actions(0.1))["b"]


def test_a_host_that_leaves_may_stay_after_all():
    sched = Scheduler(4)
    sched.add_host("a", 1)
    held = assigned(sched.actions(0.0))["a"]
    sched.retire_host("a")
    sched.add_host("a", 1)
    for task in held:
        sched.finished("a", task, 0.1)
    assert assigned(sched.actions(0.1))["a"] == [2, 3]


def test_tasks_may_be_added_while_others_run():
    sched = Scheduler(0)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    assert not sched.actions(0.0)
    assert sched.extend(3) == range(3)
    given = assigned(sched.actions(0.0))
    assert sorted(given["a"] + given["b"]) == [0, 1, 2]
    assert sched.finished("b", given["b"][0], 0.1) and sched.extend(2) == range(3, 5)
    for _ in range(4):
        for host, tasks in given.items():
            for task in tasks:
                sched.finished(host, task, 0.1)
        given = assigned(sched.actions(0.1))
    assert sched.left == 0 and sched.done == 5


def test_a_returned_task_goes_elsewhere_and_first():
    sched = Scheduler(12, speculate=False)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    given = assigned(sched.actions(0.0))
    assert sched.killed("a", given["a"][0])
    assert given["a"][0] not in assigned(sched.actions(0.1)).get("a", [])
    sched.finished("b", given["b"][0], 1.0)
    assert assigned(sched.actions(1.0)) == {"b": [given["a"][0]]}


def test_a_far_host_holds_more_and_takes_less_from_others():
    def held(round_trip):
        sched = Scheduler(10_000)
        sched.add_host("a", 1, round_trip=round_trip)
        for task in assigned(sched.actions(0.0))["a"]:
            sched.finished("a", task, 0.01)
        sched.actions(0.0)
        return sched.outstanding("a")

    assert held(1.0) > 5 * held(0.0)

    def stolen(round_trip):
        sched = Scheduler(40, move_seconds=0.01)
        sched.add_host("a", 1)
        sched.add_host("b", 1, round_trip=round_trip)
        given = assigned(sched.actions(0.0))
        while given.get("b"):
            for task in given["b"]:
                sched.finished("b", task, 0.05)
            given = assigned(sched.actions(0.0))
            if any(task < 20 for task in given.get("b", [])):
                return True
        return False

    assert stolen(0.1) and not stolen(10.0)


def test_how_far_a_host_is_is_learned_from_its_answers():
    sched = Scheduler(10_000)
    sched.add_host("a", 1, round_trip=1.0)
    now = 0.0
    for _ in range(20):
        tasks = assigned(sched.actions(now)).get("a", [])
        now += 0.01 + 0.01
        for task in tasks:
            sched.finished("a", task, 0.01, now)
    sched.actions(now)
    assert sched.outstanding("a") < 20, "a round trip is 0.01 s, not one second"


class Hosts(RuleBasedStateMachine):
    """Hosts that do anything they may, in any order."""

    names = ("a", "b", "c")

    @initialize(tasks=st.integers(0, 30), speculate=st.booleans())
    def begin(self, tasks, speculate):
        self.sched = Scheduler(tasks, speculate=speculate)
        self.now = 0.0
        self.hosts = {}  # host -> workers
        self.held = {}  # host -> tasks it has, in order
        self.revokes = {}  # host -> revocations it has not answered
        self.answered = {}  # task -> how often an answer was used
        self.given_up = set()
        self.leaving = set()

    def act(self):
        for action in self.sched.actions(self.now):
            assert action.host in self.hosts
            if isinstance(action, Assign):
                assert action.host not in self.leaving
                for task in action.tasks:
                    assert task not in self.held[action.host], "given twice to one host"
                    assert task not in self.answered
                    self.held[action.host].append(task)
            elif isinstance(action, Revoke):
                self.revokes[action.host].append(action.tasks)
            else:
                for task in action.tasks:
                    self.held[action.host].remove(task)

    def use(self, task, host):
        if self.sched.finished(host, task, 0.2):
            self.answered[task] = self.answered.get(task, 0) + 1

    @rule(host=st.sampled_from(names), workers=st.integers(1, 3))
    def comes(self, host, workers):
        if host not in self.hosts:
            self.hosts[host], self.held[host], self.revokes[host] = workers, [], []
            self.sched.add_host(host, workers)
            self.act()

    @precondition(lambda self: self.hosts)
    @rule(data=st.data())
    def goes(self, data):
        host = data.draw(st.sampled_from(sorted(self.hosts)))
        del self.hosts[host], self.held[host], self.revokes[host]
        self.leaving.discard(host)
        self.sched.remove_host(host)
        self.act()

    @precondition(lambda self: self.hosts)
    @rule(data=st.data())
    def retires(self, data):
        host = data.draw(st.sampled_from(sorted(self.hosts)))
        self.leaving.add(host)
        self.sched.retire_host(host)
        self.act()

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), how=st.sampled_from(["answer", "answer", "answer", "kill", "twice"]))
    def works(self, data, how):
        host = data.draw(st.sampled_from(sorted(h for h in self.held if self.held[h])))
        index = data.draw(st.integers(0, min(len(self.held[host]), self.hosts[host]) - 1))
        task = self.held[host].pop(index)
        if how == "kill":
            if not self.sched.killed(host, task) and task not in self.given_up:
                self.given_up.add(task)
                self.use(task, host)
        else:
            self.use(task, host)
            if how == "twice":
                self.use(task, host)
        self.act()

    @precondition(lambda self: any(self.revokes.values()))
    @rule(data=st.data())
    def gives_back(self, data):
        host = data.draw(st.sampled_from(sorted(h for h in self.revokes if self.revokes[h])))
        asked = self.revokes[host].pop(0)
        running = self.held[host][: self.hosts[host]]
        back = [task for task in asked if task in self.held[host] and task not in running]
        for task in back:
            self.held[host].remove(task)
        self.sched.revoked(host, back)
        self.act()

    @rule(seconds=st.floats(0.0, 20.0))
    def time_passes(self, seconds):
        self.now += seconds
        self.act()

    @invariant()
    def each_answer_is_used_once(self):
        if hasattr(self, "sched"):
            assert all(count == 1 for count in self.answered.values())
            assert self.sched.done == len(self.answered)

    @invariant()
    def no_task_waits_while_a_worker_idles(self):
        if not getattr(self, "hosts", None):
            return
        idle = [h for h, n in self.hosts.items() if h not in self.leaving and len(self.held[h]) < n]
        queued = (
            self.sched.tasks
            - self.sched.done
            - len({task for tasks in self.held.values() for task in tasks})
        )
        assert not (idle and queued), f"{queued} tasks queued, idle: {idle}"

    def teardown(self):
        """Every run ends: one good host finishes whatever is left."""
        if not hasattr(self, "sched"):
            return
        for host in list(self.hosts):
            self.sched.remove_host(host)
        self.hosts, self.held, self.revokes = {"z": 2}, {"z": []}, {"z": []}
        self.leaving = set()
        self.sched.add_host("z", 2)
        for _ in range(200):
            self.act()
            if not self.held["z"]:
                break
            self.use(self.held["z"].pop(0), "z")
        assert self.sched.left == 0


Hosts.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestHosts = Hosts.TestCase


def test_a_pinned_task_whose_worker_died_stays_unless_its_host_leaves():
    sched = Scheduler(2)
    for host in ("a", "b"):
        sched.add_host(host, 1, settle=False)
    sched.pin([("a", 0), ("b", 0)])
    sched.actions(0.0)
    assert sched.killed("a", 0)
    assert [(one.host, one.tasks, one.workers) for one in sched.actions(1.0)] == [("a", (0,), (0,))]
    assert not sched.moved
    sched.retire_host("a")
    assert sched.killed("a", 0)
    assert sched.finished("b", 1, 0.1)
    assert [(one.host, one.tasks) for one in sched.actions(2.0)] == [("b", (0,))]
    assert sched.moved == {0}, "the report says so"
