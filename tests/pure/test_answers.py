"""Answers from a worker to its agent: both ends of the socket, and whose turn it is."""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import socket
import threading
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_payload import answers, channel, frames, links, room, shelf, shortcuts
from worker_payload.answers import ASK, FAILURE, RESULT
from worker_payload.channel import UNSENT_MAX, Channel
from worker_payload.repeating import Lap
from worker_payload.turns import LARGE, Turns
from worker_payload.workerio import WorkerIO

BIG = [b"head", bytes(range(256)) * (LARGE >> 8), b"", b"tail"]


@pytest.fixture
def ends():
    """The agent's end of a worker, and the worker's socket for answers."""
    io, theirs = WorkerIO.make(1, 0, "nonce")
    sock, replies, out, err = theirs
    worker = links.adopt(replies)
    yield io, worker
    worker.close()
    for fd in (sock, out, err):
        os.close(fd)
    io.close()


@pytest.fixture
def sending(ends):
    """sending(kind, segments) answers in a thread, as a worker does, and says what came of it."""
    threads = []

    def start(segments, kind=RESULT, ticket=7):
        raised = []

        def run():
            try:
                answers.send(ends[1], kind, 1, ticket, 0.5, segments)
            except OSError as error:
                raised.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)
        return thread, raised

    yield start
    with contextlib.suppress(OSError):
        ends[0].replies.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(10)


def come(io, until):
    """Answers until there is what we wait for."""
    found = []
    for _ in range(100_000):
        got = io.answers()
        assert got is not None
        found += got
        if until(found):
            return found
        if not got:
            threading.Event().wait(0.0002)
    raise AssertionError("nothing came")


def joined(segments):
    return [bytes(part) for part in segments]


def test_a_small_answer_goes_at_once(ends, sending):
    io = ends[0]
    sending([b"one"])
    assert come(io, bool) == [(True, 1, 7, 0.5, [b"one"])]
    sending([b"two", b"", b"3" * 70_000])
    assert joined(come(io, bool)[0][4]) == [b"two", b"", b"3" * 70_000]
    assert io.asks is None


def test_a_large_one_waits_for_its_turn_and_comes_in_a_file(ends, sending, monkeypatch):
    io = ends[0]
    took = []
    monkeypatch.setattr(shelf, "take", lambda fd, access: took.append(fd) or BIG)
    thread, _ = sending(BIG)
    come(io, lambda _: io.asks is not None)
    assert io.asks == (7, sum(map(len, BIG)))
    assert io.answers() == [] and thread.is_alive()
    io.asks = None
    io.go_on()
    assert come(io, bool) == [(True, 1, 7, 0.5, BIG)] and len(took) == 1
    os.close(took[0])
    sending([b"next"])
    assert come(io, bool)[0][4] == [b"next"]


@pytest.mark.parametrize("what", ["no files", "no prompt end", "no room", "a file"])
def test_it_comes_whole_however_it_comes(ends, sending, monkeypatch, what):
    io = ends[0]
    if what == "no files":
        monkeypatch.delattr(os, "memfd_create")
    if what == "no prompt end":  # PyPy
        monkeypatch.setattr(room, "PROMPT", False)
        monkeypatch.delattr(shelf, "in_memory")
    if what == "no room":

        def write(fd, data, write=os.write):
            if len(data) > 1000:
                raise OSError(errno.ENOSPC, "full")
            return write(fd, data)

        monkeypatch.setattr(os, "write", write)
    for round_ in range(3):
        sending(BIG, ticket=round_)
        come(io, lambda _: io.asks is not None)
        io.asks = None
        io.go_on()
        (answer,) = come(io, bool)
        assert answer[:4] == (True, 1, round_, 0.5) and joined(answer[4]) == BIG


def test_a_large_failure_needs_no_turn(ends, sending):
    sending([marshal.dumps(("ValueError", "x" * LARGE, ""))], kind=FAILURE)
    ((ok, _, _, _, payload),) = come(ends[0], bool)
    assert not ok and payload[0] == "ValueError" and ends[0].asks is None


def test_a_file_whose_descriptor_was_lost(ends, sending, monkeypatch):
    io = ends[0]
    sending(BIG)
    come(io, lambda _: io.asks is not None)
    monkeypatch.setattr(links, "descriptors", lambda ancillary: [])
    io.go_on()
    with pytest.raises(MemoryError):
        come(io, bool)


def test_a_worker_whose_agent_goes_away_does_not_wait_for_its_turn(ends, sending):
    io = ends[0]
    thread, raised = sending(BIG)
    come(io, lambda _: io.asks is not None)
    io.replies.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive() and isinstance(raised[0], ConnectionError)


def test_a_worker_that_dies_before_its_turn_has_answered_nothing(ends):
    io, worker = ends
    worker.send(answers.ONE_SEGMENT.pack(ASK, 0, 7, 0.0, 1, 8) + answers.SIZE.pack(LARGE))
    worker.shutdown(socket.SHUT_RDWR)
    assert io.answers() == [] and io.asks == (7, LARGE)
    io.go_on()
    assert io.answers() is None


# --- turns -------------------------------------------------------------------------------------


