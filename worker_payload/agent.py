"""The agent: one loop that moves bytes between masters, workers, templates and the store.

What to do is decided in host.py; here is how. Nothing in the loop waits for anybody: what cannot be
written at once is kept, and a worker whose master does not read is not read either.
"""

import fcntl
import functools
import gc
import operator
import os
import signal
import socket
import struct
import sys
import time
from collections import deque
from mmap import mmap
from typing import Any, Callable, Deque, Dict, List, Optional, Set

from worker_payload import codec, layout, limits, links, procs, records, shelf, template, wire
from worker_payload.channel import Channel
from worker_payload.circuit import Circuit
from worker_payload.gate import Gate
from worker_payload.host import CREDIT_SECONDS, Host
from worker_payload.keeping import Keeping
from worker_payload.lost import Obituary
from worker_payload.poller import READ as READABLE
from worker_payload.poller import WRITE as WRITABLE
from worker_payload.poller import Poller
from worker_payload.store import Store
from worker_payload.worker import AGAIN, PLACE, RANGE, TICKET
from worker_payload.workerio import WorkerIO

READ = 256 << 10
FILL_SECONDS = 200e-6  # in which a pipe fills while a blob comes in
PIPE_BYTES = 1 << 20  # that a pipe should hold; systems allow users so much
SHORTEST_NAP, LONGEST_NAP = 60e-6, 500e-6  # seconds; a system sleeps some 50 us longer
F_SETPIPE_SZ = 1031  # of Linux; Python knows it from 3.10 on
GATHER = 4  # looks for more answers before those that are here are passed on
KEPT_BYTES = 1 << 20  # of a round's answers, else new pages from the system in each round
PLACES = 8192  # on the board: workers at a time
DYING_SECONDS = 0.2  # that a process may take to end after its descriptors were closed
_NAMES = {"cpython": "CPython", "pypy": "PyPy"}  # `platform` knows them, and takes 6 ms to import
_IMPLEMENTATION = _NAMES.get(sys.implementation.name, sys.implementation.name)
_IN_ORDER = operator.itemgetter(0)
KEEP_BYTES, KEEP_PART = 64 << 20, 4  # of answers that are kept; or this part of the free memory
WELCOME_WITHIN = 40.0  # seconds that numpy's import may take before we go on without its version


class Kind(object):
    """The template of one kind of worker."""

    def __init__(self, name, key):
        # type: (str, records.Key) -> None
        self.name = name
        self.key = key
        self.sock = None  # type: Optional[socket.socket]
        self.sender = None  # type: Optional[links.Sender]
        self.reader = links.Reader()
        self.numpy = None  # type: Optional[str]
        self.crashes = 0
        self.workers = set()  # type: Set[int]


