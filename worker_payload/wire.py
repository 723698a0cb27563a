"""Frames and messages: what master, agent and workers say to each other, without any I/O.

A frame is a fixed head, a table of segment lengths, a JSON header and raw segments::

    magic+version (4)  kind (u8)  header length (u32)  segments (u32)
    [length (u64)]*  header  segment*

The header is a JSON list: the message's fields in order. JSON can be read in a dump and cannot
execute. Builds never speak to each other (the build is part of every socket's name), so a
message may change with any release.

>>> decoder = Decoder()
>>> decoder.feed(b"".join(encode(Revoke(3, [7, 8]))))
[Revoke(call=3, ids=[7, 8])]
"""

import itertools
import json
import re
import struct
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from worker_payload import room

MAGIC = b"JAM\x01"
VERSION = 1
HEAD = struct.Struct(">4sBII")
SPAN = struct.Struct(">Q")  # the first segment of a span's answer

MAX_HEADER = 16 << 20  # a header holds names and numbers; past this it is not ours
MAX_SEGMENTS = 1 << 20
MAX_SEGMENT = (
    1 << 44
)  # lengths are believed only as far as bytes have come: nothing is allocated ahead
AGAIN_MAX = 1024  # tasks of a call at one host, so that it can be repeated in one message
CHUNK = 256 << 10  # blobs travel in pieces of this size, so that a small message never waits long
_JOIN = 16 << 10
_STREAM_FROM = 64 << 10  # a frame with more than this missing is filled segment by segment

Buffer = Union[bytes, bytearray, memoryview]


class ProtocolError(Exception):
    """The other end sent what no jam of this build sends. Says which message, and why not."""


# --- messages: master to agent -----------------------------------------------------------------


class Hello(NamedTuple):
    """First message of a master. `settings`: threads (int or None), nice (int), env (dict of str).

    master: its name; a second one of this name is the same, over a new connection. workers: how
    many it wants here; 0 leaves it to the agent (all CPUs it may use)."""

    version: int
    build: str
    project: str
    master: str
    workers: int
    settings: Dict[str, Any]


class Require(NamedTuple):
    """Which of these top-level modules can a worker here not import? Answered by `Lacks`."""

    request: int
    names: List[str]


class Begin(NamedTuple):
    """A map call. `code` is the digest of a module bundle, `module` the name to call in it.

    params: digest of the params blob, or "" when the blob is this frame's only segment.
    options: writable (bool): hand out private copy-on-write arrays instead of read-only ones.
    timeout (float or None): seconds after which a task is ended. spans (bool): a task is a list of
    slices, each of which is mapped by itself; its answer begins with a segment that says how many
    of the first were (SPAN), then comes the list of theirs. function: qualified name of a function
    of one argument to map instead of mapfunc(params, slice). combine (int): the call has so many
    slices, a task is the slice of its number, and answers are kept here, joined along the tree over
    the slices (`tree`), until a `Yield` asks for them."""

    call: int
    code: str
    module: str
    params: str
    options: Dict[str, Any]
    segments: Sequence[Buffer] = ()


class Task(NamedTuple):
    """Work for a call: [id, slice, index of the worker it is for or None] each.

    slice: its digest, or the number of the segment that is its blob, or None."""

    call: int
    tasks: List[List[Any]]
    segments: Sequence[Buffer] = ()


class Blob(NamedTuple):
    """Bytes [offset, offset + len(segment)) of a blob of `total` bytes."""

    digest: str
    offset: int
    total: int
    segments: Sequence[Buffer] = ()


class Gone(NamedTuple):
    """These blobs, asked for on behalf of a call that is over, do not come."""

    call: int
    digests: List[str]


class Revoke(NamedTuple):
    """Give back those of these tasks that have not started. Answered by `Revoked`."""

    call: int
    ids: List[int]


class Cancel(NamedTuple):
    """End these tasks, started or not; an empty list means all of the call. Not answered."""

    call: int
    ids: List[int]


class Yield(NamedTuple):
    """From now on answer with what is kept of this call whenever nothing of it is to be done."""

    call: int


