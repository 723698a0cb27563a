"""A call that is the last one over again, with other params: what iterative algorithms do all day.

As long as all goes well, one message to each host and one back are all there is to it, and nobody
has to be told who does what. As soon as anything else happens the scheduler takes over, as if it
had been there from the start (`Call.scheduler`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .holding import HostId
    from .link import Link
    from .scheduler import Scheduler
    from .session import Session


class Standing:
    """A call that can be repeated. scheduler: its own, at rest. links: the hosts that took part,
    each in its session. given: the tasks that each host was sent, and answered. up: all that were
    there."""

    def __init__(
        self,
        scheduler: Scheduler,
        links: Sequence[tuple[Link, Session]],
        given: Mapping[HostId, frozenset[int]],
        up: Sequence[str],
    ):
        self.scheduler = scheduler
        self.links = links
        self.given = given
        self.up = up
        self.tasks = scheduler.tasks


class Round:
    """One repetition, while all goes well. Guarded by the engine's lock.

    over: held until every task is answered, or the scheduler has taken over."""

    def __init__(self, standing: Standing, now: float):
        self.standing = standing
        self.began = now
        self.left = standing.tasks
        self.over = threading.Lock()
        self.over.acquire()
        self._open = dict(standing.given)
        self._answered: list[tuple[HostId, list[Any]]] = []

    def take(self, host: str, items: list[Any]) -> bool:
        """Answers of a host. False if they are not what was expected; nothing is done then."""
        tasks = {item[0] for item in items}
        expected = self._open.get(host, frozenset())
        if len(tasks) != len(items) or not tasks <= expected:
            return False
        self._open[host] = expected - tasks
        self._answered.append((host, items))
        self.left -= len(items)
        if not self.left:
            self.over.release()
        return True

    def unrolled(self) -> Scheduler:
        """The scheduler, as it would be by now."""
        scheduler = self.standing.scheduler
        scheduler.again(self.standing.given, self.began)
        for host, items in self._answered:
            for task, _worker, _count, seconds in items:
                scheduler.finished(host, task, seconds)
        if self.left:
            self.over.release()
        return scheduler