def test_the_lowest_goes_first_and_nobody_while_there_is_enough():
    turns = Turns(100)
    turns.ask(1, (5, 3), 80)
    turns.ask(2, (5, 0), 80)
    turns.ask(3, (4, 9), 80)
    assert turns.take(100) == []
    assert turns.take(0) == [3, 2], "the second began below the limit"
    assert turns.take(0) == [], "what they were let go on with is not here yet"
    turns.leave(3)
    assert turns.take(80) == [], "here, and not sent yet"
    assert turns.take(10) == [1]
    for worker in (1, 2):
        turns.leave(worker)
    turns.leave(9)
    assert turns.take(0) == []


def test_who_dies_while_it_waits_or_is_on_its_way_keeps_no_turn():
    turns = Turns(100)
    turns.ask(1, 1, 200)
    turns.ask(2, 2, 200)
    turns.ask(3, 3, 200)
    assert turns.take(0) == [1]
    turns.leave(2)
    assert turns.take(0) == []
    turns.leave(1)
    assert turns.take(0) == [3]


@pytest.fixture
def pipe():
    read, write = os.pipe()
    for fd in (read, write):
        os.set_blocking(fd, False)
    made = Channel(1, -1, write, None)
    yield made, read
    os.close(read)
    os.close(write)


def test_large_answers_do_not_keep_a_masters_workers_from_being_read(pipe):
    made, read = pipe
    made.queue([b"head", memoryview(bytes(2 * UNSENT_MAX)), b"tail"])
    assert made.unsent == 2 * UNSENT_MAX + 8 and not made.crowded and made.roomy
    many = [bytes(LARGE - 1)] * (UNSENT_MAX // LARGE + 1)
    made.queue(many)
    assert made.crowded
    total, got = made.unsent, 0
    while not made.write():
        with contextlib.suppress(BlockingIOError):
            while data := os.read(read, 1 << 20):
                got += len(data)
        if made.unsent <= UNSENT_MAX // 2:
            assert made.roomy
        if made.unsent <= sum(map(len, many)):
            assert made._bulk == 0, "nothing long is left"
    while got < total:
        got += len(os.read(read, 1 << 20))
    assert made.unsent == made._bulk == 0 and made.roomy


def test_a_full_pipe_is_not_tried_twice(pipe, monkeypatch):
    made, _ = pipe
    writes = []

    def write(*args, write=channel._write):
        writes.append(args)
        return write(*args)

    monkeypatch.setattr(channel, "_write", write)
    made.queue([b"head", bytes(1 << 21)])
    assert not made.write() and len(writes) == 1


class Said:
    """A socket that keeps what a worker sends."""

    def __init__(self):
        self.data = b""

    def sendall(self, data):
        self.data += data

    def sendmsg(self, parts):
        self.data += b"".join(parts)
        return sum(map(len, parts))


def a_lap():
    """One under way, of a worker that is to answer ticket 12."""
    call = types.SimpleNamespace(id=5, serial=3, estimate=0.1, told=[types.SimpleNamespace(id=8)])
    lap = Lap(call, [types.SimpleNamespace(number=4, slot=1)], 10)
    assert lap.begin(shortcuts.write_again(6, 5, b"params")) is not None
    return lap


def an_end():
    """What reads the answers of a worker, when they have been received."""
    io = WorkerIO.__new__(WorkerIO)
    io._pending, io._large, io._lent, io._lends, io.asks = b"", None, [], False, None
    return io


@pytest.mark.parametrize("change", ["none", "cut", "more"])
@pytest.mark.parametrize("count", range(4))
@given(
    st.sampled_from([RESULT, RESULT, FAILURE]), st.sampled_from([0, 0, 1]),
    st.sampled_from([12, 12, 11, 13]), st.data(),
)  # fmt: skip
def test_a_lap_hears_what_is_one_short_answer_and_leaves_the_rest(
    count, change, kind, wrote, ticket, data
):
    said, some = Said(), st.binary(max_size=50) | st.just(bytes(5000))
    segments = [data.draw(some) for _ in range(count)]
    if kind == FAILURE:
        segments = [marshal.dumps(("X", "message"))]
    answers.send(said, kind, wrote, ticket, 0.25, segments)
    whole = said.data
    if change == "cut":
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif change == "more":
        whole += data.draw(st.binary(min_size=1, max_size=3))
    lap = a_lap()
    try:
        expected = an_end().answers_in(whole) if whole else None
    except (ValueError, EOFError, TypeError, MemoryError):
        expected = None  # no answer at all
    heard = lap.hear(4, whole)
    if not heard:
        assert not lap.answers
        good = expected is not None and len(expected) == 1 and len(segments) in (1, 2)
        assert not good or kind != RESULT or wrote or ticket != 12 or whole != said.data
        return
    assert expected is not None
    ((ok, wrote, ticket, seconds, payload),) = expected
    assert (ok, bool(wrote), ticket) == (True, False, 12)
    ((worker, its, took, parts),) = lap.answers
    assert (worker, its, took) == (4, ticket, seconds)
    assert list(map(bytes, parts)) == list(map(bytes, payload))
    frame = b"".join(lap.result())
    (message,) = frames.Decoder().feed(frame)
    assert message.call == 6 and message.tasks == [[8, 1, len(parts), pytest.approx(seconds)]]
    assert list(map(bytes, message.segments)) == list(map(bytes, parts))
    assert shortcuts.read_result(frame, 6) in (None, [(8, list(map(bytearray, parts)))])
