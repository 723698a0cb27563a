"""The way that laps take (see repeating.py): from one master to its workers, and back.

It is left as soon as anything else happens. What was not read by then is there to be read still.
"""

import functools
import os
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from worker_payload.answers import is_ring
from worker_payload.board import LOUD, QUIET, ROOMS, Bell, Board, Rooms
from worker_payload.channel import Channel
from worker_payload.lap import PASS_BYTES, Lap
from worker_payload.repeating import LAP_SECONDS
from worker_payload.workerio import READ, WorkerIO

AGAIN = 128 << 10  # bytes; what is longer is no lap

Todo = Callable[[], None]


def nothing():
    # type: () -> None
    """What is to be done when nothing is."""


class Circuit(object):
    """on_data, on_answers: take what was read, and is not of a lap."""

    def __init__(
        self,
        lap,  # type: Lap
        channel,  # type: Channel
        workers,  # type: List[WorkerIO]
        board,  # type: Board
        bell,  # type: Bell
        on_data,  # type: Callable[[Channel, Any], None]
        on_answers,  # type: Callable[[WorkerIO, Any], None]
    ):
        # type: (...) -> None
        self.lap = lap
        self.channel = channel
        self.workers = workers
        self._board = board
        self._bell = bell
        self._rooms = Rooms(board, [io.place for io in workers])
        self._on_data = on_data
        self._on_answers = on_answers
        self._ends = dict((io.replies.fileno(), (io.replies.recv, io)) for io in workers)  # type: Dict[int, Tuple[Callable[[int], bytes], WorkerIO]]
        self._partly = {}  # type: Dict[int, WorkerIO]  # whose answers have come in part
        self._whole = dict(self._ends)  # the others
        self._quiet = QUIET * (len(workers) - 1)
        self._end = 0.0  # of our patience with the lap under way

    def is_clear(self):
        # type: () -> bool
        """Whether nobody on it is in the middle of something, and the bell is heard by all."""
        channel = self.channel
        if channel.out or channel.closing is not None or not channel.decoder.at_boundary():
            return False
        if any(io.place >= ROOMS for io in self.workers):
            return False
        return all(io.watched and io.sender.idle and io.at_boundary() for io in self.workers)

    def bind(self):
        # type: () -> bool
        """Tell workers what they need to know; False if one of them does not take that now."""
        places = [io.place for io in self.workers]
        commands = self.lap.binding(places, self._board.changes())
        try:
            return all([io.sender.send([one]) for io, one in zip(self.workers, commands)])
        except OSError:
            return False  # it is gone: its template will tell

    def run(self, poll, until):
        # type: (Callable[[float], List[Tuple[int, int]]], float) -> Todo
        """Laps until then, or until something else happens: what is to be done about that, once the
        host has caught up."""
        todo = self._laps(poll, until)
        lap, bell = self.lap, self._bell
        if lap.under_way is not None:
            bell.collect()
            words = self._rooms.words()
            bell.between()
            lap.gather(words, self._rooms)
        return todo

    def _laps(self, poll, until):
        # type: (Callable[[float], List[Tuple[int, int]]], float) -> Todo
        lap, whole, rooms, bell = self.lap, self._whole, self._rooms, self._bell
        end = until
        while True:
            found = poll(max(end - time.monotonic(), 0.0))
            if not found:  # it takes long
                return nothing
            asked = lap.under_way  # before, so that what has come may be answers
            for fd, _ in found:
                if fd in whole:
                    receive, io = whole[fd]
                    try:
                        data = receive(READ)
                    except OSError:
                        return nothing  # to be read again, and told
                    if is_ring(data):
                        continue
                    todo = self._take(fd, io, functools.partial(io.answers_in, data))
                else:
                    todo = self._other(fd)
                if todo is not None:
                    return todo
            if asked is not None:
                words = rooms.words()
                if words[::4] != lap.tickets:
                    bell.between()
                result = lap.look(words, rooms)
                if result is not None:
                    if not self._pass(result):
                        return nothing
                elif lap.alone:
                    return nothing
            end = until if lap.under_way is None else min(until, self._end)

    def _pass(self, result):
        # type: (List[Any]) -> bool
        """To the master; False if not all of it can be written now, or ever."""
        try:
            if self.channel.send(result):
                return True
        except OSError:
            pass  # it is gone, which is noticed where it is read
        self.channel.own()
        return False

    def _other(self, fd):
        # type: (int) -> Optional[Todo]
        """Something can be read that is not the whole answer of a worker."""
        if fd == self.channel.read_fd:
            return self._begin()
        io = self._partly.get(fd)
        return nothing if io is None else self._take(fd, io, io.answers)

    def _begin(self):
        # type: () -> Optional[Todo]
        lap = self.lap
        if lap.under_way is not None:
            return nothing  # perhaps it is to be ended
        try:
            data = os.read(self.channel.read_fd, AGAIN)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            data = b""
        tokens = self._quiet if lap.size <= PASS_BYTES else self._loud(lap.size)
        notice = lap.begin(data)
        if notice is None:
            return functools.partial(self._on_data, self.channel, data)
        self._board.put(notice, len(self.workers))
        self._bell.ring(self._board, tokens)
        self._end = time.monotonic() + LAP_SECONDS
        return None

    def _loud(self, size):
        # type: (int) -> bytes
        """Tokens for answers of so many bytes in all, of which some are to be passed on before the
        last one is there."""
        count = len(self.workers)
        at_once = max(1, PASS_BYTES * count // size)
        return ((QUIET * (at_once - 1) + LOUD) * (count // at_once + 1))[: count - 1]

    def _take(self, fd, io, read):
        # type: (int, WorkerIO, Callable[[], Any]) -> Optional[Todo]
        """What a worker wrote, if it is more than a short answer. read: gives the answers in it."""
        try:
            answers = read()
        except MemoryError as error:
            answers = error
        if not self.lap.take(io.number, answers) and (answers or answers is None):
            return functools.partial(self._on_answers, io, answers)
        if io.asks is not None:  # a large one is to come, which is the agent's business
            return functools.partial(self._on_answers, io, [])
        if io.at_boundary():
            self._partly.pop(fd, None)
            self._whole[fd] = self._ends[fd]
        else:
            self._whole.pop(fd, None)
            self._partly[fd] = io
        return None
