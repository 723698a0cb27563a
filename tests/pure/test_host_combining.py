"""The agent's state where answers are kept: what is joined, by whom, and when it goes out."""

from __future__ import annotations

import marshal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_host import CODE_DIGEST, SLICE, Agent, of, sent
from test_host import given as given_to
from test_tree import whole

from worker_payload import kept, pool, wire
from worker_payload import records as states
from worker_payload.blobs import ATTEMPTS
from worker_payload.kept import Join, Kept, Part
from worker_payload.orders import BEGIN, PART
from worker_payload.records import Give, Hand
from worker_payload.tree import Tree, is_block


class Combining(Agent):
    """An agent with one call of so many slices, none of which needs data, and some tasks of it."""

    def __init__(self, total: int, workers: int = 2, slices: Any = None, **options: Any):
        super().__init__(workers=workers)
        self.master(workers=workers)
        tasks = [[index, None, None] for index in slices or range(total)]
        self.first = self.call(tasks, combine=total, **options)

    def takes(self, worker: int, ticket: int, blocks: Any, others: Any = (), **more: Any) -> Any:
        """A worker answers with these blocks: (first, count, value)."""
        rows = [(first, count, len(value), 1, 0) for first, count, value in blocks]
        payload = [marshal.dumps((list(others), rows)), *(value for _, _, value in blocks)]
        return self.answer(worker, ticket, payload=payload, **more)

    def ends(self, actions: Any, value: bytes = b"x") -> list[Any]:
        """Workers answer for the slices that they are given, until there are no more; what the
        agent wanted done meanwhile."""
        done: list[Any] = []
        pending = list(actions)
        while pending:
            action = pending.pop(0)
            for _, _, ticket, index, parts, _, _ in parts_of(action):
                if parts is None:
                    new = self.takes(action.worker, ticket, [(index, 1, value)])
                    done += new
                    pending += new
        return done


def parts_of(actions: Any) -> list[Any]:
    actions = actions if isinstance(actions, list) else [actions]
    return [c for action in of(actions, Give) for c in action.commands if c[0] == PART]


def joins_of(actions: Any) -> list[Any]:
    return [command for command in parts_of(actions) if command[4] is not None]


def worker_of(actions: Any, ticket: int) -> int:
    (worker,) = (worker for worker, tickets in given_to(actions).items() if ticket in tickets)
    return worker


def test_what_was_computed_is_told_and_kept() -> None:
    agent = Combining(3)
    commands = [command for give in of(agent.first, Give) for command in give.commands]
    assert [command[-1] for command in commands if command[0] == BEGIN] == [3, 3]
    ((worker, (ticket,)), _) = given_to(agent.first).items()
    actions = agent.takes(worker, ticket, [(0, 1, b"x")])
    assert sent(actions, wire.Combined) == [wire.Combined(1, [[0, 0, 0.5]], [], [])]
    assert of(actions, Hand) == []


def test_when_all_is_done_and_asked_for_it_is_joined_and_handed_over() -> None:
    agent = Combining(3)
    agent.say(1, wire.Yield(1))
    actions = agent.ends(agent.first)
    assert sent(actions, wire.Combined) == [], "they are told together with the answer"
    ((_, _, ticket, index, parts, writes, more),) = joins_of(actions)
    assert parts == [(0, 1, [b"x"]), (1, 1, [b"x"]), (2, 1, [b"x"])]
    assert index < 0 and not writes and not more
    worker = worker_of(actions, ticket)
    (hand,) = of(agent.takes(worker, ticket, [(0, 3, b"xxx")]), Hand)
    assert hand.parts == [Part(0, 3, 3, [b"xxx"], None)] and (hand.master, hand.call) == (1, 1)
    assert sorted(row[0] for row in hand.slices) == [0, 1, 2]


