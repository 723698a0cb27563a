"""What a call under way knows of the hosts that take part."""

from __future__ import annotations

from types import SimpleNamespace

from jamtasks.answering import take_back
from jamtasks.calls import Call
from jamtasks.scheduler import Scheduler
from worker_payload import wire


def call(tasks):
    made = Call(
        id=1, begin=wire.Begin(1, "a" * 64, "m", None, {}, []), blobs=[], slice_of=None,
        scheduler=Scheduler(tasks), requires=(), needs_numpy=False, keep_going=False,
    )  # fmt: skip
    made.slice_of = lambda task: SimpleNamespace(digest=f"digest {task}")
    return made


def test_a_host_that_gave_tasks_back_is_not_said_to_have_their_data():
    made = call(4)
    made.given = {"a": [0, 1, 2], "b": [3]}
    a = SimpleNamespace(label="a", holds=dict.fromkeys(f"digest {task}" for task in range(4)))
    take_back(made, a, [1, 3, 99])
    assert made.given == {"a": [0, 2], "b": [3]}
    assert list(a.holds) == ["digest 0", "digest 2", "digest 3"], "3 was not given in this call"


def test_a_call_without_data_has_none_to_forget():
    made = call(2)
    made.given, made.slice_of = {"a": [0, 1]}, None
    take_back(made, SimpleNamespace(label="a", holds={}), [1])
    assert made.given == {"a": [0]}


def test_copies_that_are_too_late_are_named_when_the_call_is_over():
    made = call(1)
    sched = made.scheduler
    sched.add_host("a", 1)
    sched.add_host("b", 1)
    sched.actions(0.0, only=0)
    assert sched.finished("b", 0, 0.1)
    assert [(action.host, action.tasks) for action in sched.abandon()] == [("a", (0,))]
