"""A master and its hosts joined in memory: real engine, sessions and agents' state, no processes.

What is real: scheduler, engine (its threads are not started), sessions, frames, `Host`, the fold,
and how workers combine answers.
What is not: connections are queues of frames, workers are lists of tickets, stores are dicts. So
whoever drives this says when a frame arrives, when a worker answers or dies, and what gets lost.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from jamtasks import engine as engine_module
from jamtasks import link as link_module
from jamtasks.combining import Combining
from jamtasks.engine import Call, Engine
from jamtasks.reduction import OrderedFold
from jamtasks.scheduler import Scheduler
from jamtasks.session import Session, State
from jamtasks.settings import HostSpec, Settings
from jamtasks.treefold import TreeFold
from worker_payload import codec, records, wire
from worker_payload import partials as partials_module
from worker_payload.host import Host
from worker_payload.partials import Partials
from worker_payload.worker import BEGIN, END, PART, TASK

BUILD, PROJECT = "b" * 16, "p"
CODE = sha256(b"code").hexdigest()


class Clock:
    """Stands in for the module `time`."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now


def pair(a: str, b: str) -> str:
    """What is combined shows how."""
    return f"({a}{b})"


def frame(message: Any) -> bytes:
    return b"".join(bytes(part) for part in wire.encode(message))


def params_of(call: int) -> bytes:
    return b"params of %d" % call


def content(call: int, index: int) -> bytes:
    return b"slice %d of %d" % (index, call)


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


@dataclass
class Process:
    """A worker: what it has in hand, the first of which it works on."""

    tickets: deque[int] = field(default_factory=deque)
    params: dict[int, bytes] = field(default_factory=dict)  # of calls, by serial
    withdrawn: set[int] = field(default_factory=set)  # of these
    parts: dict[int, Any] = field(default_factory=dict)  # what tickets are, of answers to combine
    partials: dict[int, Partials] = field(default_factory=dict)  # by call
    interrupted: bool = False
    ending: bool = False  # killed, or told to end

    def at_work(self) -> int:
        return self.tickets[0] if self.tickets else 0