def test_what_cannot_be_joined_is_handed_over_apart() -> None:
    agent = Combining(4, workers=1, slices=[1, 2])
    actions = agent.first
    agent.say(1, wire.Yield(1))
    while given_to(actions):
        ((worker, (ticket,)),) = given_to(actions).items()
        actions = agent.takes(worker, ticket, [(parts_of(actions)[0][3], 1, b"x")])
    (hand,) = of(actions, Hand)
    assert [(part.first, part.slices) for part in hand.parts] == [(1, 1), (2, 1)]


def test_answers_without_yield_stay_and_go_at_once_with_it() -> None:
    agent = Combining(1)
    done = agent.ends(agent.first)
    assert of(done, Hand) == []
    (hand,) = of(agent.say(1, wire.Yield(1)), Hand)
    assert hand.slices == [], "that was told before"


def test_the_last_task_given_back_lets_the_rest_go() -> None:
    agent = Combining(3, workers=1)
    agent.say(1, wire.Yield(1))
    ((worker, (ticket,)),) = given_to(agent.first).items()
    actions = agent.takes(worker, ticket, [(0, 1, b"x")])
    ((worker, (ticket,)),) = given_to(actions).items()
    agent.say(1, wire.Revoke(1, [2]))
    assert len(joins_of(agent.takes(worker, ticket, [(1, 1, b"x")]))) == 1
    agent = Combining(2, workers=1)
    agent.say(1, wire.Yield(1))
    ((worker, (ticket,)),) = given_to(agent.first).items()
    assert of(agent.takes(worker, ticket, [(0, 1, b"x")]), Hand) == []
    ((worker, (ticket,)),) = list(given_to(agent.done[-1:]).items())
    agent.host.gone(worker, None, 9, ticket, "", "")
    assert of(agent.settle(), Hand), "its task goes back to the master, and nothing is left"


def test_what_goes_elsewhere_in_the_end_lets_the_rest_go() -> None:
    agent = Combining(2, workers=1, slices=[0])
    del agent.store[SLICE]
    agent.say(1, wire.Task(1, [[1, SLICE, None]]), wire.Yield(1))
    assert of(agent.ends(agent.first), Hand) == [], "1 waits for its data"
    assert of(agent.say(1, wire.Revoke(1, [1])), Hand)
    agent = Combining(2, workers=1, timeout=5)
    agent.say(1, wire.Yield(1))
    ((worker, (ticket,)),) = given_to(agent.first).items()
    assert of(agent.takes(worker, ticket, [(0, 1, b"x")]), Hand) == []
    actions = agent.at(5.1)
    assert sent(actions, wire.Lost) and of(actions, Hand), "1 takes too long"


def test_tiny_tasks_are_given_in_whole_blocks() -> None:
    agent = Combining(64, workers=4)
    for worker, (ticket,) in list(given_to(agent.first).items())[:1]:
        actions = agent.takes(worker, ticket, [(0, 1, b"x")], seconds=1e-5)
    (give,) = of(actions, Give)
    indices = [command[3] for command in parts_of(give)]
    assert len(indices) > 3 and indices == list(range(4, indices[-1] + 1))
    assert (indices[-1] + 1) % 16 == 0, "to the end of a block"
    assert [command[-1] for command in parts_of(give)] == [True] * (len(indices) - 1) + [False]


def test_answers_that_come_together() -> None:
    agent = Combining(32, workers=1)
    ((worker, (ticket,)),) = given_to(agent.first).items()
    hand = parts_of(agent.takes(worker, ticket, [(0, 1, b"x")], seconds=1e-5))
    tickets = [command[2] for command in hand]
    others = [(ticket, 1e-5) for ticket in tickets[1:]]
    count = len(tickets) + 1
    blocks = [(1, 1, b"1"), *((2 << k, 2 << k, b"2") for k in range(count.bit_length() - 2))]
    actions = agent.takes(worker, tickets[0], blocks, others, seconds=1e-5)
    (combined,) = sent(actions, wire.Combined)
    assert [row[0] for row in combined.slices] == list(range(1, count))
    (call,) = agent.host._calls.values()
    assert {first: c for first, (c, _) in call.combine._tree.blocks.items()} == {0: count}


