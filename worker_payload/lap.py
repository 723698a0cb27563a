"""A call that is repeated while nothing else happens: who does what, and what has come of it.

No I/O in here; `circuit` moves the bytes, and `repeating` says when there is such a call.
"""

import marshal
from typing import Any, List, Optional, Set, Tuple

from worker_payload import codec, wire
from worker_payload.board import ONE, Notice, Rooms
from worker_payload.frames import encode
from worker_payload.orders import SHARE
from worker_payload.records import Call, Worker
from worker_payload.shortcuts import read_again, row, rows_of_one, write_result

PARAMS_INLINE = 65536
PASS_BYTES = 160 << 10  # of answers, which do not wait for the rest


class Lap(object):
    """A call that is repeated while nothing else happens. workers: their numbers, in the order of
    its tasks. serial: the last that was given away."""

    alone = False  # nothing comes of what some of the workers have answered

    def __init__(self, call, workers, serial):
        # type: (Call, List[Worker], int) -> None
        self.call = call
        self.records = workers
        self.workers = [worker.number for worker in workers]
        self.id = call.id  # of the last one that was answered, and its serial
        self.serial = call.serial
        self.estimate = call.estimate or 0.0
        self.under_way = None  # type: Optional[Tuple[int, int, bytes]]  # call, like, params
        self.base = serial  # what the next one counts from
        self.beyond = list(range(1, 1 + len(workers)))  # tickets, less the call's serial
        self.given = len(workers)  # tickets
        self.tickets = ()  # type: Tuple[int, ...]
        self.answers = []  # type: List[Tuple[int, int, float, List[Any]]]
        self.passed = 0  # so many of them were passed on
        self.size = 0  # bytes of the answers of the last one
        self._heard = set()  # type: Set[int]  # tickets of `answers`
        whose = [(task.id, worker.slot) for task, worker in zip(call.told, workers)]
        self._rows = dict((number, row(*one)) for number, one in zip(self.workers, whose))
        self._short = rows_of_one(whose)
        self._one = (ONE,) * len(workers)

    def begin(self, data):
        # type: (Any) -> Optional[Notice]
        """What to tell the workers, if these bytes are the call once more and nothing else; None
        otherwise, and nothing has happened."""
        found = read_again(data)
        if found is None:
            return None
        call, like, params = found
        if like != self.id or call == like or len(params) > PARAMS_INLINE:
            return None
        self.under_way, self.passed, self.size = found, 0, 0
        if self.answers:
            self.answers, self._heard = [], set()
        serial = self.base + 1
        self.tickets = tuple(map(serial.__add__, self.beyond))
        bare = codec.bare_pickle(params)  # looked for once, and not by each worker
        if bare is None:
            return Notice(self.serial, serial, params, False)
        return Notice(self.serial, serial, bare, True)

    def binding(self, places, changes):
        # type: (List[int], int) -> List[Any]
        """What workers have to be told first: a command for each, or nothing. places: their
        numbers on the board, which changed so often up to now."""
        return []

    def look(self, words, rooms):
        # type: (Tuple[int, ...], Rooms) -> Optional[List[Any]]
        """Take the answers that have come to the board, where workers said these words: the frame
        that is to be passed on to the master, as of `result`."""
        took, first, second = words[1::4], words[2::4], words[3::4]
        if not self.answers and words[::4] == self.tickets and second == self._one:
            self._estimate(1e-6 * sum(took) / len(took))  # nearly always, so it is short
            self.size = sum(first)
            return write_result(self._end(), self._short % took, rooms.pieces(first))
        for i, ticket in enumerate(words[::4]):
            if ticket == self.tickets[i] and ticket not in self._heard:
                payload = rooms.answer(i, first[i], second[i])
                self._hear(self.workers[i], ticket, 1e-6 * took[i], payload)
        return self.result()

    def take(self, worker, answers):
        # type: (int, Any) -> bool
        """What WorkerIO.answers gave of a worker; False if it is not its answer and that alone. It
        is not taken then."""
        if type(answers) is not list or len(answers) != 1 or self.under_way is None:
            return False
        ok, wrote, ticket, seconds, payload = answers[0]
        if not ok or wrote or ticket not in self.tickets or ticket in self._heard:
            return False
        if self.workers[self.tickets.index(ticket)] != worker:
            return False
        self._hear(worker, ticket, seconds, payload)
        return True

    def _hear(self, worker, ticket, seconds, payload):
        # type: (int, int, float, List[Any]) -> None
        self._heard.add(ticket)
        self.answers.append((worker, ticket, seconds, payload))

    def result(self):
        # type: () -> Optional[List[Any]]
        """The frame that is to be passed on to the master: all that is left when all is here, which
        ends this lap; many bytes at once, so that they are on their way while others work."""
        if self.under_way is None:
            return None
        new = self.answers[self.passed :]
        segments = [segment for _, _, _, payload in new for segment in payload]
        size = sum(map(len, segments))
        all_here = len(self.answers) == len(self.workers)
        if not all_here and size < PASS_BYTES:
            return None
        rows = [self._rows[number] % (len(payload), 1e6 * took) for number, _, took, payload in new]
        self._estimate(sum(took for _, _, took, _ in new) / len(new))
        self.size, self.passed = self.size + size, len(self.answers)
        call = self._end() if all_here else self.under_way[0]
        return write_result(call, b",".join(rows), segments)

    def _estimate(self, seconds):
        # type: (float) -> None
        self.estimate += (seconds - self.estimate) / 4

    def _end(self):
        # type: () -> int
        """All is here. The call that is."""
        assert self.under_way is not None
        self.id, self.under_way = self.under_way[0], None
        self.serial = self.base + 1
        self.base = self.serial + self.given
        return self.id

    def gather(self, words, rooms):
        # type: (Tuple[int, ...], Rooms) -> None
        """Take what is there, a copy: the board is about to be used for something else."""
        for i, ticket in enumerate(words[::4]):
            if ticket == self.tickets[i] and ticket not in self._heard:
                _, took, first, second = words[4 * i : 4 * i + 4]
                self._hear(self.workers[i], ticket, 1e-6 * took, rooms.answer(i, first, second))
        self.answers = [
            (worker, ticket, seconds, list(map(bytes, payload)))
            for worker, ticket, seconds, payload in self.answers
        ]


