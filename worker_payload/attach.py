"""Become the channel to a project's agent: find it or start it, hand it our stdin and stdout.

This runs at every connection, so it imports little and reads nothing that it does not need.
"""

import errno
import fcntl
import os
import sys
import time

# of `socket` it needs only what that is made of, and none of its tables of names
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket, timeout

from worker_payload import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional

TRIES = 5
SILENCE = 2.0  # seconds
START_WITHIN = 15.0
LOST = 75  # exit status when the agent ends without a word


class AttachError(Exception):
    """message: what happened. hint: what to do, or None."""

    def __init__(self, message, hint=None):
        # type: (str, Optional[str]) -> None
        super().__init__(message)
        self.message = message
        self.hint = hint


def attach(run, project, build, marker, options):
    # type: (layout.RunDir, str, str, str, List[str]) -> int
    """The exit status that the agent gives at the end. options: "local" (no SSH between), "keep".

    Raises AttachError."""
    problem = "no agent"
    for attempt in range(TRIES):
        if attempt and _is_deserted(1):
            return LOST
        sock = _connect(run, project, build)
        if sock is not None:
            said = _introduce(sock, project, build, marker)
            if said is None:
                return _wait(sock)
            problem = said
            sock.close()
            if attempt:
                time.sleep(0.05 * attempt)
        _start(run, project, build, options)
    raise AttachError(
        "the agent of project %s does not answer: %s" % (project, problem),
        log_tail(run, project, build),
    )


def _is_deserted(fd):
    # type: (int) -> bool
    """Nobody will read what is written there: the connection that we are for is gone."""
    import select

    poll = select.poll()
    poll.register(fd, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _connect(run, project, build):
    # type: (layout.RunDir, str, str) -> Optional[socket]
    sock = socket(AF_UNIX, SOCK_STREAM)
    sock.settimeout(SILENCE)
    try:
        sock.connect(run.socket(layout.socket_name(project, build)))
        return sock
    except OSError as error:
        sock.close()
        if error.errno in (errno.EACCES, errno.EPERM):
            raise AttachError("cannot connect to the agent: %s" % error)
        return None


def _introduce(sock, project, build, marker):
    # type: (socket, str, str, str) -> Optional[str]
    """None if the agent took our descriptors, else why not."""
    try:
        sock.sendall(("JAM %s %s %s\n" % (build, project, marker)).encode("ascii"))
        answer = _line(sock)
        if answer != b"READY":
            return _why(answer)
        rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1))  # two C ints
        sock.sendmsg([b"FDS\n"], [(SOL_SOCKET, SCM_RIGHTS, rights)])
        answer = _line(sock)
        return None if answer == b"TAKEN" else _why(answer)
    except OSError as error:
        return "it says nothing" if isinstance(error, timeout) else str(error)


def _why(answer):
    # type: (bytes) -> str
    return "it is just ending" if answer in (b"", b"ENDING") else "it says %r" % answer[:80]


def _line(sock):
    # type: (socket) -> bytes
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(1)
        if not data:
            return line
        line += data
    return line[:-1]


def _wait(sock):
    # type: (socket) -> int
    """Live as long as the agent holds our descriptors, so that sshd keeps the channel."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    sock.settimeout(None)
    try:
        words = _line(sock).split()
    except OSError:
        words = []
    if len(words) == 2 and words[0] == b"EXIT":
        return int(words[1])
    sys.stderr.write("jam: the agent ended without a word\n")
    return LOST


def _start(run, project, build, options):
    # type: (layout.RunDir, str, str, List[str]) -> None
    """Start the agent unless somebody else just did. Returns when it listens, or after a while."""
    lock = os.open(
        run.file(layout.start_name(project, build)),
        os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
    )
    try:
        deadline = time.monotonic() + START_WITHIN
        while not _locked(lock) and time.monotonic() < deadline:
            time.sleep(0.01)
        sock = _connect(run, project, build)
        if sock is not None:
            sock.close()
            return
        from worker_payload import launch

        launch.start(run, project, build, options, lambda: _listens(run, project, build))
    finally:
        os.close(lock)


def _listens(run, project, build):
    # type: (layout.RunDir, str, str) -> bool
    sock = _connect(run, project, build)
    if sock is not None:
        sock.close()
    return sock is not None


def _locked(fd):
    # type: (int) -> bool
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def log_tail(run, project, build):
    # type: (layout.RunDir, str, str) -> str
    """The last lines of the agent's log, and where it is."""
    path = run.file(layout.log_name(project, build))  # type: Any
    try:
        with open(path, "rb") as handle:
            handle.seek(max(os.fstat(handle.fileno()).st_size - 2000, 0))
            text = handle.read().decode("utf-8", "replace").strip()
    except OSError:
        text = "(it has none)"
    return "its log, %s:\n%s" % (path, text)