def test_a_block_with_a_slice_that_went_elsewhere_is_done_again() -> None:
    agent = Combining(32, workers=1)
    ((worker, (ticket,)),) = given_to(agent.first).items()
    hand = parts_of(agent.takes(worker, ticket, [(0, 1, b"x")], seconds=1e-5))
    first, second, third = (command[2] for command in hand[:3])
    agent.at(0.02)  # the others are withdrawn
    assert sent(agent.say(1, wire.Revoke(1, [3])), wire.Revoked) == [wire.Revoked(1, [3])]
    blocks = [(1, 1, b"x"), (2, 2, b"xx")]  # but the worker had begun with 2 and 3
    actions = agent.takes(worker, first, blocks, [(second, 1e-5), (third, 1e-5)])
    (combined,) = sent(actions, wire.Combined)
    assert [row[0] for row in combined.slices] == [1]
    assert [command[3] for command in parts_of(actions)][:1] == [2], "it is the next, once more"


def test_a_slice_that_another_worker_was_given_is_taken_from_the_first_that_has_it() -> None:
    agent = Combining(32, workers=2)
    (worker, (ticket,)), (other, (late,)) = given_to(agent.first).items()
    hand = parts_of(agent.takes(worker, ticket, [(0, 1, b"x")], seconds=1e-5))
    assert [command[3] for command in hand][:2] == [2, 3]
    tickets = [command[2] for command in hand[:2]]
    agent.at(0.02)
    actions = agent.takes(other, late, [(1, 1, b"x")], seconds=0.02)
    assert [command[3] for command in parts_of(actions)] == [3]
    twice = parts_of(actions)[0][2]
    actions = agent.takes(worker, tickets[0], [(2, 2, b"xx")], [(tickets[1], 1e-5)])
    assert [row[0] for row in sent(actions, wire.Combined)[0].slices] == [2, 3]
    actions = agent.takes(other, twice, [(3, 1, b"x")])
    assert sent(actions, wire.Combined) == [], "it is in a block already"
    assert given_to(actions)[other], "and the worker goes on"


# --- files -------------------------------------------------------------------------------------

LARGE = bytes(kept.LARGE)


class Files(Combining):
    """Where files are made for answers: descriptors 100, 101, …; or not."""

    made = 100
    can = True

    def settle(self) -> list[Any]:
        new = super().settle()
        todo = [action for action in new if isinstance(action, (states.Shelve, states.Fill))]
        for action in todo:
            if isinstance(action, states.Fill):
                part = action.part
                part = part._replace(segments=None, fd=self.file()) if self.can else part
                self.host.filled(action.call, part)
            elif self.can:
                for _ in range(action.files):
                    self.host.shelved(self.file())
        return new + (self.settle() if (todo and self.can) or of(todo, states.Fill) else [])

    def file(self) -> int:
        self.made += 1
        return self.made


