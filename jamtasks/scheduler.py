"""Who does what in one map call: assign, requeue, revoke, speculate. Pure: no I/O, thread or clock.

The scheduler is told what happened (`add_host`, `finished`, `killed`, ...) and asked what to do
next (`actions`). Times are seconds on any clock that does not go back.

The rules:

* Every task has a home host, by a split of the task numbers in proportion to the workers: the same
  tasks on the same hosts go to the same places, where their data already is.
* A host holds as many tasks as it has workers, and enough on top to be busy for `HORIZON` and one
  round trip.
* A host with an idle worker takes queued tasks from the longest queue (per worker), then has tasks
  revoked that others hold but have not started, then (if allowed) runs a second copy of a task that
  takes much longer than its like. The first answer wins. Where moving a task costs something
  (`move_seconds`, because its data would have to be sent, and the round trips), it moves only if it
  would wait longer where it is; if its data seems to lie there already, only if it would wait for
  `STAY`, too.
* A worker's or host's death returns its tasks: they go before all others, to whichever host has
  room first, if possible not the one that they come from. A task that has killed `max_kills`
  workers is given up; the death of a host is not held against its tasks.
* Pinned tasks (no dataset: call i belongs to worker i) stay where they are until that host is lost;
  one whose worker died goes to the worker that takes its place.
"""

from __future__ import annotations

import bisect
import itertools
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .holding import Holding, Host, HostId

MAX_KILLS = 3
STAY = 0.5  # seconds that a task must gain, if that means to send what a host has already
HORIZON = 0.1  # seconds of work a host holds beyond one task per worker, and its round trip
MAX_AHEAD = 2000  # tasks per worker that a host may hold, however short they are
SPECULATE_AFTER = 5  # finished tasks, before anything can be called slow
SLOW_FACTOR = 2.0
SLOW_SECONDS = 1.0
MAX_COPIES = 2
_SAMPLES = 1001
_SAMPLE_EVERY = 8  # once there are so many


@dataclass(frozen=True)
class Assign:
    """Send these tasks to this host. workers: the worker each must run on, or None for any. last:
    and a Yield behind them."""

    host: HostId
    tasks: tuple[int, ...]
    workers: tuple[int | None, ...]
    last: bool = False


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


@dataclass(frozen=True)
class Yield:
    """This host is to answer what it keeps as soon as it has nothing to do (`combining`)."""

    host: HostId


Action = Assign | Revoke | Cancel | Yield


