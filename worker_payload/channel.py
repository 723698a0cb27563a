"""The agent's end of a master: two descriptors, and what waits to be written to one of them."""

import os
import socket
from collections import deque
from typing import Any, Deque, List, Optional, Set

from worker_payload import wire

_IOV = 64


class Channel(object):
    """A master's end: two descriptors, the attach that lent them, and what waits to be written."""

    def __init__(self, number, read_fd, write_fd, attach):
        # type: (int, int, int, socket.socket) -> None
        self.number = number
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.attach = attach
        self.decoder = wire.Decoder(wire.FROM_MASTER)
        self.out = deque()  # type: Deque[Any]
        self.unsent = 0
        self.blocked = False  # the selector will say when it can be written
        self.paused = set()  # type: Set[int]
        self.closing = None  # type: Optional[int]
        self.deadline = 0.0

    def queue(self, buffers):
        # type: (List[Any]) -> None
        for data in buffers:
            size = len(data)
            if size:
                self.out.append(data)
                self.unsent += size

    def write(self):
        # type: () -> bool
        """Write what the descriptor takes; True if nothing is left. Raises OSError."""
        while self.out:
            try:
                sent = _write(self.write_fd, self.out)
            except (BlockingIOError, InterruptedError):
                return False
            self.unsent -= sent
            if not self.unsent:
                self.out.clear()
                return True
            while sent:
                first = self.out[0]
                if sent < len(first):
                    self.out[0] = memoryview(first)[sent:]
                    break
                sent -= len(first)
                self.out.popleft()
        return True


def _write(fd, out):
    # type: (int, Deque[Any]) -> int
    if len(out) == 1:
        return os.write(fd, out[0])
    batch = [out[i] for i in range(min(len(out), _IOV))]
    if hasattr(os, "writev"):
        return os.writev(fd, batch)
    return os.write(fd, b"".join(batch) if len(batch[0]) < 65536 else batch[0])
