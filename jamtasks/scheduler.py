"""Who does what in one map call: assign, requeue, revoke, speculate. Pure: no I/O, thread or clock.

The scheduler is told what happened (`add_host`, `finished`, `lost`, ...) and asked what to do next
(`actions`). Times are seconds on any clock that does not go back.

The rules:

* Every task has a home host, by a split of the task numbers in proportion to the workers: the same
  tasks on the same hosts go to the same places, where their data already is.
* A host holds as many tasks as it has workers, and enough on top to be busy for `horizon` seconds.
* A host with an idle worker takes queued tasks from the longest queue, then has tasks revoked that
  others hold but have not started, then (if allowed) runs a second copy of a task that takes much
  longer than its like. The first answer wins. Where moving a task costs `move_seconds`, because
  its data would have to be sent, it moves only if it would wait longer where it is.
* A worker's or host's death returns its tasks. A task that has killed `max_kills` workers is given
  up; the death of a host is not held against its tasks.
* Pinned tasks (no dataset: call i belongs to worker i) stay where they are until that host is lost.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

MAX_KILLS = 3
HORIZON = 0.1  # seconds of work a host holds beyond one task per worker: hides the round trip
MAX_AHEAD = 2000  # tasks per worker that a host may hold, however short they are
SPECULATE_AFTER = 5  # finished tasks, before anything can be called slow
SLOW_FACTOR = 3.0
SLOW_SECONDS = 1.0
MAX_COPIES = 2
_SAMPLES = 1001

HostId = Hashable


@dataclass(frozen=True)
class Assign:
    """Send these tasks to this host. workers: the worker each must run on, or None for any."""

    host: HostId
    tasks: tuple[int, ...]
    workers: tuple[int | None, ...]


@dataclass(frozen=True)
class Revoke:
    """Ask this host for those of these tasks that it has not started."""

    host: HostId
    tasks: tuple[int, ...]


@dataclass(frozen=True)
class Cancel:
    """End these tasks at this host: another copy has answered, or the call is over."""

    host: HostId
    tasks: tuple[int, ...]


Action = Assign | Revoke | Cancel


@dataclass
class _Host:
    workers: int
    horizon: float
    queue: deque[int] = field(default_factory=deque)
    held: dict[int, float] = field(default_factory=dict)  # task -> when it was assigned
    asked: deque[tuple[int, ...]] = field(default_factory=deque)  # revocations not yet answered
    started: dict[int, float] = field(default_factory=dict)  # tasks it said are running
    answered: bool = True  # since `progress`, which is when it last got on, as far as we looked
    progress: float = 0.0

    @property
    def load(self) -> float:
        return (len(self.held) + len(self.queue)) / self.workers


class Scheduler:
    """One map call over hosts that come and go. A host with 0 workers is about to leave.

    tasks: how many, numbered from 0. speculate: whether slow tasks may run twice. move_seconds:
    what it costs to run a task elsewhere than at home. homes: where tasks should be at home."""

    def __init__(
        self,
        tasks: int,
        *,
        speculate: bool = True,
        max_kills: int = MAX_KILLS,
        move_seconds: float = 0.0,
        homes: Mapping[int, HostId] | None = None,
    ):
        self.tasks = tasks
        self.retried = 0
        self._speculate = speculate
        self._max_kills = max_kills
        self._move_seconds = move_seconds
        self._homes = homes or {}
        self._hosts: dict[HostId, _Host] = {}
        self._homeless: deque[int] = deque(range(tasks))  # tasks that no living host has queued
        self._pinned: dict[int, tuple[HostId, int]] = {}
        self._done = bytearray(tasks)
        self._left = tasks
        self._holders: dict[int, list[HostId]] = {}  # running copies
        self._kills: dict[int, int] = {}
        self._samples: list[float] = []  # sorted run times, a bounded sample
        self._mean: float | None = None
        self._moved: set[int] = set()  # pinned tasks that had to move
        self._cancels: list[Cancel] = []

    # --- what happened ---------------------------------------------------------------------

    def add_host(
        self, host: HostId, workers: int, horizon: float = HORIZON, *, settle: bool = True
    ) -> None:
        """A host is there, or back, or stays after all. workers: at least 1. settle: give it its
        share of the tasks; not so for a call whose tasks are about to be pinned."""
        there = self._hosts.setdefault(host, _Host(0, horizon))
        if there.workers:
            raise ValueError(f"host {host!r} is already there")
        there.workers = max(1, workers)
        if settle:
            self._settle()

    def extend(self, count: int) -> range:
        """So many more tasks, behind all others; their numbers. Their homes are where there is
        least to do."""
        more = range(self.tasks, self.tasks + count)
        self.tasks += count
        self._left += count
        self._done.extend(bytes(count))
        staying = [host for host in self._hosts.values() if host.workers]
        for task in more:
            if staying:
                idlest = min(staying, key=lambda host: host.load)
                idlest.queue.append(task)
            else:
                self._homeless.append(task)
        return more

    def pin(self, homes: Sequence[tuple[HostId, int]]) -> None:
        """Task i belongs to worker homes[i][1] of host homes[i][0]: never stolen, copied, batched.

        Tasks beyond the homes may run anywhere."""
        self._homeless = deque(range(len(homes), self.tasks))
        self._pinned = dict(enumerate(homes))
        for task, (host, _) in enumerate(homes):
            self._hosts[host].queue.append(task)
        if self._homeless:
            self._settle()

    def remove_host(self, host: HostId) -> None:
        """A host is gone: what it held or had queued goes to others."""
        gone = self._hosts.pop(host, None)
        if gone is None:
            return
        back = []
        for task in list(gone.held):
            if self._release(task, host):
                self.retried += 1
                back.append(task)
        self._scatter([*back, *gone.queue])

    def retire_host(self, host: HostId) -> None:
        """A host is to leave: it may end what it runs, and gets nothing more. Once nothing is
        outstanding there, `remove_host` takes nothing from it."""
        there = self._hosts.get(host)
        if there is not None and there.workers:
            there.workers = 0
            queued = list(there.queue)
            there.queue.clear()
            self._scatter(queued)

    def _scatter(self, tasks: Iterable[int]) -> None:
        """New homes for tasks that lost theirs."""
        back = sorted(task for task in tasks if not self._done[task])
        for task in back:
            if task in self._pinned:
                del self._pinned[task]
                self._moved.add(task)
        self._homeless.extendleft(reversed(back))
        self._settle()

    def running(self, host: HostId, tasks: Iterable[int], now: float) -> None:
        """The host says that these tasks have been started."""
        there = self._hosts.get(host)
        if there is not None:
            for task in tasks:
                if task in there.held:
                    there.started.setdefault(task, now)

    def finished(self, host: HostId, task: int, seconds: float) -> bool:
        """An answer (or an exception) came; False if it is late, and must not be used."""
        if not 0 <= task < self.tasks or self._done[task]:
            self._forget(task, host)
            return False
        self._done[task] = 1
        self._left -= 1
        self._sample(seconds)
        if host in self._hosts:
            self._hosts[host].answered = True
        for holder in self._holders.pop(task, ()):
            self._drop(self._hosts[holder], task)
            if holder != host:
                self._cancels.append(Cancel(holder, (task,)))
        return True

    def killed(self, host: HostId, task: int) -> bool:
        """The worker that ran the task died. False if the task has now killed too many."""
        if not 0 <= task < self.tasks or self._done[task]:
            self._forget(task, host)
            return True
        self._kills[task] = self._kills.get(task, 0) + 1
        fatal = self._kills[task] >= self._max_kills
        if self._release(task, host) and not fatal:
            self.retried += 1
            self._requeue(task, avoid=host)
        return not fatal

    def kills(self, task: int) -> int:
        """How many workers this task has killed."""
        return self._kills.get(task, 0)

    def revoked(self, host: HostId, tasks: Iterable[int]) -> None:
        """The host answered the oldest revocation: it gave these back, and has started the rest."""
        there = self._hosts.get(host)
        if there is not None and there.asked:
            given = set(tasks)
            for task in there.asked.popleft():
                if task in there.held and task not in given:
                    there.started.setdefault(task, there.held[task])
        for task in tasks:
            if self._release(task, host):
                self._requeue(task, avoid=host)

    # --- what to do ------------------------------------------------------------------------

    def actions(self, now: float, only: int | None = None) -> list[Action]:
        """What to send now. only: hand out this task and no other (the fold waits for it)."""
        out: list[Action] = list(self._cancels)
        self._cancels.clear()
        for host in self._hosts.values():
            if host.answered or not host.held:
                host.answered, host.progress = False, now
        given: dict[HostId, list[int]] = {}
        for name, host in self._hosts.items():
            given[name] = self._take_only(name, host, only) if only is not None else []
            if only is None:
                given[name] = self._take_own(host)
            self._hold(name, host, given[name], now)
        if only is None and not self._pinned:
            for name, host in self._hosts.items():  # after all have taken what is theirs
                stolen = self._steal(host, now)
                given[name] += stolen
                self._hold(name, host, stolen, now)
        for name, chosen in given.items():
            if chosen:
                workers: tuple[int | None, ...] = (None,) * len(chosen)
                if self._pinned:
                    workers = tuple(self._pinned.get(task, (None, None))[1] for task in chosen)
                out.append(Assign(name, tuple(chosen), workers))
        if only is None and self._left:
            self._rebalance(now, out)
        return out

    def abandon(self) -> list[Action]:
        """The call is over: end whatever still runs."""
        out: list[Action] = [
            Cancel(name, tuple(host.held)) for name, host in self._hosts.items() if host.held
        ]
        for host in self._hosts.values():
            host.held.clear()
            host.queue.clear()
        self._holders.clear()
        return out

    def __contains__(self, host: HostId) -> bool:
        return host in self._hosts

    @property
    def done(self) -> int:
        return self.tasks - self._left

    @property
    def left(self) -> int:
        return self._left

    @property
    def moved(self) -> frozenset[int]:
        """Pinned tasks that ran elsewhere, because their host was lost."""
        return frozenset(self._moved)

    def held(self) -> Iterator[tuple[int, HostId, bool, float]]:
        """(task, host, running, since) of what hosts hold: they run it, or have it, since then. A
        task with two copies comes twice."""
        for name, host in self._hosts.items():
            for task, since in host.held.items():
                started = host.started.get(task)
                yield task, name, started is not None, since if started is None else started

    def queued(self) -> dict[HostId | None, int]:
        """How many tasks wait for their turn at each host; None: for any host."""
        counts: dict[HostId | None, int] = {
            name: len(host.queue) for name, host in self._hosts.items()
        }
        counts[None] = len(self._homeless)
        return counts

    def outstanding(self, host: HostId) -> int:
        return len(self._hosts[host].held) if host in self._hosts else 0

    # --- inside ----------------------------------------------------------------------------

    def _settle(self) -> None:
        """Give homeless tasks homes, in proportion to the workers, in the order of the numbers.

        As long as nothing has been handed out, tasks that have a home are settled anew: hosts
        that connect one after the other divide the work as if they had come together."""
        total = sum(host.workers for host in self._hosts.values())
        if not total:
            return
        if not self._holders and not self.done and not self._pinned:
            for host in self._hosts.values():
                host.queue.clear()
            self._homeless.clear()
            for task in range(self.tasks):
                home = self._hosts.get(self._homes.get(task))
                (self._homeless if home is None else home.queue).append(task)
        tasks = list(self._homeless)
        self._homeless.clear()
        start = taken = 0
        for host in self._hosts.values():
            taken += host.workers
            end = len(tasks) * taken // total
            host.queue.extendleft(reversed(tasks[start:end]))
            start = end

    def _requeue(self, task: int, avoid: HostId) -> None:
        """Back into a queue, at the front: of the least loaded host, if possible another one."""
        self._pinned.pop(task, None)
        staying = [name for name, host in self._hosts.items() if host.workers]
        others = [name for name in staying if name != avoid] or staying
        if not others:
            self._homeless.appendleft(task)
            return

        idlest = min(others, key=lambda name: self._hosts[name].load)
        self._hosts[idlest].queue.appendleft(task)

    def _limit(self, host: _Host) -> int:
        ahead = 1
        if self._mean is not None:
            ahead = max(1, min(MAX_AHEAD, int(host.horizon / max(self._mean, 1e-6))))
        return host.workers * (1 + ahead)

    def _hold(self, name: HostId, host: _Host, tasks: Sequence[int], now: float) -> None:
        for task in tasks:
            host.held[task] = now
            self._holders.setdefault(task, []).append(name)

    def _take_own(self, host: _Host) -> list[int]:
        """Tasks out of a host's own queue, as many as it may hold."""
        room = len(host.queue) if self._pinned else self._limit(host) - len(host.held)
        chosen: list[int] = []
        while room > 0 and host.queue:
            task = host.queue.popleft()
            if not self._done[task]:
                chosen.append(task)
                room -= 1
        return chosen

    def _steal(self, host: _Host, now: float) -> list[int]:
        """Tasks out of the longest queues, for a host that has idle workers."""
        chosen: list[int] = []
        room = self._limit(host) - len(host.held)
        while room > 0 and len(host.held) + len(chosen) < host.workers:
            victim = max(self._hosts.values(), key=lambda other: len(other.queue))
            if not victim.queue or not self._worth_moving(victim, now):
                break
            for _ in range(max(1, min(room, len(victim.queue) // 2))):
                task = victim.queue.pop()
                if not self._done[task]:
                    chosen.append(task)
                    room -= 1
        return chosen

    def _worth_moving(self, victim: _Host, now: float) -> bool:
        """Whether a task would wait longer at this host than it costs to move it."""
        if not self._move_seconds:
            return True
        queued = (
            (len(victim.held) + len(victim.queue)) / max(1, victim.workers) * (self._mean or 0.0)
        )
        return max(queued, now - victim.progress) > self._move_seconds

    def _take_only(self, name: HostId, host: _Host, only: int) -> list[int]:
        if self._done[only] or len(host.held) >= self._limit(host):
            return []
        holders = self._holders.get(only, [])
        if name in holders or len(holders) >= MAX_COPIES or (holders and only in self._pinned):
            return []
        for other in self._hosts.values():
            try:
                other.queue.remove(only)
            except ValueError:
                continue
        return [only]

    def _rebalance(self, now: float, out: list[Action]) -> None:
        """Work for idle workers out of what other hosts hold: revoke, or run a second copy."""
        if any(host.queue for host in self._hosts.values()):
            return
        for name, host in self._hosts.items():
            idle = host.workers - len(host.held)
            if idle <= 0:
                continue
            idle -= self._revoke_for(name, idle, now, out)
            if idle > 0 and self._speculate:
                self._copy_for(name, host, idle, now, out)

    def _revoke_for(self, name: HostId, idle: int, now: float, out: list[Action]) -> int:
        asked = 0
        under_way = sum(len(tasks) for host in self._hosts.values() for tasks in host.asked)
        idle -= under_way
        while idle > asked:
            spare = [
                (len(other.held) - sum(map(len, other.asked)) - other.workers, key)
                for key, other in self._hosts.items()
                if key != name and self._worth_moving(other, now)
            ]
            surplus, key = max(spare, default=(0, None), key=lambda pair: pair[0])
            if key is None or surplus <= 0:
                break
            victim = self._hosts[key]
            asked_before = {task for tasks in victim.asked for task in tasks}
            candidates = [
                task
                for task in reversed(victim.held)
                if task not in asked_before
                and task not in victim.started
                and task not in self._pinned
            ][: min(idle - asked, max(1, surplus // 2))]
            if not candidates:
                break
            victim.asked.append(tuple(candidates))
            out.append(Revoke(key, tuple(candidates)))
            asked += len(candidates)
        return asked + under_way

    def _copy_for(
        self, name: HostId, host: _Host, idle: int, now: float, out: list[Action]
    ) -> None:
        if len(self._samples) < SPECULATE_AFTER:
            return
        slow = max(SLOW_SECONDS, SLOW_FACTOR * self._samples[len(self._samples) // 2])
        late = []
        for other in self._hosts.values():
            for task, since in other.held.items():
                if (
                    now - other.started.get(task, since) > slow
                    and len(self._holders[task]) < MAX_COPIES
                    and task not in host.held
                    and task not in self._pinned
                ):
                    late.append((since, task))
        for _, task in sorted(late)[:idle]:
            host.held[task] = now
            self._holders[task].append(name)
            out.append(Assign(name, (task,), (None,)))

    def _release(self, task: int, host: HostId) -> bool:
        """The host no longer runs the task; True if nobody else does and it is not done."""
        self._forget(task, host)
        return not self._done[task] and task not in self._holders

    def _forget(self, task: int, host: HostId) -> None:
        there = self._hosts.get(host)
        if there is not None:
            self._drop(there, task)
        holders = self._holders.get(task)
        if holders and host in holders:
            holders.remove(host)
            if not holders:
                del self._holders[task]

    def _drop(self, host: _Host, task: int) -> None:
        host.held.pop(task, None)
        if host.started:
            host.started.pop(task, None)

    def _sample(self, seconds: float) -> None:
        self._mean = seconds if self._mean is None else 0.9 * self._mean + 0.1 * seconds
        samples = self._samples
        if len(samples) >= _SAMPLES:
            del samples[self.done % len(samples)]
        bisect.insort(samples, seconds)
