"""Blobs on their way into a store that is too small for all of them."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from typing import Any

import pytest

from worker_payload import keeping, records, wire
from worker_payload.host import Host
from worker_payload.keeping import Keeping
from worker_payload.orders import TASK
from worker_payload.store import Store

SIZE = 32 << 10
CODE = hashlib.sha256(b"code").hexdigest()


def slices(count: int) -> dict[str, bytes]:
    found = (bytes([number]) * SIZE for number in range(count))
    return {hashlib.sha256(data).hexdigest(): data for data in found}


class Agent:
    """A Host with its Keeping, a real store on disk, and one master with these blobs."""

    def __init__(self, tmp_path: Any, room: int, blobs: dict[str, bytes]):
        run = tmp_path / "run"
        run.mkdir()
        self.store = Store(str(run), str(tmp_path / "disk"), None, disk_limit=room)
        self.host = Host("b", "p", 1, 900.0, 0.0)
        self.later: deque[Any] = deque()
        self.keeping = Keeping(
            self.store, self.host, str(run), self.later.append, self.act, lambda text: None
        )
        self.blobs = {**blobs, CODE: b"code"}
        self.asked: deque[str] = deque()
        self.said: list[Any] = []
        self.given: deque[tuple[int, int]] = deque()  # worker, ticket
        self.credit = 0
        self.host.master_opened(1)
        self.say(wire.Hello(wire.VERSION, "b", "p", "m", 1, {}))

    def say(self, *messages: Any) -> None:
        for message in messages:
            self.host.message(1, message)
        self.act()

    def act(self) -> None:
        self.host.now += 1.0  # long enough for any credit to be told
        doing = {
            records.Look: self.keeping.look,
            records.Keep: self.keeping.keep,
            records.Unpin: self.keeping.unpin,
            records.Abandon: self.keeping.abandon,
        }
        while actions := self.host.actions():
            for action in actions:
                if type(action) in doing:
                    doing[type(action)](action)
                elif isinstance(action, records.Send):
                    self.hear(action.message)
                elif isinstance(action, records.Give):
                    tickets = [c[1] for c in action.commands if c[0] == TASK]
                    self.given.extend((action.worker, ticket) for ticket in tickets)

    def hear(self, message: Any) -> None:
        self.said.append(message)
        if isinstance(message, wire.Missing):
            self.asked.extend(message.digests)
        elif isinstance(message, wire.Credit):
            self.credit += message.bytes

    def send(self) -> None:
        """The next blob that it asked for, in two parts."""
        data, digest = self.blobs[self.asked[0]], self.asked.popleft()
        half = len(data) // 2
        self.say(wire.Blob(digest, 0, len(data), [data[:half]]))
        self.say(wire.Blob(digest, half, len(data), [data[half:]]))

    def answer(self) -> None:
        worker, ticket = self.given.popleft()
        self.host.answered(worker, ticket, True, False, 0.5, [b"r"])
        self.act()

    def look_again(self, seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.later and time.monotonic() < deadline:
            time.sleep(0.001)
        self.later.popleft()()
        self.act()

    def heard(self, kind: type) -> list[Any]:
        return [message for message in self.said if isinstance(message, kind)]


@pytest.fixture
def make(tmp_path):
    made = []

    def make(room, blobs):
        made.append(Agent(tmp_path, room, blobs))
        return made[-1]

    yield make
    for agent in made:
        agent.store.close()


def begin(agent: Agent) -> None:
    agent.say(wire.Begin(1, CODE, "m", "", {}, [b""]))
    digests = [digest for digest in agent.blobs if digest != CODE]
    agent.say(wire.Task(1, [[number, digest, None] for number, digest in enumerate(digests)]))


def test_more_data_than_the_store_holds(make):
    agent = make(3 * SIZE + 4096, slices(10))
    begin(agent)
    while agent.asked and not agent.keeping._stalled:
        agent.send()
    assert len(agent.asked) == 10 + 1 - 5, "code and three slices fit, the next one waits"
    bytes_in = 4 + 4 * SIZE
    assert agent.credit == bytes_in - SIZE // 2, "what came after the store was full"
    for _ in range(100):
        while agent.asked and not agent.keeping._stalled:
            agent.send()
        if not agent.given:
            break
        agent.answer()
        if agent.keeping._stalled:
            agent.look_again()
    assert sum(len(result.tasks) for result in agent.heard(wire.Result)) == 10
    assert not agent.heard(wire.Refused)
    assert agent.credit == 4 + 10 * SIZE


def test_a_slice_larger_than_the_store_is_refused_at_once(make):
    agent = make(SIZE - 1, slices(1))
    begin(agent)
    agent.send()
    agent.send()
    (refused,) = agent.heard(wire.Refused)
    assert "does not fit" in refused.reason
    assert agent.credit == 4 + SIZE


def test_without_hope_for_room_it_is_refused(make, monkeypatch):
    monkeypatch.setattr(keeping, "PATIENCE", 0.02)
    agent = make(SIZE + 4096, slices(2))
    begin(agent)
    agent.send()
    agent.send()
    (first,) = set(agent.blobs) - set(agent.asked) - {CODE}
    theirs = agent.store.open(first)  # by another agent, say
    agent.answer()
    agent.send()
    while agent.keeping._stalled:
        agent.look_again()
    (refused,) = agent.heard(wire.Refused)
    assert "does not fit" in refused.reason
    assert agent.credit == 4 + 2 * SIZE
    os.close(theirs)


def test_an_agent_that_was_held_up_does_not_give_up_hope(make):
    agent = make(2 * SIZE + 4096, slices(6))
    begin(agent)
    while agent.asked:
        agent.send()
    while agent.given:
        agent.answer()
    agent.keeping._hoped -= 60.0  # the processors were others' for so long
    for _ in range(100):
        if not agent.keeping._stalled:
            break
        agent.look_again()
        while agent.given:
            agent.answer()
    assert not agent.heard(wire.Refused)
    assert sum(len(result.tasks) for result in agent.heard(wire.Result)) == 6


def test_workers_have_time_to_let_go_since_they_were_told(make):
    agent = make(SIZE + 4096, slices(2))
    begin(agent)
    for _ in range(3):
        agent.send()
    (first,) = {digest for digest in agent.blobs if agent.store.has(digest)} - {CODE}
    theirs = agent.store.open(first)  # as the worker has it
    agent.answer()
    agent.keeping._hoped -= 60.0
    agent.host.now = time.monotonic()  # now, that is, it is told
    agent.look_again()
    assert not agent.heard(wire.Refused)
    os.close(theirs)
    agent.look_again()
    agent.answer()
    assert sum(len(result.tasks) for result in agent.heard(wire.Result)) == 2


def test_a_call_that_ends_meanwhile_holds_up_nobody(make):
    agent = make(SIZE + 4096, slices(3))
    begin(agent)
    for _ in range(3):
        agent.send()
    assert agent.keeping._stalled
    agent.say(wire.End(1))
    agent.look_again()
    assert not agent.keeping._stalled
    assert agent.credit == 4 + 2 * SIZE
    assert not agent.heard(wire.Refused)


def test_a_master_that_leaves_takes_what_waits_with_it(make):
    agent = make(SIZE + 4096, slices(3))
    begin(agent)
    for _ in range(3):
        agent.send()
    assert agent.keeping._stalled
    agent.host.master_closed(1)
    agent.act()
    assert not agent.keeping._stalled
