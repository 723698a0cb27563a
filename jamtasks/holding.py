"""Which host holds which tasks, and which hosts have workers to spare: what the scheduler knows.

What it takes per event does not depend on how many hosts and tasks there are: hosts are looked at
when something happened to them, and the largest and the oldest are kept in heaps.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

HostId = Hashable


@dataclass(eq=False, slots=True)
class Host:
    """One host of a call. workers: 0 if it is about to leave, or gone."""

    name: HostId
    order: int  # in which hosts came
    workers: int
    round_trip: float
    queue: deque[int] = field(default_factory=deque)
    held: dict[int, float] = field(default_factory=dict)  # task -> when it was assigned
    started: dict[int, float] = field(default_factory=dict)  # of these, what it said is running
    refused: dict[int, None] = field(default_factory=dict)  # not given back: begun, or about to be
    asked: deque[tuple[int, ...]] = field(default_factory=deque)  # revocations not yet answered
    asking: int = 0  # tasks in them
    given: int = 0  # tasks that it ever held
    lacked: int = 0  # of these, whose data it did not have
    answered: bool = True  # since `progress`, which is when it last got on, as far as we looked
    progress: float = 0.0

    def wait(self) -> float:
        """Queued tasks per worker."""
        return len(self.queue) / max(1, self.workers)

    def has_its_data(self) -> bool:
        """As far as we know, most of what its tasks need was there before they were."""
        return 2 * self.lacked < self.given

    def spare(self) -> int:
        """How many tasks it holds that may be revoked, because no worker there is free for them."""
        begun = len(self.started) + len(self.refused)
        return len(self.held) - max(self.workers, begun) - self.asking

    def learn(self, round_trip: float) -> None:
        """A message and its answer took so long."""
        self.round_trip = max(0.0, min(self.round_trip, round_trip))

    def begun(self, task: int) -> float:
        """When a task that it holds was started, as far as we know."""
        return self.started.get(task, self.held[task])


class Largest:
    """Finds the host with the most of something, without looking at all of them.

    size: may become smaller unnoticed; that it grew has to be told."""

    def __init__(self, size: Callable[[Host], float]):
        self._size = size
        self._grown: dict[Host, None] = {}
        self._heap: list[tuple[float, int, Host]] = []  # minus the size that was, order

    def grew(self, host: Host) -> None:
        self._grown[host] = None

    def first(self) -> Host | None:
        """The host whose size is largest, the first to come among equals; None if none has any."""
        heap = self._heap
        for host in self._grown:
            heapq.heappush(heap, (-self._size(host), host.order, host))
        self._grown.clear()
        while heap:
            known, order, host = heap[0]
            size = self._size(host)
            if size <= 0:
                heapq.heappop(heap)
            elif size < -known:
                heapq.heapreplace(heap, (-size, order, host))
            else:
                return host
        return None


class Holding:
    """The tasks of a call, and who holds them."""

    def __init__(self, tasks: int):
        self.tasks = tasks
        self.workers = 0  # of all hosts, without those about to leave
        self._hosts: dict[HostId, Host] = {}
        self._touched: dict[Host, None] = {}  # hosts that may have room
        self._idle: OrderedDict[Host, None] = OrderedDict()  # that hold less than they have workers
        self._idle_workers = 0
        self._queues = Largest(Host.wait)
        self._spares = Largest(Host.spare)
        self._done = bytearray(tasks)
        self._left = tasks
        self._holders: dict[int, tuple[Host, ...]] = {}  # of the copies of each task
        self._ages: list[tuple[float, int]] | None = None  # since when tasks are held: a heap

    def __contains__(self, host: HostId) -> bool:
        return host in self._hosts

    @property
    def done(self) -> int:
        return self.tasks - self._left

    @property
    def left(self) -> int:
        return self._left

    @property
    def unassigned(self) -> int:
        """Tasks that no host has been given."""
        return self._left - len(self._holders)

    def outstanding(self, host: HostId) -> int:
        return len(self._hosts[host].held) if host in self._hosts else 0

    def held(self) -> Iterator[tuple[int, HostId, bool, float]]:
        """(task, host, running, since) of what hosts hold: they run it, or have it, since then. A
        task with two copies comes twice."""
        for name, host in self._hosts.items():
            for task in host.held:
                yield task, name, task in host.started, host.begun(task)

    def _staff(self, host: Host, workers: int) -> None:
        """It has so many workers from now on."""
        if host in self._idle:
            del self._idle[host]
            self._idle_workers -= host.workers - len(host.held)
        if len(host.held) < workers:
            self._idle[host] = None
            self._idle_workers += workers - len(host.held)
        self.workers += workers - host.workers
        host.workers = workers
        self._touched[host] = None
        self._spares.grew(host)

    def _is_free(self, task: int) -> bool:
        """Whether it is to be handed out."""
        return not self._done[task] and task not in self._holders

    def _hold(self, host: Host, task: int, now: float) -> None:
        held = host.held
        if not held:
            host.progress = now
        held[task] = now
        host.given += 1
        excess = len(held) - host.workers
        if excess > 0:
            self._spares.grew(host)
        else:
            self._idle_workers -= 1
            if not excess:
                del self._idle[host]
        self._holders[task] = (*self._holders.get(task, ()), host)
        if self._ages is not None:
            self._watch(task, now)

    def _drop(self, host: Host, task: int) -> None:
        if host.held.pop(task, None) is None:
            return
        if host.started:
            host.started.pop(task, None)
        if host.refused:
            host.refused.pop(task, None)
        self._touched[host] = None
        if len(host.held) < host.workers:
            self._idle_workers += 1
            self._idle[host] = None

    def _release(self, task: int, name: HostId) -> bool:
        """A host no longer runs the task; True if nobody else does and it is not done."""
        host = self._hosts.get(name)
        if host is not None:
            self._drop(host, task)
            holders = self._holders.get(task, ())
            if host in holders:
                others = tuple(holder for holder in holders if holder is not host)
                if others:
                    self._holders[task] = others
                    self._watch(task, others[0].begun(task))
                else:
                    del self._holders[task]
        return self._is_free(task)

    def _watch(self, task: int, since: float) -> None:
        """Remember the age of a task. Entries go when they come up, or when there are too many."""
        if self._ages is None:  # nobody asks yet, and perhaps nobody ever will
            return
        heapq.heappush(self._ages, (since, task))
        if len(self._ages) > 2 * len(self._holders) + 1000:
            self._watch_all()

    def _watch_all(self) -> None:
        self._ages = [(holders[0].begun(task), task) for task, holders in self._holders.items()]
        heapq.heapify(self._ages)

    def _oldest(self, before: float) -> int | None:
        """The task without a second copy that was started first, if that was before this time.

        It is not named again, unless `_watch` is told of it."""
        if self._ages is None:
            self._watch_all()
        ages = self._ages
        assert ages is not None
        while ages and ages[0][0] < before:
            since, task = ages[0]
            holders = self._holders.get(task, ())
            if len(holders) != 1:
                heapq.heappop(ages)
                continue
            begun = holders[0].begun(task)
            if begun > since:
                heapq.heapreplace(ages, (begun, task))
                continue
            heapq.heappop(ages)
            return task
        return None