class Agent(object):
    """keeper: descriptor that reads EOF when our keeper is gone, or None. gone_after: seconds of
    a master's silence after which it is gone."""

    def __init__(
        self,
        project,  # type: str
        build,  # type: str
        run,  # type: layout.RunDir
        lock,  # type: int
        idle_timeout,  # type: float
        gone_after,  # type: float
        keeper=None,  # type: Optional[int]
        log=None,  # type: Optional[Callable]
    ):
        # type: (...) -> None
        self.project = project
        self.build = build
        self.run_dir = run
        self._lock = lock
        self._log = log or (lambda text: None)
        self._poller = Poller()
        self._channels = {}  # type: Dict[int, Channel]
        self._workers = {}  # type: Dict[int, WorkerIO]
        self._silent = {}  # type: Dict[int, float]  # workers that closed their end, and since when
        self._kinds = {}  # type: Dict[records.Key, Kind]
        self._dirty = set()  # type: Set[Channel]
        self._greeting = []  # type: List[Channel]
        self._requests = {}  # type: Dict[int, Any]
        self._next = 0
        self._stop = None  # type: Optional[str]
        self._board = mmap(-1, PLACES * PLACE)
        self._places = list(range(PLACES - 1, -1, -1))
        self._buffer = bytearray(READ)
        # before anything that a fork should not have
        self._root_pid, self._root = template.fork(self._board)
        self._root_sender = links.Sender(self._root)
        self._root_reader = links.Reader()
        self._store = Store(run.path, layout.blob_dir(run))
        self._obituary = Obituary()
        self.cpus = limits.cpus()
        self._host = Host(build, project, self.cpus, idle_timeout, time.monotonic())
        self._host.gone_after = gone_after
        self._host.board = self._at_work
        self._host.keep_bytes = max(KEEP_BYTES, limits.memory_free() // KEEP_PART)
        self._keeping = Keeping(
            self._store, self._host, run.path, self._from_thread, self._act, self._log
        )
        self._started = time.monotonic()
        self._peeked = self._started
        self._wake, self._wake_end = os.pipe()
        for fd in (self._wake, self._wake_end):
            os.set_blocking(fd, False)
        self._answers = deque()  # type: Deque[Callable[[], None]]
        self._watch(self._wake, self._on_wake)
        self._watch(self._root, self._on_root)
        if keeper is not None:
            os.set_blocking(keeper, False)
            self._watch(keeper, lambda: self.stop("its keeper is gone"))
        self._default = (1, 0, ())  # type: records.Key
        self._kind(self._default)
        self._gate = Gate(run, project, build, self._poller, self._watch, self._admit)

    # --- the loop --------------------------------------------------------------------------------

    def run(self):
        # type: () -> None
        signal.set_wakeup_fd(self._wake_end)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, frame: self.stop("signal %d" % number))
        if hasattr(gc, "set_threshold"):  # CPython's
            gc.set_threshold(50000)  # what is made for a message goes with it, without cycles
        bytes(KEPT_BYTES)  # glibc keeps twice that of what is freed: see `template._prepare`
        self._gate.open()
        self._log("listening as process %d" % os.getpid())
        host, poller = self._host, self._poller
        ticked = 0.0
        try:
            while self._stop is None:
                next_tick = ticked + self._pace()
                self._let_them_work()
                ready = poller.wait(max(next_tick - time.monotonic(), 0.0))
                for _ in range(GATHER):
                    host.now = time.monotonic()
                    self._handle(ready)
                    # what else has come together by now goes into the same messages
                    if not host.gathers():
                        break
                    self._let_them_work()
                    ready = poller.wait(0)
                    if not ready:
                        break
                now = host.now
                if now >= next_tick:
                    self._tick(now)
                    ticked = now
                self._act()
                if self._dirty:
                    self._write_out()
                if host.repeats():
                    self._lap(ticked + self._pace())
        finally:
            self._end()

    def _lap(self, until):
        # type: (float) -> None
        """Repeat a call past the host, as long as there is nothing else to be done."""
        lap = self._host.lap()
        if lap is None:
            return
        channel = self._channels.get(lap.call.master.number)
        workers = [self._workers[number] for number in lap.workers if number in self._workers]
        if channel is None or len(workers) < len(lap.workers):
            return
        circuit = Circuit(lap, channel, workers, self._take_in, self._take_answers)
        if not circuit.is_clear():
            return
        todo = circuit.run(self._poller.poll, until)
        self._host.now = time.monotonic()
        self._host.heard(channel.number)
        self._host.catch_up(lap)
        todo()
        for io in workers:
            if not io.sender.idle:
                self._watch_out(io)
        if channel.out:
            self._dirty.add(channel)

    def _let_them_work(self):
        # type: () -> None
        """Sleep while several workers are about to answer. To be woken by each of them would cost
        more than their work, of which it would take the processors away besides."""
        seconds = self._host.patience() / self.cpus
        if self._host.owes():
            seconds = FILL_SECONDS  # a blob comes in: fewer and larger pieces
        if seconds > SHORTEST_NAP:
            time.sleep(min(seconds, LONGEST_NAP))

    def _handle(self, ready):
        # type: (Any) -> None
        if len(ready) > 1:  # what a worker printed comes before its answer
            ready.sort(key=_IN_ORDER)
        for _, call in ready:
            call()

    def _pace(self):
        # type: () -> float
        """Seconds between ticks."""
        if self._host.owes():
            return CREDIT_SECONDS
        if not self._host.busy():
            return 0.1 if self._greeting else 0.5
        return 0.01 if self._host.crowded() else 0.1

    def stop(self, reason):
        # type: (str) -> None
        if self._stop is None:
            self._stop = reason

    def _watch(self, fd, call, first=False):
        # type: (Any, Callable[[], None], bool) -> None
        self._poller.register(fd, READABLE, (not first, call))

    def _unwatch(self, fd):
        # type: (Any) -> None
        try:
            self._poller.unregister(fd)
        except (KeyError, ValueError):
            pass

    def _on_wake(self):
        # type: () -> None
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass
        while self._answers:
            self._answers.popleft()()

    def _from_thread(self, call):
        # type: (Callable[[], None]) -> None
        self._answers.append(call)
        os.write(self._wake_end, b"\0")

    def _tick(self, now):
        # type: (float) -> None
        self._host.tick(now)
        self._gate.tick(now)
        for channel in list(self._channels.values()):
            if channel.closing is not None and now > channel.deadline:
                self._drop(channel, channel.closing)
        for number, since in list(self._silent.items()):
            if now - since > DYING_SECONDS:
                # not dying, then: it closed all its descriptors, and is of no more use
                self._workers[number].deserted = True
                self._kill(self._workers[number])
                del self._silent[number]
        if self._greeting and now - self._started > WELCOME_WITHIN:
            self._greet()
        if now - self._peeked > 2.0:
            self._peeked = now
            if not self._channels and self._gate.superseded():
                self._log("a newer build is here")
                self._host.superseded()

    def _act(self):
        # type: () -> None
        """Do what the host wants done, until it wants nothing."""
        host = self._host
        while True:
            actions = host.actions()
            if not actions:
                return
            for action in actions:
                _ACTIONS[type(action)](self, action)

    # --- masters ---------------------------------------------------------------------------------

    def _admit(self, attach, read_fd, write_fd, head):
        # type: (socket.socket, int, int, bytes) -> None
        """A master came, through these descriptors. head: the first bytes to write."""
        self._next += 1
        channel = Channel(self._next, read_fd, write_fd, attach)
        self._channels[channel.number] = channel
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
            try:
                fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:
                pass  # not a pipe, or not Linux, or the user's pipes hold enough already
        self._host.master_opened(channel.number)
        channel.queue([head])
        self._greeting.append(channel)
        self._dirty.add(channel)
        try:
            self._watch(read_fd, lambda: self._on_master(channel))
            self._watch(attach, lambda: self._on_attach(channel))
        except (OSError, ValueError):  # a file or /dev/null, which says nothing
            self._lose(channel, 0, "its input cannot be waited for")
            return
        if self._kinds[self._default].numpy is not None:
            self._greet()

    def _greet(self):
        # type: () -> None
        """Say Welcome to those who wait for it."""
        numpy = self._kinds[self._default].numpy
        notes = list(self._store.notes)
        if numpy is None:
            notes.append("numpy's import takes longer than %d s" % WELCOME_WITHIN)
        welcome = wire.Welcome(
            wire.VERSION, self.build, sys.version.split()[0], _IMPLEMENTATION,
            numpy or "", os.getpid(), self.cpus, self.cpus, limits.memory_free(),
            self._store.room(), socket.gethostname(), notes)  # fmt: skip
        for channel in self._greeting:
            if channel.number in self._channels:
                channel.queue(wire.encode(welcome))
                self._dirty.add(channel)
        self._greeting = []

    def _on_master(self, channel):
        # type: (Channel) -> None
        data = self._read(channel.read_fd)
        if data is not None:
            self._take_in(channel, data)

    def _take_in(self, channel, data):
        # type: (Channel, Any) -> None
        """What a master said; nothing if that was all."""
        if not data:
            self._lose(channel, 0, "end of its input")
            return
        self._host.heard(channel.number)
        try:
            for message in channel.decoder.feed(data):
                self._host.message(channel.number, message)
        except wire.ProtocolError as error:
            self._refuse(channel, str(error))

    def _read(self, fd):
        # type: (int) -> Any
        """Bytes, none at the end, None for later."""
        try:
            if not hasattr(os, "readv"):
                return os.read(fd, READ)
            count = os.readv(fd, [self._buffer])
            return memoryview(self._buffer)[:count]
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def _on_attach(self, channel):
        # type: (Channel) -> None
        try:
            if channel.attach.recv(4096):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self._lose(channel, 0, "its attach is gone")

    def _refuse(self, channel, reason):
        # type: (Channel, str) -> None
        self._log("master %d: %s" % (channel.number, reason))
        channel.queue(wire.encode(wire.Ending("protocol error: " + reason)))
        self._dirty.add(channel)
        self._close_soon(channel, 76)

    def _close_soon(self, channel, code):
        # type: (Channel, int) -> None
        """Hear no more of a master, and let it go when all is written, or after a second."""
        if channel.closing is None:
            channel.closing = code
            channel.deadline = time.monotonic() + 1.0
            self._unwatch(channel.read_fd)
            self._host.master_closed(channel.number)
            self._dirty.add(channel)

    def _lose(self, channel, code, reason):
        # type: (Channel, int, str) -> None
        if channel.number in self._channels:
            self._log("master %d leaves: %s" % (channel.number, reason))
            self._host.master_closed(channel.number)
            self._drop(channel, code)

    def _drop(self, channel, code):
        # type: (Channel, int) -> None
        """Close all that a master lent us, then let its attach end."""
        if self._channels.pop(channel.number, None) is None:
            return
        self._resume(channel)
        self._dirty.discard(channel)
        for fd in (channel.read_fd, channel.write_fd, channel.attach):
            self._unwatch(fd)
        os.close(channel.read_fd)
        os.close(channel.write_fd)
        channel.out.clear()
        try:
            channel.attach.send(b"EXIT %d\n" % code)
        except OSError:
            pass
        channel.attach.close()

    def _write_out(self):
        # type: () -> None
        dirty, self._dirty = self._dirty, set()
        for channel in dirty:
            if not channel.blocked and channel.number in self._channels:
                self._flush(channel)

    def _flush(self, channel):
        # type: (Channel) -> None
        try:
            done = channel.write()
        except OSError as error:
            self._lose(channel, 0, "cannot be written to: %s" % error)
            return
        if done == channel.blocked:
            channel.blocked = not done
            if done:
                self._unwatch(channel.write_fd)
            else:
                self._poller.register(
                    channel.write_fd, WRITABLE, (True, lambda: self._flush(channel))
                )
        if done and channel.closing is not None:
            self._drop(channel, channel.closing)
        elif channel.crowded:
            self._pause(channel)
        elif channel.paused and channel.roomy:
            self._resume(channel)
        for number in channel.turns.take(channel.unsent):
            self._workers[number].go_on()

    def _on_large(self, io):
        # type: (WorkerIO) -> None
        """A worker has a large answer, and waits."""
        ticket, size = io.asks  # type: ignore[misc]
        io.asks = None
        master, order = self._host.asked(io.number, ticket)
        channel = self._channels.get(master)
        if channel is None:
            io.go_on()  # its answer stays here, or nobody wants it
        else:
            io.waits_for = channel
            channel.turns.ask(io.number, order, size)
            self._dirty.add(channel)

    def _end_turn(self, io):
        # type: (WorkerIO) -> None
        channel, io.waits_for = io.waits_for, None
        if channel is not None:
            channel.turns.leave(io.number)
            self._dirty.add(channel)

    def _pause(self, channel):
        # type: (Channel) -> None
        for number in self._host.workers_of(channel.number):
            io = self._workers.get(number)
            if io is not None and number not in channel.paused:
                channel.paused.add(number)
                self._unwatch_worker(io)

    def _resume(self, channel):
        # type: (Channel) -> None
        for number in channel.paused:
            io = self._workers.get(number)
            if io is not None:
                self._watch_worker(io)
        channel.paused.clear()

    def _do_send(self, action):
        # type: (records.Send) -> None
        channel = self._channels.get(action.master)
        if channel is not None and channel.closing is None:
            channel.queue(wire.encode(action.message))
            self._dirty.add(channel)
            if channel.crowded:
                self._pause(channel)

    def _do_close(self, action):
        # type: (records.Close) -> None
        channel = self._channels.get(action.master)
        if channel is not None:
            self._lose(channel, action.code, action.reason)

    # --- templates -------------------------------------------------------------------------------

    def _kind(self, key):
        # type: (records.Key) -> Kind
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind("t%d" % (len(self._kinds) + 1), key)
        if kind.sock is None:
            ours, theirs = links.pair()
            ours.setblocking(False)
            kind.sock, kind.sender, kind.reader = ours, links.Sender(ours), links.Reader()
            threads, nice, env = key
            settings = {"threads": threads, "nice": nice, "env": dict(env)}
            if kind.crashes:
                settings["numpy"] = False
            self._tell(
                self._root_sender, (template.TEMPLATE, kind.name, settings), [theirs.fileno()]
            )
            theirs.close()
            self._watch(ours, lambda: self._on_kind(kind))
        return kind

    def _tell(self, sender, value, fds=()):
        # type: (Optional[links.Sender], Any, Any) -> None
        """To a template. It always reads, so what it does not take at once is taken soon."""
        if sender is None:
            return
        try:
            done = sender.send(value, fds)
            while not done:
                time.sleep(0.0005)
                done = sender.flush()
        except OSError:
            pass  # it is gone: its end is told elsewhere

    def _on_root(self):
        # type: () -> None
        frames = self._frames(self._root, self._root_reader)
        if frames is None:
            self.stop("the template process is gone")
            return
        for value in frames:
            if value[0] == template.GONE:
                for kind in list(self._kinds.values()):
                    if kind.name == value[1]:
                        self._kind_gone(kind, value)

    def _frames(self, sock, reader):
        # type: (socket.socket, links.Reader) -> Optional[List[Any]]
        try:
            data, fds = links.receive(sock)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        if not data:
            return None
        return [value for value, _ in reader.feed(data, fds)]

    def _on_kind(self, kind):
        # type: (Kind) -> None
        assert kind.sock is not None
        frames = self._frames(kind.sock, kind.reader)
        if frames is None:
            self._unwatch(kind.sock)  # the root will tell
            return
        for value in frames:
            what, name = value[:2]
            if what == template.READY:
                kind.numpy = name
                if kind.key == self._default:
                    self._greet()
            elif what == template.BORN:
                if name in self._workers:
                    self._workers[name].pid = value[2]
            elif what == template.GONE:
                self._worker_gone(name, value[2], value[3], value[4])
            elif what == template.LACKS:
                master, request = self._requests.pop(name)
                self._host.lacks(master, request, value[2])

    def _kind_gone(self, kind, value):
        # type: (Kind, Any) -> None
        self._log("template %s ended: exit %s, signal %s %s" % value[1:])
        if kind.sock is not None:
            self._unwatch(kind.sock)
            kind.sender.close()  # type: ignore[union-attr]
        if kind.numpy is None:
            kind.crashes += 1  # without numpy next time
        if kind.crashes > 2:
            self.stop("templates do not live")
            return
        kind.sock = kind.sender = None
        for number in list(kind.workers):
            io = self._workers.get(number)
            if io is not None and io.pid:
                procs.kill_group(io.pid)
            self._worker_gone(number, None, signal.SIGKILL, "its template ended")
        if kind.key == self._default:
            self._kind(kind.key)

    def _do_prepare(self, action):
        # type: (records.Prepare) -> None
        self._kind(action.key)

    def _do_require(self, action):
        # type: (records.Require) -> None
        self._next += 1
        self._requests[self._next] = (action.master, action.request)
        self._tell(self._kind(action.key).sender, (template.REQUIRE, self._next, action.names))

    # --- workers ---------------------------------------------------------------------------------

    def _do_spawn(self, action):
        # type: (records.Spawn) -> None
        kind = self._kind(action.key)
        try:
            place = self._places.pop()
        except IndexError:
            self._host.gone(action.worker, None, None, 0, "", "too many workers")
            return
        try:
            io, theirs = WorkerIO.make(action.worker, place, layout.nonce())
        except OSError as error:
            self._places.append(place)
            self._host.gone(action.worker, None, None, 0, "", "no worker: %s" % error)
            return
        self._board[place * PLACE : (place + 1) * PLACE] = bytes(PLACE)
        self._workers[action.worker] = io
        kind.workers.add(action.worker)
        io.kind = kind
        self._watch_worker(io)
        self._tell(kind.sender, (template.WORKER, action.worker, place * PLACE, io.nonce), theirs)
        for fd in theirs:
            os.close(fd)

    def _watch_worker(self, io):
        # type: (WorkerIO) -> None
        if io.watched:
            return
        io.watched = True
        for stream in io.streams:
            if not stream.ended:
                self._watch(stream.fd, functools.partial(self._on_output, io, stream), True)
        self._watch(io.replies, lambda: self._on_worker(io))
        if not io.sender.idle:
            self._watch_out(io)

    def _unwatch_worker(self, io):
        # type: (WorkerIO) -> None
        if io.watched:
            io.watched = False
            for fd in [stream.fd for stream in io.streams] + [io.sock, io.replies]:
                self._unwatch(fd)

    def _on_output(self, io, stream, ticket=0):
        # type: (WorkerIO, Any, int) -> None
        data = stream.read()
        if data is None:
            return
        if not data:
            self._unwatch(stream.fd)
        for piece in stream.admit(data, self._host.ticket_of(io.number)):
            self._host.output(io.number, ticket, stream.number, piece)

    def _drain(self, io, ticket):
        # type: (WorkerIO, int) -> None
        """All that a worker printed so far."""
        for stream in io.streams:
            for _ in range(64):
                data = stream.read()
                if not data:
                    break
                for piece in stream.admit(data, ticket):
                    self._host.output(io.number, ticket, stream.number, piece)
            for piece in stream.finish():
                self._host.output(io.number, ticket, stream.number, piece)

    def _on_worker(self, io):
        # type: (WorkerIO) -> None
        try:
            answers = io.answers()  # type: Any
        except MemoryError as error:
            answers = error
        self._take_answers(io, answers)

    def _take_answers(self, io, answers):
        # type: (WorkerIO, Any) -> None
        """What WorkerIO.answers gave, or raised."""
        if isinstance(answers, MemoryError):
            self._log("worker %d: no memory for its answer" % io.number)
            io.note = "the agent has no memory for its answer"
            self._kill(io)
            return
        if answers is None:
            self._unwatch(io.replies)
            if not io.retired and io.number in self._workers:
                self._silent[io.number] = time.monotonic()
            return
        for ok, wrote, ticket, seconds, payload in answers:
            if wrote or io.streams[0].dropped or io.streams[1].dropped:
                self._drain(io, ticket)
            self._host.answered(io.number, ticket, ok, bool(wrote), seconds, payload)
        if io.asks is not None:
            self._on_large(io)
        elif io.waits_for is not None and answers:
            self._end_turn(io)

    def _do_give(self, action):
        # type: (records.Give) -> None
        io = self._workers.get(action.worker)
        if io is None:
            return
        try:
            done = io.sender.send(action.commands, action.fds)
        except OSError:
            return  # it is gone: its template will tell
        if not done:
            self._watch_out(io)

    def _do_repeat(self, action):
        # type: (records.Repeat) -> None
        before, call, params, given = action
        for number, ticket, digest, inline in given:
            io = self._workers.get(number)
            if io is None:
                continue  # it died meanwhile, which was told
            try:
                if not io.sender.send([(AGAIN, ticket, before, call, digest, inline, params)]):
                    self._watch_out(io)
            except OSError:
                pass  # it is gone: its template will tell

    def _watch_out(self, io):
        # type: (WorkerIO) -> None
        """Go on sending when the worker takes more."""
        if io.watched and io.sock not in self._poller:
            self._poller.register(io.sock, WRITABLE, (True, lambda: self._more(io)))

    def _more(self, io):
        # type: (WorkerIO) -> None
        try:
            done = io.sender.flush()
        except OSError:
            done = True  # it is gone: its template will tell
        if done:
            self._unwatch(io.sock)

    def _at_work(self, number):
        # type: (int) -> int
        """The ticket that a worker works on."""
        io = self._workers.get(number)
        return TICKET.unpack_from(self._board, io.place * PLACE)[0] if io is not None else 0

    def _do_shelve(self, action):
        # type: (records.Shelve) -> None
        for _ in range(action.files):
            fd = shelf.make(self.run_dir.path)
            if fd is None:
                break  # answers come through the sockets then
            self._host.shelved(fd)

    def _do_fill(self, action):
        # type: (records.Fill) -> None
        part = action.part
        fd = shelf.make(self.run_dir.path)
        if fd is not None and shelf.put(fd, codec.blob_parts(part.segments or [])):
            part = part._replace(segments=None, fd=fd)
        elif fd is not None:
            os.close(fd)
        self._host.filled(action.call, part)

    def _do_hand(self, action):
        # type: (records.Hand) -> None
        blocks, segments = [], []  # type: List[List[int]], List[Any]
        for part in action.parts:
            found = part.segments
            if found is None:
                found = shelf.take(part.fd)  # type: ignore[arg-type]
            blocks.append([part.first, part.slices, len(found)])
            segments += found
        message = wire.Combined(action.call, action.slices, blocks, segments)
        self._do_send(records.Send(action.master, message))

    def _do_withdraw(self, action):
        # type: (records.Withdraw) -> None
        io = self._workers.get(action.worker)
        if io is not None:
            RANGE.pack_into(self._board, io.place * PLACE + 8, action.after, action.before)

    def _do_interrupt(self, action):
        # type: (records.Interrupt) -> None
        io = self._workers.get(action.worker)
        if io is None:
            return
        if io.pid:
            procs.kill([io.pid], signal.SIGINT)
        else:
            io.sender.close()

    def _do_kill(self, action):
        # type: (records.Kill) -> None
        io = self._workers.get(action.worker)
        if io is not None:
            self._kill(io)

    def _kill(self, io):
        # type: (WorkerIO) -> None
        """The worker and all that came of it. Its template reaps it and tells."""
        io.killed = True
        if io.pid:
            io.family |= procs.descendants([io.pid])
            procs.kill_group(io.pid)
        else:
            io.retired = True
            self._unwatch_worker(io)
            io.sender.close()

    def _do_retire(self, action):
        # type: (records.Retire) -> None
        io = self._workers.get(action.worker)
        if io is not None:
            io.retired = True
            try:
                io.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def _worker_gone(self, number, exit_, signal_, note):
        # type: (int, Optional[int], Optional[int], str) -> None
        io = self._workers.get(number)
        if io is None:
            return
        if io.replies.fileno() >= 0:
            for _ in range(1 << 16):  # what it answered before it died still counts
                try:
                    answers = io.answers()
                except MemoryError:
                    break
                if not answers:
                    break
                for ok, wrote, ticket, seconds, payload in answers:
                    self._drain(io, ticket)
                    self._host.answered(number, ticket, ok, bool(wrote), seconds, payload)
        ticket = TICKET.unpack_from(self._board, io.place * PLACE)[0]
        self._drain(io, ticket)
        if not io.retired:
            # what it left behind: still its children, or those that carry its mark
            family = io.family | procs.marked(lambda m: m.get(procs.WORKER) == io.nonce)
            procs.kill(pid for pid in family if procs.is_alive(pid))
        if io.deserted and signal_ == signal.SIGKILL:
            note = note or "it closed its connection to the agent, which then ended it"
        note = note or io.note or self._obituary.note(signal_, io.killed)
        self._host.gone(number, exit_, signal_, ticket, io.last_words(), note)
        del self._workers[number]
        self._silent.pop(number, None)
        io.kind.workers.discard(number)
        for channel in self._channels.values():
            channel.paused.discard(number)
        self._end_turn(io)
        self._unwatch_worker(io)
        io.close()
        self._places.append(io.place)

    def _do_stop(self, action):
        # type: (records.Stop) -> None
        self.stop(action.reason)

    # --- the end ---------------------------------------------------------------------------------

    def _end(self):
        # type: () -> None
        """Leave nothing of ours behind: no socket, no process."""
        reason = self._stop or "an error"
        self._log("ending: " + reason)
        self._gate.close()
        for channel in list(self._channels.values()):
            channel.queue(wire.encode(wire.Ending(reason)))
            os.set_blocking(channel.write_fd, False)
        deadline = time.monotonic() + 0.5
        for channel in list(self._channels.values()):
            try:
                while not channel.write() and time.monotonic() < deadline:
                    time.sleep(0.005)
            except OSError:
                pass
            self._drop(channel, 0)
        for io in self._workers.values():
            if io.pid:
                procs.kill_group(io.pid)
        procs.end_descendants(os.getpid())
        mine = os.environ.get(procs.OWNER)
        if mine:
            keep = (os.getpid(), os.getppid())
            procs.kill(pid for pid in procs.marked(lambda m: m.get(procs.OWNER) == mine)
                       if pid not in keep)  # fmt: skip
        self._keeping.abandon_all()
        os.close(self._lock)
        self._store.close()
        self._log("ended")


_ACTIONS = {
    records.Send: Agent._do_send,
    records.Close: Agent._do_close,
    records.Prepare: Agent._do_prepare,
    records.Require: Agent._do_require,
    records.Shelve: Agent._do_shelve,
    records.Fill: Agent._do_fill,
    records.Hand: Agent._do_hand,
    records.Spawn: Agent._do_spawn,
    records.Give: Agent._do_give,
    records.Repeat: Agent._do_repeat,
    records.Withdraw: Agent._do_withdraw,
    records.Interrupt: Agent._do_interrupt,
    records.Kill: Agent._do_kill,
    records.Retire: Agent._do_retire,
    records.Look: lambda agent, action: agent._keeping.look(action),
    records.Keep: lambda agent, action: agent._keeping.keep(action),
    records.Abandon: lambda agent, action: agent._keeping.abandon(action),
    records.Spool: lambda agent, action: agent._keeping.spool(action),
    records.Unpin: lambda agent, action: agent._keeping.unpin(action),
    records.Stop: Agent._do_stop,
}  # type: Dict[Any, Any]