class Remote:
    """A host: its agent while it runs, and the one connection that the master has to it."""

    def __init__(self, name: str, workers: int, clock: Clock):
        self.name, self.workers, self.clock = name, workers, clock
        self.agent: Host | None = None
        self.processes: dict[int, Process] = {}
        self.digests: dict[int, str] = {}  # of the slice of each ticket
        self.serials: dict[int, int] = {}  # of the call of each ticket
        self.store: dict[str, bytes] = {}
        self.arriving: dict[str, bytearray] = {}
        self.damage = 0  # so many of the next blobs arrive damaged
        self.hasty = False  # workers begin with the next task before they see it withdrawn
        self.number = 0  # of the connection
        self.unnoticed: list[int] = []  # connections whose end the agent has not seen
        self.decoder = wire.Decoder(wire.FROM_MASTER)
        self.to_agent: deque[bytes] = deque()
        self.to_master: deque[bytes | None] = deque()  # None: the end of the connection
        self.connected = False

    def connect(self) -> None:
        if self.agent is None:
            self.agent = Host(BUILD, PROJECT, self.workers, 900.0, self.clock.now)
            self.agent.board = lambda number: self.processes[number].at_work()
        self.number += 1
        self.connected = True
        self.agent.now = self.clock.now
        self.agent.master_opened(self.number)
        self.decoder = wire.Decoder(wire.FROM_MASTER)
        self.to_agent, self.to_master = deque(), deque()

    def cut(self) -> None:
        """Nothing goes through any more; the agent has not noticed."""
        self.to_agent.clear()
        self.to_master.clear()
        if self.connected:
            self.unnoticed.append(self.number)
            self.number += 1
        self.connected = False

    def notice(self) -> None:
        """The agent sees what connections are no more."""
        for number in self.unnoticed:
            if self.agent is not None:
                self.agent.master_closed(number)
        self.unnoticed.clear()
        self.settle()

    def kill(self) -> None:
        """The agent dies, and its workers."""
        self.agent, self.connected = None, False
        self.processes.clear()
        self.arriving.clear()
        self.unnoticed.clear()
        self.to_agent.clear()
        self.to_master.clear()
        self.to_master.append(None)

    def receive(self) -> None:
        """One frame of the master arrives."""
        data = self.to_agent.popleft()
        if self.agent is None:
            return
        self.agent.now = self.clock.now
        try:
            for message in self.decoder.feed(data):
                self.agent.heard(self.number)
                self.agent.message(self.number, message)
                if isinstance(message, wire.Hello):
                    welcome = wire.Welcome(
                        wire.VERSION, BUILD, "3.6.15", "CPython", "", 1, self.workers, self.workers,
                        1 << 30, 1 << 30, self.name, [],
                    )  # fmt: skip
                    self.to_master.append(frame(welcome))
        except wire.ProtocolError:
            self.agent.master_closed(self.number)
            self.to_master.append(None)
        self.settle()

    def tick(self) -> None:
        if self.agent is not None:
            self.agent.tick(self.clock.now)
            self.settle()

    def settle(self) -> None:
        """Do what the agent's state wants done."""
        while self.agent is not None and (actions := self.agent.actions()):
            for action in actions:
                self._do(self.agent, action)

    def _do(self, agent: Host, action: Any) -> None:
        kind = type(action)
        if kind is records.Send:
            if action.master == self.number:
                self.to_master.append(frame(action.message))
        elif kind is records.Close:
            agent.master_closed(action.master)
            if action.master == self.number:
                self.to_master.append(None)
        elif kind is records.Spawn:
            self.processes[action.worker] = Process()
        elif kind is records.Give:
            process = self.processes[action.worker]
            for command in action.commands:
                if command[0] == BEGIN:
                    process.params[command[1]] = command[3]
                    if command[-1]:
                        process.partials[command[1]] = Partials(command[-1])
                        process.partials[command[1]].reduce = pair
                elif command[0] == END:
                    del process.params[command[1]]
                    process.partials.pop(command[1], None)
                elif command[0] == PART:
                    process.parts[command[2]] = command
                elif command[0] == TASK:
                    self._task(process, command[1], command[2], command[3])
        elif kind is records.Repeat:
            for number, ticket, digest, _inline in action.given:
                process = self.processes[number]
                del process.params[action.before]
                process.params[action.call] = action.params
                self._task(process, ticket, action.call, digest)
        elif kind is records.Withdraw:
            process = self.processes[action.worker]
            process.withdrawn.update(
                ticket
                for index, ticket in enumerate(process.tickets)
                if index > self.hasty and action.after < ticket < action.before
            )
        elif kind is records.Hand:
            if action.master == self.number:
                blocks = [[part.first, part.slices, len(part.segments)] for part in action.parts]
                segments = [one for part in action.parts for one in part.segments]
                message = wire.Combined(action.call, action.slices, blocks, segments)
                self.to_master.append(frame(message))
        elif kind is records.Interrupt:
            self.processes[action.worker].interrupted = True
        elif kind in (records.Kill, records.Retire):
            if action.worker in self.processes:
                self.processes[action.worker].ending = True
        elif kind is records.Look:
            if action.digest in self.store:
                agent.blob_here(action.digest, records.Handle(self.store[action.digest], None))
            else:
                agent.blob_absent(action.digest)
        elif kind is records.Keep:
            self._keep(agent, action)
        elif kind is records.Abandon:
            self.arriving.pop(action.digest, None)
        elif kind is records.Stop:
            self.agent = None

    def _task(self, process: Process, ticket: int, serial: int, digest: str) -> None:
        self.digests[ticket], self.serials[ticket] = digest, serial
        process.tickets.append(ticket)

    def _keep(self, agent: Host, action: records.Keep) -> None:
        if not action.offset:
            self.arriving[action.digest] = bytearray()
        data = self.arriving.setdefault(action.digest, bytearray())
        data += action.data
        if action.offset + len(action.data) < action.total:
            return
        del self.arriving[action.digest]
        if self.damage or sha256(data).hexdigest() != action.digest:
            self.damage = max(0, self.damage - 1)
            agent.blob_damaged(action.digest)
        else:
            self.store[action.digest] = bytes(data)
            agent.blob_here(action.digest, records.Handle(bytes(data), None))

    # --- its workers -----------------------------------------------------------------------

    def busy(self) -> list[int]:
        """Workers that have something to do: a task, or to end."""
        return [
            number
            for number, process in self.processes.items()
            if process.tickets or process.ending
        ]

    def works(self, number: int, how: str, seconds: float) -> None:
        """A worker ends what it works on. how: answer, raise, die."""
        agent, process = self.agent, self.processes[number]
        assert agent is not None
        agent.now = self.clock.now
        if process.ending or how == "die" or not process.tickets:
            ticket = process.tickets[0] if process.tickets else 0
            del self.processes[number]
            agent.gone(number, None, 9, ticket, "last words", "")
        else:
            ticket = process.tickets[0]
            interrupted, process.interrupted = process.interrupted, False
            what = "KeyboardInterrupt" if interrupted else "ValueError" if how == "raise" else ""
            if ticket in process.parts:
                self._combines(agent, number, process, ticket, seconds, what)
            elif what:
                failure = (what, "no", "its traceback", 0)
                agent.answered(number, ticket, False, False, seconds, failure)
            else:
                slice_, params = self.store[self.digests[ticket]], process.params
                answer = [slice_, params[self.serials[ticket]]]
                agent.answered(number, ticket, True, False, seconds, answer)
            process.tickets.popleft()
            while process.tickets and process.tickets[0] in process.withdrawn:
                withdrawn = process.tickets.popleft()
                if withdrawn in process.parts:
                    partials = process.partials.get(process.parts[withdrawn][1])
                    self._gives_out(agent, number, partials)
        self.settle()

    def _combines(
        self, agent: Host, number: int, process: Process, ticket: int, seconds: float, what: str
    ) -> None:
        """A task of a call whose answers are combined. what: the exception it raises."""
        command = process.parts[ticket]
        call, index, parts = command[1], command[3], command[4]
        partials = process.partials[call]
        partials.prepare(command, [])
        if what:
            self._gives_out(agent, number, partials)
            at = (parts[0][0], sum(count for _, count, _ in parts)) if parts is not None else 0
            agent.answered(number, ticket, False, False, seconds, (what, "no", "its traceback", at))
            return
        answer = partials.joined() if parts is not None else partials.mapped(str(index))
        if answer:
            agent.answered(number, ticket, True, False, seconds, answer)
        elif partials.wait(ticket, seconds):
            self._gives_out(agent, number, partials)

    def _gives_out(self, agent: Host, number: int, partials: Partials | None) -> None:
        if partials is not None and partials.waiting:
            ticket, seconds, answer = partials.give_out()
            agent.answered(number, ticket, True, False, seconds, answer)

    def computed(self) -> list[int]:
        """Slices whose answers a worker has and has not given out."""
        return [
            process.parts[ticket][3]
            for process in self.processes.values()
            for partials in process.partials.values()
            for ticket, _ in partials.waiting
        ]

    def joins(self) -> bool:
        """Whether a worker works on a join."""
        return any(
            process.parts[process.tickets[0]][4] is not None
            for process in self.processes.values()
            if process.tickets and process.tickets[0] in process.parts
        )

    def begun(self) -> set[str]:
        """Digests of what its workers work on."""
        return {self.digests[p.tickets[0]] for p in self.processes.values() if p.tickets}


