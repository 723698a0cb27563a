"""The agent's state: masters, calls, tasks, workers and blobs. No I/O and no clock in here.

Methods take what happened; `actions()` gives what is to be done about it, in order. Processes are
known by number only, and the store through `blob_*` answers to `Look` and `Keep`.
"""

from typing import Any, Dict, List, Optional, Tuple

from worker_payload import wire
from worker_payload.blobs import ATTEMPTS
from worker_payload.lap import PARAMS_INLINE, Lap
from worker_payload.pool import HAND_COST
from worker_payload.records import (
    AWAITED,
    HERE,
    OVER,
    QUEUED,
    WAITING,
    Abandon,
    Blob,
    Call,
    Close,
    Handle,
    Keep,
    Key,
    Kill,
    Master,
    Prepare,
    Require,
    Slot,
    Spool,
    Stop,
    Task,
    Unpin,
    Worker,
)
from worker_payload.repeating import Repeating
from worker_payload.wire import ProtocolError

MASTER_GONE_AFTER = 60.0  # seconds without a byte; being wrong here kills work
BEAT = 2.0
GRACE = 1.0  # between SIGINT and SIGKILL
WORKER_IDLE = 300.0
STARTED_AFTER = 0.2  # tasks that run longer than this are reported as started
RELEASE_AFTER = 0.5  # idle workers then forget ended calls and free their memory
UNPIN_AFTER = 30.0  # of no calls: blobs are then left to the store
FIRST_MASTER = 15.0  # an agent that nobody attaches to waits at least so long
ESTIMATES = 64  # map functions whose time per task is remembered from call to call


CREDIT_BYTES = 1 << 20  # taken in, of which a master is told at once; of less it is told
CREDIT_SECONDS = 0.005  # after this time
PATIENT_FROM = 4  # tasks under way, for which it pays to wait until several are done
PATIENT_SECONDS = 200e-6  # that a task may take for that


_NOT_SHARED = "worker_payload.shared.NotShared"