class Again(NamedTuple):
    """Call `like` once more, as `call`, with the params that are the only segment: the same code,
    options and tasks, each by the worker that did it if that one is free. `like` is over with it.

    Allowed if every task of `like` was answered, there were AGAIN_MAX at most, none of them a span,
    and its params came in its Begin."""

    call: int
    like: int
    segments: Sequence[Buffer] = ()


class End(NamedTuple):
    """The call is over: its params and pins may go."""

    call: int


# --- messages: agent to master -----------------------------------------------------------------


class Welcome(NamedTuple):
    """First message of an agent. numpy: its version or "". free: bytes of memory free here.

    hostname: as the host calls itself. store: bytes the blob store may still take.
    notes: things the user should know about this host."""

    version: int
    build: str
    python: str
    implementation: str
    numpy: str
    pid: int
    workers: int
    cpus: int
    free: int
    store: int
    hostname: str
    notes: List[str]


class Lacks(NamedTuple):
    """Answer to `Require`: the names that cannot be imported, in the order asked."""

    request: int
    names: List[str]


class Missing(NamedTuple):
    """Blobs that a Begin or Task named and this host lacks. Answered by `Blob`s, or `Gone`."""

    call: int
    digests: List[str]


class Credit(NamedTuple):
    """So many more bytes of `Blob` segments have been taken in."""

    bytes: int


class Started(NamedTuple):
    """These tasks are running: [id, worker] each. Sent for tasks that take a while, not for all."""

    call: int
    tasks: List[List[int]]


class Result(NamedTuple):
    """Answers: [id, worker, number of segments, seconds] each; the segments follow in order."""

    call: int
    tasks: List[List[Any]]
    segments: Sequence[Buffer] = ()


class Combined(NamedTuple):
    """Slices [id, worker, seconds] each that were computed since the last of these, and are kept;
    and blocks of slices [first, count, number of segments] each that are answered: their answer is
    in the segments, which follow in order, and is kept no longer."""

    call: int
    slices: List[List[Any]]
    blocks: List[List[int]]
    segments: Sequence[Buffer] = ()


class Broken(NamedTuple):
    """The answers of so many slices from the first on cannot be joined: reduce raised."""

    call: int
    first: int
    slices: int
    type: str
    message: str
    traceback: str


class Failure(NamedTuple):
    """The map function raised (its worker is well), or its answer could not be encoded.

    type: the exception's qualified name. traceback: as text, with source lines. at: which slice of
    its span it was."""

    call: int
    id: int
    worker: int
    type: str
    message: str
    traceback: str
    at: int = 0


class Lost(NamedTuple):
    """A worker died with this task. exit and signal: one of them, or neither if unknown.

    stderr: the last of what it wrote. note: a hint such as out of memory, or ""."""

    call: int
    id: int
    worker: int
    exit: Optional[int]
    signal: Optional[int]
    stderr: str
    note: str


class Revoked(NamedTuple):
    """These tasks have not been started here and will not be."""

    call: int
    ids: List[int]


class Output(NamedTuple):
    """What a task wrote. id: the task, or -1 between tasks. stream: 1 or 2."""

    call: int
    id: int
    worker: int
    stream: int
    segments: Sequence[Buffer] = ()


class Note(NamedTuple):
    """Something for the run's report, such as a store that fell back to disk."""

    text: str


class Refused(NamedTuple):
    """The call cannot be done on this host at all (no room for its params, for example)."""

    call: int
    reason: str


class Ending(NamedTuple):
    """The agent ends and takes no more work."""

    reason: str


# --- both ways ---------------------------------------------------------------------------------


class Beat(NamedTuple):
    """Nothing to say, and alive."""


Message = Any  # one of the NamedTuples above

KINDS = {
    1: Hello, 2: Require, 3: Begin, 4: Task, 5: Blob, 6: Revoke, 7: Cancel, 8: End,
    9: Again, 10: Yield, 11: Gone,
    32: Welcome, 33: Lacks, 34: Missing, 35: Credit, 36: Started, 37: Result, 38: Failure,
    39: Lost, 40: Revoked, 41: Output, 42: Note, 43: Refused, 44: Ending,
    45: Combined, 46: Broken,
    64: Beat,
}  # type: Dict[int, Any]  # fmt: skip
FROM_MASTER = frozenset(
    [Hello, Require, Begin, Task, Blob, Gone, Revoke, Cancel, Yield, End, Again, Beat]
)
FROM_AGENT = frozenset(KINDS.values()) - FROM_MASTER | {Beat}


