"""The agent's end of one worker: commands, what it prints, and answers as they come in pieces.

Answers come on a socket of their own: taking one in would wake the worker, if it waited for its
next command on the same socket."""

import marshal
import mmap
import os
import socket
import struct
from typing import Any, List, Optional, Set, Tuple

from worker_payload import codec, links, room, shelf
from worker_payload.answers import ASK, FILE, GO_ON, HEAD, ONE_SEGMENT, RESULT, RING, SIZE
from worker_payload.board import Board

READ = 65536
_COPIED = 4096  # bytes of a segment; a longer one stays where it was received
_BURST = 8 << 20  # bytes of one answer taken in before others have a turn
OUTPUT_MAX = 4 << 20  # bytes of each stream that a task may print before the middle is left out
_TAIL = 65536
_LAST_WORDS = 8192


class Stream(object):
    """One of a worker's two output pipes. number: 1 or 2."""

    def __init__(self, number, fd):
        # type: (int, int) -> None
        self.number = number
        self.fd = fd
        self.ended = False
        self.dropped = 0
        self.last = b""  # that came while `last_of` was worked on
        self.last_of = 0
        self._ticket = 0
        self._passed = 0
        self._tail = b""

    def read(self):
        # type: () -> Optional[bytes]
        """Bytes, none at the end, None if there is nothing now."""
        try:
            data = os.read(self.fd, READ)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            data = b""
        self.ended = not data
        return data

    def admit(self, data, ticket, current):
        # type: (bytes, int, int) -> List[bytes]
        """What to pass on of what a task printed. current: the ticket that is worked on now, 0 if
        there is none."""
        if current != self.last_of:
            self.last, self.last_of = b"", current
        self.last = (self.last + data)[-_LAST_WORDS:]
        pieces = []
        if ticket != self._ticket:
            pieces = self.finish()
            self._ticket = ticket
        if self._passed + len(data) <= OUTPUT_MAX:
            self._passed += len(data)
            return pieces + [data]
        self.dropped += len(data)
        self._tail = (self._tail + data)[-_TAIL:]
        return pieces

    def finish(self):
        # type: () -> List[bytes]
        """The task is over: the end of what it printed, if the middle was left out."""
        pieces = []
        if self.dropped:
            left_out = self.dropped - len(self._tail)
            pieces = [b"\n[%d bytes left out]\n" % left_out + self._tail]
        self.dropped, self._passed, self._tail, self._ticket = 0, 0, b"", 0
        return pieces


