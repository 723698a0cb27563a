"""The scheduler of calls whose hosts combine: its rules, then hosts that do anything they may."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_scheduler import assigned
from test_treefold import without

from jamtasks.combining import Combining, check
from jamtasks.errors import UsageError
from jamtasks.scheduler import Assign, Cancel, Revoke, Yield
from worker_payload.tree import Tree
from worker_payload.wire import ProtocolError


def yields(actions):
    """Hosts that are told to answer."""
    return {
        action.host
        for action in actions
        if isinstance(action, Yield) or (isinstance(action, Assign) and action.last)
    }


def join(left, right, first, count):
    """The empty text stands for slices that failed."""
    return f"({left}{right})" if left and right else left + right


def keep_all(sched, host, tasks, seconds=0.1):
    for task in tasks:
        assert sched.keeps(host, task, seconds, 1.0)


def test_words_that_mean_nothing_are_refused():
    assert check("host") and not check(None)
    with pytest.raises(UsageError, match="combine='yes' means nothing"):
        check("yes")


def test_what_is_kept_is_neither_done_nor_handed_out():
    sched = Combining(4)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    given = assigned(sched.actions(0.0))
    keep_all(sched, "a", given["a"])
    assert (sched.kept, sched.done, sched.left, sched.outstanding("a")) == (2, 0, 4, 2)
    assert not assigned(sched.actions(99.0)), "no second copies"
    assert sched.block("a", 0, 2) and sched.done == 2 and sched.kept == 0
    assert not sched.block("a", 0, 2), "late"


def test_what_a_lost_host_kept_is_done_again():
    sched = Combining(8)
    sched.add_host("a", 2)
    sched.add_host("b", 2)
    given = assigned(sched.actions(0.0))
    keep_all(sched, "a", given["a"])
    sched.remove_host("a")
    assert sched.retried == 4 and not sched.keeps("a", 0, 0.1, 1.0) and not sched.block("a", 0, 4)
    keep_all(sched, "b", given["b"])
    assert assigned(sched.actions(1.0)) == {"b": given["a"]}


def test_a_host_is_told_to_answer_with_its_last_tasks():
    sched = Combining(2)
    sched.add_host("a", 1)
    assert sched.actions(0.0) == [Assign("a", (0, 1), (None, None), last=True)]
    keep_all(sched, "a", [0, 1])
    assert sched.actions(1.0) == [], "once"


def test_a_host_is_told_when_all_the_rest_is_at_others():
    sched = Combining(7)
    sched.add_host("a", 1)
    assert sched.actions(0.0) == [Assign("a", (0, 1, 2, 3), (None,) * 4)]
    keep_all(sched, "a", [0, 1, 2, 3], 9.0)
    assert sched.actions(1.0) == [Assign("a", (4, 5), (None, None))], "more to come: it waits"
    sched.add_host("b", 1)
    assert sched.actions(2.0) == [Assign("b", (6,), (None,), last=True), Yield("a")]


def test_a_host_that_has_nothing_to_do_is_told():
    """Here because what waits elsewhere is not worth moving."""
    sched = Combining(40, move_seconds=1e9)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    told = set()
    while tasks := [task for task, host, *_ in sched.held() if host == "a"] or [-1]:
        actions = sched.actions(0.0)
        told |= yields(actions)
        if told:
            break
        keep_all(sched, "a", [task for task in tasks if task >= 0])
    assert told == {"a"} and sched.kept == 20 and sched.unassigned


def test_a_host_that_leaves_is_told_and_may_answer():
    sched = Combining(9)
    sched.add_host("a", 1)
    (held,) = assigned(sched.actions(0.0)).values()
    sched.retire_host("a")
    assert yields(sched.actions(0.0)) == set()
    keep_all(sched, "a", held)
    assert yields(sched.actions(0.0)) == {"a"} and sched.outstanding("a") == 4
    assert sched.block("a", 0, 4) and sched.outstanding("a") == 0


def test_shares_end_where_blocks_end():
    def first_tasks(tasks, *workers):
        sched = Combining(tasks)
        for host, count in enumerate(workers):
            sched.add_host(host, count)
        sched.actions(0.0)
        return [min((t for t, where, *_ in sched.held() if where == host), default=None)
                for host in range(len(workers))]  # fmt: skip

    assert first_tasks(64, 1, 1) == [0, 32]
    assert first_tasks(64, 1, 1, 1) == [0, 20, 44]
    assert first_tasks(1000, 2, 1) == [0, 640]
    assert first_tasks(3, 1, 1, 1) == [0, 1, 2]
    assert first_tasks(2, 1, 1, 1) == [None, 0, 1]


def test_pinned_tasks_are_kept_and_combined():
    sched = Combining(4)
    for host in "ab":
        sched.add_host(host, 2, settle=False)
    sched.pin([("a", 0), ("a", 1), ("b", 0), ("b", 1)])
    actions = sched.actions(0.0)
    assert Assign("a", (0, 1), (0, 1), last=True) in actions and yields(actions) == {"a", "b"}
    keep_all(sched, "a", [0, 1])
    sched.remove_host("a")
    keep_all(sched, "b", [2, 3])
    assert assigned(sched.actions(1.0)) == {"b": [0, 1]} and sched.moved == {0, 1}


def test_only_the_head_is_handed_out_and_once():
    sched = Combining(9)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    assert assigned(sched.actions(0.0, only=0)) == {"a": [0]}
    assert sched.actions(0.0, only=0) == []
    keep_all(sched, "a", [0])
    assert sched.actions(0.0, only=0) == [Yield("a")], "the fold waits for it"


@pytest.mark.parametrize("first, count", [(1, 2), (0, 3), (0, 0), (8, 2), (0, 1 << 40), (9, 1)])
def test_what_is_no_block_is_a_protocol_error(first, count):
    sched = Combining(9)
    sched.add_host("a", 9)
    sched.actions(0.0)
    with pytest.raises(ProtocolError, match="no block"):
        sched.block("a", first, count)


def test_an_answer_for_others_slices_is_a_protocol_error():
    sched = Combining(4)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    sched.actions(0.0)
    with pytest.raises(ProtocolError, match="not all of them its"):
        sched.block("a", 0, 4)


def test_what_is_late_changes_nothing():
    sched = Combining(2)
    sched.add_host("a", 2)
    sched.actions(0.0)
    keep_all(sched, "a", [0, 1])
    assert not sched.keeps("a", 0, 0.1, 1.0)
    assert sched.killed("a", 0)
    sched.revoked("a", [0, 1])
    assert sched.kept == 2 and not assigned(sched.actions(0.0))


def test_at_the_end_hosts_that_keep_something_are_told_to_stop():
    sched = Combining(2)
    sched.add_host("a", 2)
    sched.actions(0.0)
    keep_all(sched, "a", [0, 1])
    assert sched.abandon() == [Cancel("a", ())]


def test_in_a_call_that_is_repeated_only_those_that_take_part_answer_unasked():
    sched = Combining(4)
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    for host, tasks in assigned(sched.actions(0.0)).items():
        keep_all(sched, host, tasks)
        assert sched.block(host, tasks[0], 2)
    sched.again({"a": range(4)}, 1.0)
    assert sched.left == 4 and yields(sched.actions(1.0)) == set()
    assert sched.killed("a", 0)
    actions = sched.actions(1.0)
    assert assigned(actions) == {"b": [0]} and yields(actions) == {"b"}


class Keeping(RuleBasedStateMachine):
    """Hosts that keep, hand over, come and go, in any order: each slice is in the answer once."""

    names = ("a", "b", "c")

    @initialize(tasks=st.integers(1, 40))
    def begin(self, tasks):
        self.sched = Combining(tasks)
        self.now = 0.0
        self.hosts = {}  # host -> workers
        self.held = {}  # host -> tasks it has, in order
        self.kept = {}  # host -> the tree of what it keeps
        self.told = set()
        self.revokes = {}
        self.answer = Tree(tasks, join)
        self.failed = set()
        self.leaving = set()

    def act(self):
        for action in self.sched.actions(self.now):
            host = action.host
            if isinstance(action, Assign):
                assert host not in self.leaving
                everywhere = [task for tasks in self.held.values() for task in tasks]
                assert not set(action.tasks) & {*everywhere, *self.failed}
                self.held[host] += action.tasks
                if action.last:
                    assert host not in self.told
                    self.told.add(host)
            elif isinstance(action, Revoke):
                self.revokes[host].append(action.tasks)
            else:
                assert isinstance(action, Yield) and host not in self.told
                self.told.add(host)
        self.hand_over()

    def hand_over(self, early=None):
        for host in self.hosts:
            if host == early or (host in self.told and not self.held[host]):
                for first, (count, value) in self.kept[host].blocks.items():
                    assert self.sched.block(host, first, count)
                    self.answer.add(first, count, value)
                self.kept[host] = Tree(self.sched.tasks, join)

    def lose(self, host):
        del self.hosts[host], self.held[host], self.revokes[host], self.kept[host]
        self.told.discard(host)
        self.leaving.discard(host)
        self.sched.remove_host(host)

    @rule(host=st.sampled_from(names), workers=st.integers(1, 3))
    def comes(self, host, workers):
        if host not in self.hosts:
            self.hosts[host], self.held[host], self.revokes[host] = workers, [], []
            self.kept[host] = Tree(self.sched.tasks, join)
            self.sched.add_host(host, workers)
            self.act()

    @precondition(lambda self: self.hosts)
    @rule(data=st.data())
    def goes(self, data):
        self.lose(data.draw(st.sampled_from(sorted(self.hosts))))
        self.act()

    @precondition(lambda self: self.hosts)
    @rule(data=st.data())
    def retires(self, data):
        host = data.draw(st.sampled_from(sorted(self.hosts)))
        self.leaving.add(host)
        self.sched.retire_host(host)
        self.act()

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), how=st.sampled_from(["keep", "keep", "keep", "kill", "fail", "early"]))
    def works(self, data, how):
        host = data.draw(st.sampled_from(sorted(h for h in self.held if self.held[h])))
        index = data.draw(st.integers(0, min(len(self.held[host]), self.hosts[host]) - 1))
        task = self.held[host].pop(index)
        if how == "kill":
            if not self.sched.killed(host, task):
                how = "fail"
        elif how != "fail":
            assert self.sched.keeps(host, task, 0.2, self.now)
            self.kept[host].add(task, 1, str(task))
        if how == "fail":
            assert self.sched.finished(host, task, None)
            self.failed.add(task)
        if how == "early":  # it has no room for more
            self.hand_over(early=host)
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
    def what_is_done_is_in_the_answer(self):
        if hasattr(self, "sched"):
            there = sum(count for count, _ in self.answer.blocks.values())
            assert self.sched.done == there + len(self.failed)
            assert self.sched.kept == sum(
                count for tree in self.kept.values() for count, _ in tree.blocks.values()
            )

    @invariant()
    def no_task_waits_while_a_worker_idles(self):
        if getattr(self, "hosts", None) and self.sched.unassigned:
            for host, workers in self.hosts.items():
                assert host in self.leaving or len(self.held[host]) >= workers

    def teardown(self):
        """Every run ends: one good host finishes whatever is left."""
        if not hasattr(self, "sched"):
            return
        for host in list(self.hosts):
            self.lose(host)
        self.comes("z", 2)
        while self.held["z"]:
            task = self.held["z"].pop(0)
            assert self.sched.keeps("z", task, 0.2, self.now)
            self.kept["z"].add(task, 1, str(task))
            self.act()
        assert self.sched.left == 0
        for task in sorted(self.failed):
            self.answer.add(task, 1, "")
        ((_, value),) = self.answer.blocks.values()
        assert value == without(self.sched.tasks, self.failed)


Keeping.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestKeeping = Keeping.TestCase