class JointLap(Lap):
    """The same of a call whose answers are combined: each worker does its share of the tasks, and
    the last one joins what all have answered. shares: the tasks of each worker, as (slice, digest,
    its blob if that is at hand). serial: not given to anything else.

    Shares may have changed while the call was repeated in the ordinary way. So the first notice is
    for those who know of these ones: it names our serial, and not the call's."""

    alone = True

    def __init__(self, call, shares, serial):
        # type: (Call, List[Tuple[Worker, List[Any]]], int) -> None
        super(JointLap, self).__init__(call, [worker for worker, _ in shares], serial)
        self._key = self.serial = serial
        self.beyond, self.given = [], 0
        for _, tasks in shares:
            self.beyond.append(self.given + 1)
            self.given += len(tasks)
        self._tasks = [tasks for _, tasks in shares]

    def binding(self, places, changes):
        # type: (List[int], int) -> List[Any]
        peers = list(zip(places, self.beyond))
        return [
            (SHARE, self.call.serial, self._key, beyond, tasks, peers, changes)
            for beyond, tasks in zip(self.beyond, self._tasks)
        ]

    def look(self, words, rooms):
        # type: (Tuple[int, ...], Rooms) -> Optional[List[Any]]
        if words[::4] != self.tickets:
            return None
        joined = rooms.joined(self.base + 1)
        if joined is None:
            return None
        took = words[1::4]
        self._estimate(1e-6 * sum(took) / len(took))
        blocks = [[first, count, n] for first, count, _, n, _ in marshal.loads(joined[0])[1]]
        return encode(wire.Combined(self._end(), [], blocks, joined[1:]))

    def take(self, worker, answers):
        # type: (int, Any) -> bool
        return False
