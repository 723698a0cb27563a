"""A host in memory: real `Host` and `Keeping`, but workers and its connection only pretend.

Whoever drives it says when a frame arrives, when a worker answers or dies, and when the agent hears
of it.
"""

from __future__ import annotations

import contextlib
import marshal
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from shelves import Files, Shelf, Shelving

from worker_payload import board, codec, frames, orders, records, wire
from worker_payload.board import Board, Rooms
from worker_payload.host import Host
from worker_payload.lap import Lap
from worker_payload.partials import Partials

BUILD, PROJECT = "b" * 16, "p"
CODE = sha256(b"code").hexdigest()
PARAMS = {  # how they travel -> what they are, for a call
    "inline": lambda call: b"%d" % call,
    "spooled": lambda call: b"params that take a file of call %d" % call,
    "blob": lambda call: b"params in a blob of call %d" % call,
    "shared": lambda call: b"params that are the same for all calls",
    "long": lambda call: b"params in many pieces, of call %5d" % call * 250,
}


def frame(message: Any) -> bytes:
    return b"".join(bytes(part) for part in frames.encode(message))


def pair(a: str, b: str) -> str:
    """What is combined shows how."""
    return f"({a}{b})"


@dataclass
class Known:
    """A call, as a worker knows it. params: their bytes, or a file of them."""

    module: str
    params: bytes | int
    spans: bool
    partials: Partials | None


@dataclass
class Said:
    """What a worker sent to its agent: an answer, or that there is one on the board (`rings`)."""

    ticket: int
    ok: bool = True
    seconds: float = 0.0
    payload: Any = None
    wrote: bool = False
    rings: bool = False


