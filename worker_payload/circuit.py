"""The way that laps take (see repeating.py): from one master to its workers, and back.

It is left as soon as anything else happens. What was not read by then is there to be read still.
"""

import functools
import os
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from worker_payload.channel import Channel
from worker_payload.repeating import LAP_SECONDS, Lap
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
        on_data,  # type: Callable[[Channel, Any], None]
        on_answers,  # type: Callable[[WorkerIO, Any], None]
    ):
        # type: (...) -> None
        self.lap = lap
        self.channel = channel
        self.workers = workers
        self._on_data = on_data
        self._on_answers = on_answers
        self._ends = dict((io.replies.fileno(), (io.replies.recv, io.number, io)) for io in workers)  # type: Dict[int, Tuple[Callable[[int], bytes], int, WorkerIO]]
        self._partly = {}  # type: Dict[int, WorkerIO]  # whose answers have come in part
        self._whole = dict(self._ends)  # the others
        self._sends = [(io.sock.send, io) for io in workers]
        self._end = 0.0  # of our patience with the lap under way

    def is_clear(self):
        # type: () -> bool
        """Whether nobody on it is in the middle of something."""
        channel = self.channel
        if channel.out or channel.closing is not None or not channel.decoder.at_boundary():
            return False
        return all(io.watched and io.sender.idle and io.at_boundary() for io in self.workers)

    def run(self, poll, until):
        # type: (Callable[[float], List[Tuple[int, int]]], float) -> Todo
        """Laps until then, or until something else happens: what is to be done about that, once the
        host has caught up."""
        lap, whole = self.lap, self._whole
        end = until
        while True:
            found = poll(max(end - time.monotonic(), 0.0))
            if not found:  # it takes long
                return nothing
            for fd, _ in found:
                if fd in whole:
                    receive, number, io = whole[fd]
                    try:
                        data = receive(READ)
                    except OSError:
                        return nothing  # to be read again, and told
                    if lap.hear(number, data):
                        continue
                    todo = self._take(fd, io, functools.partial(io.answers_in, data))
                else:
                    todo = self._other(fd)
                if todo is not None:
                    return todo
            result = lap.result()
            if result is not None:
                self.channel.queue(result)
                try:
                    if not self.channel.write():
                        return nothing
                except OSError:  # it is gone, which is noticed where it is read
                    return nothing
            end = until if lap.under_way is None else min(until, self._end)

    def _other(self, fd):
        # type: (int) -> Optional[Todo]
        """Something can be read that is not the whole answer of a worker."""
        if fd == self.channel.read_fd:
            return self._begin()
        io = self._partly.get(fd)
        return nothing if io is None else self._take(fd, io, io.answers)

    def _begin(self):
        # type: () -> Optional[Todo]
        if self.lap.under_way is not None:
            return nothing  # perhaps it is to be ended
        try:
            data = os.read(self.channel.read_fd, AGAIN)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            data = b""
        command = self.lap.begin(data)
        if command is None:
            return functools.partial(self._on_data, self.channel, data)
        self._end = time.monotonic() + LAP_SECONDS
        todo = None
        size = len(command)
        for send, io in self._sends:
            try:
                sent = send(command)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                todo = nothing  # it is gone: its template will tell
                continue
            if sent < size:
                io.sender.keep(memoryview(command)[sent:])
                todo = nothing
        return todo

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
