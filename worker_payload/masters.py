"""The agent's masters: how they come, what they say, what is written to them, how they leave."""

import fcntl
import os
import socket
import sys
import time
from typing import Any, List, Optional

from worker_payload import limits, records, shelf, wire
from worker_payload.channel import Channel
from worker_payload.frames import encode
from worker_payload.poller import WRITE as WRITABLE
from worker_payload.workforce import Workforce

READ = 256 << 10
PIPE_BYTES = 1 << 20  # that a pipe should hold; systems allow users so much
F_SETPIPE_SZ = 1031  # of Linux; Python knows it from 3.10 on
WELCOME_WITHIN = 40.0  # seconds that numpy's import may take before we go on without its version
_NAMES = {"cpython": "CPython", "pypy": "PyPy"}  # `platform` knows them, and takes 6 ms to import
_IMPLEMENTATION = _NAMES.get(sys.implementation.name, sys.implementation.name)


class Masters(Workforce):
    """The agent, as far as it has masters."""

    def __init__(self, *args):
        # type: (*Any) -> None
        Workforce.__init__(self, *args)
        self._numpy = None  # type: Optional[str]  # its version, or "", once a template told
        self._greeting = []  # type: List[Channel]
        self._buffer = bytearray(READ)
        self._behind = False  # the last that was read of a master was not all that was there

    def _admit(self, attach, read_fd, write_fd, head):
        # type: (socket.socket, int, int, bytes) -> None
        """A master came, through these descriptors. head: the first bytes to write."""
        self._next += 1
        channel = Channel(self._next, read_fd, write_fd, attach)
        self._channels[channel.number] = channel
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
            try:
                fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:
                pass  # not a pipe, or not Linux, or the user's pipes hold enough already
        self._host.master_opened(channel.number)
        channel.queue([head])
        self._greeting.append(channel)
        self._dirty.add(channel)
        try:
            self._watch(read_fd, lambda: self._on_master(channel))
            self._watch(attach, lambda: self._on_attach(channel))
        except (OSError, ValueError):  # a file or /dev/null, which says nothing
            self._lose(channel, 0, "its input cannot be waited for")
            return
        if self._numpy is not None:
            self._greet()

    def _greet(self):
        # type: () -> None
        """Say Welcome to those who wait for it."""
        numpy = self._numpy
        notes = list(self._store.notes)
        if numpy is None:
            notes.append("numpy's import takes longer than %d s" % WELCOME_WITHIN)
        welcome = wire.Welcome(
            wire.VERSION, self.build, sys.version.split()[0], _IMPLEMENTATION,
            numpy or "", os.getpid(), self.cpus, self.cpus, limits.memory_free(),
            self._store.room(), socket.gethostname(), notes)  # fmt: skip
        for channel in self._greeting:
            if channel.number in self._channels:
                channel.queue(encode(welcome))
                self._dirty.add(channel)
        self._greeting = []

    def _on_master(self, channel):
        # type: (Channel) -> None
        data = self._read(channel.read_fd)
        if data is not None:
            self._take_in(channel, data)

    def _take_in(self, channel, data):
        # type: (Channel, Any) -> None
        """What a master said; nothing if that was all."""
        if not data:
            self._lose(channel, 0, "end of its input")
            return
        self._host.heard(channel.number)
        try:
            for message in channel.decoder.feed(data):
                self._host.message(channel.number, message)
        except wire.ProtocolError as error:
            self._refuse(channel, str(error))

    def _read(self, fd):
        # type: (int) -> Any
        """Bytes, none at the end, None for later."""
        try:
            if not hasattr(os, "readv"):
                data = os.read(fd, READ)  # type: Any
            else:
                data = memoryview(self._buffer)[: os.readv(fd, [self._buffer])]
            self._behind = len(data) == READ
            return data
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def _on_attach(self, channel):
        # type: (Channel) -> None
        try:
            if channel.attach.recv(4096):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self._lose(channel, 0, "its attach is gone")

    def _refuse(self, channel, reason):
        # type: (Channel, str) -> None
        self._log("master %d: %s" % (channel.number, reason))
        channel.queue(encode(wire.Ending("protocol error: " + reason)))
        self._dirty.add(channel)
        self._close_soon(channel, 76)

    def _close_soon(self, channel, code):
        # type: (Channel, int) -> None
        """Hear no more of a master, and let it go when all is written, or after a second."""
        if channel.closing is None:
            channel.closing = code
            channel.deadline = time.monotonic() + 1.0
            self._unwatch(channel.read_fd)
            self._host.master_closed(channel.number)
            self._dirty.add(channel)

    def _lose(self, channel, code, reason):
        # type: (Channel, int, str) -> None
        if channel.number in self._channels:
            self._log("master %d leaves: %s" % (channel.number, reason))
            self._host.master_closed(channel.number)
            self._drop(channel, code)

    def _drop(self, channel, code):
        # type: (Channel, int) -> None
        """Close all that a master lent us, then let its attach end."""
        if self._channels.pop(channel.number, None) is None:
            return
        self._resume(channel)
        self._dirty.discard(channel)
        for fd in (channel.read_fd, channel.write_fd, channel.attach):
            self._unwatch(fd)
        os.close(channel.read_fd)
        os.close(channel.write_fd)
        channel.out.clear()
        try:
            channel.attach.send(b"EXIT %d\n" % code)
        except OSError:
            pass
        channel.attach.close()

    def _write_out(self):
        # type: () -> None
        dirty, self._dirty = self._dirty, set()
        for channel in dirty:
            if not channel.blocked and channel.number in self._channels:
                self._flush(channel)

    def _flush(self, channel):
        # type: (Channel) -> None
        try:
            done = channel.write()
        except OSError as error:
            self._lose(channel, 0, "cannot be written to: %s" % error)
            return
        if done == channel.blocked:
            channel.blocked = not done
            if done:
                self._unwatch(channel.write_fd)
            else:
                self._poller.register(
                    channel.write_fd, WRITABLE, (True, lambda: self._flush(channel))
                )
        if done and channel.closing is not None:
            self._drop(channel, channel.closing)
        elif channel.crowded:
            self._pause(channel)
        elif channel.paused and channel.roomy:
            self._resume(channel)
        for number in channel.turns.take(channel.unsent):
            self._workers[number].go_on()

    def _do_send(self, action):
        # type: (records.Send) -> None
        channel = self._channels.get(action.master)
        if channel is not None and channel.closing is None:
            channel.queue(encode(action.message))
            self._dirty.add(channel)
            if channel.crowded:
                self._pause(channel)

    def _do_hand(self, action):
        # type: (records.Hand) -> None
        blocks, segments = [], []  # type: List[List[int]], List[Any]
        for part in action.parts:
            found = part.segments
            if found is None:
                found = shelf.take(part.fd)  # type: ignore[arg-type]
            blocks.append([part.first, part.slices, len(found)])
            segments += found
        message = wire.Combined(action.call, action.slices, blocks, segments)
        self._do_send(records.Send(action.master, message))

    def _do_close(self, action):
        # type: (records.Close) -> None
        channel = self._channels.get(action.master)
        if channel is not None:
            self._lose(channel, action.code, action.reason)
