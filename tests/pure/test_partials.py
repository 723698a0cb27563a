"""A worker's part in combining: what it joins by itself, when it answers, and in which files."""

from __future__ import annotations

import marshal
import os

import numpy
import pytest

from worker_payload import codec, partials, shelf, sums
from worker_payload.codec import EncodeError
from worker_payload.kept import LARGE
from worker_payload.orders import PART
from worker_payload.partials import Partials


def pair(a, b):
    return f"({a}{b})"


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def process_time(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(partials, "time", clock)
    return clock


def worker(total=8, reduce=pair):
    made = Partials(total)
    made.reduce = reduce
    return made


def gets(made, ticket, index=0, parts=None, file=None, more=False, files=()):
    given = [*files, *([] if file is None else [file])]
    made.prepare([PART, 1, ticket, index, parts, file is not None, more], given[::-1])


def read(answer):
    """Tickets answered besides the first, and {(first, count): value} or ticket of a file."""
    others, rows = marshal.loads(answer[0])
    found, rest = {}, list(answer[1:])
    for first, count, _size, length, ticket in rows:
        found[first, count] = f"file of {ticket}" if ticket else codec.decode(rest[:length])
        del rest[:length]
    assert not rest
    return [ticket for ticket, _ in others], found


def test_a_slice_by_itself_is_answered_at_once(clock):
    made = worker()
    gets(made, 5, 3)
    assert read(made.mapped("3")) == ([], {(3, 1): "3"}) and not made.waiting


def test_slices_of_a_hand_are_joined_and_answered_together(clock):
    made = worker()
    for index in range(3, 8):
        gets(made, 10 + index, index, more=index < 7)
        assert made.mapped(str(index)) == []
        assert made.wait(10 + index, 0.1) == (index == 7)
    ticket, seconds, answer = made.give_out()
    assert (ticket, seconds) == (13, 0.1), "the first: nobody can have taken it back"
    assert read(answer) == ([14, 15, 16, 17], {(3, 1): "3", (4, 4): "((45)(67))"})
    assert not made.waiting and made.at is None
    gets(made, 20, 0)
    assert read(made.mapped("0")) == ([], {(0, 1): "0"})


def test_after_a_while_answers_do_not_wait(clock):
    made = worker()
    for index in range(2):
        gets(made, index + 1, index, more=True)
        assert made.mapped("") == []
        assert made.wait(index + 1, 0.1) == (index == 1)
        clock.now += 0.003


def test_a_join_pairs_along_the_tree(clock):
    made = worker(total=7)
    parts = [(first, count, [bytes(p) for p in codec.encode(text)])
             for first, count, text in [(4, 1, "4"), (5, 1, "5"), (6, 1, "6")]]  # fmt: skip
    gets(made, 1, -5, parts)
    assert made.parts is not None
    assert read(made.joined()) == ([], {(4, 3): "((45)6)"}) and made.parts is None


def test_the_same_array_may_be_returned_again_and_again(clock):
    buffer = numpy.zeros(3)
    made = worker(2, reduce=lambda a, b: numpy.add(a, b, out=buffer))
    for index in (0, 1):
        buffer[:] = 10.0**index
        gets(made, index + 1, index, more=index == 0)
        made.mapped(buffer)
        made.wait(index + 1, 0.0)
    _, found = read(made.give_out()[2])
    assert found[0, 2].tolist() == [11.0] * 3


def files(*values):
    made = []
    for value in values:
        fd = shelf.make("/tmp")
        assert shelf.put(fd, codec.blob_parts(codec.encode(value)))
        made.append(fd)
    return made


def is_open(fd):
    try:
        return bool(os.fstat(fd))
    except OSError:
        return False


def test_large_answers_are_written_into_the_file_of_their_ticket(clock):
    ours = shelf.make("/tmp")
    theirs = os.dup(ours)
    large = numpy.arange(LARGE / 8)
    made = worker(reduce=sums.default_reduce)
    gets(made, 7, 2, file=theirs)
    assert read(made.mapped(large)) == ([], {(2, 1): "file of 7"})
    assert not is_open(theirs)
    assert (codec.decode(shelf.take(ours), writable=True) == large).all() and not is_open(ours)


def test_small_answers_leave_the_file_empty(clock):
    ours = shelf.make("/tmp")
    made = worker()
    gets(made, 7, 2, file=os.dup(ours))
    assert read(made.mapped("x")) == ([], {(2, 1): "x"})
    assert os.fstat(ours).st_size == 0
    os.close(ours)


def test_small_arrays_may_be_written_to_as_well(clock):
    def reduce(a, b):
        a += b
        return a

    made = worker(reduce=reduce)
    parts = [(i, 1, [bytes(p) for p in codec.encode(numpy.full(3, 2.0**i))]) for i in range(4)]
    gets(made, 1, -1, parts)
    _, found = read(made.joined())
    assert found[0, 4].tolist() == [15.0] * 3


def test_files_are_joined_and_what_was_read_may_be_written_to(clock):
    def reduce(a, b):
        a += b
        return a

    large = numpy.arange(LARGE / 8)
    inputs = files(large, large * 2)
    ours = shelf.make("/tmp")
    made = worker(reduce=reduce)
    gets(made, 3, -1, [(0, 1, None), (1, 1, None)], file=os.dup(ours), files=map(os.dup, inputs))
    assert read(made.joined()) == ([], {(0, 2): "file of 3"})
    assert (codec.decode(shelf.take(ours)) == 3 * large).all()
    assert (codec.decode(shelf.take(inputs[0])) == large).all(), "the part is as it was"
    os.close(inputs[1])


def test_a_file_that_takes_nothing_is_not_used(clock, monkeypatch):
    read_only = os.open(os.devnull, os.O_RDONLY)
    large = numpy.arange(LARGE / 8)
    monkeypatch.setattr(shelf.os, "ftruncate", lambda fd, size: None)
    monkeypatch.setattr(shelf.os, "lseek", lambda fd, position, how: None)
    made = worker()
    gets(made, 3, 1, file=read_only)
    _, found = read(made.mapped(large))
    assert (found[1, 1] == large).all()


def test_files_of_tasks_that_were_withdrawn_are_closed(clock):
    made = worker()
    fds = [shelf.make("/tmp") for _ in range(2)]
    gets(made, 1, 0, file=fds[0])
    gets(made, 2, 1, file=fds[1])
    assert [is_open(fd) for fd in fds] == [False, True]
    made.close()
    assert not is_open(fds[1])


def test_where_it_was_is_known_when_reduce_raises(clock):
    made = worker(reduce=lambda a, b: 1 / 0)
    gets(made, 1, 2, more=True)
    made.mapped(0)
    made.wait(1, 0.0)
    gets(made, 2, 3)
    with pytest.raises(ZeroDivisionError):
        made.mapped(0)
    assert made.at == (2, 2)


@pytest.mark.parametrize("count", [2, 4])
def test_what_reduce_returns_has_to_travel(clock, count):
    made = worker(reduce=lambda a, b: lambda: 0)
    parts = [(index, 1, [bytes(part) for part in codec.encode(0)]) for index in range(count)]
    gets(made, 1, -1, parts)
    with pytest.raises(EncodeError, match="what reduce returned cannot travel"):
        made.joined()
    assert made.at == (0, 2) or count == 2
    for more in (True, False):
        with pytest.raises(EncodeError, match="the result of mapfunc cannot travel"):
            gets(made, 1, 1, more=more)
            made.mapped(lambda: 0)
