"""Threads that carry bytes between channels and sessions, and drive the schedulers.

Per host: one thread connects, reads, and connects again when the host is lost; one writes blobs.
One more thread keeps time: beats, silent hosts, slow tasks. All state is guarded by one lock,
which is never held during I/O, hashing, decoding or anybody's map function.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from worker_payload import wire
from worker_payload.tree import is_block
from worker_payload.wire import Buffer

from . import scheduler as plan
from .combining import Combining
from .errors import JamError, NoHostsError, TaskFailed, TaskLost
from .link import JOIN_SECONDS, Link
from .rounds import Round, Standing
from .session import Session
from .spans import Span, Spans

if TYPE_CHECKING:
    from .bootstrap import Attached
    from .settings import HostSpec, Settings
    from .transport import Attempt

BEAT_EVERY = 2.0
TICK = 0.5
PATIENCE = 4.0  # the longest that a host took to answer, times this, is waited for the others
PATIENCE_MIN = 5.0  # seconds
GREETING = 45.0  # seconds: an agent that imports numpy from a slow home takes its time
HOLDS_MAX = 200_000  # digests per host, remembered so that slices go back to where they are
FOLD_BYTES = 1 << 20  # of answers that wait until the folding thread is woken; or TICK seconds
CANNOT_ADD = "worker_payload.sums.CannotAdd"  # what the default reduction raises on a host
SEND_AFTER_BYTES = 1 << 20  # of slices hashed: a host need not wait for the digests of all its own

Attach = Callable[["HostSpec", "Attempt"], "Attached"]


@dataclass
class Call:
    """One map call under way. Guarded by the engine's lock."""

    id: int
    begin: wire.Begin
    blobs: list[tuple[str, int, Callable[[], Sequence[Buffer]]]]  # code and params
    slice_of: Callable[[int], Any] | None  # task -> SliceRef; None without a dataset
    scheduler: plan.Scheduler  # not there while `round` is; made when it is looked at
    requires: tuple[str, ...]
    needs_numpy: bool
    keep_going: bool
    spans: Spans | None = None  # a task is many slices, not one
    inline: bool = False  # slices travel with their tasks, and are not kept
    # (slice, host, answer, 0 or of how many slices from this one on)
    results: deque[tuple[int, str, list[Buffer], int]] = field(default_factory=deque)
    lag: int = 0  # bytes in `results`
    failures: list[TaskFailed] = field(default_factory=list)
    failures_seen: int = 0
    error: BaseException | None = None
    over: bool = False
    head_only: int | None = None  # the fold is full: hand out nothing but this task
    begun: set[Session] = field(default_factory=set)  # those that have the Begin
    named: dict[str, int] = field(default_factory=dict)  # host -> bytes of slices named to it
    sent: dict[str, int] = field(default_factory=dict)
    finished_by: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    deaths: dict[int, list[str]] = field(default_factory=dict)  # task -> of what, and where
    given: dict[str, list[int]] = field(default_factory=dict)  # tasks sent to each host
    asked_back: bool = False  # some of these tasks, by a Revoke or Cancel
    round: Round | None = None
    combining: Combining | None = field(init=False)  # the scheduler, if hosts combine their answers

    def __post_init__(self) -> None:
        self.combining = self.scheduler if isinstance(self.scheduler, Combining) else None

    def again(self, ident: int, params: list[Buffer], standing: Standing, now: float) -> Call:
        """This call once more, with other params. ident: its number."""
        call = Call.__new__(Call)
        call.__dict__.update(self.__dict__)
        call.__dict__.pop("scheduler", None)
        call.id = ident
        call.begin = self.begin._replace(call=ident, segments=params)
        call.results, call.failures, call.notes, call.deaths = deque(), [], [], {}
        call.sent, call.finished_by, call.named = {}, {}, dict(self.named)
        call.over, call.head_only, call.lag, call.failures_seen = False, None, 0, 0
        call.round = Round(standing, now)
        return call

    def __getattr__(self, name: str) -> Any:
        # under the lock, like all else
        if name != "scheduler" or self.round is None:
            raise AttributeError(name)
        self.scheduler = self.round.unrolled()
        self.round = None
        return self.scheduler

    @property
    def settled(self) -> bool:
        """Nothing more will come."""
        if self.over or self.error is not None:
            return True
        if self.round is not None:
            return not self.round.left
        return self.scheduler.left == 0 and (self.spans is None or self.spans.exhausted)

    @property
    def hungry(self) -> bool:
        """More spans are to be made: the hosts could have them soon."""
        if self.spans is None or self.spans.exhausted or self.spans.waits or self.settled:
            return False
        return self.scheduler.unassigned < 2 * self.scheduler.workers

    @property
    def slices(self) -> int:
        """How many there are, as far as we know."""
        if self.round is not None:
            return self.round.standing.tasks
        if self.spans is None:
            return self.scheduler.tasks
        return self.spans.cut if self.spans.total is None else self.spans.total

    @property
    def done(self) -> int:
        """How many slices were computed, or failed."""
        if self.round is not None:
            return self.round.standing.tasks - self.round.left
        if self.spans is not None:
            return self.spans.done
        return self.scheduler.done + (self.combining.kept if self.combining is not None else 0)

    @property
    def retried(self) -> int:
        """How many tasks were begun anew."""
        return 0 if self.round is not None else self.scheduler.retried

    @property
    def moved(self) -> frozenset[int]:
        """Calls of a worker that ran elsewhere."""
        return frozenset() if self.round is not None else self.scheduler.moved

    def slice_at(self, task: int) -> int:
        """The slice that a task is, or begins with; -1 for none."""
        return task if self.spans is None else self.spans.first(task)


