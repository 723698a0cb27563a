"""A link and its engine over channels that only pretend: silence, and time slept through."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jamtasks import engine as engines
from jamtasks.bootstrap import Attached
from jamtasks.engine import Engine
from jamtasks.errors import AuthenticationError, HostError, HostKeyError
from jamtasks.settings import HostSpec, Settings
from jamtasks.transport.base import Attempt
from worker_payload import frames, wire

WELCOME = b"".join(
    map(bytes, frames.encode(wire.Welcome(wire.VERSION, "b", "3.12.0", "CPython", "", 1, 1, 1,
                                        1 << 30, 1 << 30, "here", [])))
)  # fmt: skip
BEAT = b"".join(map(bytes, frames.encode(wire.Beat())))


class Channel:
    """What a host says is put in `says`; b"" ends it."""

    def __init__(self, *says: bytes):
        self.says: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._rest = b""
        self.put = 0  # bytes that were read into their place
        for data in says:
            self.says.put(data)

    def read(self, size: int) -> bytes:
        data = self._rest or self.says.get(timeout=20)
        self._rest = data[size:]
        return data[:size]

    def read_into(self, room: memoryview) -> int:
        data = self.read(len(room))
        room[: len(data)] = data
        self.put += len(data)
        return len(data)

    def write(self, buffers: Any) -> None:
        pass

    def close(self) -> None:
        self.says.put(b"")

    def stderr_tail(self) -> str:
        return ""


@pytest.fixture
def start(monkeypatch) -> Iterator[Callable[..., Engine]]:
    """start(*ways, dead_after): an engine whose host is reached in these ways, one after another:
    over a Channel, or by raising an error; the last one again and again."""
    monkeypatch.setattr(engines, "TICK", 0.01)
    monkeypatch.setattr(engines, "BEAT_EVERY", 0.1)
    monkeypatch.setattr("jamtasks.link.RETRY_FIRST", 0.01)
    made = []

    def begin(*ways: Any, dead_after: float = 0.2) -> Engine:
        left = list(ways)

        def attach(spec: HostSpec, attempt: Attempt) -> Attached:
            way = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(way, HostError):
                tries.append(time.monotonic())
                raise way
            attempt.ends_with(way.close)
            return Attached(way, b"", "present", "", 0.0)

        tries: list[float] = []
        engine = Engine(
            [HostSpec("h")], Settings(dead_after=dead_after), build="b", project="p",
            attach=attach, on_output=lambda *_: None, look_around=lambda: None,
        )  # fmt: skip
        engine.tries = tries  # type: ignore[attr-defined]
        made.append(engine)
        engine.start()
        return engine

    yield begin
    for engine in made:
        engine.close()


def wait_for(engine: Engine, condition: Callable[[Any], bool], seconds: float = 5.0) -> Any:
    link = engine.links["h"]
    deadline = time.monotonic() + seconds
    while not condition(link):
        assert time.monotonic() < deadline, (link.state, link.error)
        time.sleep(0.002)
    return link


def test_a_host_that_comes_back_and_says_nothing_is_given_up_again(start):
    lost, mute, well = Channel(WELCOME, b""), Channel(), Channel(WELCOME)
    engine = start(lost, mute, well)
    link = wait_for(engine, lambda link: link.attached and link.attached.channel is mute)
    assert link.state == "lost"
    wait_for(engine, lambda link: link.state == "up")
    assert link.attached.channel is well


def test_the_reason_of_a_loss_is_that_of_the_last_connection(start):
    engine = start(Channel(WELCOME), Channel(b"nonsense" * 10), Channel())
    wait_for(engine, lambda link: link.error and "silent" in link.error.reason)
    wait_for(engine, lambda link: link.error and "protocol error" in link.error.reason)


def test_who_was_stopped_does_not_take_its_hosts_for_silent(start):
    channel = Channel(WELCOME)
    engine = start(channel, dead_after=0.4)
    link = wait_for(engine, lambda link: link.state == "up")
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            channel.says.put(BEAT)

    with engine.lock:  # nothing moves here, as if this process were stopped
        time.sleep(0.8)
    beating = threading.Thread(target=beat)
    beating.start()
    try:
        time.sleep(0.6)
        assert (link.state, link.given_up) == ("up", "")
    finally:
        over.set()
        beating.join()
    wait_for(engine, lambda link: link.given_up != "")


def test_a_lost_host_that_refuses_the_login_is_asked_slowly(start, monkeypatch):
    monkeypatch.setattr("jamtasks.link.RETRY_MAX", 0.3)
    engine = start(Channel(WELCOME, b""), AuthenticationError("h", "no"))
    wait_for(engine, lambda link: len(engine.tries) >= 3)
    first, second, third = engine.tries[:3]
    assert second - first >= 0.15 and third - second >= 0.15
    assert engine.links["h"].state == "lost"


def test_a_lost_host_with_another_key_is_never_asked_again(start):
    engine = start(Channel(WELCOME, b""), HostKeyError("h", "another key"))
    wait_for(engine, lambda link: engine.tries)
    time.sleep(0.1)
    assert len(engine.tries) == 1
    assert not engine.hope(engine.links["h"])


LARGE = b"".join(map(bytes, frames.encode(wire.Result(9, [[0, 0, 1, 0.1]], [bytes(2 << 20)]))))
NOTE = b"".join(map(bytes, frames.encode(wire.Note("all is well"))))


def test_a_long_answer_is_read_into_its_place_and_each_piece_is_a_sign_of_life(start):
    channel = Channel(WELCOME)
    engine = start(channel, dead_after=0.2)
    link = wait_for(engine, lambda link: link.state == "up")
    for position in range(0, len(LARGE), 200_000):
        channel.says.put(LARGE[position : position + 200_000])
        time.sleep(0.06)
    channel.says.put(NOTE)
    wait_for(engine, lambda link: link.notes == ["all is well"])
    assert (link.state, link.given_up) == ("up", "")
    assert channel.put > 1 << 20


@pytest.mark.parametrize("ending", ["end", "silence"])
def test_a_host_that_is_lost_in_the_middle_of_a_long_answer(start, ending):
    first, well = Channel(WELCOME, LARGE[:100_000], LARGE[100_000:900_000]), Channel(WELCOME, NOTE)
    if ending == "end":
        first.says.put(b"")
    engine = start(first, well)
    link = wait_for(engine, lambda link: link.notes == ["all is well"])
    assert link.attached.channel is well and first.put == 800_000
