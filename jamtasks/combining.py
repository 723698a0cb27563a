"""Who does what where hosts combine their answers. Pure, like the scheduler that it adds to.

A host that has computed a slice says so, and keeps it; in the end it answers with blocks of slices,
joined along the tree (`worker_payload.tree`). What is kept is lost with its host: it goes back to
be done again. No slice is ever at two hosts, so none can be in two blocks: there are no second
copies, and what is kept is not asked back.

Hosts get contiguous shares, cut where large blocks end. A host is told once (`Yield`) that it is
to answer what it has whenever it has nothing to do: when it has nothing to do for the first time,
or as soon as every task is at some host, together with its last ones, which costs no round trip.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from worker_payload.tree import is_block
from worker_payload.wire import ProtocolError

from .errors import UsageError
from .holding import Host, HostId
from .scheduler import Action, Assign, Cancel, Scheduler, Yield

FIRST = 4  # tasks for each worker, before anybody knows how long they take
GRAIN = 4  # shares are cut at multiples of a block that is at most this part of a worker's share


def check(combine: str | None) -> bool:
    """Whether answers are to be combined. Raises UsageError for words that mean nothing."""
    if combine not in (None, "host"):
        raise UsageError(
            f"combine={combine!r} means nothing", 'write combine="host", or leave it out'
        )
    return combine is not None


class Combining(Scheduler):
    """One map call whose hosts keep what they computed, and answer blocks of it."""

    MOST_COPIES = 1

    def __init__(
        self,
        tasks: int,
        *,
        move_seconds: float = 0.0,
        homes: Mapping[int, Sequence[HostId]] | None = None,
    ):
        super().__init__(tasks, speculate=False, move_seconds=move_seconds, homes=homes)
        self._kept: dict[HostId, dict[int, None]] = {}
        self._told: set[Host] = set()  # hosts that answer whenever they have nothing to do
        self._untold: dict[Host, None] = {}  # others, that were given tasks
        self._emptied: dict[Host, None] = {}  # hosts that had nothing left to do, at some time

    @property
    def kept(self) -> int:
        """Slices that were computed, and whose answers are kept at the hosts."""
        return sum(map(len, self._kept.values()))

    # --- what happened ---------------------------------------------------------------------

    def again(self, given: Mapping[HostId, Iterable[int]], now: float) -> None:
        super().again(given, now)
        self._untold.clear()
        self._told = {self._hosts[name] for name in given}

    def keeps(self, host: HostId, task: int, seconds: float, now: float) -> bool:
        """The host computed this slice in so many seconds, and keeps the answer.

        False if it does not hold it (any more)."""
        there = self._hosts.get(host)
        if there is None or task not in there.held:
            return False
        there.answered = True
        there.learn(now - there.held[task] - seconds)
        self._sample(seconds)
        self._drop(there, task)  # it remains its holder: nobody else gets the slice
        self._kept.setdefault(host, {})[task] = None
        return True

    def block(self, host: HostId, first: int, count: int) -> bool:
        """The host's answer for these slices is here, and is to be used; False if it is late.

        Raises ProtocolError if they are no block of the tree, or the host was not to do them."""
        there = self._hosts.get(host)
        if there is None:
            return False
        slices = range(first, first + count)
        if not is_block(first, count, self.tasks):
            raise ProtocolError(f"an answer for {count} slices from {first} on, which are no block")
        kept = self._kept.get(host, {})
        if not all(task in kept or task in there.held for task in slices):
            if all(self._done[task] for task in slices):
                return False
            raise ProtocolError(
                f"an answer for slices {first} to {slices[-1]}, not all of them its"
            )
        for task in slices:
            kept.pop(task, None)
            self.finished(host, task, None)
        return True

    def killed(self, host: HostId, task: int) -> bool:
        return task in self._kept.get(host, ()) or super().killed(host, task)

    def revoked(self, host: HostId, tasks: Iterable[int]) -> None:
        kept = self._kept.get(host, {})
        super().revoked(host, [task for task in tasks if task not in kept])

    def remove_host(self, host: HostId) -> None:
        gone = self._hosts.get(host)
        if gone is None:
            return
        self.retire_host(host)  # it has no workers from here on, and so none that are idle
        gone.held.update(dict.fromkeys(self._kept.pop(host, {}), 0.0))
        super().remove_host(host)
        self._told.discard(gone)
        self._untold.pop(gone, None)
        self._emptied.pop(gone, None)

    def outstanding(self, host: HostId) -> int:
        return super().outstanding(host) + len(self._kept.get(host, ()))

    def _drop(self, host: Host, task: int) -> None:
        super()._drop(host, task)
        if not host.held:
            self._emptied[host] = None

    # --- what to do ------------------------------------------------------------------------

    def actions(self, now: float, only: int | None = None) -> list[Action]:
        out = super().actions(now, only)
        all_out = not self.unassigned
        for position, action in enumerate(out):
            if isinstance(action, Assign):
                there = self._hosts[action.host]
                if there in self._told:
                    continue
                self._untold[there] = None
                if all_out:
                    self._tell(there)
                    out[position] = replace(action, last=True)
        for there in list(self._untold if all_out else self._emptied):
            if there in self._untold and (all_out or not there.held):
                self._tell(there)
                out.append(Yield(there.name))
        self._emptied.clear()
        return out

    def _tell(self, host: Host) -> None:
        self._told.add(host)
        del self._untold[host]

    def abandon(self) -> list[Action]:
        out = super().abandon()
        told = {action.host for action in out}
        out += [Cancel(host, ()) for host, kept in self._kept.items() if kept and host not in told]
        self._kept.clear()
        return out

    def _limit(self, host: Host) -> int:
        """At first as many as there usually are: what is given together is combined together."""
        return FIRST * host.workers if self._mean is None else super()._limit(host)

    def _end_of_share(self, tasks: Sequence[int], workers: int) -> int:
        """Near the fair share, where a block ends."""
        end = super()._end_of_share(tasks, workers)
        grain = 1 << max(1, self.tasks // (GRAIN * self.workers)).bit_length() - 1
        if end >= len(tasks):
            return end
        return bisect.bisect_left(tasks, (tasks[end] + grain // 2) // grain * grain)
