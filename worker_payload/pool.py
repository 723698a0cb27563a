"""Workers and what they have in hand: which process does which tasks, and how many at a time.

Terms: a *slot* is one of the N places in which work runs at a time; masters know workers by slot.
A slot holds processes for several bundles of code, of which one at a time has tasks in its *hand*.
"""

import math
from collections import OrderedDict, deque
from typing import Any, Callable, Deque, Dict, List, Optional, Set, Tuple

from worker_payload import kept
from worker_payload.orders import BEGIN, CODE, DROP, END, PART, RELEASE, TASK
from worker_payload.records import (
    HANDED,
    QUEUED,
    Blob,
    Call,
    Ghost,
    Give,
    Handle,
    Interrupt,
    Key,
    Kill,
    Master,
    Retire,
    Send,
    Slot,
    Spawn,
    Task,
    Withdraw,
    Worker,
)

INLINE = 16384  # blobs up to this many bytes are handed to workers in the command, not as a file
PER_SLOT = 3  # processes kept for different bundles
HELD = 128  # files that a worker keeps open
HAND_COST = 30e-6  # seconds that it takes to hand something to a worker, whatever it is
STUCK_AFTER = 0.01  # a task that takes so much longer than thought no longer keeps others waiting
HAND = 32  # tasks at most in a hand: each may bring a file
HAND_SECONDS = 0.002  # of measured work that a worker may have in hand, beyond the current task


