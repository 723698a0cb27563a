"""Frames of calls that are repeated, written and read in the shortest way: Again, and its Result.

What comes most often, and nothing else. Whatever these do not take, a `Decoder` judges.
"""

import itertools
import re
import struct
from typing import List, Optional, Sequence, Tuple

from worker_payload.frames import HEAD, JOIN, LENGTH, MAGIC, STREAM_FROM
from worker_payload.wire import KIND_OF, Again, Buffer, Result

_AGAIN, _RESULT = KIND_OF[Again], KIND_OF[Result]
_AGAIN_HEADER = re.compile(rb"\[(0|[1-9][0-9]{0,17}),(0|[1-9][0-9]{0,17})\]\Z")


def write_again(call, like, params):
    # type: (int, int, bytes) -> bytes
    """The frame of an Again."""
    header = b"[%d,%d]" % (call, like)
    head = HEAD.pack(MAGIC, _AGAIN, len(header), 1)
    return head + LENGTH.pack(len(params)) + header + params


def row(task, worker):
    # type: (int, int) -> bytes
    """What `write_result` takes of an answer, once it is formatted with the number of its segments
    and the microseconds that it took."""
    return b"[%d,%d,%%d,%%.0fe-6]" % (task, worker)


def rows_of_one(whose):
    # type: (Sequence[Tuple[int, int]]) -> bytes
    """The same for several answers of one segment each, to be formatted with the microseconds of
    all. whose: task and worker of each."""
    return b",".join(b"[%d,%d,1,%%de-6]" % one for one in whose)


def write_result(call, rows, segments):
    # type: (int, bytes, Sequence[Buffer]) -> List[Buffer]
    """The frame of a Result. rows: with commas, each made of a `row`."""
    header = b"[%d,[%s]]" % (call, rows)
    lengths = list(map(len, segments))
    head = HEAD.pack(MAGIC, _RESULT, len(header), len(lengths))
    head += struct.pack(">%dQ" % len(lengths), *lengths) + header
    if sum(lengths) <= JOIN:
        return [head + b"".join(segments)]
    return [head] + list(segments)


def read_again(data):
    # type: (Buffer) -> Optional[Tuple[int, int, bytes]]
    """(call, like, params), if these bytes are one Again and nothing else; None otherwise."""
    if len(data) < HEAD.size + LENGTH.size:
        return None
    magic, kind, header_length, count = HEAD.unpack_from(data)
    if magic != MAGIC or kind != _AGAIN or count != 1:
        return None
    body = HEAD.size + LENGTH.size
    begin = body + header_length
    if begin + LENGTH.unpack_from(data, HEAD.size)[0] != len(data):
        return None
    found = _AGAIN_HEADER.match(data[body:begin])
    if found is None:
        return None
    return int(found.group(1)), int(found.group(2)), bytes(data[begin:])


_DIGITS = rb"(?:0|[1-9][0-9]{0,8})"
_ROW = rb"\[N,N,N,N(?:\.[0-9]{1,20})?(?:e-[0-9]{1,3})?\]".replace(b"N", _DIGITS)
_RESULT_HEADER = re.compile(rb"\[(0|[1-9][0-9]{0,17}),\[ROW(?:,ROW)*\]\]\Z".replace(b"ROW", _ROW))
_IN_ROW = re.compile(rb"\[([0-9]+),[0-9]+,([0-9]+),")  # of such a header: task, its segments


def read_result(data, call):
    # type: (Buffer, int) -> Optional[Tuple[List[Tuple[bytes, bytes]], List[bytearray]]]
    """If these bytes are one short Result of this call and nothing else: the task of each answer
    and the number of its segments, as they are written there, and the segments of all. None
    otherwise."""
    size = len(data)
    if not HEAD.size + LENGTH.size <= size < STREAM_FROM:
        return None
    magic, kind, length, count = HEAD.unpack_from(data)
    begin = HEAD.size + 8 * count
    end = begin + length
    if magic != MAGIC or kind != _RESULT or not count or end > size:
        return None
    header = data[begin:end]
    whose = _RESULT_HEADER.match(header)
    if whose is None or int(whose.group(1)) != call:
        return None
    lengths = struct.unpack_from(">%dQ" % count, data, HEAD.size)
    ends = list(itertools.accumulate((end,) + lengths))
    if ends[-1] != size:
        return None
    segments = [bytearray(data[begin:end]) for begin, end in zip(ends, ends[1:])]
    return _IN_ROW.findall(header), segments
