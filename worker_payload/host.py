"""The agent's state: masters, calls, tasks, workers and blobs. No I/O and no clock in here.

Methods take what happened; `actions()` gives what is to be done about it, in order. Processes are
known by number only, and the store through `blob_*` answers to `Look` and `Keep`.

Terms: a *slot* is one of the N places in which work runs at a time; masters know workers by slot.
A slot holds processes for several bundles of code, of which one at a time has tasks in its *hand*.
"""

import math
from collections import OrderedDict, deque
from typing import Any, Deque, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from worker_payload import wire
from worker_payload.wire import ProtocolError
from worker_payload.worker import BEGIN, CODE, DROP, END, RELEASE, TASK

INLINE = 16384  # blobs up to this many bytes are handed to workers in the command, not as a file
PARAMS_INLINE = 65536
MASTER_GONE_AFTER = 60.0  # seconds without a byte; being wrong here kills work
BEAT = 2.0
GRACE = 1.0  # between SIGINT and SIGKILL
WORKER_IDLE = 300.0
STARTED_AFTER = 0.2  # tasks that run longer than this are reported as started
RELEASE_AFTER = 0.5  # idle workers then forget ended calls and free their memory
UNPIN_AFTER = 30.0  # of no calls: blobs are then left to the store
FIRST_MASTER = 15.0  # an agent that nobody attaches to waits at least so long
PER_SLOT = 3  # processes kept for different bundles
HELD = 128  # files that a worker keeps open
HAND_COST = 30e-6  # seconds that it takes to hand something to a worker, whatever it is
STUCK_AFTER = 0.01  # a task that takes so much longer than thought no longer keeps others waiting
HAND = 32  # tasks at most in a hand: each may bring a file
HAND_SECONDS = 0.002  # of measured work that a worker may have in hand, beyond the current task
ESTIMATES = 64  # map functions whose time per task is remembered from call to call
PINNED = 256  # files that we keep open though no task needs them now
ATTEMPTS = 3  # for a blob that arrives damaged, for a worker that dies before its first task

Key = Tuple[int, int, Tuple[Tuple[str, str], ...]]  # threads, nice, environment


class Handle(NamedTuple):
    """A blob to hand out: its bytes if there are few, else a descriptor."""

    inline: Optional[bytes]
    fd: Optional[int]


# --- what the agent is to do ---------------------------------------------------------------------


class Send(NamedTuple):
    master: int
    message: Any


class Close(NamedTuple):
    """End a master: it gets what is queued for it, then `code` is its attach's exit status."""

    master: int
    code: int
    reason: str


class Prepare(NamedTuple):
    """Workers of this kind will be wanted."""

    key: Key


class Spawn(NamedTuple):
    worker: int
    key: Key


class Give(NamedTuple):
    """Commands for a worker, and the descriptors they need, in order."""

    worker: int
    commands: List[Any]
    fds: List[int]


class Withdraw(NamedTuple):
    """Tell a worker not to begin with the tickets between these two."""

    worker: int
    after: int
    before: int


class Interrupt(NamedTuple):
    worker: int


class Kill(NamedTuple):
    worker: int


class Retire(NamedTuple):
    """Let an idle worker end by itself."""

    worker: int


class Look(NamedTuple):
    """Is this blob in the store? Answer by blob_here or blob_absent."""

    digest: str


class Keep(NamedTuple):
    """Bytes of a blob. Answer by blob_here, blob_damaged or blob_full when it is complete."""

    digest: str
    offset: int
    total: int
    data: Any


class Abandon(NamedTuple):
    """The rest of this blob will not come."""

    digest: str


class Spool(NamedTuple):
    """Put params into a file without a name. Answer by spooled."""

    call: int
    data: Any


class Unpin(NamedTuple):
    """Close the handle; drop: and delete the blob."""

    digest: str
    handle: Handle
    drop: bool


class Require(NamedTuple):
    """Ask a template of this kind which modules cannot be imported. Answer by lacks."""

    master: int
    key: Key
    request: int
    names: List[str]


class Stop(NamedTuple):
    """End the agent."""

    reason: str


# --- records -------------------------------------------------------------------------------------


