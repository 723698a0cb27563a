"""A master and its hosts joined in memory: real engine, sessions and agents' state, no processes.

What is real: scheduler, engine (its threads are not started), sessions, spans and what feeds them,
frames, `Host` and `Keeping`, the fold, and how workers combine answers. What is not: connections
are queues of frames, workers and stores are in memory (`remotes.py`, `shelves.py`). So whoever
drives this says when a frame arrives, when a worker answers or dies, and what gets lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

from remotes import BUILD, CODE, PARAMS, PROJECT, Process, Remote, pair
from shelves import INLINE, Files, Shelf, Threads

from jamtasks import engine as engine_module
from jamtasks import feeding, sending
from jamtasks import link as link_module
from jamtasks import session as session_module
from jamtasks import spans as spans_module
from jamtasks.calls import Call
from jamtasks.combining import Combining
from jamtasks.engine import Engine
from jamtasks.reduction import OrderedFold
from jamtasks.scheduler import Scheduler
from jamtasks.session import Session, State
from jamtasks.settings import HostSpec, Settings
from jamtasks.spans import Spans
from jamtasks.treefold import TreeFold
from worker_payload import codec, keeping, lap, repeating, wire
from worker_payload import host as host_module
from worker_payload import partials as partials_module

AHEAD = 50  # items of a Master.map under way beyond the one that is waited for
SPAN_BYTES = 600  # in a task; a longer span travels as a blob
LARGE = 3  # every so many slices one is larger, and travels in pieces, and alone
PIECE = 2000  # bytes of a blob that travel at a time
PASS_BYTES = 40  # of answers to a repeated call that do not wait for the rest
KINDS = ("slices", "spans", "map", "unordered map", "pinned", "combined", "tiny combined")
REPEATABLE = ("slices", "pinned", "combined")


class Clock:
    """Stands in for the module `time`."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now


def content(call: int, index: int, kind: str) -> bytes:
    large = kind in ("slices", "combined") and index % LARGE == LARGE - 1
    return b"slice %d of %d" % (index, call) + b"." * (5000 * large)


@dataclass(frozen=True)
class Slice:
    data: bytes

    @property
    def digest(self) -> str:
        return sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        return len(self.data)

    def parts(self) -> list[bytes]:
        return [self.data]


def _many(segments: Sequence[Any]) -> list[bytes]:
    return list(codec.decode([bytes(part) for part in segments[1:]]))


def _lists(segments: Sequence[Any]) -> list[list[bytes]]:
    return [[one] for one in _many(segments)]


