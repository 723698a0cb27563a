"""Memory that an agent shares with its workers, and the bell that tells them to look there.

Waking a process costs the agent more than most of what a short task needs. So a call that is
repeated all the time (repeating.py) goes to all of its workers in one stroke: params are put on
the board, and one byte in a pipe that all of them wait for wakes them. Each puts its answer into
its own room on the board, and takes a token from another pipe; who finds none is the last one, and
rings back. So the agent, too, is woken once, and not by each of them.

What a process wrote before a system call in which it let go of the interpreter's lock, another one
sees after such a call of its own.
"""

import marshal
import mmap
import operator
import os
import struct
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

PLACES = 8192  # workers at a time
# words of a worker's place: the ticket it works on; the two between which it begins none; the
# ticket whose answer is in its room, the microseconds it took, the bytes of its one or two segments
AT, AFTER, BEFORE, DONE, TOOK, FIRST, SECOND = range(7)
WORDS = 8
ONE = (1 << 64) - 1  # in place of SECOND: there is one segment
MANY = ONE - 1  # there are any number, and FIRST is what `put_many` gave

ROOMS = 256  # workers that can be told by the bell, those of the lowest places
ROOM = 64 << 10  # bytes of params, or of an answer
_WORD = 8
HEAD_AT = PLACES * WORDS * _WORD
PARAMS_AT = HEAD_AT + 4096
JOINED_AT = PARAMS_AT + ROOM
ROOMS_AT = JOINED_AT + ROOM
# what is on the board: how often it changed, the call that is repeated, what it is now, how many
# workers have a part in it, bytes of params, and whether these are a pickle and nothing else
HEAD = struct.Struct("=6Q")
TURN = struct.Struct("=Q")  # the first of these
REST = struct.Struct("=5Q")  # all but the first
# what came of joining all answers: the call, and what `put_many` gave
JOINED = struct.Struct("=2Q")
JOINED_HEAD_AT = HEAD_AT + 256
_COPIED = 4096  # bytes, of which a copy costs less than it saves
QUIET, LOUD = b"\0", b"\1"  # tokens: the answer is there, and the agent need not or must be told


class Notice(NamedTuple):
    """A call once more. before, call: its serial, and the next one's. bare: `codec.bare_pickle`."""

    before: int
    call: int
    params: bytes
    bare: bool


class Board(object):
    """The memory itself, to be made before the workers are forked."""

    def __init__(self):
        # type: () -> None
        self.memory = mmap.mmap(-1, ROOMS_AT + ROOMS * ROOM)
        self.view = memoryview(self.memory)
        self.words = self.view[:HEAD_AT].cast("Q")

    def place(self, number):
        # type: (int) -> Any
        """The words of a worker."""
        return self.words[number * WORDS : (number + 1) * WORDS]

    def clear(self, number):
        # type: (int) -> None
        """The place is another worker's from now on."""
        for word in range(number * WORDS, (number + 1) * WORDS):
            self.words[word] = 0

    def ticket(self, number):
        # type: (int) -> int
        """What a worker works on, as it says itself; 0 for nothing."""
        return int(self.words[number * WORDS + AT])

    def put(self, notice, workers):
        # type: (Notice, int) -> None
        """For all to see that the bell wakes, once it has rung."""
        before, call, params, bare = notice
        size = len(params)
        self.memory[PARAMS_AT : PARAMS_AT + size] = params
        REST.pack_into(self.memory, HEAD_AT + _WORD, before, call, workers, size, bare)

    def tell(self, change):
        # type: (int) -> None
        """What was put there holds from now on. change: one more than `changes`."""
        TURN.pack_into(self.memory, HEAD_AT, change)

    def changes(self):
        # type: () -> int
        """How often what the bell is for has changed."""
        return int(TURN.unpack_from(self.memory, HEAD_AT)[0])

    def notice(self):
        # type: () -> Tuple[int, ...]
        """As in HEAD."""
        return HEAD.unpack_from(self.memory, HEAD_AT)

    def params(self, size):
        # type: (int) -> bytes
        return self.memory[PARAMS_AT : PARAMS_AT + size]

    def put_many(self, begin, segments):
        # type: (int, Sequence[Any]) -> int
        """Any number of segments into the room that begins there: the bytes of what is in front of
        all but the first; 0 if there is not room enough."""
        lengths = [len(segment) for segment in segments[1:]]
        head = marshal.dumps((bytes(segments[0]), lengths))
        if len(head) + sum(lengths) > ROOM:
            return 0
        self.memory[begin : begin + len(head)] = head
        begin += len(head)
        for segment, length in zip(segments[1:], lengths):
            self.memory[begin : begin + length] = segment
            begin += length
        return len(head)

    def many(self, begin, head):
        # type: (int, int) -> List[Any]
        """What was put there: the first as bytes, the others where they are."""
        begin, end = begin + head, begin
        first, lengths = marshal.loads(self.view[end:begin])
        found = [first]
        for length in lengths:
            found.append(self.view[begin : begin + length])
            begin += length
        return found

    def put_joined(self, call, segments):
        # type: (int, Sequence[Any]) -> None
        """What all answers to a call come to, if there is room for it."""
        head = self.put_many(JOINED_AT, segments)
        if head:
            JOINED.pack_into(self.memory, JOINED_HEAD_AT, call, head)

    def joined(self, call):
        # type: (int) -> Optional[List[Any]]
        """What was put there, if it was of this call."""
        whose, head = JOINED.unpack_from(self.memory, JOINED_HEAD_AT)
        return self.many(JOINED_AT, head) if whose == call else None

    def answered(self, number, ticket):
        # type: (int, int) -> Any
        """(seconds, segments where they are) of what a worker answered to that, or None."""
        rooms = Rooms(self, [number])
        done, took, first, second = rooms.words()
        return (took * 1e-6, rooms.answer(0, first, second)) if done == ticket else None


