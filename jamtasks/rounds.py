"""A call that is the last one over again, with other params: what iterative algorithms do all day.

As long as all goes well, one message to each host and one back are all there is to it, and nobody
has to be told who does what. As soon as anything else happens the scheduler takes over, as if it
had been there from the start (`Call.scheduler`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calls import Call
    from .datasets import Slices
    from .encoding import Params
    from .holding import HostId
    from .laps import Lap
    from .link import Link
    from .modules import Bundle
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


class Last:
    """What was asked for the last time, in case it is asked for again. Keeps no data alive."""

    def __init__(
        self,
        call: Call,
        bundle: Bundle,
        data: Any,
        slices: Slices | None,
        workers: int,
        asked: tuple[Any, ...],
    ):
        self.call = call
        self.lap: Lap | None = None  # the shortest way to repeat it, if there is one
        self._bundle = bundle
        self._data = weakref.ref(data) if data is not None else None
        self._slices = weakref.ref(slices) if slices is not None else None
        self._workers = workers
        self._sealed: list[Any] | None = None
        self._asked = asked

    def fits(self, bundle: Bundle, data: Any, asked: tuple[Any, ...], params: Params) -> bool:
        """Whether that is the same again, but for the params."""
        if bundle is not self._bundle or asked != self._asked or params.begin_digest:
            return False
        if params.needs_numpy > self.call.needs_numpy:
            return False
        if data is None or self._data is None:
            return data is self._data
        return data is self._data() and self._has_same_slices(data, asked[0])

    def _has_same_slices(self, data: Any, slice_size: int | None) -> bool:
        before = self._slices() if self._slices is not None else None
        if self._sealed is None and before is not None:  # as long as the call may be repeated
            self._sealed = [before.peek(index) for index in range(len(before))]
        slices = data.plan(self._workers, slice_size)
        # a dataset forgets digests when it changes
        sealed = [slices.peek(index) for index in range(len(slices))]
        return sealed == self._sealed and None not in sealed
