"""The memory that an agent shares with its workers, the bell, and laps that go by them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_payload import answers, board, frames, shortcuts
from worker_payload.board import HEAD, LOUD, ONE, QUIET, Bell, Board, Notice, Rooms, room_at
from worker_payload.channel import Channel
from worker_payload.circuit import Circuit, nothing
from worker_payload.lap import PARAMS_INLINE, PASS_BYTES, Lap
from worker_payload.workerio import WorkerIO

F_SETPIPE_SZ = 1031  # which older Pythons do not name

# --- the board ---------------------------------------------------------------------------------


def test_nothing_on_the_board_overlaps():
    words = board.PLACES * board.WORDS * 8
    begins = [0, board.HEAD_AT, board.PARAMS_AT] + [room_at(n) for n in range(board.ROOMS)]
    sizes = [words, HEAD.size, board.ROOM] + [board.ROOM] * board.ROOMS
    ends = [begin + size for begin, size in zip(begins, sizes, strict=True)]
    assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))
    assert ends[-1] == len(Board().memory)
    assert board.SECOND < board.WORDS and PARAMS_INLINE <= board.ROOM
    assert words == len(Board().words) * 8


def test_what_one_writes_is_nobody_elses():
    wall, last = Board(), board.ROOMS - 1
    for number in (0, 1, last, board.PLACES - 1):
        place = wall.place(number)
        for word in range(board.WORDS):
            place[word] = number + 1
    for number in (0, 1, last):
        begin = room_at(number)
        wall.memory[begin : begin + board.ROOM] = b"%c" % (number % 256) * board.ROOM
    notice = Notice(3, 4, b"p" * board.ROOM, True)
    wall.put(notice, 5)
    assert wall.changes() == 0
    wall.tell(1)
    assert wall.changes() == 1
    assert HEAD.unpack_from(wall.memory, board.HEAD_AT) == (1, 3, 4, 5, board.ROOM, 1)
    begin = board.PARAMS_AT
    assert wall.memory[begin : begin + board.ROOM] == notice.params
    for number in (0, 1, last):
        begin = room_at(number)
        assert wall.memory[begin : begin + board.ROOM] == b"%c" % (number % 256) * board.ROOM
        assert list(wall.place(number)) == [number + 1] * board.WORDS
        assert wall.ticket(number) == number + 1
    wall.clear(1)
    assert not any(wall.place(1)) and wall.place(0)[board.WORDS - 1] == 1 and wall.ticket(1) == 0
    assert wall.ticket(board.PLACES - 1) == board.PLACES


class Worker:
    """What a worker of a lap puts on the board, and sends."""

    def __init__(self, wall, place):
        self.wall, self.place = wall, place

    def put(self, ticket, segments, micros=250):
        words, begin = self.wall.place(self.place), room_at(self.place)
        words[board.TOOK], words[board.FIRST], words[board.SECOND] = micros, len(segments[0]), ONE
        if len(segments) == 2:
            words[board.SECOND] = len(segments[1])
        data = b"".join(segments)
        self.wall.memory[begin : begin + len(data)] = data
        words[board.DONE] = ticket


@given(st.lists(st.binary(max_size=9000), min_size=1, max_size=2), st.integers(0, 255))
def test_an_answer_is_there_for_its_ticket_only(segments, number):
    wall = Board()
    Worker(wall, number).put(12, segments)
    assert wall.answered(number, 11) is None and wall.answered(number, 13) is None
    seconds, found = wall.answered(number, 12)
    assert (seconds, list(map(bytes, found))) == (250e-6, segments)
    Worker(wall, number).put(13, [b"other"])
    if number:
        assert wall.answered(number - 1, 13) is None


# --- laps --------------------------------------------------------------------------------------


def a_lap(count):
    """Of so many workers, whose next tickets begin with 102. Tasks are 1000, 1001, …"""
    told = [types.SimpleNamespace(id=1000 + i) for i in range(count)]
    call = types.SimpleNamespace(id=5, serial=3, estimate=0.001, told=told)
    workers = [types.SimpleNamespace(number=40 + i, slot=i) for i in range(count)]
    return Lap(call, workers, 100)


SHORT = st.binary(max_size=40)
LONG = st.integers(8, board.ROOM // 2).map(lambda size: b"%08d" % size + bytes(size - 8))
PIECES = {
    "short": st.lists(SHORT, min_size=1, max_size=1),
    "any": st.lists(SHORT | LONG, min_size=1, max_size=2),
}


@pytest.mark.parametrize("pieces", PIECES)
@given(
    st.integers(1, 7),
    st.lists(st.sampled_from(["board", "board", "board", "ordinary"]), min_size=1, max_size=3),
    st.data(),
)
def test_a_lap_passes_each_answer_on_once_whatever_way_it_comes(pieces, count, ways, data):
    wall, lap = Board(), a_lap(count)
    places = data.draw(st.permutations(range(count + 2)))[:count]
    rooms = Rooms(wall, places)
    workers = [Worker(wall, place) for place in places]
    for number in range(6, 10):
        notice = lap.begin(shortcuts.write_again(number, number - 1, b"params"))
        assert notice is not None and (notice.params, notice.bare) == (b"params", False)
        first = notice.call + 1
        assert lap.begin(b"no call at all") is None
        assert lap.tickets == tuple(range(first, first + count))
        assert lap.look(rooms.words(), rooms) is None, "only what was there before"
        expected, passed = {}, []
        for i in data.draw(st.permutations(range(count))):
            segments = data.draw(PIECES[pieces])
            expected[1000 + i] = segments
            if data.draw(st.sampled_from(ways)) == "board":
                workers[i].put(first + i, segments)
            else:
                assert not lap.take(40 + i, [(True, False, first + i - count - 1, 0.1, segments)])
                assert not lap.take(41 + i, [(True, False, first + i, 0.1, segments)])
                assert not lap.take(40 + i, [(True, True, first + i, 0.1, segments)])
                assert not lap.take(40 + i, [(False, False, first + i, 0.1, ("X", "x", ""))])
                assert not lap.take(40 + i, None) and not lap.take(40 + i, MemoryError())
                assert lap.take(40 + i, [(True, False, first + i, 0.1, segments)])
                assert not lap.take(40 + i, [(True, False, first + i, 0.1, segments)])
            all_here = len(expected) == count
            if all_here or data.draw(st.booleans()):
                frame = lap.look(rooms.words(), rooms)
                assert (lap.under_way is None) == all_here
                if frame is not None:
                    passed.append(b"".join(frame))
                    assert all_here or len(passed[-1]) >= PASS_BYTES
        found = {}
        for frame in passed:
            (message,) = frames.Decoder().feed(frame)
            assert message.call == number
            segments = list(map(bytes, message.segments))
            new = {}
            for task, slot, many, seconds in message.tasks:
                assert task == 1000 + slot and task not in found and 0 < seconds < 0.2
                new[task], segments = segments[:many], segments[many:]
            assert not segments
            found.update(new)
            short = shortcuts.read_result(frame, number)
            if short is not None:
                rows, parts = short
                assert [int(task) for task, _ in rows] == [row[0] for row in message.tasks]
                assert [int(many) for _, many in rows] == [row[2] for row in message.tasks]
                assert parts == message.segments
            assert shortcuts.read_result(frame, number + 1) is None
            assert short is not None or len(frame) >= frames.STREAM_FROM
        assert found == expected
        assert lap.result() is None


def test_many_bytes_are_passed_on_before_all_is_here():
    wall, count = Board(), 8
    lap, rooms = a_lap(8), Rooms(wall, range(8))
    notice = lap.begin(shortcuts.write_again(6, 5, b""))
    sizes = []
    for i in range(count):
        Worker(wall, i).put(notice.call + 1 + i, [bytes([i]) * board.ROOM])
        frame = lap.look(rooms.words(), rooms)
        if frame is not None:
            (message,) = frames.Decoder().feed(b"".join(frame))
            sizes.append([bytes(part[:1])[0] for part in message.segments])
    assert sizes == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert lap.size == count * board.ROOM


def test_what_is_kept_of_a_lap_outlives_its_place_on_the_board():
    wall = Board()
    lap, rooms = a_lap(2), Rooms(wall, [0, 1])
    notice = lap.begin(shortcuts.write_again(6, 5, b""))
    Worker(wall, 0).put(notice.call + 1, [b"one", b"two"])
    assert lap.look(rooms.words(), rooms) is None
    lap.gather(rooms.words(), rooms)
    Worker(wall, 0).put(notice.call + 3, [b"xxx", b"yyy"])
    assert lap.answers == [(40, notice.call + 1, pytest.approx(250e-6), [b"one", b"two"])]


# --- the bell ----------------------------------------------------------------------------------


@pytest.fixture
def bell():
    made = Bell()
    yield made
    for end in (*made.ends, *made._bells, made._tokens):
        os.close(end)


def told(bell):
    """What a worker does that has put its answer on the board: whether it need not ring."""
    try:
        return os.read(bell.ends[2], 1) == QUIET
    except BlockingIOError:
        return False


def heard(bell, seen):
    """Whether one that has seen so many changes is woken."""
    ready, _, _ = select.select([bell.ends[(seen + 1) & 1]], [], [], 0)
    return bool(ready)


def test_the_bell_is_heard_once_by_each_that_waits_for_it(bell):
    seen, wall = [0] * 4, Board()
    for change in range(1, 7):
        assert not any(heard(bell, one) for one in seen)
        bell.ring(wall, b"")
        for i in range(4):
            assert heard(bell, seen[i]), "whoever comes late"
            seen[i] = change
            assert not heard(bell, change)


@given(st.integers(1, 40), st.integers(0, 40), st.randoms(use_true_random=False))
def test_the_last_one_rings_and_all_do_once_the_tokens_were_collected(count, leaves_after, chance):
    made, wall = Bell(), Board()
    with contextlib.ExitStack() as stack:
        for end in (*made.ends, *made._bells, made._tokens):
            stack.callback(os.close, end)
        made.ring(wall, QUIET * (count - 1))
        took = [told(made) for _ in range(count)]
        assert took == [True] * (count - 1) + [False]
        made.ring(wall, bytes(chance.choice(QUIET + LOUD) for _ in range(count - 1)))
        took = [told(made) for _ in range(min(leaves_after, count))]
        assert leaves_after < count or not took[-1]
        made.collect()
        assert not any(told(made) for _ in range(count - len(took)))
        made.collect()  # where there is nothing


@given(st.integers(2, 12), st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_last_one_rings_though_others_are_late_with_the_tokens_of_the_lap_before(
    count, laps, chance
):
    """A loud token may end a lap for the agent before all have taken theirs: for whoever takes the
    last one of all there is none."""
    made, wall = Bell(), Board()
    with contextlib.ExitStack() as stack:
        for end in (*made.ends, *made._bells, made._tokens):
            stack.callback(os.close, end)
        late = 0
        for change in range(1, laps + 1):
            made.ring(wall, QUIET * (count - 1))
            takes = count + late
            late = 0 if change == laps else chance.randrange(count)
            for _ in range(takes - late):
                rang = not told(made)
        assert rang


# --- a circuit ---------------------------------------------------------------------------------


class Track:
    """A circuit with real descriptors, whose workers do what the test wants of them."""

    def __init__(self, count, stack):
        self.wall, self.bell = Board(), Bell()
        self.ios, self.ends, self.data, self.answers = [], [], [], []
        for i in range(count):
            io, theirs = WorkerIO.make(40 + i, self.wall, i, "nonce")
            io.watched = True
            stack.callback(io.close)
            for fd in theirs:
                stack.callback(os.close, fd)
            self.ios.append(io)
            self.ends.append(theirs[1])
        here, self.to_agent = os.pipe()
        self.from_agent, there = os.pipe()
        ours = (here, self.to_agent, self.from_agent, there)
        for fd in (*ours, *self.bell.ends, *self.bell._bells, self.bell._tokens):
            stack.callback(os.close, fd)
        for fd in ours:
            os.set_blocking(fd, False)
        self.channel = Channel(1, here, there, None)
        self.lap = a_lap(count)
        self.circuit = Circuit(
            self.lap, self.channel, self.ios, self.wall, self.bell,
            lambda channel, data: self.data.append(data),
            lambda io, found: self.answers.append((io.number, found)),
        )  # fmt: skip
        self.poller = select.poll()
        for fd in [here] + [io.replies.fileno() for io in self.ios]:
            self.poller.register(fd, select.POLLIN)
        self.number = 5

    def again(self):
        self.number += 1
        os.write(self.to_agent, shortcuts.write_again(self.number, self.number - 1, b"params"))

    def ends_task(self, i, segments):
        """As a worker does; whether it rang."""
        ticket = self.lap.tickets[i]
        Worker(self.wall, i).put(ticket, segments)
        if told(self.bell):
            return False
        os.write(self.ends[i], answers.ring(ticket))
        return True

    def run(self, script):
        """script: gives what happens before each look of the agent, and ends when it leaves."""
        steps = iter(script)

        def poll(timeout):
            for _ in steps:
                if found := self.poller.poll(0):
                    return found
            return []

        return self.circuit.run(poll, 1e12)

    def messages(self):
        data = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.from_agent, 1 << 20):
                data += piece
        return list(frames.Decoder().feed(data))


@pytest.fixture
def track():
    with contextlib.ExitStack() as stack:
        yield lambda count: Track(count, stack)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_agent_is_woken_once_in_a_lap(track, count):
    made, rang = track(count), []

    def script():
        for _ in range(4):
            made.again()
            yield
            order = random.Random(made.number).sample(range(count), count)
            rang.append([made.ends_task(i, [b"%d of %d" % (i, made.number)]) for i in order])
            yield

    assert made.circuit.is_clear()
    assert made.run(script()) is nothing
    assert rang == [[False] * (count - 1) + [True]] * 4
    assert [message.call for message in made.messages()] == [6, 7, 8, 9]
    assert made.lap.under_way is None and not made.channel.out


def test_what_is_on_the_board_when_the_circuit_is_left_is_taken_along(track):
    made = track(3)

    def script():
        made.again()
        yield
        assert not made.ends_task(1, [b"one"])

    assert made.run(script()) is nothing
    assert [(row[0], row[3]) for row in made.lap.answers] == [(41, [b"one"])]
    assert type(made.lap.answers[0][3][0]) is bytes, "a copy"
    assert [made.ends_task(0, [b"zero"]), made.ends_task(2, [b"two"])] == [True, True]
    (answer,) = made.ios[2].answers()
    assert answer[:3] == (True, 0, made.lap.tickets[2]) and answer[4] == [b"two"]
    assert made.messages() == []


def test_the_last_answer_comes_while_the_circuit_is_left(track):
    made = track(2)

    def script():
        made.again()
        yield
        made.ends_task(0, [b"zero"])
        Worker(made.wall, 1).put(made.lap.tickets[1], [b"one"])  # about to take its token

    assert made.run(script()) is nothing
    assert [row[3] for row in made.lap.answers] == [[b"zero"], [b"one"]]
    assert not made.messages() and made.lap.under_way is not None, "the host says it"


def test_large_answers_are_passed_on_while_others_work(track):
    made, seen = track(8), []
    fcntl.fcntl(made.from_agent, F_SETPIPE_SZ, 1 << 20)

    def script():
        for _ in range(3):
            made.again()
            yield
            for i in range(8):
                made.ends_task(i, [bytes([i]) * board.ROOM])
                yield
                seen.extend((made.number, len(message.tasks)) for message in made.messages())

    made.run(script())
    assert seen[0] == (6, 8), "whose size was not known yet"
    for number in (7, 8):
        parts = [tasks for call, tasks in seen if call == number]
        assert parts == [4, 4]


def test_what_a_master_does_not_read_at_once_is_not_overwritten(track):
    made = track(4)

    def script():
        made.again()
        yield
        for i in range(4):
            made.ends_task(i, [bytes([i]) * board.ROOM])
        yield

    assert made.run(script()) is nothing
    assert made.channel.out, "it did not fit into the pipe"
    for i in range(4):
        Worker(made.wall, i).put(1, [b"x" * board.ROOM])
    data = b""
    while True:
        done = made.channel.write()
        with contextlib.suppress(BlockingIOError):
            data += os.read(made.from_agent, 1 << 20)
        if done:
            break
    (message,) = frames.Decoder().feed(data)
    assert [set(bytes(part)) for part in message.segments] == [{0}, {1}, {2}, {3}]


@pytest.mark.parametrize("what", ["wrote", "failure", "end", "two"])
def test_what_is_no_answer_of_a_lap_is_left_to_others(track, what):
    made = track(2)

    class Replies:
        @staticmethod
        def sendall(data):
            os.write(made.ends[1], data)

    def script():
        made.again()
        yield
        made.ends_task(0, [b"zero"])
        ticket = made.lap.tickets[1]
        if what == "wrote":
            answers.send(Replies, answers.RESULT, 1, ticket, 0.1, [b"one"])
        elif what == "failure":
            answers.send(Replies, answers.FAILURE, 0, ticket, 0.1, [b"N"])
        elif what == "two":
            answers.send(Replies, answers.RESULT, 0, ticket - 2, 0.1, [b"old"])
            answers.send(Replies, answers.RESULT, 0, ticket, 0.1, [b"one"])
        else:
            made.ios[1].replies.shutdown(2)
        yield

    todo = made.run(script())
    assert todo is not nothing and not made.answers
    todo()
    ((number, found),) = made.answers
    assert number == 41 and (found is None if what == "end" else len(found) == 1 + (what == "two"))
    assert [row[0] for row in made.lap.answers] == [40] and made.lap.under_way is not None


def test_an_ordinary_answer_is_one_of_a_lap(track):
    made, some = track(2), [b"one", b"", b"three"]

    def script():
        for _ in range(2):
            made.again()
            yield
            made.ends_task(0, [b"zero"])
            assert not told(made.bell)
            ticket, data = made.lap.tickets[1], b"".join(some)
            head = answers.HEAD.pack(answers.RESULT, 0, ticket, 0.1, 3)
            os.write(made.ends[1], head[:9])
            yield
            os.write(
                made.ends[1], head[9:] + b"".join(map(answers.SIZE.pack, map(len, some))) + data
            )
            yield

    assert made.run(script()) is nothing
    for message in made.messages():
        assert sorted(map(bytes, message.segments)) == sorted([b"zero", *some])
    assert made.lap.under_way is None and made.number == 7


def test_workers_without_a_room_are_no_circuit(track):
    made = track(2)
    made.ios[1].place = board.ROOMS
    assert not made.circuit.is_clear()