# --- what a field may hold ---------------------------------------------------------------------


def _int(value):
    return type(value) is int


def _count(value):
    return type(value) is int and 0 <= value < 1 << 63


def _str(value):
    return type(value) is str


_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def _digest(value):
    return type(value) is str and _DIGEST.match(value) is not None


def _digest_or_empty(value):
    return value == "" or _digest(value)


def _dict(value):
    return type(value) is dict


def _optional_int(value):
    return value is None or type(value) is int


def _list_of(check):
    def checked(value):
        return type(value) is list and all(map(check, value))

    return checked


# Lists with an entry per task are checked column by column, which C does; entry by entry it took
# longer than all the rest of a round.

_INT, _LIST, _NUMBER = {int}, {list}, {int, float}


def _counts(values):
    return set(map(type, values)) <= _INT and (
        not values or (min(values) >= 0 and max(values) < 1 << 63)
    )


def _list_of_counts(value):
    return type(value) is list and _counts(value)


def _columns(value, width):
    """The columns of a list of lists of this width; None if it is something else."""
    if type(value) is not list or not set(map(type, value)) <= _LIST:
        return None
    if not value:
        return [()] * width
    if set(map(len, value)) != {width}:
        return None
    return list(zip(*value))


def _tasks(value):
    columns = _columns(value, 3)
    return (
        columns is not None
        and _counts(columns[0])
        and all(one is None or _digest(one) or _count(one) for one in columns[1])
        and _counts([worker for worker in columns[2] if worker is not None])
    )


def _started(value):
    columns = _columns(value, 2)
    return columns is not None and all(map(_counts, columns))


def _results(value):
    columns = _columns(value, 4)
    if columns is None or not all(map(_counts, columns[:3])):
        return False
    seconds = columns[3]
    # a NaN is neither smaller nor larger than anything, but it spoils a sum
    return set(map(type, seconds)) <= _NUMBER and (
        not seconds or (min(seconds) >= 0 and sum(seconds) < float("inf"))
    )


def _kept(value):
    columns = _columns(value, 3)
    return columns is not None and _results([[*row[:2], 0, row[2]] for row in value])


def _blocks(value):
    columns = _columns(value, 3)
    return columns is not None and all(map(_counts, columns))


CHECKS = {
    Hello: (_int, _str, _str, _str, _count, _dict),
    Require: (_count, _list_of(_str)),
    Begin: (_count, _digest, _str, _digest_or_empty, _dict),
    Task: (_count, _tasks),
    Blob: (_digest, _count, _count),
    Gone: (_count, _list_of(_digest)),
    Revoke: (_count, _list_of_counts),
    Cancel: (_count, _list_of_counts),
    Yield: (_count,),
    End: (_count,),
    Again: (_count, _count),
    Welcome: (_int, _str, _str, _str, _str, _count, _count, _count, _count, _count, _str,
              _list_of(_str)),
    Lacks: (_count, _list_of(_str)),
    Missing: (_count, _list_of(_digest)),
    Credit: (_count,),
    Started: (_count, _started),
    Result: (_count, _results),
    Combined: (_count, _kept, _blocks),
    Broken: (_count, _count, _count, _str, _str, _str),
    Failure: (_count, _count, _count, _str, _str, _str, _count),
    Lost: (_count, _count, _count, _optional_int, _optional_int, _str, _str),
    Revoked: (_count, _list_of_counts),
    Output: (_count, _int, _count, _count),
    Note: (_str,),
    Refused: (_count, _str),
    Ending: (_str,),
    Beat: (),
}  # type: Dict[Any, Tuple[Any, ...]]  # fmt: skip
WITH_SEGMENTS = frozenset(cls for cls in CHECKS if "segments" in cls._fields)
_KIND_OF = dict((cls, kind) for kind, cls in KINDS.items())


# --- encode ------------------------------------------------------------------------------------


