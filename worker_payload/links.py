"""Sockets within one host: frames of Python values, with open files alongside.

Between an agent, its template and its workers everything is one program in one version, forked
from one process: marshal is safe and by far the fastest there. A frame is its length, the number of
descriptors that belong to it, and the marshalled value.
"""

import array
import marshal
import os
import socket
import struct
from collections import deque
from typing import Any, Deque, List, Sequence, Tuple, Union

FRAME = struct.Struct("<IH")  # in front of a frame: bytes, descriptors
MAX_FDS = 64  # in one message; the system's limit is 253
SPACE = socket.CMSG_SPACE(4 * MAX_FDS)


def pair():
    # type: () -> Tuple[socket.socket, socket.socket]
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def adopt(fd):
    # type: (int) -> socket.socket
    """The socket of a descriptor, which is the socket's from now on."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)


def frame(value, fds=0):
    # type: (Any, int) -> bytes
    data = marshal.dumps(value)
    return FRAME.pack(len(data), fds) + data


def rights(fds):
    # type: (Sequence[int]) -> List[Tuple[int, int, bytes]]
    if not fds:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())]


def receive(sock, size=65536):
    # type: (socket.socket, int) -> Tuple[bytes, List[int]]
    """Bytes (none at the end) and the descriptors that came with them. The caller owns these."""
    data, ancillary, _, _ = sock.recvmsg(size, SPACE)
    return data, descriptors(ancillary)


def descriptors(ancillary):
    # type: (Sequence[Any]) -> List[int]
    """The descriptors in what came beside the bytes."""
    if not ancillary:
        return []
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return list(fds)


class Reader(object):
    """Frames out of what `receive` gives, however small the pieces in which a large one comes."""

    def __init__(self):
        # type: () -> None
        self._pieces = []  # type: List[bytes]
        self._missing = 0  # bytes, before which a look at the pieces would be of no use
        self._fds = deque()  # type: Deque[int]

    @property
    def at_boundary(self):
        # type: () -> bool
        """Whether no frame has come in part."""
        return not self._pieces and not self._fds

    def feed(self, data, fds):
        # type: (Union[bytes, memoryview], List[int]) -> List[Tuple[Any, List[int]]]
        self._fds.extend(fds)
        self._pieces.append(bytes(data))
        self._missing -= len(data)
        if self._missing > 0:
            return []
        data = b"".join(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
        found = []
        position, end, needed = 0, len(data), FRAME.size
        while end - position >= FRAME.size:
            length, count = FRAME.unpack_from(data, position)
            begin, needed = position + FRAME.size, FRAME.size + length
            if begin + length > end:
                break
            value = marshal.loads(data[begin : begin + length])
            found.append((value, [self._fds.popleft() for _ in range(count)] if count else []))
            position, needed = begin + length, FRAME.size
        rest = data[position:] if position else data
        self._pieces = [rest] if rest else []
        self._missing = needed - len(rest)
        return found


class Sender(object):
    """Sends at once what the socket takes, keeps the rest, never blocks. Descriptors stay the
    caller's: of what must wait, a duplicate is kept."""

    def __init__(self, sock):
        # type: (socket.socket) -> None
        self._sock = sock
        self._queue = deque()  # type: Deque[Tuple[memoryview, List[int]]]

    @property
    def idle(self):
        # type: () -> bool
        return not self._queue

    def send(self, value, fds=()):
        # type: (Any, Sequence[int]) -> bool
        """False if something is left to send: call `flush` when the socket is writable.
        Raises OSError if the other end is gone."""
        return self.send_frame(frame(value, len(fds)), fds)

    def send_frame(self, data, fds=()):
        # type: (bytes, Sequence[int]) -> bool
        """The same for what `frame` gave."""
        sent = 0
        if not self._queue:
            try:
                sent = self._sock.sendmsg([data], rights(fds)) if fds else self._sock.send(data)
                if sent == len(data):
                    return True
            except (BlockingIOError, InterruptedError):
                pass
        kept = [] if sent else [os.dup(fd) for fd in fds]
        self._queue.append((memoryview(data)[sent:], kept))
        return False

    def keep(self, data):
        # type: (memoryview) -> None
        """Send that later: the rest of a frame without descriptors."""
        self._queue.append((data, []))

    def flush(self):
        # type: () -> bool
        while self._queue:
            data, fds = self._queue[0]
            try:
                sent = self._sock.sendmsg([data], rights(fds))
            except (BlockingIOError, InterruptedError):
                return False
            for fd in fds:
                os.close(fd)
            if sent < len(data):
                self._queue[0] = (data[sent:], [])
            else:
                self._queue.popleft()
        return True

    def close(self):
        # type: () -> None
        while self._queue:
            for fd in self._queue.popleft()[1]:
                os.close(fd)
        self._sock.close()


def ask(sock, value, fds=()):
    # type: (socket.socket, Any, Sequence[int]) -> None
    """Send on a blocking socket, to the last byte."""
    data = memoryview(frame(value, len(fds)))
    sent = sock.sendmsg([data], rights(fds))
    if sent < len(data):
        sock.sendall(data[sent:])
