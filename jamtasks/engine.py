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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from worker_payload import wire
from worker_payload.wire import Buffer

from . import scheduler as plan
from .answering import take_back
from .calls import Call
from .errors import NoHostsError
from .link import JOIN_SECONDS, Link
from .outcome import key_hints
from .rounds import Standing
from .sending import Sending
from .session import Session

if TYPE_CHECKING:
    from .bootstrap import Attached
    from .laps import Lap
    from .settings import HostSpec, Settings
    from .transport import Attempt

BEAT_EVERY = 2.0
TICK = 0.5
PATIENCE = 4.0  # the longest that a host took to answer, times this, is waited for the others
PATIENCE_MIN = 5.0  # seconds
GREETING = 45.0  # seconds: an agent that imports numpy from a slow home takes its time

Attach = Callable[["HostSpec", "Attempt"], "Attached"]


class Engine(Sending):
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
        self._calls: dict[int, Call] = {}
        self._lap: Lap | None = None  # under way, and unseen so far
        self._last: tuple[Call, Standing] | None = None  # over here, but not told to be so
        self._ended = 0.0  # when it was over
        self._build, self._project = build, project
        self._name = f"{random.getrandbits(64):016x}"
        self._next = 0
        self.links = {spec.label: Link(self, spec) for spec in specs}
        self._ticker = threading.Thread(target=self._tick, name="jam time", daemon=True)
        self.timekeeper: int | None = None  # that thread

    # --- life ------------------------------------------------------------------------------

    def start(self) -> None:
        for link in self.links.values():
            link.start()
        self._ticker.start()
        self.timekeeper = self._ticker.ident

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

    def no_hosts(self) -> NoHostsError:
        errors = [link.error for link in self.links.values() if link.error is not None]
        if len(errors) == 1 and len(self.links) == 1:
            return NoHostsError(errors[0].message, errors[0].hint)
        lines = [
            f"{link.label}: {link.error.reason if link.error else 'no answer'}"
            for link in self.links.values()
        ]
        hints = {error.hint for error in errors if error.hint}
        refused = [(link.label, link.error) for link in self.links.values()]
        return NoHostsError(
            "no host could be reached: " + "; ".join(lines),
            hints.pop() if len(hints) == 1 else "; ".join(key_hints(refused)) or None,
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
                session.again(repeated.id, call.id, bytes(params[0]))
        for link, session in standing.links:
            link.flush(session)
        return repeated

    @property
    def calls(self) -> dict[int, Call]:
        lap, self._lap = self._lap, None
        if lap is not None:  # whoever looks at calls finds it to be one of them
            self._last = None
            call = lap.become_call()
            self._calls[call.id] = call
        return self._calls

    def begin_lap(self, lap: Lap, params: list[Buffer], now: float) -> int:
        """The last call once more: its number; 0 if it cannot be so now. Under the lock."""
        if self._last is None or self._last[0] is not lap.call or not self._stands(self._last[1]):
            return 0
        self._next += 1
        lap.under_way = self._next, params, now
        self._lap = lap
        return self._next

    def end_lap(self, lap: Lap, ident: int, now: float) -> bool:
        """It was answered; False if it is a call by now. Under the lock."""
        if self._lap is not lap:
            return False
        self._lap, self._ended, lap.call.id = None, now, ident
        return True

    def _stands(self, standing: Standing) -> bool:
        """Whether these hosts, and no others, are there as they were."""
        for link, session in standing.links:
            if link.session is not session:
                return False
        return standing.up == self._up()

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
        _ = self.calls  # perhaps it is being repeated
        self.take_back_all()
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

    def take_back_all(self) -> None:
        """Each host is read by its own thread from now on. Under the lock."""
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
            self.take_back_all()
            self.changed.notify_all()  # a host that is not read because of its answers
            self.calls.pop(call.id, None)
            held = set()
            for action in call.scheduler.abandon():
                held.add(str(action.host))
                if isinstance(action, plan.Cancel):
                    take_back(call, self.links[str(action.host)], action.tasks)
            call.blobs, call.slice_of = [], None  # a report may keep the call for long
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
        sent = session.sent_blobs(call.id)
        call.sent[link.label] = call.sent.get(link.label, 0) + sent

    def handle(self, link: Link, session: Session, message: Any, now: float) -> None:
        """One message from a host, under the lock."""
        if isinstance(message, wire.Welcome):
            link.state, link.error = "up", None
            if link.took is None:
                link.took = now - self.began
            link.round_trip = min(link.round_trip, now - link.greeted)
            link.notes = list(message.notes)
            if link.spec.is_other_python(message.python):
                there, wanted = message.python, link.spec.python
                link.notes.append(f"its agent runs Python {there}; `inv fire` first for {wanted}")
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

    def show_output(self, host: str, message: wire.Output) -> None:
        """What a task printed, by the number of its slice. Called without the lock."""
        call = self._calls.get(message.call)
        if call is not None and call.spans is not None:
            message = message._replace(id=call.slice_at(message.id))
        self.on_output(host, message)

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