class World:
    """A master, its hosts, and one call after the other. workers: by host. room: bytes that each
    host keeps in memory and on disk. chosen: these limits are its user's."""

    def __init__(
        self,
        workers: dict[str, int],
        room: tuple[int, int] = (1 << 30, 1 << 30),
        *,
        chosen: bool = False,
    ):
        self.clock = Clock()
        self.files = Files()
        self.threads = Threads()
        self.memory = 1 << 30  # that is free at the hosts
        self.modules: list[tuple[Any, str, Any]] = []
        for module, name, value in (
            (engine_module, "time", self.clock),
            (sending, "time", self.clock),
            (link_module, "time", self.clock),
            (keeping, "time", self.clock),
            (partials_module, "time", self.clock),
            (keeping, "os", self.files),
            (keeping, "threading", self.threads),
            (keeping, "limits", SimpleNamespace(memory_free=lambda: self.memory)),
            (keeping, "INLINE", INLINE),
            (host_module, "PARAMS_INLINE", INLINE),
            (repeating, "PARAMS_INLINE", INLINE),
            (lap, "PARAMS_INLINE", INLINE),
            (lap, "PASS_BYTES", PASS_BYTES),
            (wire, "CHUNK", PIECE),
            (session_module, "BURST", 1),
            (spans_module, "BYTES", SPAN_BYTES),
            (feeding, "BYTES", SPAN_BYTES),
        ):
            self.modules.append((module, name, getattr(module, name)))
            setattr(module, name, value)
        specs = [HostSpec(name, workers=count) for name, count in workers.items()]
        self.engine = Engine(
            specs, Settings(tuple(specs)), build=BUILD, project=PROJECT,
            attach=lambda spec, attempt: None,  # type: ignore[arg-type,return-value]
            on_output=lambda host, output: None,
        )  # fmt: skip
        self.remotes = {
            name: Remote(name, count, self.clock, self.files, Shelf(self.files, room, chosen))
            for name, count in workers.items()
        }
        self.call: Call | None = None
        self.last: Call | None = None  # that is over
        self.kind = ""
        self.used: Counter[int] = Counter()  # answers that were folded, by slice
        self.refused = 0  # times that a host took no part

    def close(self) -> None:
        for module, name, real in self.modules:
            setattr(module, name, real)
        if self.call is not None:
            self.fold.close()

    def session(self, name: str) -> Session | None:
        return self.engine.links[name].session

    def is_ready(self, name: str) -> bool:
        session = self.session(name)
        return session is not None and session.state is State.READY

    # --- calls -----------------------------------------------------------------------------

    def begin(
        self,
        count: int,
        *,
        kind: str = "slices",
        speculate: bool = False,
        keep_going: bool = False,
        room: int = 1 << 20,
        params: str = "inline",
    ) -> None:
        """A new call. kind: how its slices travel. count: of slices; for one without data it is
        that of the workers. room: bytes of answers that wait for the fold, before it is full."""
        self.first = number = self.engine.next_id()
        ready = [self.engine.links[name] for name in self.remotes if self.is_ready(name)]
        pinned, spans = kind == "pinned", kind in ("spans", "map", "unordered map")
        combine = "combined" in kind
        if pinned:
            count = sum(link.workers for link in ready)
        self.kind, self.count, self.room, self.how = kind, count, room, params
        self.contents = {content(number, index, kind): index for index in range(count)}
        self.homes = [(link.label, slot) for link in ready for slot in range(link.workers)]
        self.params = PARAMS[params](number)
        self._fold()
        digest = "" if params in ("inline", "spooled") else sha256(self.params).hexdigest()
        value = self.params
        scheduler = Scheduler(
            0 if spans else count, speculate=speculate and not pinned, move_seconds=0.0
        )
        options = {"combine": count} if combine else {"spans": spans}
        call = self.call = Call(
            id=number,
            begin=wire.Begin(
                number, CODE, f"{params}_{number}", digest, options, [] if digest else [value]
            ),
            blobs=[
                (CODE, 4, lambda: [b"code"]),
                *([(digest, len(value), lambda: [value])] if digest else []),
            ],
            slice_of=None if pinned or spans else lambda i: Slice(content(number, i, kind)),
            scheduler=Combining(count) if combine else scheduler,
            requires=(),
            needs_numpy=False,
            keep_going=keep_going and "map" not in kind,
            inline=kind == "tiny combined",
        )
        if spans:
            call.spans = Spans(count if kind == "spans" else None)
            self.items = feeding.Items(content(number, index, kind) for index in range(count))
            self.feed = feeding.Feeder(self.engine, call, self.items.encode)
            if "map" in kind:
                self.feed.limit(AHEAD)
        self.engine.submit(call, ready, pinned=pinned)
        self.act()

    def _fold(self) -> None:
        kind = TreeFold if "combined" in self.kind else OrderedFold
        join: Any = pair if kind is TreeFold else lambda a, b: a + b
        self.fold: OrderedFold = kind(join, self.count, in_memory=self.room, in_file=0)
        self.order = feeding.Order(self.kind == "map")
        self.used, self.refused, self.out = Counter(), 0, []

    def repeat(self) -> bool:
        """The last call once more, with other params; False if that cannot be."""
        if self.last is None or self.how != "inline":
            return False
        params = PARAMS["inline"](self.engine._next + 1)
        call = self.call = self.engine.again(self.last, [params])
        if call is None:
            return False
        assert params == PARAMS["inline"](call.id)
        self.params = params
        self._fold()
        self.pump()
        return True

    def end(self) -> None:
        """The call is over, whatever came of it."""
        assert self.call is not None
        self.take_in()
        self.engine.finish(self.call)
        self.fold.close()
        self.last, self.call = self.call, None
        self.pump()

    def take_in(self) -> None:
        """What the thread does that drives a call."""
        call = self.call
        if call is None:
            return
        for first, host, segments, count in sorted(call.results):
            self.used.update(range(first, first + (count or 1)))
            if self.kind == "pinned" and first not in call.moved:
                slot = int(bytes(segments[0]).split()[-1])
                assert self.homes[first] == (host, slot), "it ran at another worker"
            if "map" in self.kind:
                self.items.forget(first, count)
                self.order.add(first, count, segments, _many)
                self.out += self.order.ready()
                self.feed.limit(self.order.next + AHEAD)
            elif call.combining is not None:
                self.fold.add(first, segments, codec.decode, count)
            else:
                self.fold.add(first, segments, _lists if count else self._one(first), count)
        call.results.clear()
        call.lag = 0
        for failure in call.failures[call.failures_seen :]:
            self.used[failure.slice] += 1
            self.fold.skip(failure.slice)
        call.failures_seen = len(call.failures)
        head = self.fold.next if call.spans is None else call.spans.task_at(self.fold.next)
        call.head_only = head if self.fold.full else None
        while call.hungry and call.scheduler.workers:
            self.feed.feed()

    def _one(self, index: int) -> Any:
        """What an answer for one slice is worth: its slice and the params, both as they came."""

        def decode(segments: Sequence[Any]) -> list[bytes]:
            piece, params = map(bytes, segments)
            # a worker without data does not know which call it is; its answer was looked at above
            return [
                content(self.first, index, self.kind) if self.kind == "pinned" else piece,
                params,
            ]

        return decode

    # --- what workers do -------------------------------------------------------------------

    def slices_of(self, remote: Remote, process: Process) -> list[int | None]:
        """The slices of the call under way that a worker works on."""
        task = remote.task_of(process)
        if self.call is None or task is None or task.call.id != self.call.id:
            return []
        if self.call.spans is None:
            return [task.id]  # below zero, where answers are joined
        return [self.contents.get(piece) for piece in process.pieces()]

    def begun(self) -> set[int]:
        """Tasks of the call under way that a worker works on."""
        found = set()
        for remote in self.remotes.values():
            for process in remote.processes.values():
                task = remote.task_of(process)
                if task is not None and self.call is not None and task.call.id == self.call.id:
                    found.add(task.id)
        return found

    def kept(self) -> set[int]:
        """Slices of the call under way that were computed, and whose answers are kept there."""
        found = set()
        if self.call is not None and self.call.combining is not None:
            found.update(*self.call.combining._kept.values())
            for name in self.remotes:
                found |= self.untold(name)
        return found

    def untold(self, name: str) -> set[int]:
        """Slices that workers of a host have computed, and tell of when they end what they work
        on."""
        found, remote = set(), self.remotes[name]
        for process in remote.processes.values():
            for known in process.calls.values():
                tickets = known.partials.waiting if known.partials is not None else ()
                tasks = (remote.agent._tickets.get(ticket) for ticket, _ in tickets)  # type: ignore[union-attr]
                found.update(task.id for task in tasks if task is not None)
        return found

    # --- what happens ----------------------------------------------------------------------

    def connect(self, name: str) -> None:
        link = self.engine.links[name]
        if link.session is None:
            self.remotes[name].connect()
            link.session = Session(self.engine.hello(link.spec))
            link.answers, link.asked = {}, {}
            self.pump()

    def lose(self, name: str) -> None:
        """The master notices that a connection is no more."""
        link = self.engine.links[name]
        if link.session is not None:
            link.session = None
            link._lose("gone")
            self.act()

    def pump(self) -> None:
        """Put what the master wants to write on its way."""
        for name, remote in self.remotes.items():
            session = self.session(name)
            while session is not None and session.has_pending():
                # whole frames, perhaps several: how bytes may be torn is tested with the decoder
                remote.to_agent.append(b"".join(bytes(part) for part in session.pending()))

    def to_master(self, name: str) -> None:
        """One frame of a host arrives."""
        link, data = self.engine.links[name], self.remotes[name].to_master.popleft()
        session = link.session
        if session is None:
            return
        if data is None:
            self.lose(name)
            return
        try:
            with self.engine.lock:
                for message in session.receive(data, self.clock.now):
                    self.refused += isinstance(message, wire.Refused)
                    if not isinstance(message, wire.Output):
                        self.engine.handle(link, session, message, self.clock.now)
        except wire.ProtocolError:
            remote = self.remotes[name]
            remote.cut()
            self.lose(name)
        self.act()

    def act(self) -> None:
        while True:
            with self.engine.lock:
                self.engine.look_at_rounds(self.clock.now)
            self.take_in()
            self.engine.dispatch()
            if self.call is None or not self.call.hungry or not self.call.scheduler.workers:
                break
        self.pump()

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.threads.run(self.clock.now)
        for name, remote in self.remotes.items():
            remote.tick()
            if seconds > 1.0 and (session := self.session(name)) is not None:
                session.send(wire.Beat())
        self.act()

    def deliver_all(self) -> None:
        """Let everything arrive that is on its way, until nothing is."""
        for _ in range(10_000):
            moved = self.threads.run(self.clock.now)
            for name, remote in self.remotes.items():
                moved = remote.hears_all() or moved
                if remote.to_agent:
                    remote.receive()
                    moved = True
                if remote.to_master:
                    self.to_master(name)
                    moved = True
            self.pump()
            if not moved:
                return
        raise AssertionError("messages without an end")
