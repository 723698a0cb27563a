"""Answers from a worker to its agent: both ends of the socket, and whose turn it is."""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import socket
import threading

import pytest

from worker_payload import answers, channel, links, room, shelf
from worker_payload.answers import ASK, FAILURE, RESULT
from worker_payload.board import Board
from worker_payload.channel import UNSENT_MAX, Channel
from worker_payload.turns import LARGE, Turns
from worker_payload.workerio import WorkerIO

BIG = [b"head", bytes(range(256)) * (LARGE >> 8), b"", b"tail"]


@pytest.fixture
def ends():
    """The agent's end of a worker, and the worker's socket for answers."""
    io, theirs = WorkerIO.make(1, Board(), 0, "nonce")
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
