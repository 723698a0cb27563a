"""What the agent waits for, and whom it knows: the ground on which its parts stand."""

import os
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Optional, Set

from worker_payload import layout, limits
from worker_payload.channel import Channel
from worker_payload.host import Host
from worker_payload.poller import READ as READABLE
from worker_payload.poller import Poller
from worker_payload.store import Store
from worker_payload.workerio import WorkerIO


class Watching(object):
    """The agent, as far as it waits for others. log: takes lines, or None."""

    def __init__(
        self,
        project,  # type: str
        build,  # type: str
        run,  # type: layout.RunDir
        idle_timeout,  # type: float
        log,  # type: Optional[Callable]
    ):
        # type: (...) -> None
        self.project = project
        self.build = build
        self.run_dir = run
        self._log = log or (lambda text: None)
        self._poller = Poller()
        self._channels = {}  # type: Dict[int, Channel]
        self._workers = {}  # type: Dict[int, WorkerIO]
        self._dirty = set()  # type: Set[Channel]  # that may have something to write
        self._next = 0  # number of a master, or of a request to a template
        self._stop = None  # type: Optional[str]
        self._store = Store(run.path, layout.blob_dir(run))
        self.cpus = limits.cpus()
        self._host = Host(build, project, self.cpus, idle_timeout, time.monotonic())
        self._wake, self._wake_end = os.pipe()
        for fd in (self._wake, self._wake_end):
            os.set_blocking(fd, False)
        self._answers = deque()  # type: Deque[Callable[[], None]]
        self._watch(self._wake, self._on_wake)

    def _watch(self, fd, call, first=False):
        # type: (Any, Callable[[], None], bool) -> None
        self._poller.register(fd, READABLE, (not first, call))

    def _unwatch(self, fd):
        # type: (Any) -> None
        try:
            self._poller.unregister(fd)
        except (KeyError, ValueError):
            pass

    def _on_wake(self):
        # type: () -> None
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass
        while self._answers:
            self._answers.popleft()()

    def _from_thread(self, call):
        # type: (Callable[[], None]) -> None
        self._answers.append(call)
        os.write(self._wake_end, b"\0")

    def stop(self, reason):
        # type: (str) -> None
        if self._stop is None:
            self._stop = reason
