"""The signs of life of a job worker, and its watch over its own.

Two threads, because the one that writes may hang in a file server that does not answer: the other
then says so in time. Neither does anything to jobs: it sends a signal to the main thread.
"""

import json
import os
import select
import signal
import threading
import time
from typing import Any, Callable, Dict, Iterable, Optional

from worker_payload.jobs import names

EVERY = 10.0
STATE_EVERY = 1.0  # seconds between heartbeats for changes of state
STATES = ("idle", "running", "held", "ending")
LAPSED = signal.SIGUSR2  # to the main thread: nobody can know any more that we live
_SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, LAPSED]
_PAD = 512  # a heartbeat is rewritten in place, and this keeps its size: a full disk takes it too
_CHECK = 3.0
_PATIENCE = 10.0  # seconds that the main thread gets to end
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while a laptop sleeps


def clock():
    # type: () -> float
    return time.clock_gettime(_CLOCK)


class Heart(object):
    """root: the project's folder. about: what each heartbeat says that does not change. pipe: EOF
    there is the keeper's end. give_up: ends all that this worker started, and itself; called when
    the main thread does not end though it was told to. every: seconds between heartbeats. lapse:
    seconds after the last one that could be written, after which the worker has to give up."""

    def __init__(self, root, owner, about, pipe, give_up, every, lapse):
        # type: (str, str, Dict[str, Any], int, Callable[[], None], float, float) -> None
        self._path = os.path.join(root, names.heartbeat(owner))
        self._about = dict(about, owner=owner)
        self._pipe = pipe
        self._give_up = give_up
        self._every = every
        self._lapse = lapse
        self._main = threading.get_ident()
        self._wake = threading.Event()
        self._closed = False
        self._beats = 0
        self._good = clock()
        # what the main thread tells; each is one assignment, so no lock is needed
        self.state = "idle"
        self.job = ""
        self.since = time.time()
        self.note = ""
        self.claims = ()  # type: Iterable[str]
        self.complaints = dict  # type: Callable[[], Dict[str, str]]
        self.ended = 0
        self.failed = 0

    def start(self):
        # type: () -> None
        """Raises OSError if not even the first heartbeat can be written."""
        self._beat()
        for name, run in (("heartbeats", self._beats_on), ("watch", self._watch)):
            thread = threading.Thread(target=run, name=name)
            thread.daemon = True
            thread.start()

    def tell(self, state, note=""):
        # type: (str, str) -> None
        if state != self.state or note != self.note:
            self.state, self.note, self.since = state, note, time.time()
            self._wake.set()

    def lapsed(self):
        # type: () -> bool
        """Whether others may already think that we are dead."""
        return clock() - self._good > self._lapse

    def close(self):
        # type: () -> None
        """The last heartbeat is removed: there is nobody any more."""
        self._closed = True
        self._wake.set()
        try:
            os.unlink(self._path)
        except OSError:
            pass

    # --- the thread that writes ------------------------------------------------------------

    def _beats_on(self):
        # type: () -> None
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # they are to interrupt the main thread
        while not self._closed:
            self._wake.wait(self._every)
            self._wake.clear()
            if self._closed:
                return
            if self.lapsed():
                continue  # the watch ends this worker: a sign of life now would be a lie
            try:
                self._beat()
            except OSError:
                time.sleep(STATE_EVERY)
                self._wake.set()
            time.sleep(min(STATE_EVERY, self._every))

    def _beat(self):
        # type: () -> None
        self._beats += 1
        told = dict(
            self._about,
            state=self.state,
            job=self.job,
            since=round(self.since, 3),
            claims=list(self.claims),
            note=self.note,
            ended=self.ended,
            failed=self.failed,
            beats=self._beats,
            complaints=dict(list(self.complaints().items())[:20]),
        )
        data = json.dumps(told).encode("ascii")
        data += b" " * (-(len(data) + 1) % _PAD) + b"\n"
        began = clock()
        # opened anew: on NFS, closing is what brings it to the server
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, data, 0)
            if os.fstat(fd).st_size > len(data):
                os.ftruncate(fd, len(data))
        finally:
            os.close(fd)
        if self._closed:
            os.unlink(self._path)
        self._good = began

    # --- the thread that watches -----------------------------------------------------------

    def _watch(self):
        # type: () -> None
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        while not self._closed:
            try:
                readable = select.select([self._pipe], [], [], min(_CHECK, self._lapse / 4))[0]
            except OSError:
                return
            if readable:
                self._end(signal.SIGTERM)
            elif self.lapsed():
                self._end(LAPSED)

    def _end(self, number):
        # type: (int) -> None
        deadline = time.monotonic() + _PATIENCE
        while not self._closed:
            signal.pthread_kill(self._main, number)
            if time.monotonic() > deadline:
                self._give_up()
            time.sleep(1.0)


def read(data):
    # type: (Optional[bytes]) -> Dict[str, Any]
    """What a heartbeat says; {} if it is none, or was read while it was rewritten."""
    try:
        told = json.loads((data or b"").decode("ascii"))
    except ValueError:
        return {}
    return told if type(told) is dict else {}
