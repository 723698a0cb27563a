"""One host over all its connections: the threads that connect, read, write, and connect again."""

from __future__ import annotations

import random
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from worker_payload import wire
from worker_payload.wire import Buffer, ProtocolError

from .errors import AuthenticationError, HostError, HostKeyError
from .session import Session
from .transport.base import Attempt, Channel

if TYPE_CHECKING:
    from .bootstrap import Attached
    from .calls import Call
    from .engine import Engine
    from .settings import HostSpec

READ_SIZE = 1 << 20
RETRY_FIRST, RETRY_MAX = 0.5, 30.0  # pauses between attempts to reach a lost host
FRUITLESS_MAX = 5  # times that a host may be lost in a row, during runs, without a single answer
LAG_MAX = 16 << 20  # bytes of answers nobody has folded yet: then the host's channel is not read
JOIN_SECONDS = 5.0
ROUND_TRIP_MAX = 0.25  # seconds: where a Welcome takes longer, the agent has just begun
POLL_SECONDS = 0.1  # between looks whether it is still a round that is waited for
LOOK_SECONDS = 5.0  # between looks at what should have been told


class Link:
    """One host, over all its connections."""

    def __init__(self, engine: Engine, spec: HostSpec):
        self.engine = engine
        self.spec = spec
        self.label: str = spec.label
        self.state = "connecting"  # up | lost | unreachable | left | closed
        self.leaving = ""  # why it takes no part from now on
        self.error: HostError | None = None
        self.session: Session | None = None
        self.attached: Attached | None = None
        self.attempt: Attempt | None = None  # the latest to reach it
        self.answers: dict[tuple[str, ...], tuple[str, ...]] = {}  # Require -> Lacks
        self.asked: dict[int, tuple[str, ...]] = {}
        self.notes: list[str] = []
        self.holds: dict[str, None] = {}  # digests of slices that it was given, oldest first
        self.last_welcome: wire.Welcome | None = None
        self.took: float | None = None  # seconds until it first was up
        self.greeted = 0.0  # when it was last sent a Hello
        self.round_trip = ROUND_TRIP_MAX  # seconds, the shortest that a Welcome took
        self._fruitless = 0  # times in a row that it was lost without an answer
        self.answered = 0  # tasks, over all connections
        self.last_heard = 0.0
        self.reading = False  # silence counts only while somebody listens
        self.given_up = ""  # why the timekeeper ended this connection
        self.lent = False  # reading, to the thread that waits for a repeated call
        self._back = threading.Event()  # it is not lent any more
        self._hurry = threading.Event()  # ends the pause before the next attempt
        self._wake = threading.Condition(engine.lock)
        self._writing = 0  # the thread that does, if any
        self._thread = threading.Thread(target=self._live, name=f"jam {self.label}", daemon=True)
        self._writer: threading.Thread | None = None

    # --- facts about the host (under the lock) ---------------------------------------------

    @property
    def welcome(self) -> wire.Welcome | None:
        return self.session.welcome if self.session is not None else None

    @property
    def greets(self) -> bool:
        """Its agent is there and is about to say Welcome."""
        return self.session is not None and self.session.welcome is None

    @property
    def workers(self) -> int:
        if self.spec.workers:
            return self.spec.workers
        return self.last_welcome.workers if self.last_welcome is not None else 0

    # --- life ------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def _live(self) -> None:
        engine, pause = self.engine, RETRY_FIRST
        while not engine.closing:
            began, answered = time.monotonic(), self.answered
            again = self._try()
            engine.look_around()  # perhaps it was ended on purpose
            if self.state == "left" or not again:
                while not engine.closing and not self._hurry.wait(LOOK_SECONDS):
                    pass
                pause = RETRY_FIRST
            else:
                if isinstance(self.error, AuthenticationError):
                    pause = RETRY_MAX  # its home may not be there yet; sshd counts failures
                elif self.answered != answered or time.monotonic() - began > RETRY_MAX:
                    pause = RETRY_FIRST  # it was of use, or at least there
                # full of jitter: hosts lost together do not come back together
                self._hurry.wait(pause * random.uniform(0.5, 1.0))
                pause = min(RETRY_MAX, pause * 2)
            self._hurry.clear()

    def _try(self) -> bool:
        """Connect, and talk until the connection ends. True if it is worth trying again."""
        engine = self.engine
        with engine.lock:
            if engine.closing:
                return False
            attempt = self.attempt = Attempt(self.label)
        try:
            attached = engine.attach(self.spec, attempt)
        except HostError as error:
            lost = self.state == "lost" and not isinstance(error, HostKeyError)
            self._fail(error, "lost" if lost else "unreachable")
            return error.retry or lost
        except Exception as error:  # a bug or a broken machine must not look like a hang
            self._fail(HostError(self.label, f"{type(error).__name__}: {error}"), "unreachable")
            return False
        answers = self.answered
        reason = self._serve(attached)
        with engine.lock:
            fruitless = bool(engine.calls) and self.answered == answers
        self._fruitless = self._fruitless + 1 if fruitless else 0
        self._lose(reason)
        if self._fruitless >= FRUITLESS_MAX:
            times, self._fruitless = self._fruitless, 0
            what = f"lost {times} times without an answer: {reason}"
            self._fail(HostError(self.label, what), "unreachable")
            return False
        return True

    def _fail(self, error: HostError, state: str) -> None:
        with self.engine.lock:
            if self.state not in ("left", "closed"):
                self.state, self.error = state, error
            self.engine.changed.notify_all()

    def hurry(self) -> None:
        """Do not pause before the next attempt to reach it: it is wanted, or all is over."""
        self._hurry.set()

    def part(self, reason: str) -> None:
        """It is no longer wanted, and not connected. Under the lock."""
        self.state, self.leaving = "left", ""
        self.error = HostError(self.label, reason)
        for call in self.engine.calls.values():
            call.notes.append(f"{self.label} left: {reason}")
        self.engine.changed.notify_all()

    def _serve(self, attached: Attached) -> str:
        """Talk until the channel ends; returns why it did."""
        engine, channel = self.engine, attached.channel
        with engine.lock:
            if engine.closing or self.state == "left":
                channel.close()
                return "closed"
            session = Session(engine.hello(self.spec))
            self.session, self.attached = session, attached
            self.answers, self.asked = {}, {}
            self.last_heard = self.greeted = time.monotonic()
            self.given_up = ""
        self._writer = threading.Thread(
            target=self._write, args=(session, attached), name=f"jam {self.label} out", daemon=True
        )
        self._writer.start()
        reason = "the connection was closed"
        try:
            self.flush(session)
            data: Buffer = attached.head
            while True:
                if data:
                    self.receive(session, data)
                if self.lent:
                    self._back.wait()
                else:
                    self._let_fold()
                self.reading = True
                data = self._read(session, channel)
                self.reading = False
                self.last_heard = time.monotonic()
                if not data:
                    break
        except (HostError, ProtocolError) as error:
            reason = error.reason if isinstance(error, HostError) else f"protocol error: {error}"
        except OSError as error:
            reason = str(error)
        finally:
            self.reading = False
            tail = channel.stderr_tail().strip()
            channel.close()
            with engine.lock:
                if self.given_up:
                    reason = self.given_up
                elif tail:
                    reason = f"{reason} ({tail.splitlines()[-1][:300]})"
                self.session = None
                self.attached = None
                self._wake.notify_all()
            self._writer.join(JOIN_SECONDS)
        return reason

    def _read(self, session: Session, channel: Channel) -> Buffer:
        """The next bytes to be looked at, which those in the middle of a large answer are not."""
        while (room := session.room()) is not None:
            count = channel.read_into(room[:READ_SIZE])
            self.last_heard = time.monotonic()
            if not count:
                return b""
            session.put(count)
        return channel.read(READ_SIZE)

    def _lose(self, reason: str) -> None:
        engine = self.engine
        with engine.lock:
            if engine.closing:
                self.state = "closed"
            if self.state in ("left", "closed"):
                return
            for call in engine.calls.values():
                call.scheduler.remove_host(self.label)
            if self.leaving:
                self.part(self.leaving)
            else:
                self.state = "lost"
                self.error = HostError(self.label, reason, retry=True)
                for call in engine.calls.values():
                    call.notes.append(f"{self.label} was lost: {reason}")
            engine.changed.notify_all()
        engine.dispatch()

    def receive(self, session: Session, data: Buffer) -> None:
        """Raises ProtocolError."""
        engine = self.engine
        with engine.lock:
            now = time.monotonic()
            messages = session.receive(data, now)
            if len(messages) == 1 and engine.closes_round(self, messages[0]):
                if not self.lent and threading.current_thread() is self._thread:
                    self._lend()
                return
        # what a task printed is shown before its answer can end the run
        for message in messages:
            if type(message) is wire.Output:
                engine.show_output(self.label, message)
        with engine.lock:
            for message in messages:
                if type(message) is not wire.Output:
                    engine.handle(self, session, message, now)
            if session.has_blobs():
                self._wake.notify_all()
            # after the last answer of a call the folding thread goes first: it waits for us
            more = session.has_control() or not all(c.settled for c in engine.calls.values())
        if more:
            engine.dispatch()

    def _let_fold(self) -> None:
        """Wait while answers come faster than they are folded."""
        with self.engine.lock:
            for call in [call for call in self.engine.calls.values() if call.lag > LAG_MAX]:
                while not self.engine.changed.wait_for(
                    partial(self._caught_up, call), LOOK_SECONDS
                ):
                    pass  # the fold takes its time; its end, and ours, are noticed here

    def _caught_up(self, call: Call) -> bool:
        return call.lag <= LAG_MAX // 2 or call.settled or self.engine.closing

    # --- reading, lent to the thread that waits for a repeated call ---------------------------

    def _lend(self) -> None:
        """Let whoever repeats a call read in our place, until `take_back`: otherwise threads change
        twice in each round. Under the lock."""
        if self.engine.may_repeat(self):
            self._back.clear()
            self.lent = True
            if self.attached is not None:
                self.attached.channel.lend(True)

    def take_back(self) -> None:
        """Our own thread reads from now on. Under the lock."""
        if self.lent:
            self.lent = False
            if self.attached is not None:
                self.attached.channel.lend(False)
            self._back.set()

    def read_for(self, call: Call, session: Session) -> None:
        """Read, if reading is lent, until a repeated call is answered, or turns out to be more than
        that. Called without the lock."""
        attached, taken = self.attached, False
        assert attached is not None, "our own thread waits"
        channel = attached.channel
        try:
            self.reading = True
            while call.round is not None and call.round.left and self.lent:
                if channel.poll(POLL_SECONDS):
                    taken = True  # what is read from here on must be heard to its end
                    data = channel.read(READ_SIZE)
                    self.last_heard = time.monotonic()
                    if data:
                        self.receive(session, data)
                    taken = False
                    if not data:
                        break  # our own thread will see it, too
        except ProtocolError as error:
            self.given_up = f"protocol error: {error}"
        finally:
            self.reading = False
            if taken:
                channel.close()
            if call.round is None or call.round.left:
                with self.engine.lock:
                    self.take_back()

    # --- writing ---------------------------------------------------------------------------

    def flush(self, session: Session) -> None:
        """Write what is queued: small messages from this very thread if nobody else is writing.

        Not from the timekeeper's: a host that takes nothing must not keep it from noticing."""
        attached, me = self.attached, threading.get_ident()
        if attached is None or self.session is not session:
            return
        try:  # Ctrl-C may come anywhere in here
            with self.engine.lock:
                if not self._writing and me != self.engine.timekeeper:
                    self._writing = me
                    buffers = session.control()
            if self._writing == me and buffers:
                attached.channel.write(buffers)
        except (HostError, OSError):
            attached.channel.close()  # the reader sees the end and says why
        finally:
            if self._writing == me:
                self._writing = 0
        if session.has_pending():
            with self.engine.lock:
                self._wake.notify_all()

    def _write(self, session: Session, attached: Attached) -> None:
        lock, me = self.engine.lock, threading.get_ident()
        try:
            while True:
                with lock:
                    self._wake.wait_for(
                        lambda: (
                            self.session is not session
                            or (session.has_pending() and not self._writing)
                        ),
                        LOOK_SECONDS,
                    )
                    if self.session is not session:
                        return
                    if self._writing:
                        continue
                    self._writing = me
                    buffers = session.pending()
                if buffers:
                    attached.channel.write(buffers)
                self._writing = 0
        except (HostError, OSError):
            attached.channel.close()
        except Exception as error:  # a dataset's slice() failed while it was being sent
            with lock:
                for call in self.engine.calls.values():
                    call.error = call.error or error
                self.engine.changed.notify_all()
            attached.channel.close()
        finally:
            if self._writing == me:
                self._writing = 0

    def give_up(self, reason: str) -> None:
        """Called by the timekeeper: the host is silent."""
        attached = self.attached
        self.given_up = reason
        if attached is not None:
            # closing may wait for a dead peer: not in the thread that watches all the others
            threading.Thread(target=attached.channel.close, daemon=True).start()

    def join(self, deadline: float) -> None:
        for thread in (self._thread, self._writer):
            if thread is not None and thread.ident and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