@dataclass
class Process:
    """A worker. What it works on is `current`; its answers are in `said` until they are heard, or
    on the board. tokens: the pipe of these, see `board.Bell`."""

    slot: int
    files: Files
    wall: Board
    place: int
    tokens: deque[bytes]
    commands: deque[tuple[Any, int | None]] = field(default_factory=deque)  # with their files
    current: Any = None
    said: deque[Said] = field(default_factory=deque)
    calls: dict[int, Known] = field(default_factory=dict)
    slices: dict[str, int] = field(default_factory=dict)
    last: Any = None  # what the bell repeats: call, ticket less that, digest, inline
    seen: int = 0  # on the board, so many changes
    by_bell: int = 0  # workers in the lap of which `current` is a part
    share: Any = None  # of a call that is combined: beyond, tasks, peers
    expects: int = 0  # what a notice has to name so that this is meant
    rest: deque[Any] = field(default_factory=deque)  # of the tasks of such a lap
    held_back: list[Said] | None = None  # answers in such a lap
    withdrawn: tuple[int, int] = (0, 0)
    interrupted: bool = False
    ending: bool = False  # killed, or told to end

    @property
    def ticket(self) -> int:
        return self.current[1] if self.current is not None else 0

    def take(self, commands: list[Any], fds: list[int]) -> None:
        files = deque(self.files.dup(fd) for fd in fds)
        for command in commands:
            given = command[{orders.CODE: 1, orders.BEGIN: 3, orders.TASK: 4}.get(command[0], 0)]
            has_file = given is True if command[0] == orders.TASK else given is None
            self.commands.append((command, files.popleft() if has_file else None))
        assert not files, "a file that no command asks for"
        self.go_on()

    @property
    def called(self) -> bool:
        """Whether the bell rang for it, and it has not begun."""
        before = board.HEAD.unpack_from(self.wall.memory, board.HEAD_AT)[1]
        if self.last is None or self.current is not None or self.wall.changes() == self.seen:
            return False
        return bool(before == (self.last[0] if self.share is None else self.expects))

    def look(self) -> None:
        """At the board, as one that repeats its last task does before it reads a command."""
        if self.last is None or self.wall.changes() == self.seen:
            return
        memory = self.wall.memory
        change, before, call, count, size, bare = board.HEAD.unpack_from(memory, board.HEAD_AT)
        at, beyond, digest, inline = self.last
        if before != (at if self.share is None else self.expects):
            self.last = None
            return
        if self.share is not None:
            self._begins_share(change, call, count, memory, size, bare)
            return
        params = memory[board.PARAMS_AT : board.PARAMS_AT + size]
        if bare:
            params = b"".join(codec.blob_parts([params]))
        self.last, self.seen = (call, beyond, digest, inline), change
        self.calls[call] = Known("", params, False, self.calls.pop(before).partials)
        if not self.withdrawn[0] < call + beyond < self.withdrawn[1]:
            self.current, self.by_bell = (orders.TASK, call + beyond, call, digest, inline), count

    def _begins_share(
        self, change: int, call: int, count: int, memory: Any, size: int, bare: int
    ) -> None:
        params = memory[board.PARAMS_AT : board.PARAMS_AT + size]
        if bare:
            params = b"".join(codec.blob_parts([params]))
        before = self.last[0]
        self.last, self.seen, self.by_bell = (call, 0, None, None), change, count
        self.expects = call
        self.held_back = []
        self.calls[call] = Known("", params, False, self.calls.pop(before).partials)
        beyond, tasks, _ = self.share
        last = len(tasks) - 1
        self.rest = deque(
            (call, call + beyond + i, slice_, digest, inline, i < last)
            for i, (slice_, digest, inline) in enumerate(tasks)
        )
        self._next_of_share()

    @contextlib.contextmanager
    def _holding_back(self) -> Iterator[None]:
        """What is said meanwhile is kept for the board."""
        sent, self.said = self.said, deque()
        yield
        assert self.held_back is not None
        self.held_back += self.said
        self.said = sent

    def _next_of_share(self) -> None:
        """Begin the next task, or end the lap."""
        while self.rest:
            call, ticket, slice_, digest, inline, more = self.rest.popleft()
            partials = self.calls[call].partials
            assert partials is not None
            partials.patience = 1e9
            partials.prepare((orders.PART, call, ticket, slice_, None, False, more), [])
            if not self.withdrawn[0] < ticket < self.withdrawn[1]:
                self.current = orders.TASK, ticket, call, digest, inline
                return
            with self._holding_back():
                self._gives_out(partials)
        self._ends_share()

    def _ends_share(self) -> None:
        said, self.held_back, count, self.by_bell = self.held_back, None, self.by_bell, 0
        assert said is not None
        call, (beyond, _, peers) = self.last[0], self.share
        first, there = call + beyond, False
        if len(said) == 1 and said[0].ok and not said[0].wrote and said[0].ticket == first:
            words = self.wall.place(self.place)
            head = self.wall.put_many(board.room_at(self.place), said[0].payload)
            took = int(1e6 * said[0].seconds)
            words[board.TOOK : board.SECOND + 1] = array("Q", [took, head, board.MANY])
            words[board.DONE], there = first, True
        told = self._is_told(count)
        if not there:
            self.said.extend(said)
        elif not told:
            self._joins(call, peers)
            self.said.append(Said(first, rings=True))

    def _joins(self, call: int, peers: list[tuple[int, int]]) -> None:
        """The last one joins what is there, unless its mood is bad."""
        parts, partials = [], self.calls[call].partials
        for place, beyond in peers:
            found = self.wall.answered(place, call + beyond)
            if found is None:
                return
            segments, position = list(map(bytes, found[1])), 1
            for first, slices, _, length, _ in marshal.loads(segments[0])[1]:
                parts.append((first, slices, segments[position : position + length]))
                position += length
        assert partials is not None
        partials.parts = sorted(parts)
        joined = partials.joined()
        if call % 3:
            self.wall.put_joined(call, joined)

    def go_on(self) -> None:
        """Up to the next task, which it begins."""
        while self.current is None:
            self.look()
            if self.current is not None or not self.commands:
                return
            command, fd = self.commands.popleft()
            kind = command[0]
            if kind == orders.CODE:
                assert self._read(command[1], fd) == b"code"
            elif kind == orders.BEGIN:
                _, call, module, params, _writable, spans, _function, total = command
                assert call not in self.calls
                partials = Partials(total) if total else None
                if partials is not None:
                    partials.reduce = pair
                self.calls[call] = Known(module, params if fd is None else fd, spans, partials)
            elif kind == orders.END:
                known = self.calls.pop(command[1])
                if self.last is not None and self.last[0] == command[1]:
                    self.last = None
                if isinstance(known.params, int):
                    self.files.close(known.params)
            elif kind == orders.DROP:
                self.files.close(self.slices.pop(command[1]))
            elif kind == orders.PART:
                partials = self.calls[command[1]].partials
                assert partials is not None
                partials.prepare(command, [])
            elif kind == orders.AGAIN:
                _, ticket, before, call, digest, inline, params = command
                if call not in self.calls:
                    self.calls[call] = Known("", params, False, self.calls.pop(before).partials)
                self.last, self.seen = None, self.wall.changes()
                if self.calls[call].partials is None:
                    self.last = call, ticket - call, digest, inline
                self.share = None
                self.current = orders.TASK, ticket, call, digest, inline
            elif kind == orders.SHARE:
                _, call, self.expects, beyond, tasks, peers, self.seen = command
                self.last, self.share = (call, 0, None, None), (beyond, tasks, peers)
            elif kind == orders.TASK:
                if fd is not None:
                    assert command[3] not in self.slices
                    self.slices[command[3]] = fd
                if self.withdrawn[0] < command[1] < self.withdrawn[1]:
                    self._gives_out(self.calls[command[2]].partials)
                else:
                    self.current = command

    def _read(self, inline: bytes | None, fd: int | None) -> bytes:
        if fd is None:
            assert inline is not None
            return inline
        data = self.files.read(fd)
        self.files.close(fd)
        return data

    @property
    def known(self) -> Known:
        """The call of the current task."""
        return self.calls[self.current[2]]

    def params(self) -> bytes:
        """What the map function gets besides."""
        known = self.known
        found = self.files.read(known.params) if isinstance(known.params, int) else known.params
        kind, _, number = known.module.partition("_")
        if known.spans or kind not in ("", "inline"):
            # else it may be a repeated call: they are part of the answer
            assert found == PARAMS[kind](int(number)), "the params of another call"
        return found

    def pieces(self) -> list[bytes | None]:
        """What the map function gets, one after another, in the current task."""
        _, _, _, digest, inline = self.current
        data = inline if type(inline) is bytes else None
        if data is None and digest is not None:
            data = self.files.read(self.slices[digest])
            assert sha256(data).hexdigest() == digest
        if not self.known.spans:
            return [data]
        return list(codec.decode(codec.blob_segments(data)))

    def ends(self, well: bool, seconds: float, share: int) -> None:
        """It ends its current task, and goes on to the next. share: see `Remote.works`."""
        if self.held_back is not None:
            with self._holding_back():
                if not well or self.interrupted:
                    what = "KeyboardInterrupt" if self.interrupted else "ValueError"
                    self.raises(what, seconds, share)
                else:
                    self.answers(seconds, share)
                    if share == 3 and self.said:
                        self.said[-1].wrote = True
            self.current, self.interrupted = None, False
            self._next_of_share()
            self.go_on()
            return
        count, self.by_bell = self.by_bell, 0
        if not well or self.interrupted:
            what = "KeyboardInterrupt" if self.interrupted else "ValueError"
            self.raises(what, seconds, share)
        elif count:
            self._answers_on_board(count, seconds, share)
        else:
            self.answers(seconds, share)
        if count and (not well or self.interrupted):
            self._is_told(count)
        self.current, self.interrupted = None, False
        self.go_on()

    def _is_told(self, count: int) -> bool:
        """Whether the agent is told by others that the answer is there."""
        return count > 1 and bool(self.tokens) and self.tokens.popleft() == board.QUIET

    def _answers_on_board(self, count: int, seconds: float, share: int) -> None:
        """As one of so many."""
        self.answers(seconds, share)
        said = self.said.pop()
        one, two = map(bytes, said.payload)
        words, begin = self.wall.place(self.place), board.room_at(self.place)
        words[board.TOOK : board.SECOND + 1] = array("Q", [int(1e6 * seconds), len(one), len(two)])
        self.wall.memory[begin : begin + len(one + two)] = one + two
        fits, said.wrote = share not in (1, 3), share == 3
        if fits:
            words[board.DONE] = said.ticket
        told = self._is_told(count)
        if not fits:
            self.said.append(said)
        elif not told:
            self.said.append(Said(said.ticket, rings=True))

    def answers(self, seconds: float, share: int) -> None:
        """It ends its current task well."""
        partials, pieces, params = self.known.partials, self.pieces(), self.params()
        if self.known.spans:
            done = pieces[: max(1, share)]
            segments: list[Any] = [wire.SPAN.pack(len(done)), *map(bytes, codec.encode(done))]
        elif partials is None:
            segments = [pieces[0] if pieces[0] is not None else b"worker %d" % self.slot, params]
        elif partials.parts is not None:
            segments = partials.joined()
        else:
            segments = partials.mapped(str(partials._slice))
        if segments:
            self.said.append(Said(self.ticket, True, seconds, segments))
        elif partials is not None and partials.wait(self.ticket, seconds):
            self._gives_out(partials)

    def raises(self, what: str, seconds: float, share: int) -> None:
        partials = self.known.partials
        at: Any = share % len(self.pieces())
        if partials is not None:
            self._gives_out(partials)
            if partials.parts is not None:
                parts, partials.parts = partials.parts, None
                at = parts[0][0], sum(count for _, count, _ in parts)
        self.said.append(Said(self.ticket, False, seconds, (what, "no", "its traceback", at)))

    def _gives_out(self, partials: Partials | None) -> None:
        """Answers that waited for others to be joined with."""
        if partials is not None and partials.waiting:
            ticket, seconds, segments = partials.give_out()
            self.said.append(Said(ticket, True, seconds, segments))

    def close(self) -> None:
        """It is dead: the system closes its files."""
        held = [fd for _, fd in self.commands if fd is not None]
        held += [one.params for one in self.calls.values() if isinstance(one.params, int)]
        for fd in (*held, *self.slices.values()):
            self.files.close(fd)