def test_large_answers_pass_through_files() -> None:
    agent = Files(4, workers=1)
    ((worker, (ticket,)),) = given_to(agent.first).items()
    actions = agent.takes(worker, ticket, [(0, 1, LARGE)])
    actions = agent.takes(worker, given_to(actions)[worker][0], [(1, 1, LARGE)])
    (give,) = of(actions, Give)
    (part,) = parts_of(give)
    assert part[5] is True and len(give.fds) == 1, "a file for the answer"
    rows = [(2, 1, len(LARGE), 0, part[2])]
    actions = agent.answer(worker, part[2], payload=[marshal.dumps(([], rows))])
    (give,) = of(actions, Give)
    (unused,) = give.fds
    agent.say(1, wire.Yield(1))
    actions = agent.takes(worker, parts_of(give)[0][2], [(3, 1, b"small")])
    (give,) = of(actions, Give)
    assert unused in [*agent.host._spare, *give.fds]
    (join,) = joins_of(give)
    assert [segments for _, _, segments in join[4]] == [None, None, None, [b"small"]]
    inputs, output = give.fds[:-1], give.fds[-1]
    assert len(inputs) == 3 and join[5] is True
    rows = [(0, 4, len(LARGE), 0, join[2])]
    actions = agent.answer(worker, join[2], payload=[marshal.dumps(([], rows))])
    assert [action.handle.fd for action in of(actions, states.Unpin)] == inputs
    (hand,) = of(actions, Hand)
    assert hand.parts == [Part(0, 4, len(LARGE), None, output)]
    again = agent.call([[0, None, None]], call=2, combine=1)
    assert parts_of(again)[0][5] is True, "it is known that its answers are large"


def test_there_is_one_file_for_all_in_a_hand_and_so_one_for_each_worker() -> None:
    agent = Files(512, workers=4)
    hands = []
    for worker, (ticket,) in given_to(agent.first).items():
        index = next(command[3] for command in parts_of(agent.first) if command[2] == ticket)
        (give,) = of(agent.takes(worker, ticket, [(index, 1, LARGE)], seconds=1e-5), Give)
        hands.append([command[5] for command in parts_of(give)])
    first, *others = hands
    assert not any(first), "nobody knew that answers are large"
    assert others == [[True] + [False] * (len(hand) - 1) for hand in others]
    assert [len(hand) > 2 for hand in others] == [True] * 3


def test_where_no_file_can_be_made_answers_stay_in_memory() -> None:
    agent = Files(2, workers=1)
    agent.can = False
    agent.say(1, wire.Yield(1))
    actions = agent.first
    for index in range(2):
        ((worker, (ticket,)),) = given_to(actions).items()
        actions = agent.takes(worker, ticket, [(index, 1, LARGE)])
    (join,) = joins_of(actions)
    assert [segments for _, _, segments in join[4]] == [[LARGE], [LARGE]] and not join[5]


def test_what_is_on_its_way_into_a_file_is_waited_for() -> None:
    agent = Combining(1)
    agent.say(1, wire.Yield(1))
    ((worker, (ticket,)),) = given_to(agent.first).items()
    actions = agent.takes(worker, ticket, [(0, 1, LARGE)])
    (fill,) = of(actions, states.Fill)
    assert of(actions, Hand) == []
    agent.host.filled(fill.call, fill.part._replace(segments=None, fd=7))
    (hand,) = of(agent.settle(), Hand)
    assert hand.parts[0].fd == 7
    agent.say(1, wire.End(1))
    agent.host.filled(fill.call, fill.part._replace(segments=None, fd=8))
    assert [action.handle.fd for action in of(agent.settle(), states.Unpin)] == [8]


def test_files_are_closed_at_the_end_of_a_call_and_of_a_worker() -> None:
    agent = Files(8, workers=1)
    ((worker, (ticket,)),) = given_to(agent.first).items()
    actions = agent.takes(worker, ticket, [(0, 1, LARGE)])
    for index in (1, 2):
        ((worker, (ticket,)),) = given_to(actions).items()
        file = parts_of(actions)[0][5]
        rows = [(index, 1, len(LARGE), 0 if file else 1, ticket if file else 0)]
        payload = [marshal.dumps(([], rows))] + [LARGE] * (not file)
        actions = agent.answer(worker, ticket, payload=payload)
    ((worker, (ticket,)),) = given_to(actions).items()
    (of_worker,) = of(actions, Give)[0].fds
    agent.host.gone(worker, None, 9, ticket, "", "")
    assert of_worker in [action.handle.fd for action in of(agent.settle(), states.Unpin)]
    closed = [action.handle.fd for action in of(agent.say(1, wire.End(1)), states.Unpin)]
    assert len([fd for fd in closed if fd is not None]) == 3, "what it kept"
    spare = set(agent.host._spare)
    closed = [action.handle.fd for action in of(agent.at(100.0), states.Unpin)]
    assert spare and spare <= set(closed) and not agent.host._spare