def _make_dumps():
    # type: () -> Any
    """JSON text of a list or tuple. The encoder in C is made once: json makes one per call, which
    takes longer than most of our headers."""
    slow = json.JSONEncoder(separators=(",", ":"), check_circular=False)
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # PyPy
        return slow.encode
    text = json.encoder.encode_basestring_ascii
    chunks = make(None, slow.default, text, None, ":", ",", False, False, True)
    return lambda value: "".join(chunks(value, 0))


_dumps = _make_dumps()
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def _flat(part):
    # type: (Buffer) -> memoryview
    view = memoryview(part)
    if view.format == "B" and view.ndim == 1 and view.c_contiguous:
        return view  # PyPy reads what was cast byte by byte
    return view.cast("B")


def encode(message):
    # type: (Message) -> List[Buffer]
    """The frame of a message, as a list of buffers to write in order. Only small segments are
    copied."""
    cls = type(message)
    if cls in WITH_SEGMENTS:
        segments = [part if isinstance(part, bytes) else _flat(part)
                    for part in message.segments]  # type: List[Buffer]  # fmt: skip
        header = _dumps(message[:-1]).encode("ascii")
    else:
        segments = []
        header = _dumps(message).encode("ascii")
    lengths = [len(part) for part in segments]
    head = HEAD.pack(MAGIC, _KIND_OF[cls], len(header), len(lengths))
    if not lengths:
        return [head + header]
    head += struct.pack(">%dQ" % len(lengths), *lengths) + header
    if sum(lengths) <= _JOIN:  # one piece to queue and to write
        return [head + b"".join(segments)]
    return [head] + segments


# --- decode ------------------------------------------------------------------------------------

_LONG_NUMBER = re.compile(rb"[0-9]{20}")


def _short_int(text):
    if len(text) > 20:
        raise ValueError("a number of %d digits" % len(text))
    return int(text)


def _parse(kind, header, segments):
    # type: (int, bytes, List[Buffer]) -> Message
    cls = KINDS[kind]
    try:
        text = header.decode("ascii")
        if _LONG_NUMBER.search(header):
            # int() takes quadratic time on long digit strings, and older Pythons have no limit
            fields = json.loads(text, parse_int=_short_int)
        else:
            fields, end = _scan(text, 0)
            if end != len(text):
                raise ValueError("something follows")
    except (ValueError, RecursionError, StopIteration) as error:
        raise ProtocolError("%s: header is not JSON: %s" % (cls.__name__, error))
    checks = CHECKS[cls]
    if type(fields) is not list or len(fields) != len(checks):
        raise ProtocolError("%s: header has the wrong form" % cls.__name__)
    for name, check, value in zip(cls._fields, checks, fields):
        if not check(value):
            raise ProtocolError("%s: bad %s: %.100r" % (cls.__name__, name, value))
    if cls in WITH_SEGMENTS:
        fields.append(segments)
    elif segments:
        raise ProtocolError("%s: has %d segments and may have none" % (cls.__name__, len(segments)))
    message = cls(*fields)
    if cls is Result and sum(item[2] for item in message.tasks) != len(segments):
        raise ProtocolError("Result: its tasks do not account for its segments")
    return message


_AGAIN = re.compile(rb"\[(0|[1-9][0-9]{0,17}),(0|[1-9][0-9]{0,17})\]\Z")


def write_again(call, like, params):
    # type: (int, int, bytes) -> bytes
    """The frame of an Again, made in the shortest way."""
    header = b"[%d,%d]" % (call, like)
    head = HEAD.pack(MAGIC, _KIND_OF[Again], len(header), 1)
    return head + SPAN.pack(len(params)) + header + params


def row(task, worker):
    # type: (int, int) -> bytes
    """What `write_result` takes of an answer, once it is formatted with the number of its segments
    and the microseconds that it took."""
    return b"[%d,%d,%%d,%%de-6]" % (task, worker)


def write_result(call, rows, segments):
    # type: (int, Sequence[bytes], Sequence[Buffer]) -> List[Buffer]
    """The frame of a Result, made in the shortest way. rows: each made of a `row`."""
    header = b"[%d,[%s]]" % (call, b",".join(rows))
    lengths = list(map(len, segments))
    head = HEAD.pack(MAGIC, _KIND_OF[Result], len(header), len(lengths))
    head += struct.pack(">%dQ" % len(lengths), *lengths) + header
    if sum(lengths) <= _JOIN:
        return [head + b"".join(segments)]
    return [head] + list(segments)


