"""Messages to bytes and back, without any I/O.

A frame is a fixed head, a table of segment lengths, a JSON header and raw segments::

    magic+version (4)  kind (u8)  header length (u32)  segments (u32)
    [length (u64)]*  header  segment*

The header is a JSON list: the message's fields in order. JSON can be read in a dump and cannot
execute.

>>> from worker_payload.wire import Revoke
>>> decoder = Decoder()
>>> decoder.feed(b"".join(encode(Revoke(3, [7, 8]))))
[Revoke(call=3, ids=[7, 8])]
"""

import json
import re
import struct
from typing import Any, List, Optional, Tuple

from worker_payload import room
from worker_payload.fields import CHECKS
from worker_payload.wire import (
    KIND_OF,
    KINDS,
    WITH_SEGMENTS,
    Buffer,
    Message,
    ProtocolError,
    Result,
)

MAGIC = b"JAM\x01"
HEAD = struct.Struct(">4sBII")
LENGTH = struct.Struct(">Q")  # of a segment

MAX_HEADER = 16 << 20  # a header holds names and numbers; past this it is not ours
MAX_SEGMENTS = 1 << 20
# lengths are believed only as far as bytes have come: nothing is allocated ahead
MAX_SEGMENT = 1 << 44
JOIN = 16 << 10  # segments that are not longer together are sent in one piece with the head
STREAM_FROM = 64 << 10  # a frame with more than this missing is filled segment by segment


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
    head = HEAD.pack(MAGIC, KIND_OF[cls], len(header), len(lengths))
    if not lengths:
        return [head + header]
    head += struct.pack(">%dQ" % len(lengths), *lengths) + header
    if sum(lengths) <= JOIN:  # one piece to queue and to write
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
        if len(segment) - self._have < STREAM_FROM:
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
            if missing < STREAM_FROM:
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
        if not HEAD.size + LENGTH.size <= end < STREAM_FROM:
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
