"""What hosts say of calls, and what it means for them. All of it under the engine's lock."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from worker_payload import wire
from worker_payload.tree import is_block
from worker_payload.wire import Buffer

from .calls import Call
from .errors import JamError, TaskFailed, TaskLost
from .link import Link
from .spans import Span

FOLD_BYTES = 1 << 20  # of answers that wait until the folding thread is woken; or TICK seconds
CANNOT_ADD = "worker_payload.sums.CannotAdd"  # what the default reduction raises on a host


class Answering:
    """The engine, as far as it listens. changed: told when there is something to fold."""

    changed: threading.Condition
    links: dict[str, Link]

    @property
    def calls(self) -> dict[int, Call]:
        """All that are under way. Under the lock."""
        raise NotImplementedError

    def hope(self, link: Link) -> bool:
        """Whether this host may still come (back), or is about to say whether it can take part."""
        if link.state in ("connecting", "lost") or link.asked:
            return True
        return bool(link.error and link.error.retry)

    def closes_round(self, link: Link, message: Any) -> bool:
        """Whether these were answers of a repeated call, and there is nothing more to be done now.
        Under the lock."""
        if type(message) is not wire.Result and type(message) is not wire.Combined:
            return False
        call = self.calls.get(message.call)
        if call is None or not self._fits(call, link.label, message):
            return False
        link.answered += 1
        return True

    def _of_call(self, call: Call, link: Link, message: Any, now: float) -> None:
        host = link.label
        if isinstance(message, (wire.Result, wire.Failure)):
            link.answered += 1
        if (
            call.round is not None
            and isinstance(message, (wire.Result, wire.Combined))
            and self._fits(call, host, message)
        ):
            return
        sched = call.scheduler
        tell = True
        if isinstance(message, wire.Result):
            position = 0
            for task, _worker, count, seconds in message.tasks:
                segments = message.segments[position : position + count]
                position += count
                first, count = task, 0
                if call.spans is not None:
                    count = _slices_in(segments, call.spans.of.get(task))
                if sched.finished(host, task, seconds, now):
                    size = sum(map(len, segments))
                    if call.spans is not None:
                        first = call.spans.answered(task, count, seconds, size).first
                    call.finished_by[host] = call.finished_by.get(host, 0) + (count or 1)
                    call.lag += size
                    call.results.append((first, host, list(segments), count))
            # small answers wait for each other: waking the folding thread for each costs more
            tell = call.lag > FOLD_BYTES or sched.left == 0 or call.hungry
        elif isinstance(message, wire.Failure):
            span = call.spans.of.get(message.id) if call.spans is not None else None
            if span is not None and message.at >= span.count:
                raise wire.ProtocolError(f"slice {message.at} of {span.count} failed")
            if sched.finished(host, message.id, None):
                failed = message.id
                if call.spans is not None:
                    failed = call.spans.failed(message.id, message.at)
                self._fail(
                    call,
                    TaskFailed(
                        host=host, slice=failed, type=message.type, message=message.message,
                        traceback=message.traceback,
                    ),
                )  # fmt: skip
        elif isinstance(message, wire.Lost):
            how = how_it_died(message)
            index = call.slice_at(message.id)
            span = call.spans.of.get(message.id) if call.spans is not None else None
            if call.spans is not None and span is not None and span.count > 1:
                where = f"{index} to {index + span.count - 1}"
                call.notes.append(f"a worker on {host} died at one of slices {where}: {how}")
                if sched.finished(host, message.id, None):
                    sched.retried += 1
                    call.spans.scatter(message.id)
                self.changed.notify_all()
                return
            call.notes.append(f"a worker on {host} died at slice {index}: {how}")
            deaths = call.deaths.setdefault(index, [])
            deaths.append(f"{host}: {how}")
            if not sched.killed(host, message.id) and sched.finished(host, message.id, None):
                if call.spans is not None:
                    call.spans.failed(message.id, 0)
                self._fail(
                    call,
                    TaskLost(
                        host=host, slice=index, type="WorkerDied", traceback=message.stderr,
                        message=f"{len(deaths)} workers died of it; {some_times(deaths)}",
                    ),
                )  # fmt: skip
        elif isinstance(message, wire.Combined):
            self._combined(call, link, message, now)
            tell = call.lag > FOLD_BYTES or sched.left == 0
        elif isinstance(message, wire.Broken):
            failure = TaskFailed(
                host=host, slice=message.first, message=message.message,
                type="ReduceError" if message.type == CANNOT_ADD else message.type,
                traceback=message.traceback, joined=message.slices,
            )  # fmt: skip
            call.error = call.error or failure  # no slice is to blame that could be left out
        elif isinstance(message, wire.Missing):
            common = {digest for digest, _, _ in call.blobs}  # code and params
            sched.lacked(host, sum(digest not in common for digest in message.digests))
            tell = False
        elif isinstance(message, wire.Started):
            sched.running(host, [task for task, _worker in message.tasks], now)
        elif isinstance(message, wire.Revoked):
            sched.revoked(host, message.ids)
            take_back(call, link, message.ids)
        elif isinstance(message, wire.Refused):
            sched.remove_host(host)
            call.notes.append(f"{host} takes no part: {message.reason}")
            if not any(label in sched or self.hope(one) for label, one in self.links.items()):
                call.error = call.error or JamError(f"{host}: {message.reason}")
        if tell:
            self.changed.notify_all()

    @staticmethod
    def _fits(call: Call, host: str, message: wire.Result | wire.Combined) -> bool:
        """Take the answers, if they are what a repeated call waits for, and few bytes."""
        if call.round is None:
            return False
        size = sum(map(len, message.segments))
        if call.lag + size > FOLD_BYTES:
            return False
        if isinstance(message, wire.Combined):
            return _fit_together(call, host, message, size)
        if not call.round.take(host, message.tasks):
            return False
        call.lag += size
        call.finished_by[host] = call.finished_by.get(host, 0) + len(message.tasks)
        rest = iter(message.segments)
        call.results.extend(
            [(task, host, list(islice(rest, count)), 0) for task, _, count, _ in message.tasks]
        )
        return True

    def _combined(self, call: Call, link: Link, message: wire.Combined, now: float) -> None:
        """What a host computed and keeps, and what it kept and answers. Raises ProtocolError."""
        sched, host = call.combining, link.label
        if sched is None:
            raise wire.ProtocolError("answers are combined that should not be")
        if sum(parts for _, _, parts in message.blocks) != len(message.segments):
            raise wire.ProtocolError("Combined: its blocks do not account for its segments")
        link.answered += 1
        for task, _worker, seconds in message.slices:
            sched.keeps(host, task, seconds, now)
        position = 0
        for first, count, parts in message.blocks:
            segments = list(message.segments[position : position + parts])
            position += parts
            if sched.block(host, first, count):
                call.finished_by[host] = call.finished_by.get(host, 0) + count
                call.lag += sum(map(len, segments))
                call.results.append((first, host, segments, count))

    def _fail(self, call: Call, failure: TaskFailed) -> None:
        call.failures.append(failure)
        if not call.keep_going:
            call.error = call.error or failure


def _fit_together(call: Call, host: str, message: wire.Combined, size: int) -> bool:
    """Take the answers of a host that combined them, if a repeated call waits for them."""
    blocks, total = message.blocks, call.slices
    parts = sum(length for _, _, length in blocks)
    if not blocks or parts != len(message.segments) or call.round is None:
        return False
    if not all(is_block(first, count, total) for first, count, _ in blocks):
        return False
    tasks = [task for first, count, _ in blocks for task in range(first, first + count)]
    if not call.round.take(host, [[task, 0, 0, None] for task in tasks]):
        return False
    call.lag += size
    call.finished_by[host] = call.finished_by.get(host, 0) + len(tasks)
    position = 0
    for first, count, length in blocks:
        segments = message.segments[position : position + length]
        call.results.append((first, host, list(segments), count))
        position += length
    return True


def _slices_in(segments: Sequence[Buffer], span: Span | None) -> int:
    """How many slices of a span an answer is of; 0 if the span is over. Raises ProtocolError."""
    if span is None:
        return 0
    if not segments or len(segments[0]) != wire.SPAN.size:
        raise wire.ProtocolError("an answer to a span does not say of how many slices it is")
    (count,) = wire.SPAN.unpack(segments[0])
    if not 1 <= count <= span.count:
        raise wire.ProtocolError(f"{count} answers to a span of {span.count} slices")
    return int(count)


def some_times(events: Sequence[str]) -> str:
    """
    >>> some_times(["lab1: exit code 3", "lab2: signal 9", "lab1: exit code 3"])
    'lab1: exit code 3 (2 times); lab2: signal 9'
    """
    counts = Counter(events)
    return "; ".join(f"{event} ({n} times)" if n > 1 else event for event, n in counts.items())


def take_back(call: Call, link: Link, tasks: Iterable[int]) -> None:
    """The host may not have the data of these tasks: another one does them, or has done them."""
    for task in call.take_back(link.label, tasks):
        if call.slice_of is not None:
            link.holds.pop(call.slice_of(task).digest, None)


def how_it_died(message: wire.Lost) -> str:
    """'signal 9 (SIGKILL), out of memory?' or 'exit code 3', with the last line of stderr."""
    import signal

    if message.signal is not None:
        try:
            how = f"signal {message.signal} ({signal.Signals(message.signal).name})"
        except ValueError:
            how = f"signal {message.signal}"
    elif message.exit is not None:
        how = f"exit code {message.exit}"
    else:
        how = ""
    how = ", ".join(filter(None, (how, message.note))) or "an unknown cause"
    lines = message.stderr.strip().splitlines()
    return f"{how}: {lines[-1][:200]}" if lines else how