class Pool(object):
    """The agent's state as far as work is handed out; `now` is set by whoever knows the time.

    board: gives the ticket that a worker works on, or 0."""

    board = None  # type: Optional[Callable[[int], int]]

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
        self._haunted = {}  # type: Dict[int, Worker]  # that may have begun what was taken back
        self._stirred = OrderedDict()  # type: OrderedDict[Call, None]  # of calls that combine
        self._spare = []  # type: List[int]  # empty files for answers
        self._serial = 0
        self._turn = 0
        self._queued = 0
        self._tiny = False  # several tasks were handed to a worker not long ago
        self._changed = False  # so that there may be something to hand out
        self._estimates = OrderedDict()  # type: OrderedDict[Tuple[str, str], float]
        self._missing = OrderedDict()  # type: OrderedDict[Call, List[str]]
        self._results = OrderedDict()  # type: OrderedDict[Call, Tuple[List[Any], List[Any]]]
        self._credits = set()  # type: Set[Master]
        self._stalled = {}  # type: Dict[str, int]  # bytes of blobs without room, not credited yet
        self._tight = False  # the store was full: nothing is kept that no task needs
        self._had_master = False
        self._left = now  # when the last master left
        self._quiet = now  # when the last call ended
        self.let_go = now  # when a worker was last told to let go of all its files
        self._superseded = False
        self._stopping = False
        self.now = now

    def _new(self):
        # type: () -> int
        self._serial += 1
        return self._serial

    def _send(self, master, message):
        # type: (Master, Any) -> None
        if master.number in self._masters:
            self._actions.append(Send(master.number, message))

    def _enqueue(self, task, first=False):
        # type: (Task, bool) -> None
        call = task.call
        queue = call.ready if task.slot is None else call.bound.setdefault(task.slot, deque())
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

    def _again(self, task):
        # type: (Task) -> None
        self._take_back(task)
        self._enqueue(task, first=True)

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
        """The process of a slot that can do a call: one that has its code, else a blank one."""
        blank = None
        for worker in slot.workers:
            if worker.key == call.master.key:
                if worker.code == call.code:
                    return worker
                if worker.code is None:
                    blank = worker
        return None if warm else blank

    def _withdraw(self, worker):
        # type: (Worker) -> None
        """Take back what it has not begun. If it just did after all, that task is done twice."""
        ghost = self._ghost(worker)
        current = ghost.ticket if ghost is not None else self._current(worker).ticket
        worker.withdrawn = {} if ghost is None else {current: ghost}
        for task in reversed(list(worker.hand.values())):
            if task.ticket > current and task.state == HANDED:
                worker.withdrawn[task.ticket] = Ghost(task.ticket, task)
                task.call.estimate = max(task.call.estimate or 0.0, STUCK_AFTER)
                self._again(task)
        if worker.withdrawn:
            self._haunted[worker.number] = worker
        self._actions.append(Withdraw(worker.number, current, self._new()))

    def _ghost(self, worker):
        # type: (Worker) -> Optional[Ghost]
        """What was taken back from a worker, and it works on all the same: it had just begun."""
        if not worker.withdrawn or self.board is None:
            return None
        return worker.withdrawn.get(self.board(worker.number))

    def _tick_ghosts(self):
        # type: () -> None
        """Workers that work on something else than what is in their hand get nothing more, and what
        waits there goes elsewhere."""
        for worker in list(self._haunted.values()):
            if worker.dying is None and self._ghost(worker) is not None:
                self._tiny = True  # look again before long
                if worker.hand:
                    self._withdraw(worker)
                continue
            # it has seen what was taken back, or has ended what it had begun
            worker.withdrawn = {}
            del self._haunted[worker.number]
            self._changed = True

    def _end_ghosts(self, call):
        # type: (Call) -> None
        for worker in list(self._haunted.values()):
            ghost = self._ghost(worker)
            if ghost is not None and ghost.task.call is call and worker.dying is None:
                for task in list(worker.hand.values()):
                    self._again(task)
                self._condemn(worker)
                self._actions.append(Interrupt(worker.number))

    def _current(self, worker):
        # type: (Worker) -> Task
        """What a worker with something in hand works on: the first, unless answers come together"""
        first = next(iter(worker.hand.values()))
        if first.call.combine is None or self.board is None:
            return first
        return worker.hand.get(self.board(worker.number), first)

    def _release(self, worker):
        # type: (Worker) -> None
        commands = [(END, serial) for serial in worker.ended]  # type: List[Any]
        commands += [(DROP, digest) for digest in worker.held]
        worker.ended, worker.released, self.let_go = [], True, self.now
        worker.held.clear()
        self._actions.append(Give(worker.number, commands + [(RELEASE,)], []))

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
        if self._haunted and any(self._ghost(worker) is not None for worker in slot.workers):
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
        if call.combine is not None:
            return self._room_to_combine(call, worker, queue)
        if estimate is None or estimate > HAND_SECONDS or call.talks:
            return 0 if have else 1
        window = 1 + min(int(HAND_SECONDS / max(estimate, 1e-5)), HAND)
        if have > window // 2:
            return 0
        share = len(queue) // min(call.master.workers, len(self._slots))
        # where handing over takes longer than working, fewer workers with more each are faster
        batch = int(math.sqrt(len(queue) * HAND_COST / (estimate + HAND_COST)))
        return max(min(window - have, max(share, batch), HAND), 0 if have else 1)

    def _room_to_combine(self, call, worker, queue):
        # type: (Call, Worker, Deque[Task]) -> int
        """Whole blocks, as large as what is there gives each idle slot. The next ones come when
        these are answered, which happens at once."""
        estimate = call.estimate
        if worker.hand:
            return 0
        if estimate is None or call.talks or queue[0].join is not None:
            return 1
        most = HAND_SECONDS / max(estimate * self._share_of_cpu(), 1e-5)
        slots = self._slots[: call.master.workers]
        share = len(queue) / max(1, sum(slot.busy is None for slot in slots))
        size = 1
        while 2 * size <= most and size < HAND and share >= 1.5 * size:
            size *= 2
        return size - queue[0].id % size

    def _stuck_after(self, call):
        # type: (Call) -> float
        """Seconds after which what is behind a task in a hand is taken back."""
        return STUCK_AFTER if call.combine is None else STUCK_AFTER / self._share_of_cpu()

    def _share_of_cpu(self):
        # type: () -> float
        """What a worker has of a processor at least, when all work: a task that takes longer than
        it would alone, because there are more workers than processors, is short all the same."""
        return min(1.0, self._default / max(1, len(self._slots)))

    def _give(self, slot, worker, call, queue, count):
        # type: (Slot, Worker, Call, Deque[Task], int) -> None
        commands = [(END, serial) for serial in worker.ended]  # type: List[Any]
        worker.ended = []
        fds = []  # type: List[int]
        part = None  # type: Optional[List[Any]]

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
            total = call.combine.total if call.combine is not None else 0
            commands.append((BEGIN, call.serial, call.module, passing(handle), call.writable,
                             call.spans, call.function, total))  # fmt: skip
        if not worker.hand:
            worker.since = self.now
        while queue and count:
            task = queue.popleft()
            if task.state != QUEUED:
                continue
            task.ticket = self._new()
            if call.combine is not None:
                if task.join is not None:
                    if part is not None:  # its files might be too many for one message
                        queue.appendleft(task)
                        break
                    count = 1
                # one file for all that is in its hand: most of it comes to one answer
                spare = self._spare if part is None else []
                part = kept.command(PART, task, worker.files, spare, fds)
                commands.append(part)
            count -= 1
            self._unqueue(task)
            task.state, task.worker, task.told = HANDED, worker, False
            self._tickets[task.ticket] = worker.hand[task.ticket] = task
            inline = task.inline  # type: Any
            if task.digest is not None:
                if task.digest in worker.held:
                    worker.held.move_to_end(task.digest)
                else:
                    inline = passing(self._blobs[task.digest].handle)
                    if inline is None:
                        inline = True
                        worker.held[task.digest] = None
                        while len(worker.held) > (1 if self._tight else HELD):
                            commands.append((DROP, worker.held.popitem(last=False)[0]))
            commands.append((TASK, task.ticket, call.serial, task.digest, inline))
        if part is not None:
            part[-1] = False  # nothing follows
        if len(worker.hand) > 1:
            self._tiny = True
        worker.last = call
        worker.released = False
        slot.busy = worker
        self._actions.append(Give(worker.number, commands, fds))