class WorkerIO(object):
    """number: the host's for it. place: its number on the board. nonce: in its environment."""

    def __init__(self, number, board, place, nonce, sock, replies, out, err):
        # type: (int, Board, int, str, socket.socket, socket.socket, int, int) -> None
        self.number = number
        self.board = board
        self.place = place
        self.nonce = nonce
        self.sock = sock
        self.replies = replies
        self.sender = links.Sender(sock)
        self.streams = (Stream(1, out), Stream(2, err))
        self.pid = 0
        self.kind = None  # type: Any
        self.watched = False
        self.retired = False
        self.killed = False
        self.deserted = False
        self.note = ""
        self.family = set()  # type: Set[int]
        self._pending = b""
        self._large = None  # type: Optional[_Large]
        self.asks = None  # type: Optional[Tuple[int, int]]  # ticket, bytes of a large answer
        self.waits_for = None  # type: Any  # the channel, while it waits or its answer is coming
        self._lends = False  # it was told to go on with that
        self._lent = []  # type: List[int]

    @classmethod
    def make(cls, number, board, place, nonce):
        # type: (int, Board, int, str) -> Tuple[WorkerIO, List[int]]
        """It, and the descriptors for the worker: commands, answers, stdout, stderr.

        Raises OSError."""
        opened = []  # type: List[int]
        try:
            for _ in range(2):
                opened += os.pipe()
            for _ in range(2):
                opened += [end.detach() for end in links.pair()]
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        out, out_end, err, err_end, sock, sock_end, replies, replies_end = opened
        for fd in (out, err):
            os.set_blocking(fd, False)
        ours = [links.adopt(fd) for fd in (sock, replies)]
        for end in ours:
            end.setblocking(False)
        theirs = [sock_end, replies_end, out_end, err_end]
        return cls(number, board, place, nonce, ours[0], ours[1], out, err), theirs

    def at_boundary(self):
        # type: () -> bool
        """Whether no answer has come in part, or is about to come."""
        return not self._pending and self._large is None and self.waits_for is None

    def last_words(self, ticket):
        # type: (int) -> str
        """What it wrote to stderr while it worked on that, at last; 0: on nothing."""
        stream = self.streams[1]
        return stream.last.decode("utf-8", "replace") if stream.last_of == ticket else ""

    def go_on(self):
        # type: () -> None
        """It is the turn of the answer that `asks`."""
        self._lends = True
        try:
            self.replies.send(GO_ON)
        except OSError:
            pass  # it is gone: its template will tell

    def close(self):
        # type: () -> None
        self.sender.close()
        self.replies.close()
        for fd in self._lent:
            os.close(fd)
        for stream in self.streams:
            os.close(stream.fd)

    def answers(self):
        # type: () -> Optional[List[Tuple[bool, int, int, float, Any]]]
        """(well, wrote, ticket, seconds, payload) of each answer that is complete; None at the end.

        `asks` says whether there is one that waits for its turn. Raises MemoryError if there is no
        room for one."""
        try:
            if self._large is not None:
                if not self._large.fill(self.replies):
                    return []
                large, self._large, self._lends = self._large, None, False
                return [large.answer()]
            return self.answers_in(self._receive() if self._lends else self.replies.recv(READ))
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None

    def answers_in(self, data):
        # type: (bytes) -> Optional[List[Tuple[bool, int, int, float, Any]]]
        """The same, of what was received."""
        if not data:
            return None
        if self._pending:
            data = self._pending + data
        elif len(data) > ONE_SEGMENT.size:
            kind, wrote, ticket, seconds, count, length = ONE_SEGMENT.unpack_from(data)
            if kind == RESULT and count == 1 and len(data) == ONE_SEGMENT.size + length:
                whole = data if length < _COPIED else memoryview(data)
                return [(True, wrote, ticket, seconds, [whole[ONE_SEGMENT.size :]])]  # mostly
        found = []
        position, end = 0, len(data)
        while end - position >= HEAD.size:
            kind, wrote, ticket, seconds, count = HEAD.unpack_from(data, position)
            begin = position + HEAD.size + 8 * count
            if begin > end:
                break
            lengths = struct.unpack_from("<%dQ" % count, data, begin - 8 * count)
            finish = begin + sum(lengths)
            if finish > end:
                if finish - end > READ:
                    head = (kind, wrote, ticket, seconds)
                    self._large = _Large(head, lengths, data[begin:])
                    position = end
                break
            segments = []
            for length in lengths:
                whole = data if length < _COPIED else memoryview(data)
                segments.append(whole[begin : begin + length])
                begin += length
            position = finish
            if kind == RING:
                there = self.board.answered(self.place, ticket)
                if there is not None:
                    found.append((True, wrote, ticket, there[0], list(map(bytes, there[1]))))
                continue
            if kind == ASK:
                self.asks = (ticket, SIZE.unpack(segments[0])[0])
                continue
            if kind == FILE:
                kind, segments = RESULT, self._take_lent()
            found.append(_answer((kind, wrote, ticket, seconds), segments))
            self._lends = False
        self._pending = data[position:]
        return found

    def _receive(self):
        # type: () -> bytes
        data, fds = links.receive(self.replies, READ)
        self._lent += fds
        return data

    def _take_lent(self):
        # type: () -> List[Any]
        """The segments in the file that came, which need no memory until they are read."""
        if not self._lent:
            raise MemoryError("no descriptor for it")
        try:
            return shelf.take(self._lent.pop(0), mmap.ACCESS_READ)
        except (OSError, ValueError, codec.DecodeError) as error:
            raise MemoryError("%s" % (error,))


class _Large(object):
    """An answer that comes in many pieces, taken in where it stays."""

    def __init__(self, head, lengths, start):
        # type: (Any, Tuple[int, ...], bytes) -> None
        self._head = head
        self._lengths = lengths
        self._view = memoryview(room.zeros(sum(lengths)))
        self._view[: len(start)] = start
        self._have = len(start)

    def fill(self, sock):
        # type: (socket.socket) -> bool
        """True when it is complete."""
        stop = min(len(self._view), self._have + _BURST)
        while self._have < stop:
            try:
                count = sock.recv_into(self._view[self._have :])
            except (BlockingIOError, InterruptedError):
                break
            if not count:
                raise ConnectionResetError
            self._have += count
        return self._have == len(self._view)

    def answer(self):
        # type: () -> Any
        segments, begin = [], 0
        for length in self._lengths:
            segments.append(self._view[begin : begin + length])
            begin += length
        return _answer(self._head, segments)


def _answer(head, segments):
    # type: (Any, List[Any]) -> Tuple[bool, int, int, float, Any]
    kind, wrote, ticket, seconds = head
    if kind == RESULT:
        return True, wrote, ticket, seconds, segments
    return False, wrote, ticket, seconds, marshal.loads(segments[0])