def read_again(data):
    # type: (Buffer) -> Optional[Tuple[int, int, bytes]]
    """(call, like, params), if these bytes are one Again and nothing else; None otherwise. A short
    way for what comes most often: whatever it does not take, a Decoder judges."""
    if len(data) < HEAD.size + SPAN.size:
        return None
    magic, kind, header_length, count = HEAD.unpack_from(data)
    if magic != MAGIC or kind != _KIND_OF[Again] or count != 1:
        return None
    body = HEAD.size + SPAN.size
    begin = body + header_length
    if begin + SPAN.unpack_from(data, HEAD.size)[0] != len(data):
        return None
    found = _AGAIN.match(data[body:begin])
    if found is None:
        return None
    return int(found.group(1)), int(found.group(2)), bytes(data[begin:])


# of an answer, as JSON: all of it, the slice's number, and the number of its segments
_DIGITS = rb"(?:0|[1-9][0-9]{0,8})"
_ROW = re.compile(rb"(\[(N),N,(N),N(?:\.[0-9]{1,20})?(?:e-[0-9]{1,3})?\])".replace(b"N", _DIGITS))


def read_result(data, call):
    # type: (Buffer, int) -> Optional[List[Tuple[int, List[Buffer]]]]
    """(task, segments) each, if these bytes are one short Result of this call and nothing else;
    None otherwise. Like `read_again`: whatever it does not take, a Decoder judges."""
    size = len(data)
    if not HEAD.size + SPAN.size <= size < _STREAM_FROM:
        return None
    magic, kind, length, count = HEAD.unpack_from(data)
    begin = HEAD.size + 8 * count
    end = begin + length
    if magic != MAGIC or kind != _KIND_OF[Result] or not count or end > size:
        return None
    header = data[begin:end]
    rows = _ROW.findall(header)
    if header != b"[%d,[%s]]" % (call, b",".join([row[0] for row in rows])):
        return None
    segments = []  # type: List[Buffer]
    for length in struct.unpack_from(">%dQ" % count, data, HEAD.size):
        segments.append(bytearray(data[end : end + length]))
        end += length
    if end != size:
        return None
    if len(rows) == count and all([row[2] == b"1" for row in rows]):  # as nearly always
        return [(int(row[1]), [part]) for row, part in zip(rows, segments)]
    if sum([int(row[2]) for row in rows]) != count:
        return None
    rest = iter(segments)
    return [(int(task), list(itertools.islice(rest, int(many)))) for _, task, many in rows]


