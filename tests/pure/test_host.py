"""The agent's state: messages and events in, actions out; no process, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from worker_payload import blobs, host, pool, wire
from worker_payload import records as states
from worker_payload.host import Host
from worker_payload.orders import BEGIN, CODE, DROP, END, TASK
from worker_payload.records import Give, Handle, Send
from worker_payload.shortcuts import write_again
from worker_payload.wire import ProtocolError

CODE_DIGEST, OTHER_CODE, SLICE, SLICE2, PARAMS = (c * 64 for c in "cdef9")


class Agent:
    """A Host whose actions are collected, and whose blobs are those in `store`."""

    def __init__(self, workers: int = 2, idle: float = 900.0):
        self.host = Host("b", "p", workers, idle, 0.0)
        self.store = {CODE_DIGEST: 1000, OTHER_CODE: 1000, SLICE: 10, SLICE2: 1 << 20}
        self.done: list[Any] = []

    def settle(self) -> list[Any]:
        """What the host wants done now; blobs are looked up at once."""
        new: list[Any] = []
        while actions := self.host.actions():
            for action in actions:
                new.append(action)
                if isinstance(action, states.Look):
                    size = self.store.get(action.digest)
                    if size is None:
                        self.host.blob_absent(action.digest)
                    else:
                        self.host.blob_here(action.digest, handle(size))
                elif isinstance(action, states.Spool):
                    self.host.spooled(action.call, Handle(None, 99))
        self.done += new
        return new

    def master(self, number: int = 1, workers: int = 2, **settings: Any) -> None:
        self.host.master_opened(number)
        self.say(number, wire.Hello(wire.VERSION, "b", "p", f"m{number}", workers, settings))

    def say(self, number: int, *messages: Any) -> list[Any]:
        for message in messages:
            self.host.message(number, message)
        return self.settle()

    def call(
        self, tasks: Sequence[Sequence[Any]], *, call: int = 1, master: int = 1,
        code: str = CODE_DIGEST, **options: Any,
    ) -> list[Any]:  # fmt: skip
        begin = wire.Begin(call, code, "m", "", options, [b"params"])
        return self.say(master, begin, wire.Task(call, [list(t) for t in tasks]))

    def at(self, now: float) -> list[Any]:
        self.host.tick(now)
        return self.settle()

    def answer(self, worker: int, ticket: int, value: bytes = b"r", **more: Any) -> list[Any]:
        facts = {"ok": True, "wrote": False, "seconds": 0.5, "payload": [value], **more}
        self.host.answered(worker, ticket, **facts)
        return self.settle()


def handle(size: int) -> Handle:
    return Handle(bytes(size), None) if size <= pool.INLINE else Handle(None, 7)


def given(actions: list[Any]) -> dict[int, list[int]]:
    """Tickets by worker."""
    found: dict[int, list[int]] = {}
    for action in actions:
        if isinstance(action, Give):
            found.setdefault(action.worker, []).extend(
                command[1] for command in action.commands if command[0] == TASK
            )
    return found


def sent(actions: list[Any], kind: type) -> list[Any]:
    return [a.message for a in actions if isinstance(a, Send) and isinstance(a.message, kind)]


def of(actions: list[Any], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


# --- conversation ------------------------------------------------------------------------------

HELLO = wire.Hello(wire.VERSION, "b", "p", "m", 2, {})
BEGIN_1 = wire.Begin(1, CODE_DIGEST, "m", "", {}, [b""])


@pytest.mark.parametrize(
    "messages",
    [
        [BEGIN_1],
        [wire.Task(1, [])],
        [HELLO, HELLO],
        [HELLO._replace(build="other")],
        [HELLO._replace(version=99)],
        [HELLO._replace(project="other")],
        [HELLO._replace(settings={"threads": "many"})],
        [HELLO._replace(settings={"env": {"A": 1}})],
        [HELLO, wire.Task(1, [[0, None, None]])],
        [HELLO, BEGIN_1, BEGIN_1],
        [HELLO, BEGIN_1._replace(segments=[])],
        [HELLO, BEGIN_1._replace(params=PARAMS)],
        [HELLO, BEGIN_1._replace(options={"timeout": "soon"})],
        [HELLO, BEGIN_1, wire.Task(1, [[0, None, None], [0, None, None]])],
        [HELLO, BEGIN_1, wire.Task(1, [[0, None, 2]])],
        [HELLO, wire.Blob(SLICE, 0, 10, [])],
        [HELLO, wire.Blob(SLICE, 5, 10, [b"123456"])],
        [HELLO, wire.Welcome(1, "", "", "", "", 0, 0, 0, 0, 0, "", [])],
    ],
)
def test_what_does_not_fit_is_a_protocol_error(messages: list[Any]) -> None:
    agent = Agent()
    agent.host.master_opened(1)
    for message in messages[:-1]:
        agent.say(1, message)
    with pytest.raises(ProtocolError):
        agent.say(1, messages[-1])


def test_a_task_goes_out_and_its_answer_comes_back() -> None:
    agent = Agent()
    agent.master()
    actions = agent.call([[0, SLICE, None]])
    (give,) = of(actions, Give)
    assert [command[0] for command in give.commands] == [CODE, BEGIN, TASK]
    assert give.commands[1][3] == b"params" and give.commands[2][4] == bytes(10)
    (result,) = sent(agent.answer(give.worker, give.commands[2][1]), wire.Result)
    assert result == wire.Result(1, [[0, 0, 1, 0.5]], [b"r"])


def test_answers_of_one_turn_travel_in_one_message() -> None:
    agent = Agent()
    agent.master()
    tickets = given(agent.call([[0, None, 0], [1, None, 1]]))
    for worker, (ticket,) in tickets.items():
        agent.host.answered(worker, ticket, True, False, 0.1, [b"x"])
    (result,) = sent(agent.settle(), wire.Result)
    assert [item[:2] for item in result.tasks] == [[0, 0], [1, 1]]


def test_failures_and_late_answers() -> None:
    agent = Agent()
    agent.master()
    ((worker, (ticket,)),) = given(agent.call([[0, None, 1]])).items()
    actions = agent.answer(worker, ticket, ok=False, payload=("ValueError", "no", "tb"))
    assert sent(actions, wire.Failure) == [wire.Failure(1, 0, 1, "ValueError", "no", "tb")]
    assert agent.answer(worker, ticket) == [], "a ticket is answered once"
    assert agent.answer(12345, 1) == []


# --- blobs -------------------------------------------------------------------------------------


def test_missing_is_asked_once_and_tasks_wait() -> None:
    agent = Agent()
    del agent.store[SLICE], agent.store[CODE_DIGEST]
    agent.master()
    actions = agent.call([[0, SLICE, None], [1, SLICE, None]])
    assert sent(actions, wire.Missing) == [wire.Missing(1, [CODE_DIGEST, SLICE])]
    assert given(actions) == {}
    agent.host.blob_here(SLICE, handle(10))
    assert given(agent.settle()) == {}, "the code is not here yet"
    agent.host.blob_here(CODE_DIGEST, handle(10))
    assert len(given(agent.settle())) == 2


def test_blob_bytes_are_credited_wanted_or_not() -> None:
    agent = Agent()
    del agent.store[SLICE]
    agent.master()
    agent.call([[0, SLICE, None]])
    actions = agent.say(1, wire.Blob(SLICE, 0, 10, [b"12345"]), wire.Blob(PARAMS, 0, 9, [b"123"]))
    assert of(actions, states.Keep) == [states.Keep(SLICE, 0, 10, b"12345")]
    assert sent(actions, wire.Credit) == [wire.Credit(8)]


def test_another_master_is_asked_when_the_first_one_leaves() -> None:
    agent = Agent()
    del agent.store[SLICE]
    agent.master(1)
    agent.master(2)
    agent.call([[0, SLICE, None]], master=1)
    assert sent(agent.call([[0, SLICE, None]], master=2), wire.Missing) == []
    agent.host.master_closed(1)
    actions = agent.settle()
    assert states.Abandon(SLICE) in actions
    assert Send(2, wire.Missing(1, [SLICE])) in actions


def test_what_the_first_one_no_longer_gives_another_master_is_asked_for() -> None:
    agent = Agent()
    del agent.store[SLICE]
    agent.master(1)
    agent.master(2)
    agent.call([[0, SLICE, None]], master=1)
    agent.call([[0, SLICE, None]], master=2)
    actions = agent.say(1, wire.End(1), wire.Gone(1, [SLICE]))
    assert Send(2, wire.Missing(1, [SLICE])) in actions
    assert sent(agent.say(1, wire.Gone(1, [SLICE])), wire.Missing) == [], "another has been asked"


def test_damaged_blobs_are_asked_for_again_but_not_for_ever() -> None:
    agent = Agent()
    del agent.store[SLICE]
    agent.master()
    agent.call([[0, SLICE, None]])
    for _ in range(blobs.ATTEMPTS - 1):
        agent.host.blob_damaged(SLICE)
        assert sent(agent.settle(), wire.Missing)
    agent.host.blob_damaged(SLICE)
    (refused,) = sent(agent.settle(), wire.Refused)
    assert "damaged" in refused.reason
    assert agent.say(1, wire.Task(1, [[5, None, None]])) == [], "it had not heard of it yet"


def test_no_room_refuses_the_calls_that_need_it() -> None:
    agent = Agent()
    del agent.store[SLICE]
    agent.master()
    agent.call([[0, SLICE, None]])
    agent.host.blob_full(SLICE, "no room")
    assert sent(agent.settle(), wire.Refused) == [wire.Refused(1, "no room")]
    agent.say(1, wire.End(1))
    assert sent(agent.call([[0, SLICE, None]], call=2), wire.Missing), "asked for again"


def test_what_nobody_needs_any_more_and_has_no_room_is_forgotten() -> None:
    agent = Agent()
    del agent.store[SLICE]
    agent.master()
    agent.call([[0, SLICE, None]])
    agent.host.blob_stalled(SLICE)
    agent.say(1, wire.End(1))
    agent.host.blob_full(SLICE, "no room, and no need")
    assert SLICE not in agent.host._blobs


def test_params_are_dropped_at_the_end_and_slices_are_not() -> None:
    agent = Agent()
    agent.store[PARAMS] = 1 << 20
    agent.master()
    begin = wire.Begin(1, CODE_DIGEST, "m", PARAMS, {})
    ((worker, (ticket,)),) = given(agent.say(1, begin, wire.Task(1, [[0, SLICE2, None]]))).items()
    agent.answer(worker, ticket)
    unpinned = of(agent.say(1, wire.End(1)), states.Unpin)
    assert [(u.digest, u.drop) for u in unpinned] == [(PARAMS, True)]
    assert len(of(agent.at(host.UNPIN_AFTER + 1), states.Unpin)) == 2, "the rest, when all is quiet"


def test_files_are_passed_to_a_worker_once() -> None:
    agent = Agent(workers=1)
    agent.master(workers=1)
    (give,) = of(agent.call([[0, SLICE2, None]]), Give)
    assert give.fds == [7] and give.commands[-1][4] is True
    (again,) = of(agent.answer(give.worker, give.commands[-1][1]) +
                  agent.say(1, wire.Task(1, [[1, SLICE2, None]])), Give)  # fmt: skip
    assert again.fds == [] and again.commands[-1][4] is None
    agent.answer(again.worker, again.commands[-1][1])
    agent.say(1, wire.End(1))
    (release,) = of(agent.at(10.0), Give)
    assert {command[0] for command in release.commands} >= {END, DROP}


# --- who does what -----------------------------------------------------------------------------


def test_bound_tasks_go_to_their_worker_only() -> None:
    agent = Agent(workers=4)
    agent.master(workers=4)
    actions = agent.call([[0, None, 3], [1, None, 3], [2, None, 1]])
    assert sorted(map(len, given(actions).values())) == [1, 1]
    ((worker, (ticket,)),) = [
        (w, t) for w, t in given(actions).items() if agent.host._workers[w].slot == 3
    ]
    (result,) = sent(answered := agent.answer(worker, ticket), wire.Result)
    assert result.tasks[0][:2] == [0, 3]
    assert list(given(answered)) == [worker]


def test_slow_tasks_are_handed_out_one_by_one_and_tiny_ones_in_batches() -> None:
    agent = Agent(workers=2)
    agent.master(workers=2)
    first = given(agent.call([[i, None, None] for i in range(100)]))
    assert sorted(map(len, first.values())) == [1, 1]
    (worker, (ticket,)), _ = first.items()
    assert len(given(agent.answer(worker, ticket, seconds=0.00001))[worker]) > 5
    talking = Agent(workers=1)
    talking.master(workers=1)
    ((worker, (ticket,)),) = given(talking.call([[i, None, None] for i in range(9)])).items()
    assert len(given(talking.answer(worker, ticket, seconds=1e-5, wrote=True))[worker]) == 1


def test_what_waits_behind_a_slow_task_is_taken_back() -> None:
    agent = Agent(workers=2)
    agent.master(workers=2)
    first = given(agent.call([[i, None, None] for i in range(40)]))
    for worker, (ticket,) in first.items():
        agent.answer(worker, ticket, seconds=1e-5)
    stuck, free = (agent.host._workers[number] for number in first)
    while free.hand:
        agent.answer(free.number, next(iter(free.hand)), seconds=1e-5)
    before = list(stuck.hand)
    assert len(before) > 1
    actions = agent.at(1.0)
    (withdraw,) = of(actions, states.Withdraw)
    assert (withdraw.worker, withdraw.after) == (stuck.number, before[0])
    assert len(given(actions)[free.number]) == 1, "no longer thought to be tiny"
    assert min(given(actions)[free.number]) > withdraw.before > max(before)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_who_dies_of_a_task_that_was_just_taken_back_counts_unless_another_has_it(
    elsewhere: bool,
) -> None:
    agent = Agent(workers=2)
    agent.master(workers=2)
    first = given(agent.call([[i, None, None] for i in range(40)]))
    for worker, (ticket,) in first.items():
        agent.answer(worker, ticket, seconds=1e-5)
    stuck, free = (agent.host._workers[number] for number in first)
    while free.hand and (elsewhere or len(free.hand) > 1):
        agent.answer(free.number, next(iter(free.hand)), seconds=1e-5)
    current, begun = list(stuck.hand)[:2]
    lost = stuck.hand[begun]
    agent.at(1.0)
    assert (lost.state == states.HANDED) == elsewhere
    agent.host.answered(stuck.number, current, True, False, 1.0, [b"r"])
    agent.host.gone(stuck.number, None, 9, begun, "last words", "")
    (*told,) = sent(agent.settle(), wire.Lost)
    assert [message.id for message in told] == ([] if elsewhere else [lost.id])
    assert (lost.state == states.OVER) != elsewhere


def haunted() -> tuple[Agent, Any, Any, dict[int, int]]:
    """A worker that had just begun what was taken back from it, another one, and the board."""
    agent, board = Agent(workers=2), {}
    agent.host.board = lambda number: board.get(number, 0)
    agent.master(workers=2)
    first = given(agent.call([[i, None, None] for i in range(40)]))
    for worker, (ticket,) in first.items():
        agent.answer(worker, ticket, seconds=1e-5)
    stuck, other = (agent.host._workers[number] for number in first)
    current, begun = list(stuck.hand)[:2]
    agent.at(1.0)
    board[stuck.number] = begun
    agent.answer(stuck.number, current, seconds=1.0)
    return agent, stuck, other, board


def test_who_works_on_what_was_taken_back_gets_nothing_more() -> None:
    agent, stuck, other, board = haunted()
    while other.hand:
        agent.answer(other.number, next(iter(other.hand)), seconds=0.02)
    assert not agent.host._queued and not stuck.hand, "the other one has done it all"
    assert not agent.host._tickets
    agent.call([[i, None, None] for i in range(4)], call=2)
    assert len(other.hand) == 1 and not stuck.hand
    board[stuck.number] = 0
    agent.at(2.0)
    assert len(other.hand) == len(stuck.hand) == 1


def test_what_waits_behind_what_was_taken_back_goes_elsewhere() -> None:
    agent, stuck, other, board = haunted()
    board[stuck.number], begun = 0, board[stuck.number]
    agent.answer(other.number, next(iter(other.hand)), seconds=0.02)
    (waits,) = stuck.hand.values()
    board[stuck.number] = begun  # the look came too early
    actions = agent.at(1.01)
    assert waits.state == states.QUEUED and not stuck.hand
    (withdraw,) = [one for one in of(actions, states.Withdraw) if one.worker == stuck.number]
    assert withdraw.after == begun


def test_the_end_of_a_call_ends_what_was_taken_back_from_a_worker_too() -> None:
    agent, stuck, _, _ = haunted()
    actions = agent.say(1, wire.End(1))
    assert states.Interrupt(stuck.number) in actions
    assert states.Kill(stuck.number) in agent.at(3.0)


def test_masters_take_turns() -> None:
    agent = Agent(workers=2)
    agent.master(1)
    agent.master(2)
    first = given(agent.call([[i, None, None] for i in range(10)], master=1))
    assert len(first) == 2
    agent.call([[i, None, None] for i in range(10)], master=2)
    (worker, (ticket,)), (other, (late,)) = first.items()

    def whose(actions: list[Any]) -> list[int]:
        return [
            agent.host._tickets[t].call.master.number for ts in given(actions).values() for t in ts
        ]

    assert whose(agent.answer(worker, ticket)) == [2]
    assert whose(agent.answer(other, late)) == [1], "a slot for each"


def test_what_is_repeated_goes_past_the_host_though_another_master_keeps_a_call() -> None:
    agent = Agent()
    for master in (1, 2):
        agent.master(master)
        for worker, (ticket,) in given(agent.call([[0, None, None]], master=master)).items():
            agent.answer(worker, ticket, seconds=1e-5)

    def again(master: int, call: int) -> Any:
        actions = agent.say(master, wire.Again(call, call - 1, [b"other"]))
        assert not agent.host.repeats()
        (repeat,) = of(actions, states.Repeat)
        for worker, ticket, *_ in repeat.given:
            agent.answer(worker, ticket, seconds=1e-5)
        assert agent.host.repeats()
        return agent.host.lap()

    assert again(1, 2).call.master.number == 1
    assert again(2, 2).call.master.number == 2
    agent.call([[0, "a" * 64, None]], call=3, master=2)
    assert again(1, 3) is None, "the other master has work here, though its data is not here yet"


def test_nothing_goes_past_the_host_when_a_worker_did_something_else_last() -> None:
    agent = Agent()
    for master in (1, 2, 3):
        agent.master(master)

    def end(found: dict[int, list[int]]) -> None:
        while found:
            (worker, (ticket, *_)), *_ = found.items()
            found = given(agent.answer(worker, ticket, seconds=1e-5))

    def again(master: int) -> int:
        actions = agent.say(master, wire.Again(2, 1, [b"other"]))
        (repeat,) = of(actions, states.Repeat)
        for worker, ticket, *_ in repeat.given:
            end(given(agent.answer(worker, ticket, seconds=1e-5)))
        return len(repeat.given)

    end(given(agent.call([[0, None, None]], master=1)))
    ((busy, (long,)),) = given(agent.call([[0, None, 1]], master=2)).items()
    end(given(agent.call([[0, None, None], [1, None, None]], master=3)))
    assert again(1) == 1 and not agent.host.repeats(), "another task is under way"
    assert again(3) == 1, "its other task may go elsewhere"
    agent.answer(busy, long)
    assert not agent.host.repeats() or agent.host.lap() is None


def test_nothing_goes_past_the_host_to_a_worker_that_took_the_place_of_a_dead_one() -> None:
    agent = Agent(workers=1)
    agent.master()
    ((worker, (ticket,)),) = given(agent.call([[0, None, None]])).items()
    agent.answer(worker, ticket, seconds=1e-5)
    (repeat,) = of(agent.say(1, wire.Again(2, 1, [b"other"])), states.Repeat)
    ((worker, *_),) = repeat.given
    agent.host.gone(worker, None, 9, 0, "", "")  # before it began
    ((other, (ticket,)),) = given(agent.settle()).items()
    assert other != worker
    assert sent(agent.answer(other, ticket, seconds=1e-5), wire.Result)
    assert not agent.host.repeats() or agent.host.lap() is None, "it never heard of an Again"


def test_nothing_goes_past_the_host_when_workers_were_given_ordinary_tasks() -> None:
    """Though the same call was about to, the last time: see `catch_up`."""
    agent = Agent(workers=1)
    for master in (1, 2):
        agent.master(master, workers=1)
    for worker, (ticket,) in given(agent.call([[0, None, None]], master=1)).items():
        agent.answer(worker, ticket, seconds=1e-5)
    (repeat,) = of(agent.say(1, wire.Again(2, 1, [b"other"])), states.Repeat)
    ((worker, ticket, *_),) = repeat.given
    agent.answer(worker, ticket, seconds=1e-5)
    lap = agent.host.lap()
    assert lap is not None and lap.begin(write_again(3, 2, b"third")) is not None
    agent.host.catch_up(lap)
    assert not given(agent.call([[0, None, None]], master=2)), "it waits"
    found = given(agent.answer(worker, lap.tickets[0], seconds=1e-5))
    assert found, "and now it is its turn"
    actions = agent.say(1, wire.Again(4, 3, [b"fourth"]))
    assert not of(actions, states.Repeat)
    for tickets in (*found.values(), *given(actions).values()):
        for ticket in tickets:
            agent.answer(worker, ticket, seconds=1e-5)
    assert not agent.host._tickets and not agent.host.repeats()


def test_a_call_that_printed_once_goes_past_the_host_when_it_is_repeated_without() -> None:
    agent = Agent()
    agent.master()
    for worker, (ticket,) in given(agent.call([[0, None, None]])).items():
        agent.answer(worker, ticket, seconds=1e-5)
    for call, wrote in ((2, True), (3, True), (4, False)):
        (repeat,) = of(agent.say(1, wire.Again(call, call - 1, [b"other"])), states.Repeat)
        for worker, ticket, *_ in repeat.given:
            agent.answer(worker, ticket, seconds=1e-5, wrote=wrote)
        assert agent.host.repeats() and (agent.host.lap() is None) == wrote


def test_a_warm_process_of_one_does_not_starve_another() -> None:
    agent = Agent(workers=1)
    agent.master(1, workers=1)
    agent.master(2, workers=1)
    ((worker, (ticket,)),) = given(agent.call([[i, None, None] for i in range(9)])).items()
    agent.call([[0, None, None]], master=2, code=OTHER_CODE)
    (other,) = given(agent.answer(worker, ticket))
    assert other != worker


def test_another_bundle_gets_another_process_and_few_are_kept() -> None:
    agent = Agent(workers=1)
    agent.master(workers=1)
    workers = []
    for i in range(pool.PER_SLOT + 2):
        code = f"{i:064x}"
        agent.store[code] = 10
        ((worker, (ticket,)),) = given(agent.call([[0, None, None]], call=i + 1, code=code)).items()
        agent.answer(worker, ticket)
        agent.say(1, wire.End(i + 1))
        workers.append(worker)
    assert len(set(workers)) == len(workers)
    assert [r.worker for r in of(agent.done, states.Retire)] == workers[:2]


def test_settings_make_kinds_of_workers() -> None:
    agent = Agent(workers=1)
    agent.master(1, workers=1, threads=4, env={"B": "2", "A": "1"})
    agent.master(2, workers=1)
    agent.call([[0, None, None]], master=1)
    agent.call([[0, None, None]], master=2)
    assert [p.key for p in of(agent.done, states.Prepare)] == [
        (4, 0, (("A", "1"), ("B", "2"))),
        (1, 0, ()),
    ]


# --- endings -----------------------------------------------------------------------------------


def test_a_dead_worker_loses_its_task_and_gives_back_the_rest() -> None:
    agent = Agent(workers=1)
    agent.master(workers=1)
    ((worker, (ticket,)),) = given(agent.call([[i, None, None] for i in range(50)])).items()
    hand = given(agent.answer(worker, ticket, seconds=1e-5))[worker]
    assert len(hand) > 3
    agent.host.gone(worker, None, 9, hand[2], "last words", "a note")
    actions = agent.settle()
    assert sent(actions, wire.Lost) == [wire.Lost(1, 3, 0, None, 9, "last words", "a note")]
    (new,) = given(actions)
    assert new != worker
    again = [agent.host._tickets[t].id for t in given(actions)[new]]
    assert again[:2] == [1, 2], "in their old order, before what comes after them"


def test_a_worker_that_never_begins_is_tried_again_but_not_for_ever() -> None:
    agent = Agent(workers=1)
    agent.master(workers=1)
    actions = agent.call([[0, None, None]])
    for _ in range(blobs.ATTEMPTS):
        assert sent(actions, wire.Lost) == []
        (worker,) = given(actions)
        agent.host.gone(worker, 1, None, 0, "", "cannot fork")
        actions = agent.settle()
    (lost,) = sent(actions, wire.Lost)
    assert (lost.id, lost.note) == (0, "cannot fork")


def test_cancel_interrupts_then_kills_and_a_fresh_worker_goes_on() -> None:
    agent = Agent(workers=1)
    agent.master(workers=1)
    ((worker, (ticket,)),) = given(agent.call([[0, None, None], [1, None, None]])).items()
    actions = agent.say(1, wire.Cancel(1, [0]))
    assert states.Interrupt(worker) in actions
    (new,) = given(actions)
    assert new != worker
    assert of(agent.at(host.GRACE - 0.1), states.Kill) == []
    assert of(agent.at(host.GRACE + 0.1), states.Kill) == [states.Kill(worker)]
    assert of(agent.at(host.GRACE + 0.2), states.Kill) == [], "once"
    agent.host.gone(worker, None, 9, ticket, "", "")
    assert sent(agent.settle(), wire.Lost) == []


def test_an_interrupted_call_that_ends_is_the_end_of_its_worker() -> None:
    agent = Agent(workers=1)
    agent.master(workers=1)
    ((worker, (ticket,)),) = given(agent.call([[0, None, None]])).items()
    agent.say(1, wire.Cancel(1, []))
    actions = agent.answer(worker, ticket, ok=False, payload=("KeyboardInterrupt", "", ""))
    assert actions == [states.Kill(worker)]


def test_an_interrupt_that_hits_the_next_task_does_not_fail_it() -> None:
    agent = Agent(workers=1)
    agent.master(workers=1)
    ((worker, (ticket,)),) = given(agent.call([[i, None, None] for i in range(50)])).items()
    first, second = given(agent.answer(worker, ticket, seconds=1e-5))[worker][:2]
    agent.say(1, wire.Cancel(1, [agent.host._tickets[first].id]))
    innocent = agent.host._tickets[second].id
    agent.answer(worker, first)
    actions = agent.answer(worker, second, ok=False, payload=("KeyboardInterrupt", "", ""))
    assert sent(actions, wire.Failure) == []
    (call,) = agent.host._calls.values()
    assert call.tasks[innocent].ticket != second or call.tasks[innocent].state == states.QUEUED


def test_revoke_gives_back_waiting_and_queued_but_not_handed() -> None:
    agent = Agent(workers=1)
    del agent.store[SLICE]
    agent.master(workers=1)
    agent.call([[0, None, None], [1, None, None], [2, SLICE, None]])
    actions = agent.say(1, wire.Revoke(1, [0, 1, 2, 77]))
    assert sent(actions, wire.Revoked) == [wire.Revoked(1, [1, 2])]
    assert sent(agent.say(1, wire.Revoke(9, [1])), wire.Revoked) == [wire.Revoked(9, [])]


def test_the_end_of_a_master_ends_its_work() -> None:
    agent = Agent(workers=2)
    agent.master()
    workers = list(given(agent.call([[i, None, None] for i in range(5)])))
    agent.host.master_closed(1)
    actions = agent.settle()
    assert {a.worker for a in of(actions, states.Interrupt)} == set(workers)
    assert given(actions) == {} and not agent.host._calls


def test_a_task_past_its_timeout_is_lost_with_its_worker() -> None:
    agent = Agent(workers=1)
    agent.master(workers=1)
    agent.call([[0, None, None]], timeout=5)
    assert sent(agent.at(4.9), wire.Started) == [wire.Started(1, [[0, 0]])]
    actions = agent.at(5.1)
    (lost,) = sent(actions, wire.Lost)
    assert lost.note == "still running after 5 s" and (lost.exit, lost.signal) == (None, None)
    assert of(actions, states.Interrupt)


def test_who_waits_for_its_turn_to_answer_is_through_with_its_task() -> None:
    agent = Agent(workers=1)
    agent.master(workers=1)
    ((worker, (ticket,)),) = given(
        agent.call([[0, None, None], [1, None, None]], timeout=5)
    ).items()
    assert agent.host.asked(worker, ticket) == (1, (1, 0))
    assert not sent(agent.at(60.0), wire.Lost)
    ((_, (second,)),) = given(agent.answer(worker, ticket)).items()
    assert sent(agent.at(70.0), wire.Lost), "the next one is not through"
    assert agent.host.asked(worker, second) == (0, None), "nobody waits for it any longer"
    assert agent.host.asked(99, second) == agent.host.asked(worker, 999) == (0, None)


def test_the_order_of_turns_is_that_of_calls_and_tasks() -> None:
    agent = Agent()
    agent.master(workers=2)
    tickets = given(agent.call([[7, None, None], [3, None, None]]))
    orders = [agent.host.asked(worker, ticket) for worker, (ticket,) in tickets.items()]
    assert [master for master, _ in orders] == [1, 1]
    assert orders[1][1] < orders[0][1]
    for worker, (ticket,) in tickets.items():
        agent.answer(worker, ticket)
    later = given(agent.call([[0, None, None]], call=2))
    assert all(agent.host.asked(w, t)[1] > orders[0][1] for w, (t,) in later.items())


def test_answers_that_are_kept_here_wait_for_no_turn() -> None:
    agent = Agent()
    agent.master(workers=2)
    ((worker, (ticket,)),) = given(agent.call([[0, None, None]], combine=4)).items()
    assert agent.host.asked(worker, ticket) == (0, None)


@pytest.mark.parametrize(
    ("idle", "superseded", "times"),
    [
        (900.0, False, {899.0: False, 901.0: True}),
        (0.0, False, {0.1: True}),
        (900.0, True, {0.1: True}),
    ],
)
def test_an_agent_without_masters_ends(
    idle: float, superseded: bool, times: dict[float, bool]
) -> None:
    agent = Agent(idle=idle)
    agent.master()
    agent.at(5.0)
    agent.host.master_closed(1)
    if superseded:
        agent.host.superseded()
    ended = bool(of(agent.settle(), states.Stop))
    for after, expected in times.items():
        ended = ended or bool(of(agent.at(5.0 + after), states.Stop))
        assert ended == expected


def test_a_silent_master_is_gone_and_a_beat_keeps_it() -> None:
    agent = Agent()
    agent.master()
    beats = 0
    for second in range(1, 59):
        beats += len(sent(agent.at(float(second)), wire.Beat))
    assert beats == 29
    agent.host.heard(1)
    assert of(agent.at(100.0), states.Close) == []
    (close,) = of(agent.at(58 + host.MASTER_GONE_AFTER + 1), states.Close)
    assert close.code == 75


def test_a_master_that_comes_again_ends_its_former_connection() -> None:
    agent = Agent()
    agent.master(1)
    agent.master(2)
    agent.call([[0, None, None]])
    assert of(agent.done, states.Close) == []
    agent.host.master_opened(3)
    agent.say(3, wire.Hello(wire.VERSION, "b", "p", "m1", 2, {}))
    (close,) = of(agent.done, states.Close)
    assert (close.master, close.code) == (1, 75)


def test_output_names_the_task_or_none() -> None:
    agent = Agent(workers=1)
    agent.master(workers=1)
    ((worker, (ticket,)),) = given(agent.call([[7, None, None]])).items()
    agent.host.output(worker, 0, 1, b"running")
    agent.host.output(worker, ticket, 2, b"err")
    agent.answer(worker, ticket)
    agent.host.output(worker, 0, 1, b"after")
    agent.settle()
    ids = [(o.id, o.stream) for o in sent(agent.done, wire.Output)]
    assert ids == [(7, 1), (7, 2), (-1, 1)]
