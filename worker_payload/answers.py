"""Answers on their way from a worker to its agent, over a socket of their own.

A small one is a head and its segments. With a large one the worker asks first, and waits for its
turn (`turns`); then it hands over a file in memory, from which the agent writes to the master's
channel, so that nothing is copied from socket to memory there. Where no such file can be had, or
its memory would not go back at once, the answer goes through the socket like any other.
"""

import os
import struct
from typing import Any, List

from worker_payload import codec, links, room, shelf
from worker_payload.turns import LARGE

# kind, wrote something, ticket, seconds, number of segments; their lengths follow, then they
HEAD = struct.Struct("<BBQdI")
ONE_SEGMENT = struct.Struct("<BBQdIQ")  # the same with one length, as most answers begin
SIZE = struct.Struct("<Q")  # bytes of the answer that ASK announces
RESULT, FAILURE, ASK, FILE, RING = 1, 2, 3, 4, 5
GO_ON = b"\1"  # the agent's answer to ASK

_JOIN = 65536  # answers up to this many bytes are copied into one buffer


def ring(ticket):
    # type: (int) -> bytes
    """What tells the agent that an answer stands on the board, and perhaps others."""
    return HEAD.pack(RING, 0, ticket, 0.0, 0)


def is_ring(data):
    # type: (bytes) -> bool
    """Whether that, received from a worker, is such a word and nothing else."""
    return len(data) == HEAD.size and data[0] == RING


def send(replies, kind, wrote, ticket, seconds, segments):
    # type: (Any, int, int, int, float, List[Any]) -> None
    """Return when the socket has taken it. Raises OSError if the agent is gone."""
    if len(segments) == 1 and len(segments[0]) <= _JOIN:
        data = segments[0]
        head = ONE_SEGMENT.pack(kind, wrote, ticket, seconds, 1, len(data))
        replies.sendall(head + data)
        return
    lengths = list(map(len, segments))
    size = sum(lengths)
    if size >= LARGE and kind == RESULT:
        replies.sendall(ONE_SEGMENT.pack(ASK, 0, ticket, 0.0, 1, SIZE.size) + SIZE.pack(size))
        if not replies.recv(1):
            raise ConnectionResetError("the agent is gone")
        if _lend(replies, HEAD.pack(FILE, wrote, ticket, seconds, 0), segments):
            return
    head = HEAD.pack(kind, wrote, ticket, seconds, len(segments))
    if lengths:
        head += struct.pack("<%dQ" % len(lengths), *lengths)
    if size <= _JOIN:
        replies.sendall(head + b"".join(segments))
        return
    views = [memoryview(head)] + [memoryview(part).cast("B") for part in segments if len(part)]
    while views:
        sent = replies.sendmsg(views[:64])
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if sent:
            views[0] = views[0][sent:]


def _lend(replies, head, segments):
    # type: (Any, bytes, List[Any]) -> bool
    """Hand over a file with these segments; False if there is none to be had."""
    fd = shelf.in_memory() if room.PROMPT else None
    if fd is None:
        return False
    try:
        if not shelf.put(fd, codec.blob_parts(segments)):
            return False
        sent = replies.sendmsg([head], links.rights([fd]))
        if sent < len(head):
            replies.sendall(head[sent:])
        return True
    finally:
        os.close(fd)