class Engine:
    """All hosts of one Master. attach: opens a channel to a host's agent; blocks, until its Attempt
    is ended."""

    def __init__(
        self,
        specs: Sequence[HostSpec],
        settings: Settings,
        *,
        build: str,
        project: str,
        attach: Attach,
        on_output: Callable[[str, wire.Output], None],
        look_around: Callable[[], None] = lambda: None,
    ):
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.settings = settings
        self.attach = attach
        self.on_output = on_output
        self.look_around = look_around  # called now and then, from any thread
        self.closing = False
        self.closed = threading.Event()
        self.began = time.monotonic()
        self.calls: dict[int, Call] = {}
        self._last: tuple[Call, Standing] | None = None  # over here, but not told to be so
        self._ended = 0.0  # when it was over
        self._build, self._project = build, project
        self._name = f"{random.getrandbits(64):016x}"
        self._next = 0
        self.links = {spec.label: Link(self, spec) for spec in specs}
        self._ticker = threading.Thread(target=self._tick, name="jam time", daemon=True)

    # --- life ------------------------------------------------------------------------------

    def start(self) -> None:
        for link in self.links.values():
            link.start()
        self._ticker.start()

    def close(self) -> None:
        """End all connections and threads. Agents stay, and end what was left of our calls."""
        with self.lock:
            self.end_last()
            self.closing = True
            self.unroll()
            self.closed.set()
            for link in self.links.values():
                link.hurry()
            attempts = [link.attempt for link in self.links.values() if link.attempt is not None]
            self.changed.notify_all()
        closers = [threading.Thread(target=attempt.end, daemon=True) for attempt in attempts]
        for closer in closers:
            closer.start()
        deadline = time.monotonic() + JOIN_SECONDS
        for closer in closers:  # all at once: each waits a little for a host that stands still
            closer.join(max(0.0, deadline - time.monotonic()))
        for link in self.links.values():
            link.join(deadline)
        if self._ticker.ident:
            self._ticker.join(JOIN_SECONDS)

    def is_timekeeper(self) -> bool:
        return threading.current_thread() is self._ticker

    def hello(self, spec: HostSpec) -> wire.Hello:
        settings = {"threads": spec.threads, "nice": spec.nice, "env": dict(spec.env)}
        return wire.Hello(
            wire.VERSION,
            self._build,
            self._project,
            f"{self._name} {spec.label}",
            spec.workers or 0,
            settings,
        )

    def wait_ready(self, timeout: float, *, hurry: bool = False) -> list[Link]:
        """The hosts that are up, once all have answered or failed, or the time is over.

        hurry: hosts that take far longer than the others are not waited for: they join later.
        Raises NoHostsError naming every host and its reason."""
        deadline = time.monotonic() + timeout
        with self.lock:
            while any(link.state == "connecting" for link in self.links.values()):
                until = max(deadline, self._greetings())
                until = min(until, self._patience()) if hurry else until
                if (left := until - time.monotonic()) <= 0:
                    break
                self.changed.wait(left)
            up = [link for link in self.links.values() if link.state == "up"]
            if not up:  # a host that was there may come back; one that never was, did not answer
                self.changed.wait_for(
                    lambda: (
                        any(link.state == "up" for link in self.links.values())
                        or not any(link.state == "lost" for link in self.links.values())
                    ),
                    timeout,
                )
                up = [link for link in self.links.values() if link.state == "up"]
            if not up:
                raise self.no_hosts()
            return up

    def _greetings(self) -> float:
        """Until when hosts are waited for whose agent is there and has not said Welcome."""
        greeting = [link for link in self.links.values() if link.greets]
        return max((link.greeted for link in greeting), default=0.0) + GREETING

    def _patience(self) -> float:
        """Until when hosts that have not answered yet are worth waiting for."""
        took = [link.took for link in self.links.values() if link.took is not None]
        if not took:
            return float("inf")
        return self.began + max(PATIENCE_MIN, PATIENCE * max(took))

    def hope(self, link: Link) -> bool:
        """Whether this host may still come (back), or is about to say whether it can take part."""
        if link.state in ("connecting", "lost") or link.asked:
            return True
        return bool(link.error and link.error.retry)

    def no_hosts(self) -> NoHostsError:
        errors = [link.error for link in self.links.values() if link.error is not None]
        if len(errors) == 1 and len(self.links) == 1:
            return NoHostsError(errors[0].message, errors[0].hint)
        lines = [
            f"{link.label}: {link.error.reason if link.error else 'no answer'}"
            for link in self.links.values()
        ]
        hints = {error.hint for error in errors if error.hint}
        return NoHostsError(
            "no host could be reached: " + "; ".join(lines),
            hints.pop() if len(hints) == 1 else None,
        )

    def join(self, spec: HostSpec) -> None:
        """This host is wanted: a new one, or one that left, or that could not be reached."""
        with self.lock:
            link = self.links.get(spec.label)
            if link is None:
                link = self.links[spec.label] = Link(self, spec)
                link.start()
            elif link.state != "up" or link.leaving:
                if link.leaving:
                    link.leaving = ""
                    for call in self.calls.values():
                        if link.label in call.scheduler:
                            call.scheduler.add_host(
                                link.label, link.workers, round_trip=link.round_trip
                            )
                elif link.state in ("left", "unreachable"):
                    link.state, link.error = "connecting", None
                link.hurry()

    def leave(self, label: str, reason: str) -> None:
        """This host is no longer wanted: it may end what it runs, and gets nothing more."""
        with self.lock:
            link = self.links.get(label)
            if link is None or link.leaving or link.state in ("left", "closed"):
                return
            if link.session is None:
                link.part(reason)
                return
            link.leaving = reason
            for call in self.calls.values():
                call.scheduler.retire_host(label)
        self.dispatch()

    # --- calls -----------------------------------------------------------------------------

    def next_id(self) -> int:
        with self.lock:
            self._next += 1
            return self._next

    def lacking(self, links: Sequence[Link], names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """Which of these modules each host cannot import. Asks each host once."""
        if not names:
            return {}
        asked = []
        with self.lock:
            for link in links:
                if link.session is not None and names not in link.answers:
                    self._next += 1
                    link.asked[self._next] = names
                    link.session.send(wire.Require(self._next, list(names)))
                    asked.append((link, link.session))
        for link, session in asked:
            link.flush(session)
        with self.lock:
            self.changed.wait_for(
                lambda: all(link.session is None or names in link.answers for link in links),
                self.settings.dead_after + BEAT_EVERY,
            )
            return {link.label: link.answers[names] for link in links if link.answers.get(names)}

    def submit(self, call: Call, links: Sequence[Link], *, pinned: bool) -> None:
        """Start a call on these hosts; others that come up join it.

        pinned: one task per worker, in the order of hosts and workers, each for that worker."""
        with self.lock:
            self.end_last()
            self.calls[call.id] = call
            homes = []
            for link in links:
                if link.session is not None:
                    call.scheduler.add_host(
                        link.label, link.workers, round_trip=link.round_trip, settle=not pinned
                    )
                    homes += [(link.label, worker) for worker in range(link.workers)]
            if pinned:
                call.scheduler.pin(homes[: call.scheduler.tasks])
        self.dispatch()

    def again(self, call: Call, params: list[Buffer]) -> Call | None:
        """The last call once more, with these params; None if it cannot be so, or others may do it
        now. The call that is under way then."""
        with self.lock:
            last, self._last = self._last, None
            if last is None or last[0] is not call or not self._stands(last[1]):
                self._last = last
                return None
            standing = last[1]
            self._next += 1
            repeated = call.again(self._next, params, standing, time.monotonic())
            self.calls[repeated.id] = repeated
            for _, session in standing.links:
                session.send(wire.Again(repeated.id, call.id, params))
        for link, session in standing.links:
            link.flush(session)
        return repeated

    def _stands(self, standing: Standing) -> bool:
        """Whether these hosts, and no others, are there as they were."""
        return standing.up == self._up() and all(
            link.session is session for link, session in standing.links
        )

    def _up(self) -> list[str]:
        return [
            link.label for link in self.links.values() if link.state == "up" and not link.leaving
        ]

    def _standing(self, call: Call) -> Standing | None:
        """What it takes to repeat a call that has just ended; None where all did not go well."""
        if call.round is not None:
            return call.round.standing if not call.round.left and call.error is None else None
        sent = sum(map(len, call.given.values()))
        if sent != call.scheduler.tasks or call.asked_back or call.notes or call.failures:
            return None
        if call.error is not None or call.scheduler.left or call.retried or call.spans is not None:
            return None
        if (
            call.begin.params
            or not 0 < max(map(len, call.given.values()), default=0) <= wire.AGAIN_MAX
        ):
            return None
        links = []
        for label in call.given:
            link = self.links[label]
            if link.session is None or link.session not in call.begun:
                return None
            links.append((link, link.session))
        given: dict[plan.HostId, frozenset[int]]
        given = {label: frozenset(tasks) for label, tasks in call.given.items()}
        return Standing(call.scheduler, links, given, self._up())

    def end_last(self) -> None:
        """The last call is not going to be repeated. Under the lock."""
        self._take_back()
        if self._last is not None:
            call, standing = self._last
            self._last = None
            call.blobs, call.slice_of = [], None  # a report may keep the call for long
            for link, session in standing.links:
                if link.session is session:
                    session.send(wire.End(call.id))

    def may_repeat(self, link: Link) -> bool:
        """Whether the last call is over, may be repeated, and is of this host alone. Under the
        lock."""
        standing = self._last[1] if self._last is not None else None
        for call in self.calls.values():
            if call.round is None or call.round.left:
                return False
            standing = call.round.standing
        return standing is not None and [one for one, _ in standing.links] == [link]

    def _take_back(self) -> None:
        for link in self.links.values():
            link.take_back()

    def unroll(self, before: float = math.inf) -> None:
        """Calls that repeat others, and began before then, get their scheduler. Under the lock."""
        for call in self.calls.values():
            if call.round is not None and call.round.began < before:
                _ = call.scheduler

    def look_at_rounds(self, now: float) -> None:
        """To be called now and then, under the lock: calls that are repeated get their scheduler
        when they take a while, and a call that might have been repeated is ended."""
        self.unroll(now - TICK)
        if self._last is not None and now - self._ended > TICK:
            self.end_last()

    def finish(self, call: Call) -> None:
        """Forget a call; end what is left of it everywhere, unless it might be repeated."""
        flush = []
        with self.lock:
            if call.over:
                return
            standing = self._standing(call)
            call.over = True
            if standing is not None:
                self.calls.pop(call.id, None)
                self._last, self._ended = (call, standing), time.monotonic()
                for there, its in standing.links:
                    self._count_sent(call, there, its)
                return
            self._take_back()
            self.changed.notify_all()  # a host that is not read because of its answers
            call.blobs, call.slice_of = [], None  # a report may keep the call for long
            self.calls.pop(call.id, None)
            held = {action.host for action in call.scheduler.abandon()}
            for link in self.links.values():
                session = link.session
                if session is not None and session in call.begun:
                    self._count_sent(call, link, session)
                    if link.label in held:
                        session.send(wire.Cancel(call.id, []))
                        flush.append((link, session))
                    # nobody waits for an End: it goes out with the next call, or the next tick
                    session.send(wire.End(call.id))
        for link, session in flush:
            link.flush(session)

    def _count_sent(self, call: Call, link: Link, session: Session) -> None:
        sent = session.sent_slices(call.id)
        call.sent[link.label] = call.sent.get(link.label, 0) + sent

    def handle(self, link: Link, session: Session, message: Any, now: float) -> None:
        """One message from a host, under the lock."""
        if isinstance(message, wire.Welcome):
            link.state, link.error = "up", None
            if link.took is None:
                link.took = now - self.began
            link.round_trip = min(link.round_trip, now - link.greeted)
            link.notes = list(message.notes)
            link.last_welcome = message
            for under_way in self.calls.values():
                self._admit(under_way, link, session)
            self.changed.notify_all()
        elif isinstance(message, wire.Lacks):
            names = link.asked.pop(message.request, None)
            if names is not None:
                link.answers[names] = tuple(message.names)
                for waiting in self.calls.values():
                    if waiting.requires == names:
                        self._admit(waiting, link, session)
                self.changed.notify_all()
        elif isinstance(message, wire.Note):
            link.notes.append(message.text)
        elif isinstance(message, wire.Ending):
            link.notes.append(f"its agent ended: {message.reason}")
        else:
            call = self.calls.get(message.call)
            if call is not None:
                self._of_call(call, link, message, now)

    def _admit(self, call: Call, link: Link, session: Session) -> None:
        """Let a host that came up during a call take part, if it has what the call needs."""
        welcome = session.welcome
        if call.settled or welcome is None:
            return
        if call.needs_numpy and not welcome.numpy:
            call.notes.append(f"{link.label} came up without numpy, and takes no part")
        elif call.requires and call.requires not in link.answers:
            self._next += 1
            link.asked[self._next] = call.requires
            session.send(wire.Require(self._next, list(call.requires)))
        elif call.requires and link.answers[call.requires]:
            lacks = ", ".join(link.answers[call.requires])
            call.notes.append(f"{link.label} came up without {lacks}, and takes no part")
        else:
            call.scheduler.add_host(link.label, link.workers, round_trip=link.round_trip)
            call.notes.append(f"{link.label} joined")

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
        elif isinstance(message, wire.Started):
            sched.running(host, [task for task, _worker in message.tasks], now)
        elif isinstance(message, wire.Revoked):
            sched.revoked(host, message.ids)
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
        position = 0
        for task, _worker, count, _seconds in message.tasks:
            segments = message.segments[position : position + count]
            call.results.append((task, host, list(segments), 0))
            position += count
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

    def show_output(self, host: str, message: wire.Output) -> None:
        """What a task printed, by the number of its slice. Called without the lock."""
        call = self.calls.get(message.call)
        if call is not None and call.spans is not None:
            message = message._replace(id=call.slice_at(message.id))
        self.on_output(host, message)

    def _fail(self, call: Call, failure: TaskFailed) -> None:
        call.failures.append(failure)
        if not call.keep_going:
            call.error = call.error or failure

    def dispatch(self) -> None:
        """Send what the schedulers want sent. Called without the lock, from any thread."""
        todo: list[tuple[Call, Link, Session, plan.Action]] = []
        flush: dict[int, tuple[Link, Session]] = {}
        with self.lock:
            now = time.monotonic()
            for call in self.calls.values():
                if call.settled or call.round is not None:
                    continue
                for action in call.scheduler.actions(now, call.head_only):
                    link = self.links[str(action.host)]
                    if link.session is not None:
                        todo.append((call, link, link.session, action))
            busy = {id(link) for _, link, _, action in todo if isinstance(action, plan.Assign)}
            for link in self.links.values():
                session = link.session
                if session is not None and session.has_control() and id(link) not in busy:
                    flush[id(link)] = (link, session)
        for call, link, session, action in todo:
            try:
                self._send(call, link, session, action)
            except Exception as error:  # a dataset's own slice() raised
                with self.lock:
                    call.error = call.error or error
                    self.changed.notify_all()
            if not isinstance(action, plan.Assign):
                flush[id(link)] = (link, session)
        for link, session in flush.values():
            link.flush(session)

    def _send(self, call: Call, link: Link, session: Session, action: plan.Action) -> None:
        if isinstance(action, plan.Assign) and call.spans is not None:
            self._send_spans(call, link, session, action)
            return
        if not isinstance(action, plan.Assign):
            with self.lock:
                if link.session is not session or call.over:
                    return
                if isinstance(action, plan.Yield):
                    self._begin(call, session)  # its tasks may still be on their way to us
                    session.send(wire.Yield(call.id))
                else:
                    call.asked_back = True
                    kind = wire.Revoke if isinstance(action, plan.Revoke) else wire.Cancel
                    session.send(kind(call.id, list(action.tasks)))
            return
        if call.inline:
            self._send_with_slices(call, link, session, action)
            return
        tasks: list[list[Any]] = []
        refs: list[Any] = []
        hashed = 0
        for task, worker in zip(action.tasks, action.workers, strict=True):
            ref = call.slice_of(task) if call.slice_of is not None else None
            # digests are made here, without the lock, while earlier slices are on their way
            tasks.append([task, ref.digest if ref is not None else None, worker])
            if ref is not None:
                refs.append(ref)
                hashed += ref.size
            if hashed > SEND_AFTER_BYTES:
                self._send_tasks(call, link, session, tasks, refs)
                tasks, refs, hashed = [], [], 0
        self._send_tasks(call, link, session, tasks, refs, action.last)

    def _send_tasks(
        self,
        call: Call,
        link: Link,
        session: Session,
        tasks: list[list[Any]],
        refs: list[Any],
        last: bool = False,
    ) -> None:
        if not tasks and not last:
            return
        with self.lock:
            if link.session is not session or call.over:
                return
            self._begin(call, session)
            for ref in refs:
                if session.offer(call.id, ref.digest, ref.size, ref.parts, of_slice=True):
                    call.named[link.label] = call.named.get(link.label, 0) + ref.size
                    link.holds[ref.digest] = None
            while len(link.holds) > HOLDS_MAX:
                del link.holds[next(iter(link.holds))]
            session.send(wire.Task(call.id, tasks))
            call.given.setdefault(link.label, []).extend([task[0] for task in tasks])
            if last:
                session.send(wire.Yield(call.id))
        link.flush(session)

    def _send_with_slices(
        self, call: Call, link: Link, session: Session, action: plan.Assign
    ) -> None:
        """Tasks with the bytes of their slices, which are tiny."""
        assert call.slice_of is not None
        segments: list[Buffer] = [
            b"".join(call.slice_of(task).parts())  # without the lock: this may take a while
            for task in action.tasks
        ]
        tasks: list[list[Any]] = [[task, i, None] for i, task in enumerate(action.tasks)]
        with self.lock:
            if link.session is not session or call.over:
                return
            self._begin(call, session)
            self._send_inline(call, link, session, tasks, segments, sum(map(len, segments)))
            if action.last:
                session.send(wire.Yield(call.id))
        link.flush(session)

    def _send_spans(self, call: Call, link: Link, session: Session, action: plan.Assign) -> None:
        """Tasks with the bytes of their slices, unless these are many."""
        with self.lock:
            if link.session is not session or call.over or call.spans is None:
                return
            self._begin(call, session)
            tasks: list[list[Any]] = []
            segments: list[Buffer] = []
            size = 0
            for task in action.tasks:
                span = call.spans.of.get(task)
                if span is None:
                    continue
                given: Any = len(segments)
                if span.digest is None:
                    segments.extend(span.parts)
                    size += span.size
                else:
                    given = span.digest
                    if session.offer(call.id, given, span.size, span.blob, of_slice=True):
                        call.named[link.label] = call.named.get(link.label, 0) + span.size
                tasks.append([task, given, None])
                if size > SEND_AFTER_BYTES:
                    self._send_inline(call, link, session, tasks, segments, size)
                    tasks, segments, size = [], [], 0
            if tasks:
                self._send_inline(call, link, session, tasks, segments, size)
        link.flush(session)

    def _send_inline(
        self,
        call: Call,
        link: Link,
        session: Session,
        tasks: list[list[Any]],
        segments: list[Buffer],
        size: int,
    ) -> None:
        session.send(wire.Task(call.id, tasks, segments))
        call.named[link.label] = call.named.get(link.label, 0) + size
        sent = session.slice_bytes_sent
        sent[call.id] = sent.get(call.id, 0) + size

    def _begin(self, call: Call, session: Session) -> None:
        if session not in call.begun:
            call.begun.add(session)
            for digest, size, parts in call.blobs:
                session.offer(call.id, digest, size, parts, of_slice=False)
            session.send(call.begin)

    # --- time ------------------------------------------------------------------------------

    def _tick(self) -> None:
        beat = last = time.monotonic()
        while not self.closed.wait(TICK):
            with self.lock:
                now = time.monotonic()
                beats = now - beat >= BEAT_EVERY
                away, last = now - last - TICK, now
                for link in self.links.values():
                    session = link.session
                    if session is None:
                        continue
                    if away > BEAT_EVERY:  # we were stopped: what hosts said meanwhile is unread
                        link.last_heard += away
                    silent = now - link.last_heard
                    if link.reading and silent > self.settings.dead_after and not link.given_up:
                        link.give_up(f"silent for {silent:.0f} s")
                    elif link.leaving and not link.given_up and self._is_free(link):
                        link.give_up(link.leaving)
                    elif beats:
                        session.send(wire.Beat())
                self.look_at_rounds(now)
                if any(call.results for call in self.calls.values()):
                    self.changed.notify_all()
            if beats:
                beat = now
            self.look_around()
            self.dispatch()

    def _is_free(self, link: Link) -> bool:
        return not any(call.scheduler.outstanding(link.label) for call in self.calls.values())


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