def test_a_join_is_given_alone() -> None:
    """Its files might be too many for one message, with those of slices."""
    agent = Combining(8, workers=1)
    (call,) = agent.host._calls.values()
    agent.host._enqueue_join(call, Join(4, 2, [Part(4, 1, 1, [b"x"], None)] * 2))
    call.ready.rotate(-1)
    call.ready.insert(1, call.ready.pop())  # slices came back before it
    ((worker, (ticket,)),) = given_to(agent.first).items()
    actions = agent.takes(worker, ticket, [(0, 1, b"x")], seconds=1e-5)
    (slice_,) = parts_of(actions)
    assert (slice_[3], slice_[-1]) == (1, False)
    actions = agent.takes(worker, slice_[2], [(1, 1, b"x")], seconds=1e-5)
    assert joins_of(actions) == parts_of(actions) != []


def test_old_answers_go_to_the_master_so_that_little_is_lost_with_a_host() -> None:
    agent = Combining(64, workers=1)
    ((worker, (ticket,)),) = given_to(agent.first).items()
    for index in range(5):
        assert of(agent.at(10.0 * index), Hand) == []
        actions = agent.takes(worker, ticket, [(index, 1, b"%d" % index)], seconds=10.0)
        assert of(actions, Hand) == []
        ((worker, (ticket,)),) = given_to(actions).items()
        if joins_of(actions):
            break
    assert index == 4, "0 to 3 came within 30 s"
    (join,) = joins_of(actions)
    assert [first for first, _, _ in join[4]] == [0, 1, 2, 3]
    (hand,) = of(agent.takes(worker, ticket, [(0, 4, b"0123")]), Hand)
    assert [(part.first, part.slices) for part in hand.parts] == [(0, 4)]
    (call,) = agent.host._calls.values()
    assert list(call.combine._tree.blocks) == [4], "this one came later"
    assert of(agent.at(60.0), Hand) == [] and of(agent.at(70.1), Hand), "without joining"


def test_what_no_memory_takes_goes_to_the_master() -> None:
    agent = Combining(8, workers=1)
    agent.host.keep_bytes = 100
    ((worker, (ticket,)),) = given_to(agent.first).items()
    actions = agent.takes(worker, ticket, [(0, 1, b"x" * 90)])
    assert of(actions, Hand) == []
    actions = agent.takes(worker, given_to(actions)[worker][0], [(1, 1, b"x" * 90)])
    (hand,) = of(actions, Hand)
    assert [(part.first, part.slices) for part in hand.parts] == [(0, 1), (1, 1)]
    assert given_to(actions), "and the work goes on"


# --- what breaks -------------------------------------------------------------------------------


def joining(total: int = 2, **options: Any) -> tuple[Combining, int, int]:
    """An agent of which a worker joins all: it, the worker and its ticket."""
    agent = Combining(total, workers=1, **options)
    agent.say(1, wire.Yield(1))
    actions = agent.first
    while not joins_of(actions):
        ((worker, (ticket,)),) = given_to(actions).items()
        actions = agent.takes(worker, ticket, [(parts_of(actions)[0][3], 1, b"x")])
    (join,) = joins_of(actions)
    return agent, worker_of(actions, join[2]), join[2]


