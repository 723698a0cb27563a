"""The agent's end of a master: two descriptors, and what waits to be written to one of them."""

import os
import socket
from collections import deque
from typing import Any, Deque, List, Optional, Set, Tuple

from worker_payload import wire
from worker_payload.frames import Decoder
from worker_payload.turns import LARGE, Turns

UNSENT_MAX = 32 << 20  # bytes kept for a master, beyond which its workers are not read
_IOV = 64
_COPIED = 64 << 10


class Channel(object):
    """A master's end: two descriptors, the attach that lent them, and what waits to be written."""

    def __init__(self, number, read_fd, write_fd, attach):
        # type: (int, int, int, socket.socket) -> None
        self.number = number
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.attach = attach
        self.decoder = Decoder(wire.FROM_MASTER)
        self.out = deque()  # type: Deque[Any]
        self.unsent = 0  # bytes
        self.turns = Turns(UNSENT_MAX)
        self._bulk = 0  # bytes of `unsent` in long buffers, which came in turns
        self._begun = 0  # bytes of the first buffer that were written
        self.blocked = False  # the selector will say when it can be written
        self.paused = set()  # type: Set[int]
        self.closing = None  # type: Optional[int]
        self.deadline = 0.0

    @property
    def crowded(self):
        # type: () -> bool
        """Its workers are not to be read for now. Large answers wait in these anyway."""
        return self.unsent - self._bulk > UNSENT_MAX

    @property
    def roomy(self):
        # type: () -> bool
        return self.unsent - self._bulk < UNSENT_MAX // 2

    def queue(self, buffers):
        # type: (List[Any]) -> None
        for data in buffers:
            size = len(data)
            if size:
                self.out.append(data)
                self.unsent += size
                if size >= LARGE:
                    self._bulk += size

    def send(self, buffers):
        # type: (List[Any]) -> bool
        """`queue` and `write`."""
        if len(buffers) == 1 and not self.out:  # nearly always
            data = buffers[0]
            try:
                sent = os.write(self.write_fd, data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            if sent == len(data):
                return True
            buffers = [bytes(memoryview(data)[sent:])]
        self.queue(buffers)
        return self.write()

    def own(self):
        # type: () -> None
        """What waits lies in memory that others are about to use."""
        self.out = deque(map(bytes, self.out))

    def write(self):
        # type: () -> bool
        """Write what the descriptor takes; True if nothing is left. Raises OSError."""
        while self.out:
            try:
                sent, full = _write(self.write_fd, self.out, self._begun)
            except (BlockingIOError, InterruptedError):
                return False
            self.unsent -= sent
            if not self.unsent:
                self.out.clear()
                self._bulk = self._begun = 0
                return True
            while sent:
                first = self.out[0]
                part = min(sent, len(first) - self._begun)
                if len(first) >= LARGE:
                    self._bulk -= part
                sent -= part
                self._begun += part
                if self._begun == len(first):
                    self.out.popleft()
                    self._begun = 0
            if full:
                return False
        return True


def _write(fd, out, begun):
    # type: (int, Deque[Any], int) -> Tuple[int, bool]
    """Bytes that were written, and whether no more can be written now. begun: of the first buffer,
    so many were written before."""
    first = memoryview(out[0])[begun:] if begun else out[0]
    if not hasattr(os, "writev"):  # PyPy, which copies all that it is given before it writes
        data = memoryview(first)[:_COPIED]
        if len(data) < _COPIED and len(out) > 1:
            data = memoryview(b"".join([data, memoryview(out[1])[:_COPIED]]))
    elif len(out) == 1:
        data = first
    else:
        batch = [first] + [out[i] for i in range(1, min(len(out), _IOV))]
        sent = os.writev(fd, batch)
        return sent, sent < sum(map(len, batch))
    sent = os.write(fd, data)
    return sent, sent < len(data)