class Remote:
    """A host: its agent while it runs, and the one connection that the master has to it."""

    def __init__(self, name: str, workers: int, clock: Any, files: Files, shelf: Shelf):
        self.name, self.workers, self.clock = name, workers, clock
        self.files, self.shelf = files, shelf
        self.agent: Host | None = None
        self.lap: Lap | None = None  # in the agent's place
        self.laps = 0  # that were begun
        self.rooms: Any = None  # of the workers in it
        self.wall = Board()
        self.tokens: deque[bytes] = deque()
        self.drowsy = False  # workers look at the board when they next do something
        self.keeping: Any = None
        self.processes: dict[int, Process] = {}
        self.damage = 0  # so many of the next pieces of blobs arrive damaged
        self.hasty = False  # workers go on to the next task just before they see it withdrawn
        self.number = 0  # of the connection
        self.unnoticed: list[int] = []  # connections whose end the agent has not seen
        self.decoder = frames.Decoder(wire.FROM_MASTER)
        self.to_agent: deque[bytes] = deque()
        self.to_master: deque[bytes | None] = deque()  # None: the end of the connection
        self.connected = False

    def connect(self) -> None:
        if self.agent is None:
            self._start()
        assert self.agent is not None
        self.catch_up()
        self.number += 1
        self.connected = True
        self.agent.now = self.clock.now
        self.agent.master_opened(self.number)
        self.decoder = frames.Decoder(wire.FROM_MASTER)
        self.to_agent, self.to_master = deque(), deque()

    def _start(self) -> None:
        agent = self.agent = Host(BUILD, PROJECT, self.workers, 900.0, self.clock.now)
        agent.board = lambda number: self.processes[number].ticket

        self.wall, self.tokens = Board(), deque()

        def from_thread(work: Callable[[], object]) -> None:
            if self.agent is agent:
                self.catch_up()
                agent.now = self.clock.now
                work()
                self.settle()

        store: Any = self.shelf
        self.keeping = Shelving(store, agent, "", from_thread, self.settle, lambda text: None)

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
        self.catch_up()
        for number in self.unnoticed:
            if self.agent is not None:
                self.agent.master_closed(number)
        self.unnoticed.clear()
        self.settle()

    def kill(self) -> None:
        """The agent dies, and its workers."""
        self._stop()
        self.connected = False
        self.unnoticed.clear()
        self.to_agent.clear()
        self.to_master.clear()
        self.to_master.append(None)

    def catch_up(self) -> None:
        """Something happens that is not of a lap."""
        lap, self.lap = self.lap, None
        if lap is not None and self.agent is not None:
            if lap.under_way is not None:  # as at the end of `Circuit.run`
                self.tokens.clear()
                lap.gather(self.rooms.words(), self.rooms)
            self.agent.now = self.clock.now
            self.agent.catch_up(lap)
            self.settle()

    def _stop(self) -> None:
        self.lap = None
        for process in self.processes.values():
            process.close()
        self.processes.clear()
        if self.agent is not None:
            for fd in self.held():
                self.files.close(fd)
            for writer in self.keeping._writers.values():
                writer.abort()
            self.keeping.dead = True
        self.agent = None
        self.shelf.restart()

    def held(self) -> list[int]:
        """Descriptors that the agent holds."""
        agent = self.agent
        assert agent is not None
        handles = [blob.handle for blob in agent._blobs.values()]
        handles += [call.params_handle for call in agent._calls.values()]
        return [handle.fd for handle in handles if handle is not None and handle.fd is not None]

    def receive(self) -> None:
        """One frame of the master arrives."""
        data = self.to_agent.popleft()
        if self.agent is None:
            return
        if self.lap is not None and self.lap.under_way is None:
            notice = self.lap.begin(data)
            if notice is not None:
                self._ring(notice, len(self.lap.workers))
                return
        self.catch_up()
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

    def _ring(self, notice: board.Notice, count: int) -> None:
        """Call all workers that have a part in a lap, as `Circuit` does."""
        self.laps += 1
        at_once = 1 + self.laps % 7
        tokens = [board.LOUD if i % at_once == 0 else board.QUIET for i in range(1, count)]
        self.wall.put(notice, count)
        self.wall.tell(self.wall.changes() + 1)
        self.tokens.extend(tokens)
        if not self.drowsy:
            for process in self.processes.values():
                process.go_on()

    def tick(self) -> None:
        self.catch_up()
        if self.agent is not None:
            self.agent.tick(self.clock.now)
            self.settle()

    def settle(self) -> None:
        """Do what the agent's state wants done."""
        while self.agent is not None and (actions := self.agent.actions()):
            for action in actions:
                if self.agent is not None:
                    self._do(self.agent, action)
        if self.agent is not None and self.lap is None and self.agent.repeats():
            self.lap = self.agent.lap()
            if self.lap is not None:
                places = [self.processes[number].place for number in self.lap.workers]
                commands = self.lap.binding(places, self.wall.changes())
                for number, command in zip(self.lap.workers, commands, strict=False):
                    self.processes[number].take([command], [])
                self.rooms = Rooms(self.wall, places)

    def _do(self, agent: Host, action: Any) -> None:
        kind = type(action)
        process = self.processes.get(getattr(action, "worker", 0))
        if kind is records.Send:
            if action.master == self.number:
                self.to_master.append(frame(action.message))
        elif kind is records.Close:
            agent.master_closed(action.master)
            if action.master == self.number:
                self.to_master.append(None)
        elif kind is records.Spawn:
            slot = agent._workers[action.worker].slot
            taken = [one.place for one in self.processes.values()]
            place = next(number for number in range(len(taken) + 1) if number not in taken)
            self.wall.clear(place)
            made = Process(slot, self.files, self.wall, place, self.tokens)
            self.processes[action.worker] = made
        elif kind is records.Give and process is not None:
            process.take(action.commands, action.fds)
        elif kind is records.Repeat:
            for number, ticket, digest, inline in action.given:
                if number in self.processes:
                    again = (orders.AGAIN, ticket, action.before, action.call, digest, inline,
                             action.params)  # fmt: skip
                    self.processes[number].take([again], [])
        elif kind is records.Withdraw and process is not None:
            if self.hasty and process.current is not None and not process.interrupted:
                process.ends(True, 1e-5, 1 << 16)
            process.withdrawn = action.after, action.before
        elif kind is records.Hand:
            if action.master == self.number:
                blocks = [[part.first, part.slices, len(part.segments)] for part in action.parts]
                segments = [one for part in action.parts for one in part.segments]
                combined = wire.Combined(action.call, action.slices, blocks, segments)
                self.to_master.append(frame(combined))
        elif kind is records.Interrupt and process is not None:
            process.interrupted = process.current is not None
            process.ending = process.ending or not process.interrupted
        elif kind in (records.Kill, records.Retire) and process is not None:
            process.ending = True
        elif kind is records.Keep:
            if self.damage:
                self.damage -= 1
                flipped = bytes([action.data[0] ^ 1])
                action = action._replace(data=flipped + bytes(action.data[1:]))
            self.keeping.keep(action)
        elif kind in _BLOBS:
            getattr(self.keeping, _BLOBS[kind])(action)
        elif kind is records.Stop:
            self._stop()

    # --- its workers -----------------------------------------------------------------------

    def busy(self) -> list[int]:
        """Workers that have something to do: a task, or to end."""
        return [
            number
            for number, process in self.processes.items()
            if process.current is not None or process.ending or process.called
        ]

    def works(
        self, number: int, how: str, seconds: float, share: int = 1 << 16, heard: bool = True
    ) -> None:
        """A worker ends what it works on. how: answer, raise, die, stillborn (before it began
        anything). share: of how many of its pieces it gives an answer, or which of them raises; in
        a lap, 1 is too large for the board and 3 wrote something. heard: the agent hears of it at
        once."""
        process = self.processes[number]
        if not process.ending and how != "stillborn":
            process.go_on()
            if process.current is None and not process.ending and how != "die":
                return  # it had been called, and what it was called for was withdrawn
        ends = process.ending or process.current is None
        if ends or how == "die" or (how == "stillborn" and not process.said):
            self._dies(number, process, 0 if how == "stillborn" else process.ticket)
            return
        process.ends(how != "raise", seconds, share)
        if heard:
            self.hears(number)

    def _dies(self, number: int, process: Process, ticket: int) -> None:
        assert self.agent is not None
        self.hears(number)
        if self.processes.pop(number, None) is None:
            return
        process.close()
        self.catch_up()
        self.agent.gone(number, None, 9, ticket, "last words", "")
        self.settle()

    def hears(self, number: int) -> None:
        """The agent reads what a worker sent."""
        agent, process = self.agent, self.processes[number]
        if agent is None or not process.said:
            return
        all_said, answers = list(process.said), []
        process.said.clear()
        lap = self.lap if self.lap is not None and number in self.lap.workers else None
        if lap is not None and [one.rings for one in all_said] == [True]:
            self._looks(lap)
            return
        for one in all_said:
            if not one.rings:
                answers.append((one.ok, one.wrote, one.ticket, one.seconds, one.payload))
            elif found := self.wall.answered(process.place, one.ticket):
                answers.append((True, False, one.ticket, *found))
        if lap is not None and lap.take(number, answers):
            self._looks(lap)
            return
        if lap is not None and not answers:
            return
        self.catch_up()
        agent.now = self.clock.now
        for ok, wrote, ticket, seconds, payload in answers:
            agent.answered(number, ticket, ok, wrote, seconds, payload)
        self.settle()

    def _looks(self, lap: Lap) -> None:
        """The agent looks at the board."""
        if lap.under_way is not None:
            result = lap.look(self.rooms.words(), self.rooms)
            self._pass(lap, result)
            if result is None and lap.alone:
                self.catch_up()

    def _pass(self, lap: Lap, result: Any) -> None:
        """Answers to the master, if they go now."""
        if result is not None and lap.call.master.number == self.number:
            self.to_master.append(b"".join(result))

    def hears_all(self) -> bool:
        """Whether there was anything to hear."""
        talking = [number for number, process in self.processes.items() if process.said]
        for number in talking:
            if number in self.processes:
                self.hears(number)
        return bool(talking)

    def task_of(self, process: Process) -> Any:
        """The agent's record of what a worker works on, if it is a task of this connection that
        somebody still waits for."""
        task = self.agent._tickets.get(process.ticket) if self.agent is not None else None
        if task is None or task.state == records.OVER:
            return None
        return task if task.call.master.number == self.number else None


_BLOBS = {
    records.Look: "look",
    records.Abandon: "abandon",
    records.Spool: "spool",
    records.Unpin: "unpin",
}