def test_a_reduce_that_raises_breaks_the_call() -> None:
    agent, worker, ticket = joining(4)
    payload = ("ValueError", "no", "tb", (2, 2))
    actions = agent.answer(worker, ticket, ok=False, payload=payload)
    assert sent(actions, wire.Broken) == [wire.Broken(1, 2, 2, "ValueError", "no", "tb")]
    assert of(actions, Hand) == [] and sent(actions, wire.Failure) == []
    agent.say(1, wire.End(1))
    agent = Combining(8, workers=1)
    ((worker, (ticket,)),) = given_to(agent.first).items()
    actions = agent.answer(worker, ticket, ok=False, payload=("KeyError", "a", "tb", (0, 2)))
    assert sent(actions, wire.Broken) == [wire.Broken(1, 0, 2, "KeyError", "a", "tb")]
    agent.say(1, wire.Yield(1))
    actions = agent.ends(actions)
    assert of(actions, Hand) == joins_of(actions) == sent(actions, wire.Broken) == []


def test_a_slice_that_fails_is_a_failure_like_any_other() -> None:
    agent = Combining(2, workers=1)
    agent.say(1, wire.Yield(1))
    ((worker, (ticket,)),) = given_to(agent.first).items()
    actions = agent.answer(worker, ticket, ok=False, payload=("ValueError", "no", "tb", 0))
    assert sent(actions, wire.Failure) == [wire.Failure(1, 0, 0, "ValueError", "no", "tb", 0)]
    ((worker, (ticket,)),) = given_to(actions).items()
    (hand,) = of(agent.takes(worker, ticket, [(1, 1, b"x")]), Hand)
    assert [(part.first, part.slices) for part in hand.parts] == [(1, 1)]


def test_a_worker_that_dies_of_a_join_is_followed_by_others_but_not_for_ever() -> None:
    agent, worker, ticket = joining()
    for death in range(ATTEMPTS):
        agent.host.gone(worker, 3, None, ticket, "last words", "")
        actions = agent.settle()
        assert sent(actions, wire.Lost) == []
        if death + 1 < ATTEMPTS:
            ((worker, (ticket,)),) = given_to(actions).items()
            assert len(joins_of(actions)) == 1
    (broken,) = sent(actions, wire.Broken)
    assert broken[:4] == (1, 0, 2, "WorkerDied") and broken.traceback == "last words"
    assert broken.message == "3 workers died of it: exit code 3"


def test_a_join_past_the_timeout_is_tried_by_another_worker() -> None:
    agent, worker, _ = joining(timeout=5)
    for attempt in range(1, ATTEMPTS + 1):
        actions = agent.at(5.1 * attempt)
        assert sent(actions, wire.Started) == [] and sent(actions, wire.Lost) == []
        assert states.Interrupt(worker) in actions
        if attempt < ATTEMPTS:
            (worker,) = given_to(actions)
    (broken,) = sent(actions, wire.Broken)
    assert broken.message == "still running after 5 s"


def test_a_call_that_ends_while_something_is_joined() -> None:
    agent, worker, ticket = joining()
    actions = agent.say(1, wire.Cancel(1, []), wire.End(1))
    assert states.Interrupt(worker) in actions
    assert agent.takes(worker, ticket, [(0, 2, b"xx")]) == [states.Kill(worker)]
    assert not agent.host._calls


@pytest.mark.parametrize(
    "messages",
    [
        [wire.Yield(1)],
        [wire.Begin(1, CODE_DIGEST, "m", "", {}, [b""]), wire.Yield(1)],
        [wire.Begin(1, CODE_DIGEST, "m", "", {"combine": "all"}, [b""])],
        [wire.Begin(1, CODE_DIGEST, "m", "", {"combine": -1}, [b""])],
        [
            wire.Begin(1, CODE_DIGEST, "m", "", {"combine": 2}, [b""]),
            wire.Task(1, [[2, None, None]]),
        ],
    ],
)
def test_what_does_not_fit_is_a_protocol_error(messages: list[Any]) -> None:
    agent = Agent()
    agent.master()
    for message in messages[:-1]:
        agent.say(1, message)
    with pytest.raises(wire.ProtocolError):
        agent.say(1, messages[-1])