class Master(object):
    def __init__(self, number, now):
        # type: (int, float) -> None
        self.number = number
        self.greeted = False
        self.key = (1, 0, ())  # type: Key
        self.workers = 0
        self.calls = OrderedDict()  # type: OrderedDict[int, Call]
        self.heard = now
        self.said = now
        self.credit = 0
        self.turn = 0


class Call(object):
    def __init__(self, serial, master, begin):
        # type: (int, Master, wire.Begin) -> None
        self.serial = serial
        self.master = master
        self.id = begin.call
        self.code = begin.code
        self.module = begin.module
        self.params = begin.params
        self.params_handle = None  # type: Optional[Handle]
        self.spooled = False
        self.writable = bool(begin.options.get("writable"))
        self.timeout = begin.options.get("timeout")
        self.missing = 0  # blobs without which nothing can begin
        self.pins = []  # type: List[str]
        self.refused = False
        self.tasks = {}  # type: Dict[int, Task]
        self.queued = 0
        self.ready = deque()  # type: Deque[Task]
        self.bound = {}  # type: Dict[int, Deque[Task]]
        self.estimate = None  # type: Optional[float]
        self.talks = False  # its tasks print: then one at a time, so that we know which one did


WAITING, QUEUED, HANDED, OVER = "waiting", "queued", "handed", "over"


class Task(object):
    __slots__ = ("call", "id", "digest", "slot", "state", "ticket", "worker", "told")

    def __init__(self, call, id_, digest, slot):
        # type: (Call, int, Optional[str], Optional[int]) -> None
        self.call = call
        self.id = id_
        self.digest = digest
        self.slot = slot
        self.state = WAITING
        self.ticket = 0
        self.worker = None  # type: Optional[Worker]
        self.told = False


class Worker(object):
    def __init__(self, number, slot, key, now):
        # type: (int, int, Key, float) -> None
        self.number = number
        self.slot = slot
        self.key = key
        self.code = None  # type: Optional[str]
        self.calls = set()  # type: Set[int]
        self.ended = []  # type: List[int]
        self.held = OrderedDict()  # type: OrderedDict[str, None]
        self.hand = OrderedDict()  # type: OrderedDict[int, Task]
        self.since = now  # when the first task in hand came to be first, or the hand empty
        self.released = True
        self.dying = None  # type: Optional[float]
        self.killed = False
        self.last = None  # type: Optional[Call]


class Slot(object):
    def __init__(self, index):
        # type: (int) -> None
        self.index = index
        self.workers = []  # type: List[Worker]
        self.busy = None  # type: Optional[Worker]
        self.stillborn = 0


LOOKING, AWAITED, HERE = "looking", "awaited", "here"


class Blob(object):
    def __init__(self, digest):
        # type: (str) -> None
        self.digest = digest
        self.state = LOOKING
        self.handle = None  # type: Optional[Handle]
        self.users = 0
        self.waiters = []  # type: List[Any]
        self.asked = None  # type: Optional[Master]
        self.damaged = 0


# --- the state -----------------------------------------------------------------------------------