class Host(Repeating):
    """idle_timeout: seconds without a master after which the agent ends. workers: the default."""

    gone_after = MASTER_GONE_AFTER

    def actions(self):
        # type: () -> List[Any]
        """What is to be done now. Call again after answering, until the list is empty."""
        if not self._actions:
            self._settle()
        actions, self._actions = self._actions, []
        return actions

    def busy(self):
        # type: () -> bool
        """Whether `tick` should come soon."""
        return bool(self._tickets or self._dying)

    def gathers(self):
        # type: () -> bool
        """Whether answers wait to be sent that others may still join, and nothing more urgent."""
        return bool(self._results and self._tickets) and not self._actions

    def patience(self):
        # type: () -> float
        """Seconds of work that will bring several answers soon, if all that runs is short."""
        if len(self._tickets) < PATIENT_FROM or self._actions:
            return 0.0
        longest = 0.0
        for call in self._calls.values():
            if call.tasks and (call.estimate is None or call.estimate > PATIENT_SECONDS):
                return 0.0
            longest = max(longest, call.estimate or 0.0)
        return len(self._tickets) * (longest + HAND_COST)

    def owes(self):
        # type: () -> bool
        """Whether a master is to be told of credit before long."""
        return bool(self._credits)

    def crowded(self):
        # type: () -> bool
        """Whether `tick` should come at once, because tasks wait in hands."""
        return self._tiny

    def masters(self):
        # type: () -> List[int]
        return list(self._masters)

    def ticket_of(self, worker):
        # type: (int) -> int
        """The ticket that a worker works on as far as we know, or 0."""
        record = self._workers.get(worker)
        return next(iter(record.hand), 0) if record is not None else 0

    def workers_of(self, master):
        # type: (int) -> List[int]
        """Workers with tasks of this master in hand."""
        return [w.number for w in self._workers.values()
                if any(task.call.master.number == master for task in w.hand.values())]  # fmt: skip

    def master_opened(self, number):
        # type: (int) -> None
        self._masters[number] = Master(number, self.now)
        self._had_master = True

    def tell(self, text):
        # type: (str) -> None
        """Something that users may want to know; once to each master that has work here."""
        for master in self._masters.values():
            if master.calls and text not in master.told:
                master.told.add(text)
                self._send(master, wire.Note(text))

    def heard(self, number):
        # type: (int) -> None
        """Any byte is life."""
        if number in self._masters:
            self._masters[number].heard = self.now

    def master_closed(self, number):
        # type: (int) -> None
        master = self._masters.pop(number, None)
        if master is None:
            return
        for call in list(master.calls.values()):
            self._end(call)
        for blob in list(self._blobs.values()):
            if blob.asked is master:
                self._stalled.pop(blob.digest, None)
                self._actions.append(Abandon(blob.digest))
                self._ask(blob)
        self._credits.discard(master)
        if not self._masters:
            self._left = self.now
            self._end_if_idle()

    def message(self, number, message):
        # type: (int, Any) -> None
        """A message of a master. Raises ProtocolError if it does not fit what came before."""
        master = self._masters.get(number)
        if master is None:
            return
        handler = _HANDLERS.get((master.greeted, type(message)))
        if handler is None:
            raise ProtocolError(
                "%s %s Hello" % (type(message).__name__, "after" if master.greeted else "before")
            )
        handler(self, master, message)

    def _on_hello(self, master, message):
        # type: (Master, wire.Hello) -> None
        if (message.version, message.build) != (wire.VERSION, self._build):
            raise ProtocolError("build %s speaks to build %s" % (message.build, self._build))
        if message.project != self._project:
            raise ProtocolError("project %s at an agent of %s" % (message.project, self._project))
        for other in self._masters.values():
            # of a connection that broke, we may not have seen the end: its tasks would run on
            if message.master and other.name == message.master:
                self._actions.append(Close(other.number, 75, "it came again"))
        master.greeted, master.name = True, message.master
        master.workers = message.workers or self._default
        master.key = _key(message.settings)
        self._actions.append(Prepare(master.key))
        while len(self._slots) < master.workers:
            self._slots.append(Slot(len(self._slots)))

    def _on_require(self, master, message):
        # type: (Master, wire.Require) -> None
        self._actions.append(Require(master.number, master.key, message.request, message.names))

    def lacks(self, number, request, names):
        # type: (int, int, List[str]) -> None
        if number in self._masters:
            self._send(self._masters[number], wire.Lacks(request, names))

    def _on_beat(self, master, message):
        # type: (Master, wire.Beat) -> None
        pass

    def _on_begin(self, master, message):
        # type: (Master, wire.Begin) -> None
        if message.call in master.calls:
            raise ProtocolError("Begin of call %d, which is under way" % message.call)
        timeout = message.options.get("timeout")
        if timeout is not None and type(timeout) not in (int, float):
            raise ProtocolError("Begin: bad timeout: %.80r" % (timeout,))
        if type(message.options.get("function", "")) is not str:
            raise ProtocolError("Begin: bad function")
        total = message.options.get("combine", 1)
        if type(total) is not int or total < 1:
            raise ProtocolError("Begin: bad combine")
        if len(message.segments) != (0 if message.params else 1):
            raise ProtocolError("Begin: params by digest, or as the only segment")
        call = Call(self._new(), master, message)
        call.estimate = self._estimates.get((call.code, call.module))
        master.calls[call.id] = self._calls[call.serial] = call
        self._need(call.code, call)
        if call.params:
            self._need(call.params, call)
        elif len(message.segments[0]) <= PARAMS_INLINE:
            call.params_handle = Handle(bytes(message.segments[0]), None)
        else:
            call.missing += 1
            self._actions.append(Spool(call.serial, message.segments[0]))
        if call.combine is not None:
            self._begin_combine(call)
        self._warm(master, call)

    def _warm(self, master, call):
        # type: (Master, Call) -> None
        """Fork the workers of a call while its data is still under way."""
        for slot in self._slots[: master.workers]:
            if self._fit(slot, call) is None:
                self._spawn(slot, master.key)

    def spooled(self, serial, handle):
        # type: (int, Handle) -> None
        call = self._calls.get(serial)
        if call is None:
            self._actions.append(Unpin("", handle, False))
            return
        call.params_handle = handle
        call.spooled = True
        call.missing -= 1
        self._changed = True

    def _on_task(self, master, message):
        # type: (Master, wire.Task) -> None
        call = master.calls.get(message.call)
        if call is None:
            raise ProtocolError("Task of call %d, which has not begun" % message.call)
        if call.refused:
            return
        if call.combine is not None:
            self._check_slices(call, message.tasks)
        for id_, given, slot in message.tasks:
            if id_ in call.tasks:
                raise ProtocolError("task %d of call %d is under way" % (id_, call.id))
            if slot is not None and slot >= master.workers:
                raise ProtocolError("task for worker %d of %d" % (slot, master.workers))
            inline = digest = None
            if type(given) is int:
                if given >= len(message.segments):
                    raise ProtocolError("task %d: no segment %d" % (id_, given))
                inline = bytes(message.segments[given])
            else:
                digest = given
            task = call.tasks[id_] = Task(call, id_, digest, slot, inline)
            if len(call.told) <= wire.AGAIN_MAX and not call.spans:
                call.told.append(task)
            if digest is None:
                self._enqueue(task)
            else:
                self._need(digest, task)

    def _on_blob(self, master, message):
        # type: (Master, wire.Blob) -> None
        if len(message.segments) != 1:
            raise ProtocolError("Blob with %d segments" % len(message.segments))
        data = message.segments[0]
        if message.offset + len(data) > message.total or not len(data):
            raise ProtocolError("Blob: bytes beyond its end")
        blob = self._blobs.get(message.digest)
        wanted = blob is not None and blob.state == AWAITED and blob.asked is master
        if wanted:
            self._actions.append(Keep(message.digest, message.offset, message.total, data))
        if wanted and message.digest in self._stalled:
            self._stalled[message.digest] += len(data)
        else:
            self._credit(master, len(data))

    def _on_gone(self, master, message):
        # type: (Master, wire.Gone) -> None
        if message.call in master.calls:
            raise ProtocolError("Gone for call %d, which is under way" % message.call)
        for digest in message.digests:
            blob = self._blobs.get(digest)
            if blob is not None and blob.state == AWAITED and blob.asked is master:
                self._ask(blob)  # for whoever needs it now

    def _on_revoke(self, master, message):
        # type: (Master, wire.Revoke) -> None
        call = master.calls.get(message.call)
        given = []
        for id_ in message.ids if call else ():
            task = call.tasks.get(id_)  # type: ignore[union-attr]
            if task is not None and task.state in (WAITING, QUEUED):
                self._over(task)
                given.append(id_)
        if call is not None and call.combine is not None:
            self._stirred[call] = None
        self._send(master, wire.Revoked(message.call, given))

    def _on_cancel(self, master, message):
        # type: (Master, wire.Cancel) -> None
        call = master.calls.get(message.call)
        if call is not None:
            for id_ in message.ids or list(call.tasks):
                if id_ in call.tasks:
                    self._cancel(call.tasks[id_])

    def _on_yield(self, master, message):
        # type: (Master, wire.Yield) -> None
        call = master.calls.get(message.call)
        if call is None:
            raise ProtocolError("Yield of call %d, which has not begun" % message.call)
        self._yield(call)

    def _on_end(self, master, message):
        # type: (Master, wire.End) -> None
        call = master.calls.get(message.call)
        if call is not None:
            self._end(call)

    def _end(self, call):
        # type: (Call) -> None
        self._drop_tasks(call)
        if call.estimate is not None:
            self._estimates[call.code, call.module] = call.estimate
            if len(self._estimates) > ESTIMATES:
                self._estimates.popitem(last=False)
        for digest in call.pins:
            self._unneed(digest, drop=digest == call.params)
        if call.spooled and call.params_handle is not None:
            self._actions.append(Unpin("", call.params_handle, False))
        call.master.calls.pop(call.id, None)
        self._calls.pop(call.serial, None)
        self._missing.pop(call, None)
        self._results.pop(call, None)
        self._forget_call(call.serial)
        self._quiet = self.now
        self._tight = self._tight and bool(self._calls)

    def refuse(self, serial, reason):
        # type: (int, str) -> None
        """The call cannot be done here."""
        if serial in self._calls:
            self._refuse(self._calls[serial], reason)

    def asked(self, number, ticket):
        # type: (int, int) -> Tuple[int, Any]
        """A worker waits to answer with much. Whose turn that is: the master (0 for nobody's, then
        it need not wait), and by what its tasks are in order."""
        worker, task = self._workers.get(number), self._tickets.get(ticket)
        if worker is None or task is None or task.worker is not worker:
            return 0, None
        if task.state == OVER or task.call.combine is not None:
            return 0, None
        worker.waits = True
        return task.call.master.number, (task.call.serial, task.id)

    def answered(self, number, ticket, ok, wrote, seconds, payload):
        # type: (int, int, bool, bool, float, Any) -> None
        """payload: the segments of a result, or (type, message, traceback). wrote: it printed."""
        worker, task = self._workers.get(number), self._tickets.get(ticket)
        if worker is None or task is None or task.worker is not worker:
            return
        call, slot, task.done_by = task.call, self._slots[worker.slot], worker
        slot.stillborn, worker.waits = 0, False
        if call.combine is not None and self._took(worker, task, ok, wrote, seconds, payload):
            return
        if task.state == OVER:
            self._take_back(task)
            return
        if worker.dying is not None and not ok:
            # perhaps the interrupt meant for another task: done again elsewhere
            self._again(task)
            return
        if len(worker.hand) == 1 and slot.busy is worker:  # _over, as nearly always
            del worker.hand[ticket], self._tickets[ticket], call.tasks[task.id]
            slot.busy, worker.since, task.worker, task.state = None, self.now, None, OVER
            self._changed = True
            if task.digest is not None:
                self._unneed(task.digest, waiter=task)
        else:
            self._over(task)
        old = call.estimate
        call.estimate = seconds if old is None else old + (seconds - old) / 4
        if wrote:
            call.talks = True
        if ok:
            items, segments = self._results.get(call) or self._results.setdefault(call, ([], []))
            items.append([task.id, worker.slot, len(payload), round(seconds, 6)])
            segments += payload
        elif payload[0] == _NOT_SHARED:
            self._refuse(call, payload[1])  # other hosts may see the file
        else:
            self._send(call.master, wire.Failure(call.id, task.id, worker.slot, *payload))

    def catch_up(self, lap):
        # type: (Lap) -> None
        """All that went by us, as if it had been told here. `now` is when it is told."""
        call = lap.call
        if lap.id != call.id:
            before = call.serial
            self._rename(call, lap.id, lap.serial, b"")
            for worker in lap.records:
                worker.calls.remove(before)
                worker.calls.add(lap.serial)
                worker.since, worker.released = self.now, False
        self._serial, call.estimate = lap.base, lap.estimate
        if lap.under_way is not None:
            if call.combine is not None:
                self._resume(lap)
            else:
                id_, like, params = lap.under_way
                self._on_again(call.master, wire.Again(id_, like, [params]))
                self._actions.pop()  # the workers have been told
            for position, (number, ticket, seconds, payload) in enumerate(lap.answers):
                if position == lap.passed:
                    self._results.pop(call, None)  # the master has these
                self.answered(number, ticket, True, False, seconds, payload)
            if lap.passed == len(lap.answers):
                self._results.pop(call, None)

    def output(self, number, ticket, stream, data):
        # type: (int, int, int, bytes) -> None
        """What a worker wrote while it worked on a ticket (0: on none)."""
        worker = self._workers.get(number)
        if worker is None:
            return
        task = self._tickets.get(ticket)
        if task is None and worker.hand and not ticket:
            task = self._current(worker)
        call = task.call if task is not None else worker.last
        if call is None or call.serial not in self._calls:
            return
        if task is not None and task.state == OVER:
            return
        id_ = max(task.id, -1) if task is not None else -1
        self._send(call.master, wire.Output(call.id, id_, worker.slot, stream, [data]))

    def gone(self, number, exit_, signal, ticket, stderr, note):
        # type: (int, Optional[int], Optional[int], int, str, str) -> None
        """A worker ended. ticket: what it was working on, 0 for nothing."""
        worker = self._workers.pop(number, None)
        if worker is None:
            return
        self._dying.pop(number, None)
        self._changed = True
        slot = self._slots[worker.slot]
        if worker in slot.workers:
            slot.workers.remove(worker)
        if slot.busy is worker:
            slot.busy = None
        if worker.files:
            self._drop_files(worker)
        culprit = self._tickets.get(ticket)
        if culprit is None and worker.hand and worker.dying is None:
            slot.stillborn += 1
            if slot.stillborn >= ATTEMPTS:
                culprit = next(iter(worker.hand.values()))
                slot.stillborn = 0
        needed = None

        def lose(task):
            # type: (Task) -> None
            self._over(task)
            self._send(task.call.master, wire.Lost(task.call.id, task.id, worker.slot, exit_,
                                                   signal, stderr, note))  # fmt: skip

        for task in reversed(list(worker.hand.values())):
            if task.state == OVER:
                self._take_back(task)
            elif task is culprit and worker.dying is None:
                needed = task.call
                if task.call.combine is not None:
                    self._stirred[task.call] = None
                if task.join is not None:
                    self._lost_join(task, exit_, signal, stderr, note)
                    continue
                lose(task)
            else:
                needed = task.call
                self._again(task)
        ghost = worker.withdrawn.get(ticket)
        if ghost is not None and ghost.task.state == QUEUED and worker.dying is None:
            lose(ghost.task)  # else another has it now, and will tell
        self._haunted.pop(number, None)
        if needed is not None and self._fit(slot, needed) is None:
            self._spawn(slot, needed.master.key)

    def superseded(self):
        # type: () -> None
        """There is an agent of a newer build: end when idle."""
        self._superseded = True

    def tick(self, now):
        # type: (float) -> None
        """To be called about four times a second while `busy`, else once a second or so."""
        self.now = now
        for master in list(self._masters.values()):
            if now - master.heard > self.gone_after:
                self._actions.append(Close(master.number, 75, "silent for %g s" % self.gone_after))
            elif now - master.said >= BEAT:
                master.said = now
                self._send(master, wire.Beat())
        self._tiny = False
        self._tick_ghosts()
        for worker in list(self._workers.values()):
            self._tiny = self._tiny or len(worker.hand) > 1
            self._tick_worker(worker, now)
        self._tick_combine()
        if not self._calls and now - self._quiet > UNPIN_AFTER:
            for blob in list(self._idle_blobs.values()):
                self._forget(blob, False)
            while self._spare:
                self._drop_file(self._spare.pop())
        self._end_if_idle()

    def _end_if_idle(self):
        # type: () -> None
        if not self._masters and not self._stopping:
            limit = 0.0 if self._superseded else self._idle_timeout
            if not self._had_master:
                limit = max(limit, FIRST_MASTER)
            if self.now - self._left >= limit:
                self._stopping = True
                self._actions.append(Stop("idle"))

    def _tick_worker(self, worker, now):
        # type: (Worker, float) -> None
        waited = now - worker.since
        if worker.dying is not None:
            if now - worker.dying >= GRACE and not worker.killed:
                worker.killed = True
                self._actions.append(Kill(worker.number))
        elif worker.hand:
            task = self._current(worker)
            if waited >= STARTED_AFTER and not task.told and task.join is None:
                task.told = True
                call = task.call
                self._send(call.master, wire.Started(call.id, [[task.id, worker.slot]]))
            if len(worker.hand) > 1 and waited >= self._stuck_after(task.call):
                self._withdraw(worker)
            timeout = task.call.timeout
            if timeout is not None and waited >= timeout and not worker.waits:
                # like a death: perhaps it was this worker, or this host
                note = "still running after %g s" % timeout
                if task.join is not None:
                    self._stuck_join(task, note)
                    return
                self._send(task.call.master, wire.Lost(
                    task.call.id, task.id, worker.slot, None, None, "", note))  # fmt: skip
                self._cancel(task)
        elif waited >= WORKER_IDLE:
            self._retire(worker)
        elif waited >= RELEASE_AFTER and not worker.released:
            self._release(worker)

    def _settle(self):
        # type: () -> None
        """Once all that happened has been told: hand out work, and say what has come together."""
        if self._stirred:
            self._combine()
        if self._queued and self._changed:
            self._hand_out()
        self._changed = False
        for call, digests in self._missing.items():
            self._send(call.master, wire.Missing(call.id, digests))
        self._missing.clear()
        for call, (items, segments) in self._results.items():
            self._send(call.master, wire.Result(call.id, items, segments))
        self._results.clear()
        if self._credits:
            self._give_credit()

    def _give_credit(self):
        # type: () -> None
        """Not for every piece: the master has better to do than to read of each."""
        for master in list(self._credits):
            if master.credit >= CREDIT_BYTES or self.now - master.credited >= CREDIT_SECONDS:
                self._send(master, wire.Credit(master.credit))
                master.credit, master.credited = 0, self.now
                self._credits.discard(master)

    def __repr__(self):
        # type: () -> str
        return "<Host %d masters, %d calls, %d workers, %d queued>" % (
            len(self._masters), len(self._calls), len(self._workers), self._queued)  # fmt: skip


