"""Calls that are repeated with other params: the host's part in them, and the short way past it.

A round of an iterative algorithm takes a few tenths of a millisecond, most of it Python. So once a
call was repeated, and nothing else is to be done here, a `Lap` takes the host's place: it knows who
does what, and knows nothing else. As soon as anything else happens, however small, the host is told
all that went by it (`Host.catch_up`), and goes on as if it had been there from the start.
"""

from collections import OrderedDict
from typing import Any, Dict, List, Optional

from worker_payload import wire
from worker_payload.board import ROOM
from worker_payload.combining import Combining
from worker_payload.lap import PARAMS_INLINE, JointLap, Lap
from worker_payload.records import HANDED, HERE, Call, Handle, Master, Repeat, Task, Worker
from worker_payload.wire import ProtocolError

JOINT_HEAD = 4096  # bytes that an answer may have on the board besides what is counted
WORTH_SECONDS = 0.0005  # of waiting for one that has more to do than others: a lap saves as much
LAP_SECONDS = 0.02  # after this, what takes so long is the host's business again


class Repeating(Combining):
    """The host, as far as calls are repeated."""

    def __init__(self, *args):
        # type: (Any) -> None
        super(Repeating, self).__init__(*args)
        self._repeated = None  # type: Optional[Call]  # in one piece, by idle workers

    def _on_again(self, master, message):
        # type: (Master, wire.Again) -> None
        call = master.calls.get(message.like)
        if call is None or call.tasks or call.refused or call.spans or call.params or call.spooled:
            raise ProtocolError("Again of call %d, which cannot be repeated" % message.like)
        count = len(set(task.id for task in call.told))  # some came twice, after a death
        if not 0 < count == len(call.told) <= wire.AGAIN_MAX or message.call in master.calls:
            raise ProtocolError("Again of call %d, as %d" % (message.like, message.call))
        if len(message.segments) != 1 or len(message.segments[0]) > PARAMS_INLINE:
            raise ProtocolError("Again: params in one segment, of %d bytes at most" % PARAMS_INLINE)
        # who is still at a task that nobody waits for answers it as what it was: not this one, then
        call.told = [
            Task(call, one.id, one.digest, one.slot, one.inline) if one.worker is not None else one
            for one in call.told
        ]
        params, before = bytes(message.segments[0]), call.serial
        self._rename(call, message.call, self._new(), params)
        call.talks = False  # as far as we know
        if call.combine is not None:
            self._begin_again(call)
            self._forget_call(before)
            self._repeated = call
            return
        given, serial = [], call.serial
        shares = {}  # type: Dict[Worker, int]
        share = self._even(call)  # else they move, and are even again
        for task in call.told:
            call.tasks[task.id], task.told = task, False
            worker = task.done_by  # type: Any
            had = shares.get(worker, 0)
            if had:  # its data is there, and mapped: the others would have to do that first
                ready = had < share and self._has(worker, task)
            else:
                ready = worker is not None and self._takes_again(worker, task, before)
            if not ready:
                self._once_more(task)
                continue
            shares[worker] = had + 1
            inline = self._hand_again(worker, task)
            if had:
                self._tiny = True
            else:
                self._goes_on(worker, before, serial)
            given.append((worker.number, task.ticket, task.digest, inline))
        if given:
            self._actions.append(Repeat(before, call.serial, params, given))
        if len(shares) < len(self._workers):
            self._forget_call(before)
        # else some will be told as of a new task, which nobody repeats by himself
        self._repeated = call if len(given) == len(call.told) else None

    def _even(self, call):
        # type: (Call) -> int
        """Tasks for each worker, at most, if these are spread evenly."""
        return -(-len(call.told) // min(call.master.workers, len(self._slots)))

    def _hand_again(self, worker, task):
        # type: (Worker, Task) -> Optional[bytes]
        """Its blob, if that goes with the command."""
        inline = None
        if task.digest is not None:
            blob = self._blobs[task.digest]
            blob.users += 1
            self._idle_blobs.pop(task.digest, None)
            inline = blob.handle.inline  # type: ignore[union-attr]
        self._serial = ticket = self._serial + 1
        task.state, task.worker, task.ticket = HANDED, worker, ticket
        self._tickets[ticket] = worker.hand[ticket] = task
        return inline

    def _goes_on(self, worker, before, serial):
        # type: (Worker, int, int) -> None
        """The call that a worker knows is another one now, and it is busy with it."""
        worker.since, worker.released = self.now, False
        self._slots[worker.slot].busy = worker
        worker.calls.remove(before)
        worker.calls.add(serial)

    def _rename(self, call, id_, serial, params):
        # type: (Call, int, int, bytes) -> None
        """It is another call from now on."""
        del call.master.calls[call.id], self._calls[call.serial]
        call.id, call.serial = id_, serial
        call.params_handle = Handle(params, None)
        call.master.calls[id_] = self._calls[serial] = call

    def _forget_call(self, serial):
        # type: (int) -> None
        """Workers are told with what comes next for them."""
        for worker in self._workers.values():
            if serial in worker.calls:
                worker.calls.discard(serial)
                worker.ended.append(serial)
                worker.released = False

    def _takes_again(self, worker, task, before):
        # type: (Worker, Task, int) -> bool
        """Whether a worker can do a task at once that it did before."""
        if worker.hand or worker.dying is not None or worker.number not in self._workers:
            return False
        if before not in worker.calls or self._slots[worker.slot].busy is not None or self._queued:
            return False
        return self._has(worker, task)

    def _has(self, worker, task):
        # type: (Worker, Task) -> bool
        """Whether a worker has what it needs for a task, or can be given it in the command."""
        if task.digest is None:
            return task.inline is None
        blob = self._blobs.get(task.digest)
        if blob is None or blob.state != HERE or blob.handle is None:
            return False
        return blob.handle.inline is not None or task.digest in worker.held

    # --- laps --------------------------------------------------------------------------------

    def lap(self):
        # type: () -> Optional[Lap]
        """What can take our place from now on: the call that was just repeated and answered is all
        there is to do here, whatever else may be repeated some day, and its tasks are short. To be
        asked when there is nothing to be done."""
        call, self._repeated = self._repeated, None
        if call is None or self._tickets or any(one.tasks for one in self._calls.values()):
            return None
        if self._actions or self._queued or self._dying or self._haunted or self._credits:
            return None
        if call.tasks or call.refused or call.talks or (call.estimate or 0.0) > LAP_SECONDS / 2:
            return None
        if call.combine is not None:
            return self._joint_lap(call)
        if self._serial != call.serial + len(call.told):
            return None  # something else went out since, which some worker may have done last
        workers = []  # type: List[Worker]
        for task in call.told:
            worker = task.done_by
            if worker is None or not self._takes_again(worker, task, call.serial):
                return None
            workers.append(worker)
        if len(set(worker.number for worker in workers)) < len(workers):
            return None
        return Lap(call, workers, self._serial)

    def _joint_lap(self, call):
        # type: (Call) -> Optional[Lap]
        kept = call.combine
        assert kept is not None
        if kept.joins or kept.filling or kept.size or kept.broken or not kept.asked:
            return None
        if kept.largest > ROOM - JOINT_HEAD:
            return None
        shares = OrderedDict()  # type: OrderedDict[Worker, List[Any]]
        for task in call.told:
            worker = task.done_by
            if worker is None or not self._takes_again(worker, task, call.serial):
                return None
            inline = None
            if task.digest is not None:
                inline = self._blobs[task.digest].handle.inline  # type: ignore[union-attr]
            shares.setdefault(worker, []).append((task.id, task.digest, inline))
        most = max(map(len, shares.values()))
        uneven, estimate = most - self._even(call), call.estimate or 0.0
        if uneven * estimate > WORTH_SECONDS or most * estimate > LAP_SECONDS / 2:
            return None
        return JointLap(call, list(shares.items()), self._new())

    def _resume(self, lap):
        # type: (Lap) -> None
        """What is under way of it is a call like any other from now on."""
        assert lap.under_way is not None
        call, (id_, _, params) = lap.call, lap.under_way
        before = call.serial
        self._rename(call, id_, self._new(), params)
        self._keep_anew(call)
        by_worker = OrderedDict((worker, []) for worker in lap.records)  # type: Dict[Worker, List[Task]]
        for task in call.told:
            by_worker[task.done_by].append(task)  # type: ignore[index]
        for worker, tasks in by_worker.items():
            for task in tasks:
                call.tasks[task.id], task.told = task, False
                self._hand_again(worker, task)
            self._goes_on(worker, before, call.serial)
            self._tiny = self._tiny or len(tasks) > 1
        self._repeated = call
        if len(by_worker) < len(self._workers):
            self._forget_call(before)

    def repeats(self):
        # type: () -> bool
        """Whether it is worth asking for a `lap`."""
        return self._repeated is not None and not self._tickets
