"""Where masters come in: the agent's socket, and the few words spoken there before a master is one.

attach: "JAM <build> <project> <marker>"   agent: "READY" or "ENDING"
attach: descriptors 0 and 1                agent: "TAKEN", and at the end "EXIT <code>"
"""

import fcntl
import os
import socket
import struct
import time
from typing import Any, Callable, Dict, List, Optional

from worker_payload import layout, links

_WITHIN = 10.0  # seconds for all that is said here
_LINE_MAX = 1024


class _Guest(object):
    def __init__(self, sock, now):
        # type: (socket.socket, float) -> None
        self.sock = sock
        self.since = now
        self.line = b""
        self.marker = None  # type: Optional[bytes]
        self.fds = []  # type: List[int]


class Gate(object):
    """admit(socket of the attach, read fd, write fd, first bytes to write) is called per master."""

    def __init__(self, run, project, build, poller, watch, admit):
        # type: (layout.RunDir, str, str, Any, Callable, Callable) -> None
        self._run = run
        self._project = project
        self._build = build
        self._poller = poller
        self._watch = watch
        self._admit = admit
        self._guests = {}  # type: Dict[int, _Guest]
        self._listener = None  # type: Optional[socket.socket]
        self._name = layout.socket_name(project, build)

    def open(self):
        # type: () -> None
        """A socket path that exists is listened to: it gets its name when all is ready."""
        aside = layout.aside(self._name)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self._run.socket(aside))
        listener.listen(128)
        listener.setblocking(False)
        # the lock is ours, so a socket that bears the name belongs to no living agent
        os.rename(self._run.file(aside), self._run.file(self._name))
        self._listener = listener
        self._watch(listener, self._on_knock)

    def _on_knock(self):
        # type: () -> None
        for _ in range(32):
            try:
                sock, _ = self._listener.accept()  # type: ignore[union-attr]
            except OSError:
                return
            if not _is_ours(sock):
                sock.close()
                continue
            sock.setblocking(False)
            guest = self._guests[sock.fileno()] = _Guest(sock, time.monotonic())
            self._watch(sock, lambda guest=guest: self._on_guest(guest))

    def _on_guest(self, guest):
        # type: (_Guest) -> None
        try:
            data, fds = links.receive(guest.sock, _LINE_MAX)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        guest.fds += fds
        guest.line += data
        if not data or len(guest.line) > _LINE_MAX:
            self._send_away(guest)
            return
        while b"\n" in guest.line:
            line, _, guest.line = guest.line.partition(b"\n")
            if not self._said(guest, line):
                return

    def _said(self, guest, line):
        # type: (_Guest, bytes) -> bool
        words = line.split(b" ")
        try:
            if guest.marker is None:
                build, project = self._build.encode(), self._project.encode()
                if len(words) != 4 or words[:3] != [b"JAM", build, project]:
                    self._send_away(guest)
                    return False
                guest.marker = words[3]
                guest.sock.send(b"READY\n")
                return True
            if words != [b"FDS"] or len(guest.fds) != 2:
                self._send_away(guest)
                return False
            guest.sock.send(b"TAKEN\n")
        except OSError:
            self._send_away(guest)
            return False
        self._forget(guest)
        for fd in guest.fds:
            os.set_inheritable(fd, False)
        head = b"\n%s:R\n" % guest.marker if guest.marker != b"-" else b""
        self._admit(guest.sock, guest.fds[0], guest.fds[1], head)
        return False

    def _forget(self, guest):
        # type: (_Guest) -> None
        del self._guests[guest.sock.fileno()]
        self._poller.unregister(guest.sock)

    def _send_away(self, guest):
        # type: (_Guest) -> None
        self._forget(guest)
        for fd in guest.fds:
            os.close(fd)
        guest.sock.close()

    def tick(self, now):
        # type: (float) -> None
        for guest in list(self._guests.values()):
            if now - guest.since > _WITHIN:
                self._send_away(guest)

    def superseded(self):
        # type: () -> bool
        """Whether an agent of another build, started after us, runs here."""
        mine = layout.lock_name(self._project, self._build)
        try:
            own = os.stat(self._run.file(mine)).st_mtime
            for project, _, name in layout.agent_locks(self._run):
                if project == self._project and name != mine:
                    path = self._run.file(name)
                    if os.stat(path).st_mtime > own and is_locked(path):
                        return True
        except OSError:
            pass
        return False

    def close(self):
        # type: () -> None
        """No more masters: who knocked already is told so."""
        if self._listener is None:
            return
        try:
            os.unlink(self._run.file(self._name))
        except OSError:
            pass
        self._on_knock()
        self._poller.unregister(self._listener)
        self._listener.close()
        self._listener = None
        for guest in list(self._guests.values()):
            try:
                guest.sock.send(b"ENDING\n")
            except OSError:
                pass
            self._send_away(guest)


def is_locked(path):
    # type: (str) -> bool
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)


def _is_ours(sock):
    # type: (socket.socket) -> bool
    """Whether the other end runs as our user; the directory lets in nobody else anyway."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", data)[1] == os.getuid()