class Rooms(object):
    """The rooms of some workers, and what these say of them."""

    def __init__(self, board, numbers):
        # type: (Board, Sequence[int]) -> None
        self._board = board
        self.joined = board.joined
        self._memory, self._view, self._words = board.memory, board.view, board.words
        words = [number * WORDS + word for number in numbers for word in range(DONE, SECOND + 1)]
        self._get = operator.itemgetter(*words)
        self._begins = list(map(room_at, numbers))

    def words(self):
        # type: () -> Tuple[int, ...]
        """DONE, TOOK, FIRST and SECOND of each, one after the other."""
        return self._get(self._words)

    def pieces(self, sizes):
        # type: (Sequence[int]) -> List[Any]
        """So many bytes of each room."""
        source = self._view if sum(sizes) > _COPIED else self._memory  # type: Any
        return [source[begin : begin + size] for begin, size in zip(self._begins, sizes)]

    def answer(self, position, first, second):
        # type: (int, int, int) -> List[Any]
        """The segments in the room of the one in that position: where they are, not a copy."""
        begin = self._begins[position]
        end = begin + first
        if second == ONE:
            return [self._view[begin:end]]
        if second == MANY:
            return self._board.many(begin, first)
        return [self._view[begin:end], self._view[end : end + second]]


def room_at(number):
    # type: (int) -> int
    """Where the room of a worker begins."""
    return ROOMS_AT + number * ROOM


class Bell(object):
    """What wakes all workers that have a part in a call. ends: the descriptors that these need.

    There are two, rung in turns: one is heard until all have heard it, and meanwhile those who have
    wait for the other."""

    def __init__(self):
        # type: () -> None
        pipes = [os.pipe() for _ in range(3)]
        self.ends = [end for end, _ in pipes]
        self._bells = [end for _, end in pipes[:2]]
        self._tokens = pipes[2][1]
        for end in self.ends:
            os.set_blocking(end, False)

    def ring(self, board, tokens):
        # type: (Board, bytes) -> None
        """The board has changed. tokens: for all workers but the last."""
        change = board.changes() + 1
        turn = change & 1
        try:
            os.read(self.ends[1 - turn], 1)  # all have heard that
        except BlockingIOError:
            pass
        if tokens:
            os.write(self._tokens, tokens)
        # last, and after a system call: some may look there already, because of a command
        board.tell(change)
        os.write(self._bells[turn], QUIET)

    def collect(self):
        # type: () -> None
        """The tokens that are left: whoever has not answered yet is going to ring."""
        _empty(self.ends[2])

    def between(self):
        # type: () -> None
        """To be called after words of a place were read, and before that which they are about."""
        os.fstat(self.ends[2])  # any system call in which the interpreter's lock is let go


def _empty(fd):
    # type: (int) -> None
    try:
        os.read(fd, 4096)  # which is more than there ever is
    except BlockingIOError:
        pass