def _key(settings):
    # type: (Dict[str, Any]) -> Key
    threads, nice = settings.get("threads") or 1, settings.get("nice") or 0
    env = settings.get("env") or {}
    if type(threads) is not int or type(nice) is not int or type(env) is not dict:
        raise ProtocolError("Hello: bad settings: %.200r" % (settings,))
    if not all(type(k) is str and type(v) is str for k, v in env.items()):
        raise ProtocolError("Hello: env must map names to text: %.200r" % (env,))
    return threads, nice, tuple(sorted(env.items()))


# (has said Hello, message): what is done. Whatever is not here is a ProtocolError.
_HANDLERS = {
    (False, wire.Hello): Host._on_hello,
    (False, wire.Beat): Host._on_beat,
    (True, wire.Require): Host._on_require,
    (True, wire.Begin): Host._on_begin,
    (True, wire.Task): Host._on_task,
    (True, wire.Again): Host._on_again,
    (True, wire.Blob): Host._on_blob,
    (True, wire.Gone): Host._on_gone,
    (True, wire.Revoke): Host._on_revoke,
    (True, wire.Cancel): Host._on_cancel,
    (True, wire.Yield): Host._on_yield,
    (True, wire.End): Host._on_end,
    (True, wire.Beat): Host._on_beat,
}  # type: Dict[Tuple[bool, Any], Any]