def test_a_call_once_more() -> None:
    agent = Combining(2, workers=1)
    agent.say(1, wire.Yield(1))
    actions = agent.first
    for repetition in range(3):
        while not joins_of(actions):
            ((worker, (ticket,)),) = given_to(actions).items()
            actions = agent.takes(worker, ticket, [(parts_of(actions)[0][3], 1, b"x")])
        (join,) = joins_of(actions)
        (hand,) = of(agent.takes(worker, join[2], [(0, 2, b"xx")]), Hand)
        assert hand.call == repetition + 1 and sorted(row[0] for row in hand.slices) == [0, 1]
        actions = agent.say(1, wire.Again(repetition + 2, repetition + 1, [b"other"]))
        (begin,) = (c for give in of(actions, Give) for c in give.commands if c[0] == BEGIN)
        assert begin[3] == b"other"


# --- what lies in piles ------------------------------------------------------------------------


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.permutations(range(n)))),
       st.sampled_from([10, 5000, 600_000]))  # fmt: skip
def test_everything_is_joined_in_the_end_and_in_bounds(case, size):
    total, order = case
    stock = Kept(total)
    for index in order:
        stock.add(Part(index, 1, size, [str(index)], None))
    assert stock.size == total * size
    while joins := stock.take_joins():
        assert stock.joins >= set(joins)
        at_rest = [part for _, pile in stock._tree.blocks.values() for part in pile]
        assert stock.size == sum(part.size for part in at_rest)
        for join in joins:
            assert is_block(join.first, join.count, total)
            count, weight = len(join.parts), sum(part.size for part in join.parts)
            assert count == 2 or (count <= kept.JOIN_PARTS and weight <= kept.JOIN_BYTES)
            tree = Tree(total, lambda a, b, first, count: f"({a}{b})")
            for part in join.parts:
                tree.add(part.first, part.slices, part.segments[0])
            ((first, (count, value)),) = tree.blocks.items()
            assert (first, count) == (join.first, join.count)
            stock.joins.discard(join)
            stock.add(Part(first, count, size, [value], None))
    assert not stock.worth_joining()
    (part,) = stock.take_all()
    assert part.segments == [whole(total)] and stock.size == 0


def test_what_is_old_is_joined_and_taken_without_the_rest() -> None:
    stock = Kept(64)
    for index, since in enumerate([0.0, 3.0, 4.0, 4.0, 5.0]):
        stock.add(Part(2 * index, 1, 8, [b""], None, since))
        stock.add(Part(2 * index + 1, 1, 8, [b""], None, since))
    assert stock.oldest == 0.0
    (join,) = stock.take_joins(4.0)
    assert (join.first, join.count, join.since) == (0, 8, 0.0), "with what it is a block with"
    assert stock.take_old(9.0) == [] and stock.oldest == 5.0, "not joined yet"
    stock.add(Part(0, 8, 8, [b""], None, join.since))
    assert [part.first for part in stock.take_old(4.0)] == [0] and stock.size == 16


def test_few_large_answers_are_joined_at_once_and_small_ones_when_there_are_many() -> None:
    stock = Kept(1 << 12)
    stock.add(Part(0, 1, 1 << 20, None, 3))
    assert not stock.worth_joining()
    stock.add(Part(1, 1, 1 << 20, None, 4))
    assert stock.worth_joining() and len(stock.take_joins()) == 1
    for index in range(2, 2 + kept.JOIN_PARTS):
        assert not stock.worth_joining()
        stock.add(Part(index, 1, 8, [b""], None))
    assert stock.worth_joining()


def test_hands_fit_into_one_message() -> None:
    """With a file for each slice, and one for each answer."""
    from worker_payload import links

    most = pool.HAND + kept.FILES // 2 + 2
    assert most <= links.MAX_FDS
    assert kept.JOIN_BYTES // kept.LARGE + 3 <= links.MAX_FDS
    assert kept.JOIN_BYTES // kept.LARGE + 2 < kept.FILES, "there is a file for what is joined"