class Decoder:
    """Bytes in, messages out, however the bytes were cut.

    allowed: the message classes that may arrive here; any other is a ProtocolError.
    After a ProtocolError the decoder stays broken: a stream that went wrong once has no frame
    boundaries left to trust."""

    def __init__(self, allowed=None):
        # type: (Optional[frozenset]) -> None
        self._allowed = allowed
        self._pending = bytearray()  # bytes of the next frame's head, table and header
        self._want = HEAD.size  # no use in looking before so many bytes are pending
        self._frame = None  # type: Optional[Tuple[int, bytes, List[int]]]
        self._segments = []  # type: List[Any]
        self._have = 0  # bytes of the last of these
        self._broken = None  # type: Optional[str]

    def at_boundary(self):
        # type: () -> bool
        """True if the bytes so far end with a whole frame."""
        return not self._pending and self._frame is None

    def room(self):
        # type: () -> Optional[memoryview]
        """Where the next bytes belong, and may be put, if a long segment misses many; see `put`."""
        if self._frame is None or not isinstance(self._segments[-1], memoryview):
            return None
        segment = self._segments[-1]
        if len(segment) - self._have < _STREAM_FROM:
            return None
        return segment[self._have : -1]  # its last byte is fed

    def put(self, count):
        # type: (int) -> None
        """So many bytes were put into `room`."""
        self._have += count

    def feed(self, data):
        # type: (Buffer) -> List[Message]
        """The messages completed by these bytes. Raises ProtocolError."""
        if self._broken:
            raise ProtocolError(self._broken)
        try:
            return self._feed(data)
        except ProtocolError as error:
            self._broken = str(error)
            self._pending = bytearray()
            self._segments = []
            raise

    def _feed(self, data):
        # type: (Buffer) -> List[Message]
        view = memoryview(data)
        if not self._pending and self._frame is None:
            whole = self._whole(view)
            if whole is not None:
                return [whole]
        messages = []  # type: List[Message]
        if self._frame is not None:
            view = self._fill(view, messages)
            if self._frame is not None:
                return messages
        if self._pending:
            self._pending += view
            if len(self._pending) < self._want:
                return messages
            source = self._pending
            self._pending = bytearray()
            view = memoryview(source)
        position, end = 0, len(view)
        while end - position >= HEAD.size:
            magic, kind, header_length, count = HEAD.unpack_from(view, position)
            self._check_head(magic, kind, header_length, count)
            body = position + HEAD.size + 8 * count
            ready = body + header_length
            if ready > end:
                self._want = ready - position
                break
            lengths = list(struct.unpack_from(">%dQ" % count, view, position + HEAD.size))
            if count and max(lengths) > MAX_SEGMENT:
                raise ProtocolError("a segment of %d bytes" % max(lengths))
            header = bytes(view[body:ready])
            missing = ready + sum(lengths) - end
            if missing <= 0:
                segments = []
                for length in lengths:
                    segments.append(room.copy(view[ready : ready + length]))
                    ready += length
                messages.append(_parse(kind, header, segments))
                position = ready
                continue
            if missing < _STREAM_FROM:
                self._want = ready + sum(lengths) - position
                break
            self._frame = (kind, header, lengths)
            self._segments, self._have = [room.make(lengths[0])], 0
            rest = self._fill(view[ready:], messages)
            assert not len(rest)
            return messages
        else:
            self._want = HEAD.size
        if position < end:
            self._pending = bytearray(view[position:])
        return messages

    def _whole(self, view):
        # type: (memoryview) -> Optional[Message]
        """The message, if these bytes are one short frame, as most are."""
        end = len(view)
        if not HEAD.size + SPAN.size <= end < _STREAM_FROM:
            return None
        magic, kind, length, count = HEAD.unpack_from(view)
        self._check_head(magic, kind, length, count)
        begin = HEAD.size + 8 * count
        body = begin + length
        if body > end:
            return None
        lengths = struct.unpack_from(">%dQ" % count, view, HEAD.size) if count else ()
        if body + sum(lengths) != end:
            return None
        header, segments = bytes(view[begin:body]), []  # type: bytes, List[Buffer]
        for size in lengths:
            segments.append(bytearray(view[body : body + size]))
            body += size
        return _parse(kind, header, segments)

    def _check_head(self, magic, kind, header_length, count):
        # type: (bytes, int, int, int) -> None
        if magic != MAGIC:
            raise ProtocolError("not a jam frame: it starts with %r" % magic)
        cls = KINDS.get(kind)
        if cls is None or (self._allowed is not None and cls not in self._allowed):
            raise ProtocolError(
                "unexpected message: %s" % (cls.__name__ if cls else "kind %d" % kind)
            )
        limit = MAX_SEGMENTS if cls in WITH_SEGMENTS else 0
        if header_length > MAX_HEADER or count > limit:
            raise ProtocolError(
                "%s: header of %d bytes, %d segments" % (cls.__name__, header_length, count)
            )

    def _fill(self, view, messages):
        # type: (memoryview, List[Message]) -> memoryview
        """Give the open frame what it misses; returns what is left over."""
        assert self._frame is not None
        kind, header, lengths = self._frame
        while True:
            segment = self._segments[-1]
            need = lengths[len(self._segments) - 1] - self._have
            part = view[:need]
            if isinstance(segment, bytearray):
                segment += part
            else:
                segment[self._have : self._have + len(part)] = part
            if need > len(view):
                self._have += len(part)
                return view[len(view) :]
            view = view[need:]
            if len(self._segments) == len(lengths):
                break
            self._segments.append(room.make(lengths[len(self._segments)]))
            self._have = 0
        segments, self._segments, self._frame = self._segments, [], None
        self._want = HEAD.size
        messages.append(_parse(kind, header, segments))
        return view
