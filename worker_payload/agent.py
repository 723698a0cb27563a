"""The agent: one loop that moves bytes between masters, workers, templates and the store.

What to do is decided in host.py; here, and in what the agent stands on (kinds.py, masters.py,
workforce.py, watching.py), is how. Nothing in the loop waits for anybody: what cannot be written at
once is kept, and a worker whose master does not read is not read either.
"""

import gc
import operator
import os
import signal
import time
from typing import Any, Callable, Dict, Optional

from worker_payload import layout, limits, procs, records, wire
from worker_payload.circuit import Circuit
from worker_payload.frames import encode
from worker_payload.gate import Gate
from worker_payload.host import CREDIT_SECONDS
from worker_payload.keeping import Keeping
from worker_payload.kinds import Kinds
from worker_payload.masters import WELCOME_WITHIN

FILL_SECONDS = 200e-6  # in which a pipe fills while a blob comes in
SHORTEST_NAP, LONGEST_NAP = 60e-6, 500e-6  # seconds; a system sleeps some 50 us longer
GATHER = 4  # looks for more answers before those that are here are passed on
KEPT_BYTES = 1 << 20  # of a round's answers, else new pages from the system in each round
DYING_SECONDS = 0.2  # that a process may take to end after its descriptors were closed
_IN_ORDER = operator.itemgetter(0)
KEEP_BYTES, KEEP_PART = 64 << 20, 4  # of answers that are kept; or this part of the free memory


class Agent(Kinds):
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
        Kinds.__init__(self, project, build, run, idle_timeout, log)
        self._lock = lock
        self._host.gone_after = gone_after
        self._host.board = self._at_work
        self._host.keep_bytes = max(KEEP_BYTES, limits.memory_free() // KEEP_PART)
        self._keeping = Keeping(
            self._store, self._host, run.path, self._from_thread, self._act, self._log
        )
        self._gate = Gate(run, project, build, self._poller, self._watch, self._admit)
        self._started = time.monotonic()
        self._peeked = self._started
        if keeper is not None:
            os.set_blocking(keeper, False)
            self._watch(keeper, lambda: self.stop("its keeper is gone"))

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
        circuit = Circuit(
            lap, channel, workers, self._board, self._bell, self._take_in, self._take_answers
        )
        if not circuit.is_clear():
            return
        if not circuit.bind():
            for io in workers:
                if not io.sender.idle:
                    self._watch_out(io)
            return
        todo = circuit.run(self._poller.poll, until)
        self._host.now = time.monotonic()
        self._host.heard(channel.number)
        self._host.catch_up(lap)
        todo()
        if channel.out:
            self._dirty.add(channel)

    def _let_them_work(self):
        # type: () -> None
        """Sleep while several workers are about to answer. To be woken by each of them would cost
        more than their work, of which it would take the processors away besides."""
        seconds = self._host.patience() / self.cpus
        if self._host.owes():  # a blob comes in: fewer and larger pieces
            seconds = 0.0 if self._behind else FILL_SECONDS
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

    def _do_stop(self, action):
        # type: (records.Stop) -> None
        self.stop(action.reason)

    def _end(self):
        # type: () -> None
        """Leave nothing of ours behind: no socket, no process."""
        reason = self._stop or "an error"
        self._log("ending: " + reason)
        self._gate.close()
        for channel in list(self._channels.values()):
            channel.queue(encode(wire.Ending(reason)))
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
