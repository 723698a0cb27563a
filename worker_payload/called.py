"""A worker, as far as the bell calls it: its last task over again, past all commands (board.py)."""

import marshal
import operator
import os
import pickle
import select
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from worker_payload import answers, board, codec, procs, shared
from worker_payload.known import KnownCall, read_blob
from worker_payload.orders import PART
from worker_payload.streams import Streams, flush_what_is_there

REAP_EVERY = 256  # tasks
STRANGERS = 64  # zombies that may be left in our care
_PATIENCE = 1.0  # seconds that answers wait for each other, where the agent waits for all of them
_FIRST = operator.itemgetter(0)


class Share(NamedTuple):
    """What we do of a call that the bell repeats. beyond: the ticket of the first task, less the
    call's number. tasks: slice and source of each. peers: of all workers, the place and `beyond`.
    """

    beyond: int
    tasks: List[Any]
    peers: List[Tuple[int, int]]


class Called(object):
    """bell: descriptors, see `board.Bell`. place: our number on the board, where the agent sees
    which task killed us, if one does."""

    def __init__(self, sock, replies, bell, wall, place):
        # type: (Any, Any, List[int], board.Board, int) -> None
        self._sock = sock
        self._replies = replies
        self._board = wall
        self._place = wall.place(place)
        self._room = board.room_at(place)
        self._token = bell[2]
        self._polls = []  # type: List[Any]  # for each of the bells: wait for it, or a command
        for end in bell[:2]:
            poller = select.poll()
            poller.register(sock.fileno(), select.POLLIN)
            poller.register(end, select.POLLIN)
            self._polls.append(poller.poll)
        self._pid = os.getpid()
        self._home = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
        self._streams = Streams()
        self._calls = {}  # type: Dict[int, KnownCall]
        self._last = None  # type: Any  # what the bell repeats: call, ticket less its number, source
        self._share = None  # type: Optional[Share]  # or this
        self._expects = 0  # what a notice has to name so that this is meant
        self._seen = 0  # on the board, so many changes
        self._said = None  # type: Optional[List[Any]]  # answers that are not sent yet

    def _task(self, call, ticket, source):
        # type: (KnownCall, int, Any) -> None
        raise NotImplementedError

    def _failure(self, call, error):
        # type: (KnownCall, BaseException) -> List[Any]
        raise NotImplementedError

    @staticmethod
    def _leave():
        # type: () -> None
        """End a fork of us that came back from the user's code: what it says is nobody's answer."""
        flush_what_is_there()
        os._exit(0)

    def _rung(self):
        # type: () -> Optional[Tuple[int, int, bytes, bool]]
        """Wait for the bell: what our call is now, how many workers have a part in it, its params
        and whether they are bare; None if a command comes, or the bell is for others."""
        ready = self._polls[(self._seen + 1) & 1]()
        if self._board.changes() == self._seen:
            self._check(ready)
            return None
        os.fchdir(self._home)  # a system call: perhaps we look while it is written
        change, before, number, workers, size, bare = self._board.notice()
        if before != self._expects:
            self._last = None
            return None
        self._seen, self._expects = change, number
        return number, workers, self._board.params(size), bool(bare)

    def _check(self, ready):
        # type: (List[Tuple[int, int]]) -> None
        """What woke us, if the board has not changed, is a command."""
        commands = self._sock.fileno()
        if all(fd != commands for fd, _ in ready):
            raise ConnectionResetError("somebody closed the bell")

    def _laps(self):
        # type: () -> None
        """The last task again and again, with other params each time, whenever the bell rings;
        until a command comes, or the bell is for others.

        All goes as in `_task`, but with everything within reach and written out: others had the
        processor since the last lap, and whatever is looked up here comes from far away."""
        if self._share is not None:
            self._joint_laps(self._share)
            return
        call, offset, source = self._last
        function, writable = call.map, call.writable
        polls, look = self._polls, board.HEAD.unpack_from
        memory, begin = self._board.memory, self._room
        place, home, pid, settle = self._place, self._home, self._pid, self._streams.settle
        unpickle, decode, encode = pickle.loads, codec.decode_blob, codec.encode_result
        clock, getpid, fchdir = time.perf_counter, os.getpid, os.fchdir
        head, start, room, quiet = board.HEAD_AT, board.PARAMS_AT, board.ROOM, board.QUIET
        read, token, ring, write = os.read, self._token, answers.ring, self._replies.sendall
        done, micros, one = board.DONE, board.TOOK, board.ONE
        first, second = board.FIRST, board.SECOND
        seen, at, params, bare = self._seen, call.id, b"", False
        value = piece = segments = None  # type: Any
        while True:
            ready = polls[(seen + 1) & 1]()
            change, before, number, workers, size, plain = look(memory, head)
            if change == seen:
                self._check(ready)
                break
            if before != at:
                fchdir(home)  # a system call: perhaps we looked while it was written
                if look(memory, head)[1] == at:
                    continue
                self._last = None
                break
            seen, at, bare, params = change, number, plain, memory[start : start + size]
            place[0] = ticket = number + offset
            if place[1] < ticket < place[2]:
                place[0] = 0
                continue  # withdrawn
            kind, began, took = answers.RESULT, clock(), 0.0
            try:
                piece = None
                if source is not None:
                    piece = shared.load(read_blob(source, writable), writable)
                if bare:
                    value = unpickle(params)
                else:
                    value = decode(bytearray(params) if writable else params, writable)
                segments = encode(function(value, piece))
            except BaseException as error:
                kind, segments = answers.FAILURE, self._failure(call, error)
            took = clock() - began
            if getpid() != pid:
                self._leave()
            fits = False
            if kind == answers.RESULT and sum(map(len, segments)) <= room:
                place[micros], place[first], place[second] = int(1e6 * took), len(segments[0]), one
                end = begin + len(segments[0])
                memory[begin:end] = segments[0]
                if len(segments) == 2:
                    place[second] = len(segments[1])
                    memory[end : end + len(segments[1])] = segments[1]
                fits = len(segments) < 3
            wrote = settle()
            fchdir(home)
            if not ticket % REAP_EVERY:
                procs.reap_strangers(STRANGERS)
            fits = fits and not wrote
            if fits:
                place[done] = ticket
            place[0] = 0
            told = False
            if workers > 1:
                try:
                    told = read(token, 1) == quiet
                except BlockingIOError:
                    pass  # the last one
            if not fits:
                answers.send(self._replies, kind, wrote, ticket, took, segments)
            elif not told:
                write(ring(ticket))
            value = piece = segments = None  # which may be large, and we may wait for long
        self._seen = seen  # there may be more laps after a command that is no task
        if at != call.id:
            self._became(call, at, params, bare)

    def _became(self, call, number, params, bare):
        # type: (KnownCall, int, bytes, bool) -> None
        self._calls[number] = self._calls.pop(call.id)
        call.again(number, b"".join(codec.blob_parts([params])) if bare else params)

    def _joint_laps(self, share):
        # type: (Share) -> None
        """The same for a call whose answers are combined: our share of its slices each time. The
        last of all workers joins what the others have put on the board."""
        call = self._last[0]
        partials, patience = call.partials, call.partials.patience
        while True:
            found = self._rung()
            if found is None:
                return
            number, workers, params, bare = found
            self._became(call, number, params, bare)
            first = number + share.beyond
            self._said, partials.patience = [], _PATIENCE
            try:
                for position, (slice_, source) in enumerate(share.tasks):
                    ticket, more = first + position, position + 1 < len(share.tasks)
                    partials.prepare((PART, number, ticket, slice_, None, False, more), [])
                    self._task(call, ticket, source)
            finally:
                said, self._said, partials.patience = self._said, None, patience
            there = self._put(first, said)
            last = workers == 1 or not self._take_token()
            if not there:
                for answer in said:
                    answers.send(self._replies, *answer)
            elif last:
                self._join(call, number, share.peers)
                self._replies.sendall(answers.ring(first))

    def _put(self, ticket, said):
        # type: (int, List[Any]) -> bool
        """Put what was said on the board, if it is one answer that there is room for."""
        if len(said) != 1:
            return False
        kind, wrote, whose, took, segments = said[0]
        if kind != answers.RESULT or wrote or whose != ticket:
            return False
        head = self._board.put_many(self._room, segments)
        if not head:
            return False
        place = self._place
        place[board.TOOK], place[board.FIRST] = int(1e6 * took), head
        place[board.SECOND] = board.MANY
        os.fchdir(self._home)  # a system call: see board.py
        place[board.DONE] = ticket
        return True

    def _take_token(self):
        # type: () -> bool
        """Whether there is one left: others are to answer yet."""
        try:
            return os.read(self._token, 1) == board.QUIET
        except BlockingIOError:
            return False

    def _join(self, call, number, peers):
        # type: (KnownCall, int, Any) -> None
        """Join all that is on the board. If that fails, it is for the agent to find out why."""
        parts = []  # type: List[Any]
        for place, beyond in peers:
            found = self._board.answered(place, number + beyond)
            if found is None:
                return  # its answer went the ordinary way
            segments, position = found[1], 1
            for first, count, _, length, _ in marshal.loads(segments[0])[1]:
                copies = list(map(bytearray, segments[position : position + length]))
                parts.append((first, count, copies))
                position += length
        partials = call.partials  # type: Any
        partials.parts, joined = sorted(parts, key=_FIRST), None
        try:
            joined = partials.joined()
        except BaseException:
            partials.parts = partials.at = None
        if os.getpid() != self._pid:
            self._leave()
        wrote = self._streams.settle()
        os.fchdir(self._home)
        if joined is not None and not wrote:
            self._board.put_joined(number, joined)