class Host(object):
    """idle_timeout: seconds without a master after which the agent ends. workers: default number."""

    def __init__(self, build, project, workers, idle_timeout, now):
        # type: (str, str, int, float, float) -> None
        self._build = build
        self._project = project
        self._default = workers
        self._idle_timeout = idle_timeout
        self._actions = []  # type: List[Any]
        self._masters = OrderedDict()  # type: OrderedDict[int, Master]
        self._calls = {}  # type: Dict[int, Call]
        self._slots = []  # type: List[Slot]
        self._workers = {}  # type: Dict[int, Worker]
        self._dying = {}  # type: Dict[int, Worker]
        self._blobs = {}  # type: Dict[str, Blob]
        self._idle_blobs = OrderedDict()  # type: OrderedDict[str, Blob]
        self._tickets = {}  # type: Dict[int, Task]
        self._serial = 0
        self._turn = 0
        self._queued = 0
        self._tiny = False  # several tasks were handed to a worker not long ago
        self._changed = False  # so that there may be something to hand out
        self._estimates = OrderedDict()  # type: OrderedDict[Tuple[str, str], float]
        self._missing = OrderedDict()  # type: OrderedDict[Call, List[str]]
        self._results = OrderedDict()  # type: OrderedDict[Call, Tuple[List[Any], List[Any]]]
        self._credits = set()  # type: Set[Master]
        self._had_master = False
        self._left = now  # when the last master left
        self._quiet = now  # when the last call ended
        self._superseded = False
        self._stopping = False
        self.now = now

    # --- for the agent ---------------------------------------------------------------------------

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
        """Whether answers wait to be sent, and nothing more urgent."""
        return bool(self._results) and not self._actions

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

    def _new(self):
        # type: () -> int
        self._serial += 1
        return self._serial

    # --- masters ---------------------------------------------------------------------------------

    def master_opened(self, number):
        # type: (int) -> None
        self._masters[number] = Master(number, self.now)
        self._had_master = True

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

    def _send(self, master, message):
        # type: (Master, Any) -> None
        if master.number in self._masters:
            self._actions.append(Send(master.number, message))

    def _on_hello(self, master, message):
        # type: (Master, wire.Hello) -> None
        if (message.version, message.build) != (wire.VERSION, self._build):
            raise ProtocolError("build %s speaks to build %s" % (message.build, self._build))
        if message.project != self._project:
            raise ProtocolError("project %s at an agent of %s" % (message.project, self._project))
        master.greeted = True
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
        for id_, digest, slot in message.tasks:
            if id_ in call.tasks:
                raise ProtocolError("task %d of call %d is under way" % (id_, call.id))
            if slot is not None and slot >= master.workers:
                raise ProtocolError("task for worker %d of %d" % (slot, master.workers))
            task = call.tasks[id_] = Task(call, id_, digest, slot)
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
        master.credit += len(data)
        self._credits.add(master)
        blob = self._blobs.get(message.digest)
        if blob is not None and blob.state == AWAITED and blob.asked is master:
            self._actions.append(Keep(message.digest, message.offset, message.total, data))

    def _on_revoke(self, master, message):
        # type: (Master, wire.Revoke) -> None
        call = master.calls.get(message.call)
        given = []
        for id_ in message.ids if call else ():
            task = call.tasks.get(id_)  # type: ignore[union-attr]
            if task is not None and task.state in (WAITING, QUEUED):
                self._over(task)
                given.append(id_)
        self._send(master, wire.Revoked(message.call, given))

    def _on_cancel(self, master, message):
        # type: (Master, wire.Cancel) -> None
        call = master.calls.get(message.call)
        if call is not None:
            for id_ in message.ids or list(call.tasks):
                if id_ in call.tasks:
                    self._cancel(call.tasks[id_])

    def _on_end(self, master, message):
        # type: (Master, wire.End) -> None
        call = master.calls.get(message.call)
        if call is not None:
            self._end(call)

    # --- calls and tasks ---------------------------------------------------------------------------

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
        for worker in self._workers.values():
            if call.serial in worker.calls:
                worker.calls.discard(call.serial)
                worker.ended.append(call.serial)
                worker.released = False
        self._quiet = self.now

    def _drop_tasks(self, call):
        # type: (Call) -> None
        for task in list(call.tasks.values()):
            self._cancel(task)

    def refuse(self, serial, reason):
        # type: (int, str) -> None
        """The call cannot be done here."""
        if serial in self._calls:
            self._refuse(self._calls[serial], reason)

    def _refuse(self, call, reason):
        # type: (Call, str) -> None
        if not call.refused:
            call.refused = True
            self._drop_tasks(call)
            self._send(call.master, wire.Refused(call.id, reason))

    def _enqueue(self, task, first=False):
        # type: (Task, bool) -> None
        call = task.call
        if task.slot is None:
            queue = call.ready
        else:
            queue = call.bound.setdefault(task.slot, deque())
        if first:
            queue.appendleft(task)
        else:
            queue.append(task)
        task.state = QUEUED
        call.queued += 1
        self._queued += 1
        self._changed = True

    def _unqueue(self, task):
        # type: (Task) -> None
        """It stays in its queue, to be passed over."""
        task.call.queued -= 1
        self._queued -= 1

    def _over(self, task):
        # type: (Task) -> None
        """The task is answered, given back or cancelled."""
        if task.state == QUEUED:
            self._unqueue(task)
        elif task.state == HANDED and task.worker is not None:
            self._take_back(task)
        task.state = OVER
        task.call.tasks.pop(task.id, None)
        if task.digest is not None:
            self._unneed(task.digest, waiter=task)

    def _take_back(self, task):
        # type: (Task) -> None
        worker = task.worker
        assert worker is not None
        if next(iter(worker.hand)) == task.ticket:
            worker.since = self.now  # the next one begins
        self._tickets.pop(task.ticket, None)
        self._changed = True
        worker.hand.pop(task.ticket, None)
        task.worker = None
        if not worker.hand:
            slot = self._slots[worker.slot]
            if slot.busy is worker:
                slot.busy = None
            if worker.dying is not None and not worker.killed:
                worker.killed = True
                self._actions.append(Kill(worker.number))

    def _cancel(self, task):
        # type: (Task) -> None
        worker = task.worker
        if worker is not None and worker.dying is None:
            self._condemn(worker)
            self._actions.append(Interrupt(worker.number))
        if worker is not None:
            # stays in hand, so that we know when the interrupted call is through
            task.state = OVER
            task.call.tasks.pop(task.id, None)
            if task.digest is not None:
                self._unneed(task.digest, waiter=task)
        else:
            self._over(task)

    def _condemn(self, worker):
        # type: (Worker) -> None
        """It gets no more tasks; another takes its place at once."""
        worker.dying = self.now
        self._changed = True
        self._dying[worker.number] = worker
        slot = self._slots[worker.slot]
        if worker in slot.workers:
            slot.workers.remove(worker)
        if slot.busy is worker:
            slot.busy = None

    # --- workers -----------------------------------------------------------------------------------

    def _spawn(self, slot, key):
        # type: (Slot, Key) -> Worker
        if len(slot.workers) >= PER_SLOT:
            for worker in sorted(slot.workers, key=lambda item: item.since):
                if not worker.hand:
                    self._retire(worker)
                    break
        worker = Worker(self._new(), slot.index, key, self.now)
        slot.workers.append(worker)
        self._workers[worker.number] = worker
        self._actions.append(Spawn(worker.number, key))
        return worker

    def _retire(self, worker):
        # type: (Worker) -> None
        self._condemn(worker)
        self._actions.append(Retire(worker.number))

    def _fit(self, slot, call, warm=False):
        # type: (Slot, Call, bool) -> Optional[Worker]
        """The process of a slot that can work for a call: one that has its code, else a blank one."""
        blank = None
        for worker in slot.workers:
            if worker.key == call.master.key:
                if worker.code == call.code:
                    return worker
                if worker.code is None:
                    blank = worker
        return None if warm else blank

    def answered(self, number, ticket, ok, wrote, seconds, payload):
        # type: (int, int, bool, bool, float, Any) -> None
        """payload: the segments of a result, or (type, message, traceback). wrote: it printed."""
        worker = self._workers.get(number)
        task = self._tickets.get(ticket)
        if worker is None or task is None or task.worker is not worker:
            return
        call = task.call
        self._slots[worker.slot].stillborn = 0
        if task.state == OVER:
            self._take_back(task)
            return
        if worker.dying is not None and not ok:
            # perhaps the interrupt meant for another task: done again elsewhere
            self._again(task)
            return
        self._over(task)
        old = call.estimate
        call.talks = call.talks or wrote
        call.estimate = seconds if old is None else old + (seconds - old) / 4
        if ok:
            items, segments = self._results.get(call) or self._results.setdefault(call, ([], []))
            items.append([task.id, worker.slot, len(payload), round(seconds, 6)])
            segments += payload
        else:
            self._send(call.master, wire.Failure(call.id, task.id, worker.slot, *payload))

    def _again(self, task):
        # type: (Task) -> None
        self._take_back(task)
        self._enqueue(task, first=True)

    def output(self, number, ticket, stream, data):
        # type: (int, int, int, bytes) -> None
        """What a worker wrote while it worked on a ticket (0: on none)."""
        worker = self._workers.get(number)
        if worker is None:
            return
        task = self._tickets.get(ticket)
        if task is None and worker.hand and not ticket:
            task = next(iter(worker.hand.values()))
        call = task.call if task is not None else worker.last
        if call is None or call.serial not in self._calls:
            return
        if task is not None and task.state == OVER:
            return
        id_ = task.id if task is not None else -1
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
        culprit = self._tickets.get(ticket)
        if culprit is None and worker.hand and worker.dying is None:
            slot.stillborn += 1
            if slot.stillborn >= ATTEMPTS:
                culprit = next(iter(worker.hand.values()))
                slot.stillborn = 0
        needed = None
        for task in reversed(list(worker.hand.values())):
            if task.state == OVER:
                self._take_back(task)
            elif task is culprit and worker.dying is None:
                needed = task.call
                self._over(task)
                self._send(task.call.master, wire.Lost(task.call.id, task.id, worker.slot, exit_,
                                                       signal, stderr, note))  # fmt: skip
            else:
                needed = task.call
                self._again(task)
        if needed is not None and self._fit(slot, needed) is None:
            self._spawn(slot, needed.master.key)

    # --- blobs -------------------------------------------------------------------------------------

    def _need(self, digest, user):
        # type: (str, Any) -> None
        blob = self._blobs.get(digest)
        if blob is None:
            blob = self._blobs[digest] = Blob(digest)
            self._actions.append(Look(digest))
        blob.users += 1
        self._idle_blobs.pop(digest, None)
        if isinstance(user, Call):
            user.pins.append(digest)
        if blob.state == HERE:
            if isinstance(user, Task):
                self._enqueue(user)
            return
        if isinstance(user, Call):
            user.missing += 1
        blob.waiters.append(user)
        if blob.state == AWAITED and blob.asked is None:
            self._ask(blob)

    def _unneed(self, digest, waiter=None, drop=False):
        # type: (str, Any, bool) -> None
        blob = self._blobs[digest]
        blob.users -= 1
        if blob.state != HERE:
            # tasks that are over and calls that ended are passed over when it comes
            if blob.users == 0 and blob.state == AWAITED and blob.asked is None:
                del self._blobs[digest]
            return
        if blob.users:
            return
        if drop:
            self._forget(blob, True)
            return
        self._idle_blobs[digest] = blob
        while len(self._idle_blobs) > PINNED:
            self._forget(next(iter(self._idle_blobs.values())), False)

    def _forget(self, blob, drop):
        # type: (Blob, bool) -> None
        self._idle_blobs.pop(blob.digest, None)
        del self._blobs[blob.digest]
        assert blob.handle is not None
        self._actions.append(Unpin(blob.digest, blob.handle, drop))

    def blob_here(self, digest, handle):
        # type: (str, Handle) -> None
        blob = self._blobs.get(digest)
        if blob is None or blob.state == HERE:
            self._actions.append(Unpin(digest, handle, False))
            return
        blob.state, blob.handle, blob.asked = HERE, handle, None
        waiters, blob.waiters = blob.waiters, []
        for waiter in waiters:
            if isinstance(waiter, Call):
                waiter.missing -= 1
                self._changed = True
            elif waiter.state == WAITING:
                self._enqueue(waiter)
        if not blob.users:
            self._idle_blobs[digest] = blob

    def blob_absent(self, digest):
        # type: (str) -> None
        blob = self._blobs.get(digest)
        if blob is not None and blob.state == LOOKING:
            blob.state = AWAITED
            self._ask(blob)

    def blob_damaged(self, digest):
        # type: (str) -> None
        blob = self._blobs.get(digest)
        if blob is not None and blob.state == AWAITED:
            blob.damaged += 1
            if blob.damaged >= ATTEMPTS:
                self.blob_full(digest, "blob %s arrives damaged again and again" % digest[:12])
            else:
                self._ask(blob)

    def blob_full(self, digest, reason):
        # type: (str, str) -> None
        """It cannot be kept here: the calls that need it are refused."""
        blob = self._blobs.pop(digest, None)
        if blob is None:
            return
        users = [w if isinstance(w, Call) else w.call for w in blob.waiters if _is_live(w, self)]
        blob.asked = None
        self._blobs[digest] = blob  # while its users let go of it
        blob.state = AWAITED
        for call in users:
            self._refuse(call, reason)

    def _ask(self, blob):
        # type: (Blob) -> None
        """Ask one master that needs it, and no other while that one lives."""
        blob.asked = None
        blob.waiters = [waiter for waiter in blob.waiters if _is_live(waiter, self)]
        for waiter in blob.waiters:
            call = waiter if isinstance(waiter, Call) else waiter.call
            if call.master.number in self._masters and not call.refused:
                blob.asked = call.master
                self._missing.setdefault(call, []).append(blob.digest)
                return
        if not blob.users:
            self._blobs.pop(blob.digest, None)

    def make_room(self):
        # type: () -> None
        """The store is full: let go of all that nobody needs now."""
        for blob in list(self._idle_blobs.values()):
            self._forget(blob, False)
        for worker in self._workers.values():
            if not worker.hand:
                self._release(worker)

    # --- time --------------------------------------------------------------------------------------

    def superseded(self):
        # type: () -> None
        """There is an agent of a newer build: end when idle."""
        self._superseded = True

    def tick(self, now):
        # type: (float) -> None
        """To be called about four times a second while `busy`, else once a second or so."""
        self.now = now
        for master in list(self._masters.values()):
            if now - master.heard > MASTER_GONE_AFTER:
                self._actions.append(
                    Close(master.number, 75, "silent for %d s" % MASTER_GONE_AFTER)
                )
            elif now - master.said >= BEAT:
                master.said = now
                self._send(master, wire.Beat())
        self._tiny = False
        for worker in list(self._workers.values()):
            self._tiny = self._tiny or len(worker.hand) > 1
            self._tick_worker(worker, now)
        if not self._calls and now - self._quiet > UNPIN_AFTER and self._idle_blobs:
            for blob in list(self._idle_blobs.values()):
                self._forget(blob, False)
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
            task = next(iter(worker.hand.values()))
            if waited >= STARTED_AFTER and not task.told:
                task.told = True
                call = task.call
                self._send(call.master, wire.Started(call.id, [[task.id, worker.slot]]))
            if waited >= STUCK_AFTER and len(worker.hand) > 1:
                self._withdraw(worker)
            if task.call.timeout is not None and waited >= task.call.timeout:
                self._send(task.call.master, wire.Failure(
                    task.call.id, task.id, worker.slot, "TimeoutError",
                    "still running after %g s" % task.call.timeout, ""))  # fmt: skip
                self._cancel(task)
        elif waited >= WORKER_IDLE:
            self._retire(worker)
        elif waited >= RELEASE_AFTER and not worker.released:
            self._release(worker)

    def _withdraw(self, worker):
        # type: (Worker) -> None
        """Take back what it has not begun. If it just did after all, that task is done twice."""
        first, *rest = worker.hand.values()
        for task in reversed(rest):
            if task.state == HANDED:
                task.call.estimate = max(task.call.estimate or 0.0, STUCK_AFTER)
                self._again(task)
        self._actions.append(Withdraw(worker.number, first.ticket, self._new()))

    def _release(self, worker):
        # type: (Worker) -> None
        commands = [(END, serial) for serial in worker.ended]  # type: List[Any]
        commands += [(DROP, digest) for digest in worker.held]
        worker.ended, worker.released = [], True
        worker.held.clear()
        self._actions.append(Give(worker.number, commands + [(RELEASE,)], []))

    # --- who does what -----------------------------------------------------------------------------

    def _settle(self):
        # type: () -> None
        """Once all that happened has been told: hand out work, and say what has come together."""
        if self._queued and self._changed:
            self._hand_out()
        self._changed = False
        for call, digests in self._missing.items():
            self._send(call.master, wire.Missing(call.id, digests))
        self._missing.clear()
        for call, (items, segments) in self._results.items():
            self._send(call.master, wire.Result(call.id, items, segments))
        self._results.clear()
        for master in self._credits:
            self._send(master, wire.Credit(master.credit))
            master.credit = 0
        self._credits.clear()

    def _hand_out(self):
        # type: () -> None
        running = dict((number, 0) for number in self._masters)
        for slot in self._slots:
            if slot.busy is not None:
                number = next(iter(slot.busy.hand.values())).call.master.number
                running[number] = running.get(number, 0) + 1
        # processes that have the code already come first
        for warm in (True, False):
            for slot in self._slots:
                if not self._queued:
                    return
                self._feed(slot, warm, running)

    def _feed(self, slot, warm, running):
        # type: (Slot, bool, Dict[int, int]) -> None
        """Give a slot its next tasks: of the master that has the fewest slots, then of the one
        whose turn is longest ago."""
        busy = slot.busy
        if busy is not None and not warm:
            return
        masters = [m for m in self._masters.values() if slot.index < m.workers]
        if len(masters) > 1:
            masters.sort(key=lambda m: (running[m.number], m.turn))
        for master in masters:
            for call in master.calls.values():
                if call.missing or not call.queued:
                    continue
                queue = call.bound.get(slot.index) or call.ready
                while queue and queue[0].state != QUEUED:
                    queue.popleft()
                if not queue:
                    continue
                worker = self._fit(slot, call, warm)
                if busy is not None and worker is not busy:
                    return  # it is another's turn here, when the hand is empty
                if worker is None:
                    if warm:
                        return  # it is this call's turn, if only in a cold process
                    worker = self._spawn(slot, master.key)
                room = self._room(call, worker, queue)
                if room:
                    self._give(slot, worker, call, queue, room)
                    if busy is None:
                        running[master.number] += 1
                    self._turn += 1
                    master.turn = self._turn
                return

    def _room(self, call, worker, queue):
        # type: (Call, Worker, Deque[Task]) -> int
        """How many tasks to hand to a worker now: several only if they are tiny and plentiful."""
        have, estimate = len(worker.hand), call.estimate
        if estimate is None or estimate > HAND_SECONDS or call.talks:
            return 0 if have else 1
        window = 1 + min(int(HAND_SECONDS / max(estimate, 1e-5)), HAND)
        if have > window // 2:
            return 0
        share = len(queue) // min(call.master.workers, len(self._slots))
        # where handing over takes longer than working, fewer workers with more each are faster
        batch = int(math.sqrt(len(queue) * HAND_COST / (estimate + HAND_COST)))
        return max(min(window - have, max(share, batch), HAND), 0 if have else 1)

    def _give(self, slot, worker, call, queue, count):
        # type: (Slot, Worker, Call, Deque[Task], int) -> None
        commands = [(END, serial) for serial in worker.ended]  # type: List[Any]
        worker.ended = []
        fds = []  # type: List[int]

        def passing(handle):
            # type: (Optional[Handle]) -> Optional[bytes]
            assert handle is not None
            if handle.inline is None:
                fds.append(handle.fd)  # type: ignore[arg-type]
            return handle.inline

        if worker.code is None:
            worker.code = call.code
            commands.append((CODE, passing(self._blobs[call.code].handle)))
        if call.serial not in worker.calls:
            worker.calls.add(call.serial)
            handle = self._blobs[call.params].handle if call.params else call.params_handle
            commands.append((BEGIN, call.serial, call.module, passing(handle), call.writable))
        if not worker.hand:
            worker.since = self.now
        while queue and count:
            task = queue.popleft()
            if task.state != QUEUED:
                continue
            count -= 1
            self._unqueue(task)
            task.state, task.worker, task.ticket, task.told = HANDED, worker, self._new(), False
            self._tickets[task.ticket] = worker.hand[task.ticket] = task
            inline = None  # type: Any
            if task.digest is not None:
                if task.digest in worker.held:
                    worker.held.move_to_end(task.digest)
                else:
                    inline = passing(self._blobs[task.digest].handle)
                    if inline is None:
                        inline = True
                        worker.held[task.digest] = None
                        while len(worker.held) > HELD:
                            commands.append((DROP, worker.held.popitem(last=False)[0]))
            commands.append((TASK, task.ticket, call.serial, task.digest, inline))
        if len(worker.hand) > 1:
            self._tiny = True
        worker.last = call
        worker.released = False
        slot.busy = worker
        self._actions.append(Give(worker.number, commands, fds))

    def __repr__(self):
        # type: () -> str
        return "<Host %d masters, %d calls, %d workers, %d queued>" % (
            len(self._masters), len(self._calls), len(self._workers), self._queued)  # fmt: skip

    def __iter__(self):
        # type: () -> Iterator[Worker]
        return iter(self._workers.values())


def _is_live(waiter, host):
    # type: (Any, Host) -> bool
    """Whether a blob is still of use to who waits for it."""
    call = waiter if isinstance(waiter, Call) else waiter.call
    return call.serial in host._calls and (waiter is call or waiter.state == WAITING)


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
    (True, wire.Blob): Host._on_blob,
    (True, wire.Revoke): Host._on_revoke,
    (True, wire.Cancel): Host._on_cancel,
    (True, wire.End): Host._on_end,
    (True, wire.Beat): Host._on_beat,
}  # type: Dict[Tuple[bool, Any], Any]