class World:
    """A master, its hosts, and one call after the other. workers: by host."""

    def __init__(self, workers: dict[str, int]):
        self.clock = Clock()
        self.modules: list[tuple[Any, Any]] = []
        for module in (engine_module, link_module, partials_module):
            self.modules.append((module, module.time))  # type: ignore[attr-defined]
            module.time = self.clock  # type: ignore[attr-defined]
        specs = [HostSpec(name, workers=count) for name, count in workers.items()]
        self.engine = Engine(
            specs, Settings(tuple(specs)), build=BUILD, project=PROJECT,
            attach=lambda spec, attempt: None,  # type: ignore[arg-type,return-value]
            on_output=lambda host, output: None,
        )  # fmt: skip
        self.remotes = {name: Remote(name, count, self.clock) for name, count in workers.items()}
        self.call: Call | None = None
        self.last: Call | None = None  # that is over
        self.used: Counter[int] = Counter()  # answers that were folded, by slice

    def close(self) -> None:
        for module, real in self.modules:
            module.time = real
        if self.call is not None:
            self.fold.close()

    def session(self, name: str) -> Session | None:
        return self.engine.links[name].session

    def is_ready(self, name: str) -> bool:
        session = self.session(name)
        return session is not None and session.state is State.READY

    # --- calls -----------------------------------------------------------------------------

    def begin(
        self, count: int, *, speculate: bool, keep_going: bool, room: int, combine: bool = False
    ) -> None:
        """A new call. room: bytes of answers that wait for the fold, before it is full. combine:
        its hosts combine answers."""
        self.first = number = self.engine.next_id()
        self._fold(count, room, combine)
        self.index = {Slice(content(number, i)).digest: i for i in range(count)}
        options = {"combine": count} if combine else {}
        self.call = Call(
            id=number,
            begin=wire.Begin(number, CODE, "m", "", options, [params_of(number)]),
            blobs=[(CODE, 4, lambda: [b"code"])],
            slice_of=lambda i: Slice(content(number, i)),
            scheduler=Combining(count) if combine else Scheduler(count, speculate=speculate),
            requires=(),
            needs_numpy=False,
            keep_going=keep_going,
        )
        ready = [self.engine.links[name] for name in self.remotes if self.is_ready(name)]
        self.engine.submit(self.call, ready, pinned=False)
        self.pump()

    def _fold(self, count: int, room: int, combine: bool = False) -> None:
        if combine:
            self.fold: OrderedFold = TreeFold(pair, count, in_memory=room, in_file=0)
        else:
            self.fold = OrderedFold(lambda a, b: a + b, count, in_memory=room, in_file=0)
        self.used = Counter()
        self.count, self.room = count, room

    def repeat(self) -> bool:
        """The last call once more, with other params; False if that cannot be."""
        if self.last is None:
            return False
        params = params_of(self.engine._next + 1)
        self.call = self.engine.again(self.last, [params])
        if self.call is None:
            return False
        assert params == params_of(self.call.id)
        self._fold(self.count, self.room, self.call.combining is not None)
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
        """What the folding thread does."""
        call = self.call
        if call is None:
            return
        for first, _host, segments, count in sorted(call.results):
            self.used.update(range(first, first + (count or 1)))
            if call.combining is not None:
                self.fold.add(first, segments, codec.decode, count)
            else:
                self.fold.add(first, segments, lambda parts: [bytes(part) for part in parts])
        call.results.clear()
        call.lag = 0
        for failure in call.failures[call.failures_seen :]:
            self.used[failure.slice] += 1
            self.fold.skip(failure.slice)
        call.failures_seen = len(call.failures)
        call.head_only = self.fold.next if self.fold.full else None

    def index_of(self, remote: Remote, number: int) -> int | None:
        """The slice of the call under way that a worker works on."""
        tickets = remote.processes[number].tickets
        if self.call is None or not tickets:
            return None
        return self.index.get(remote.digests[tickets[0]])

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
            self.pump()

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
                    if not isinstance(message, wire.Output):
                        self.engine.handle(link, session, message, self.clock.now)
        except wire.ProtocolError:
            remote = self.remotes[name]
            remote.cut()
            self.lose(name)
        self.act()

    def act(self) -> None:
        with self.engine.lock:
            self.engine.look_at_rounds(self.clock.now)
        self.take_in()
        self.engine.dispatch()
        self.pump()

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        for remote in self.remotes.values():
            remote.tick()
        self.act()

    def deliver_all(self) -> None:
        """Let everything arrive that is on its way, until nothing is."""
        for _ in range(10_000):
            moved = False
            for name, remote in self.remotes.items():
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