class Scheduler(Holding):
    """One map call over hosts that come and go. A host with 0 workers is about to leave.

    tasks: how many, numbered from 0. speculate: whether slow tasks may run twice. move_seconds:
    what it costs to run a task where its data is not. homes: at which hosts that of some tasks is
    known to be; they should be at home at the first of them that is there."""

    MOST_COPIES = MAX_COPIES  # of a task at a time

    def __init__(
        self,
        tasks: int,
        *,
        speculate: bool = True,
        max_kills: int = MAX_KILLS,
        move_seconds: float = 0.0,
        homes: Mapping[int, Sequence[HostId]] | None = None,
    ):
        super().__init__(tasks)
        self.retried = 0
        self._speculate = speculate
        self._max_kills = max_kills
        self._move_seconds = move_seconds
        self._homes = homes or {}
        self._came = self._staying = 0  # hosts: ever, and now without those about to leave
        self._asking = 0  # tasks in revocations that are not answered
        self._homeless: deque[int] = deque(range(tasks))  # tasks that no living host has queued
        self._unsettled = False
        self._more: deque[int] = deque()  # tasks that came later, and are at home nowhere
        self._hungry: OrderedDict[Host, None] = OrderedDict()  # hosts with room, and nothing to do
        self._returned: deque[tuple[int, HostId]] = deque()  # tasks, and where they come from
        self._pinned: dict[int, tuple[HostId, int]] = {}
        self._kills: dict[int, int] = {}
        self._samples: list[float] = []  # sorted run times, a bounded sample
        self._mean: float | None = None
        self._moved: set[int] = set()  # pinned tasks that had to move
        self._cancels: list[Cancel] = []

    # --- what happened ---------------------------------------------------------------------

    def add_host(
        self, host: HostId, workers: int, *, round_trip: float = 0.0, settle: bool = True
    ) -> None:
        """A host is there, or back, or stays after all. workers: at least 1. round_trip: seconds,
        at most. settle: give it its share of the tasks; not so for a call whose tasks are about to
        be pinned."""
        there = self._hosts.get(host)
        if there is None:
            self._came += 1
            there = self._hosts[host] = Host(host, self._came, 0, round_trip)
        elif there.workers:
            raise ValueError(f"host {host!r} is already there")
        self._staying += 1
        self._staff(there, max(1, workers))
        self._unsettled = self._unsettled or settle

    def extend(self, count: int) -> range:
        """So many more tasks, behind all others; their numbers. They are at home wherever there is
        room first."""
        more = range(self.tasks, self.tasks + count)
        self.tasks += count
        self._left += count
        self._done.extend(bytes(count))
        self._more.extend(more)
        return more

    def pin(self, homes: Sequence[tuple[HostId, int]]) -> None:
        """Task i belongs to worker homes[i][1] of host homes[i][0]: never stolen, copied, batched.

        Tasks beyond the homes may run anywhere."""
        self._homeless = deque(range(len(homes), self.tasks))
        self._pinned = dict(enumerate(homes))
        for task, (host, _) in enumerate(homes):
            self._hosts[host].queue.append(task)
        self._unsettled = bool(self._homeless)

    def again(self, given: Mapping[HostId, Iterable[int]], now: float) -> None:
        """All tasks were done; now all are under way once more. given: which of them each host has,
        and no other has. now: since when."""
        for host in self._hosts.values():
            for task in list(host.held):
                self._drop(host, task)
        self._done = bytearray(self.tasks)
        self._left = self.tasks
        self._holders.clear()
        self._ages = None
        for name, tasks in given.items():
            for task in sorted(tasks):
                self._hold(self._hosts[name], task, now)

    def remove_host(self, host: HostId) -> None:
        """A host is gone: what it held or had queued goes to others."""
        gone = self._hosts.get(host)
        if gone is None:
            return
        self.retire_host(host)
        held = sorted(task for task in list(gone.held) if self._release(task, host))
        self.retried += len(held)
        self._move(held)
        for task in held:
            self._return(task, host)
        self._asking -= gone.asking
        self._touched.pop(gone, None)
        del self._hosts[host]

    def retire_host(self, host: HostId) -> None:
        """A host is to leave: it may end what it runs, and gets nothing more. Once nothing is
        outstanding there, `remove_host` takes nothing from it."""
        there = self._hosts.get(host)
        if there is None or not there.workers:
            return
        self._staying -= 1
        self._staff(there, 0)
        queued = sorted(task for task in there.queue if self._is_free(task))
        there.queue.clear()
        self._move(queued)
        self._homeless.extendleft(reversed(queued))
        self._unsettled = True

    def _move(self, tasks: Iterable[int]) -> None:
        self._moved.update(task for task in tasks if self._pinned.pop(task, None))

    def running(self, host: HostId, tasks: Iterable[int], now: float) -> None:
        """The host says that these tasks have been started, and take a while.

        What was in a hand with one of them is not any more: it may be asked for again."""
        there = self._hosts.get(host)
        if there is not None:
            for task in tasks:
                if task in there.held:
                    there.started.setdefault(task, now)
            there.refused.clear()
            self._spares.grew(there)

    def finished(
        self, host: HostId, task: int, seconds: float | None, now: float | None = None
    ) -> bool:
        """An answer came, after so many seconds of work (None: unknown, it failed). now: to learn
        how much longer that took from here, which is a round trip at least.

        False if it is late, and must not be used."""
        if not 0 <= task < self.tasks or self._done[task]:
            return False
        self._done[task] = 1
        self._left -= 1
        if seconds is not None:
            self._sample(seconds)
        there = self._hosts.get(host)
        if there is not None:
            there.answered = True
            if now is not None and seconds is not None and task in there.held:
                there.learn(now - there.held[task] - seconds)
        for holder in self._holders.pop(task, ()):
            self._drop(holder, task)
            if holder is not there:
                self._cancels.append(Cancel(holder.name, (task,)))
        return True

    def killed(self, host: HostId, task: int) -> bool:
        """The worker that ran the task died. False if the task has now killed too many."""
        if not 0 <= task < self.tasks or self._done[task]:
            return True
        self._kills[task] = self._kills.get(task, 0) + 1
        fatal = self._kills[task] >= self._max_kills
        if self._release(task, host) and not fatal:
            self.retried += 1
            self._return(task, host)
        return not fatal

    def lacked(self, host: HostId, count: int) -> None:
        """The host does not have the data of so many of the tasks that it was given."""
        if host in self._hosts:
            self._hosts[host].lacked += count

    def kills(self, task: int) -> int:
        """How many workers this task has killed."""
        return self._kills.get(task, 0)

    def revoked(self, host: HostId, tasks: Iterable[int]) -> None:
        """The host answered the oldest revocation: it gave these back. The rest it has started, or
        a worker has it in hand behind a task that seemed short."""
        there = self._hosts.get(host)
        if there is not None and there.asked:
            given, asked = set(tasks), there.asked.popleft()
            there.asking -= len(asked)
            self._asking -= len(asked)
            self._spares.grew(there)
            for task in asked:
                if task in there.held and task not in given and task not in there.started:
                    there.refused[task] = None
        for task in tasks:
            if 0 <= task < self.tasks and self._release(task, host):
                self._return(task, host)

    # --- what to do ------------------------------------------------------------------------

    def actions(self, now: float, only: int | None = None) -> list[Action]:
        """What to send now. only: hand out this task and no other (the fold waits for it)."""
        out: list[Action] = list(self._cancels)
        self._cancels.clear()
        if self._unsettled:
            self._settle()
        for host in self._touched:
            if host.answered:
                host.answered, host.progress = False, now
        given: dict[Host, list[int]] = {}
        if only is not None:
            self._hand_out_only(only, given, now)
        else:
            self._hand_out(given, now)
        for host, tasks in given.items():
            workers: tuple[int | None, ...] = (None,) * len(tasks)
            if self._pinned:
                workers = tuple(self._pinned.get(task, (None, None))[1] for task in tasks)
            out.append(Assign(host.name, tuple(tasks), workers))
        if only is None and self._idle_workers and self._left and not self._pinned:
            self._rebalance(now, out)
        return out

    def abandon(self) -> list[Action]:
        """The call is over: end whatever still runs."""
        out: list[Action] = [*self._cancels]
        out += [Cancel(name, tuple(host.held)) for name, host in self._hosts.items() if host.held]
        self._cancels.clear()
        for host in self._hosts.values():
            host.held.clear()
            host.queue.clear()
        self._holders.clear()
        return out

    @property
    def moved(self) -> frozenset[int]:
        """Pinned tasks that ran elsewhere, because their host was lost."""
        return frozenset(self._moved)

    def queued(self) -> dict[HostId | None, int]:
        """How many tasks wait for their turn at each host; None: for any host."""
        counts: dict[HostId | None, int] = {
            name: len(host.queue) for name, host in self._hosts.items()
        }
        counts[None] = len(self._homeless) + len(self._returned) + len(self._more)
        return counts

    # --- who gets what ---------------------------------------------------------------------

    def _settle(self) -> None:
        """Give homeless tasks homes, in proportion to the workers, in the order of the numbers.

        As long as nothing has been handed out, tasks that have a home are settled anew: hosts
        that connect one after the other divide the work as if they had come together."""
        if not self._staying:
            return
        self._unsettled = False
        if not self._holders and not self.done and not self._pinned:
            for host in self._hosts.values():
                host.queue.clear()
                self._queues.grew(host)
                self._touched[host] = None
            self._homeless.clear()
            self._returned.clear()
            self._more.clear()
            for task in range(self.tasks):
                home = self._home(task)
                (self._homeless if home is None else home.queue).append(task)
        if not self._homeless:
            return
        tasks = list(self._homeless)
        self._homeless.clear()
        start = taken = 0
        for host in self._hosts.values():
            taken += host.workers
            end = self._end_of_share(tasks, taken)
            if end > start:
                host.queue.extendleft(reversed(tasks[start:end]))
                self._queues.grew(host)
                self._touched[host] = None
            start = end

    def _home(self, task: int) -> Host | None:
        """The host to which the task belongs because of its data."""
        for name in self._homes.get(task, ()):
            host = self._hosts.get(name)
            if host is not None and host.workers:
                return host
        return None

    def _end_of_share(self, tasks: Sequence[int], workers: int) -> int:
        """How many of these tasks, of the first, so many of the workers get."""
        return len(tasks) * workers // self.workers

    def _return(self, task: int, source: HostId) -> None:
        """To be handed out again, before all others, and if possible not to where it was."""
        home = self._hosts.get(self._pinned[task][0]) if task in self._pinned else None
        if home is not None and home.workers:
            home.queue.appendleft(task)
            self._touched[home] = None
            return
        self._move([task])
        self._returned.append((task, source))

    def _limit(self, host: Host) -> int:
        """How many tasks it may hold."""
        horizon = HORIZON + host.round_trip
        if self._mean is None or 2 * self._mean > horizon:
            return 2 * host.workers
        return host.workers * (1 + min(MAX_AHEAD, int(horizon / max(self._mean, 1e-6))))

    def _hand_out(self, given: dict[Host, list[int]], now: float) -> None:
        """Returned tasks and its own to each host with room, then those of others to idle ones."""
        for host in self._touched:
            room = self._limit(host) - len(host.held)
            while room > 0 and self._returned and not self._pinned:
                if self._returned[0][1] == host.name and self._staying > 1:
                    break
                room -= self._give(host, self._returned.popleft()[0], given, now)
            if self._pinned:
                room = len(host.queue)
            while room > 0 and host.queue:
                room -= self._give(host, host.queue.popleft(), given, now)
            if room > 0:
                self._hungry[host] = None
        self._touched.clear()
        while self._returned and self._idle:
            task, source = self._returned.popleft()
            others = (host for host in self._idle if host.name != source)
            self._give(next(others, next(iter(self._idle))), task, given, now)
        if self._more:
            self._hand_out_more(given, now)
        while self._idle and not self._pinned:
            victim = self._queues.first()
            if victim is None or not self._steal(victim, given, now):
                break

    def _hand_out_more(self, given: dict[Host, list[int]], now: float) -> None:
        """Tasks that are at home nowhere: to idle workers, then to whoever has room."""
        while self._more and self._idle:
            self._give(next(iter(self._idle)), self._more.popleft(), given, now)
        while self._more and self._hungry:
            host, _ = self._hungry.popitem(last=False)
            room = self._limit(host) - len(host.held)
            while self._more and room > 0:
                room -= self._give(host, self._more.popleft(), given, now)
            if room > 0:
                self._hungry[host] = None

    def _give(self, host: Host, task: int, given: dict[Host, list[int]], now: float) -> bool:
        """Hand out a task, if it still needs that."""
        if not self._is_free(task):
            return False
        self._hold(host, task, now)
        if host in given:
            given[host].append(task)
        else:
            given[host] = [task]
        return True

    def _steal(self, victim: Host, given: dict[Host, list[int]], now: float) -> bool:
        """Tasks out of a queue, for the host that has been idle for longest."""
        thief = next(iter(self._idle))
        if not self._worth_moving(victim.queue[-1], victim, thief, thief.round_trip, now):
            self._idle.move_to_end(thief)  # next time another one, which may be nearer
            return False
        room = self._limit(thief) - len(thief.held)
        for _ in range(max(1, min(room, len(victim.queue) // 2))):
            self._give(thief, victim.queue.pop(), given, now)
        return True

    def _worth_moving(
        self, task: int, victim: Host, thief: Host, round_trips: float, now: float
    ) -> bool:
        """Whether the task would wait longer at the one host than it costs to move it."""
        cost = round_trips + self._cost(victim, thief, task)
        if not cost:
            return True
        queued = (len(victim.held) + len(victim.queue)) / max(1, victim.workers)
        return max(queued * (self._mean or 0.0), now - victim.progress) > cost

    def _cost(self, victim: Host, thief: Host, task: int) -> float:
        """Of the data that has to be sent, in seconds."""
        if not self._move_seconds or thief.name in self._homes.get(task, ()):
            return 0.0
        return self._move_seconds + (STAY if victim.has_its_data() else 0.0)

    def _hand_out_only(self, only: int, given: dict[Host, list[int]], now: float) -> None:
        """This task, to two hosts with room; it stays in its queue, to be passed over.

        To those first that have its data. A second one that does not, has to wait for a while."""
        pin = self._pinned.get(only)
        copies = 1 if pin else self.MOST_COPIES
        holders = self._holders.get(only, ())
        if self._done[only] or len(holders) >= copies:
            return
        near = self._homes.get(only, ())
        known = [self._hosts[name] for name in near if name in self._hosts]
        idle = list(itertools.islice(self._idle, 2 * copies))
        for host in itertools.chain(known, idle, self._hosts.values()):
            if pin and host.name != pin[0]:
                continue
            if only in host.held or len(host.held) >= self._limit(host):
                continue
            if holders and self._move_seconds and host.name not in near:
                first = holders[0]
                if now - first.held.get(only, now) <= self._cost(first, host, only):
                    continue
            self._hold(host, only, now)
            given[host] = [only]
            holders = self._holders[only]
            if len(holders) >= copies:
                return

    def _rebalance(self, now: float, out: list[Action]) -> None:
        """Work for idle workers out of what other hosts hold: revoke, or run a second copy."""
        if self._queues.first() is not None:
            return
        want = self._idle_workers - self._asking
        while want > 0:
            victim = self._spares.first()
            if victim is None:
                break
            thief = next(iter(self._idle))
            trips = victim.round_trip + thief.round_trip
            tasks = self._revocable(victim, min(want, max(1, victim.spare() // 2)))
            if not tasks or not self._worth_moving(tasks[0], victim, thief, trips, now):
                break
            victim.asked.append(tasks)
            victim.asking += len(tasks)
            self._asking += len(tasks)
            want -= len(tasks)
            out.append(Revoke(victim.name, tasks))
        if want > 0 and self._speculate and len(self._samples) >= SPECULATE_AFTER:
            self._copy(want, now, out)

    def _revocable(self, victim: Host, count: int) -> tuple[int, ...]:
        """The last tasks that this host was given, of those that it may not have started."""
        asked = {task for tasks in victim.asked for task in tasks}
        tasks = (
            task
            for task in reversed(victim.held)
            if not (task in asked or task in victim.started or task in victim.refused)
        )
        return tuple(itertools.islice(tasks, count))

    def _copy(self, want: int, now: float, out: list[Action]) -> None:
        """Second copies of the tasks that have run for longest, if that is too long."""
        slow = max(SLOW_SECONDS, SLOW_FACTOR * self._samples[len(self._samples) // 2])
        aside = []
        while want > 0:
            task = self._oldest(now - slow)
            if task is None:
                break
            (holder,) = self._holders[task]
            host = next((host for host in self._idle if host is not holder), None)
            if host is None:
                aside.append((task, holder.begun(task)))  # only its own host has idle workers
                continue
            self._hold(host, task, now)
            out.append(Assign(host.name, (task,), (None,)))
            want -= 1
        for task, since in aside:
            self._watch(task, since)

    def _sample(self, seconds: float) -> None:
        self._mean = seconds if self._mean is None else 0.9 * self._mean + 0.1 * seconds
        samples = self._samples
        if len(samples) >= _SAMPLES:
            if self._left % _SAMPLE_EVERY:
                return
            del samples[self._left % _SAMPLES]
        bisect.insort(samples, seconds)
