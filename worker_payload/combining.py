"""Answers that stay here until a master asks for them, joined by workers along the tree.

A worker answers for the slices in its hand together, as far as they are blocks of the tree. These
are kept (`kept`), and joined by whichever worker is free. A block is taken whole or not at all: if
one of its slices went elsewhere meanwhile, the others are done again.
"""

import marshal
from collections import OrderedDict
from typing import Any, Dict, List, Optional, Tuple

from worker_payload import wire
from worker_payload.blobs import ATTEMPTS, Blobs
from worker_payload.kept import LARGE, Join, Kept, Part
from worker_payload.records import (
    HANDED,
    OVER,
    Call,
    Fill,
    Hand,
    Handle,
    Shelve,
    Task,
    Unpin,
    Worker,
)

REMEMBERED = 64  # map functions of which we know that their answers are large
KEEP_SECONDS = 30.0  # that answers stay here: so much is lost with us
LOST = -1  # in place of a file that is not ours any more


class Combining(Blobs):
    """The agent's state as far as answers are kept here."""

    keep_bytes = 1 << 30  # of answers, beyond which they go to the master though more will come

    def __init__(self, *args):
        # type: (*Any) -> None
        Blobs.__init__(self, *args)
        self._large = OrderedDict()  # type: OrderedDict[Tuple[str, str], None]

    def _begin_combine(self, call):
        # type: (Call) -> None
        assert call.combine is not None
        if (call.code, call.module) in self._large:
            call.combine.large = True
            self._order_files()

    def _begin_again(self, call):
        # type: (Call) -> None
        """The same tasks, in their order; answers are waited for."""
        self._keep_anew(call)
        for task in call.told:
            call.tasks[task.id], task.told = task, False
            self._once_more(task)

    def _keep_anew(self, call):
        # type: (Call) -> None
        kept = call.combine
        assert kept is not None
        self._let_go(call)  # there is nothing, if the master keeps to its word
        call.combine = Kept(kept.total)
        call.combine.asked, call.combine.large = True, kept.large

    def _check_slices(self, call, tasks):
        # type: (Call, List[List[Any]]) -> None
        total = call.combine.total  # type: ignore[union-attr]
        if any(row[0] >= total for row in tasks):
            raise wire.ProtocolError("Task of call %d beyond its last slice" % call.id)

    def _yield(self, call):
        # type: (Call) -> None
        if call.combine is None:
            raise wire.ProtocolError("Yield of call %d, which keeps nothing" % call.id)
        call.combine.asked = True
        self._stirred[call] = None

    # --- answers of workers ----------------------------------------------------------------------

    def _took(self, worker, task, ok, wrote, seconds, payload):
        # type: (Worker, Task, bool, bool, float, Any) -> bool
        """A worker answered for a task of a call that combines. False: it failed like any other."""
        call = task.call
        kept = call.combine
        assert kept is not None
        self._stirred[call] = None
        call.talks = call.talks or wrote
        if task.join is not None or not ok:
            return self._joined(worker, task, ok, payload)
        answer = marshal.loads(payload[0])
        if answer is None:
            return True  # it comes with others
        others, blocks = answer
        parts = self._parts(worker, blocks, payload)
        if task.ticket < call.serial:  # of the call before it was repeated: nobody waits for it
            for part in parts:
                self._drop_part(part)
            for ticket in [task.ticket] + [ticket for ticket, _ in others]:
                one = self._tickets.get(ticket)
                if one is not None and one.worker is worker:
                    self._take_back(one)
            return True
        spent = {}  # type: Dict[int, float]
        for ticket, took in [(task.ticket, seconds), *others]:
            if ticket in worker.files:
                self._spare.append(worker.files.pop(ticket))  # not used
            one = self._tickets.get(ticket)
            if one is not None and one.worker is worker:
                spent[one.id] = took
                call.estimate = took if call.estimate is None else (3 * call.estimate + took) / 4
                if one.state == OVER:
                    self._take_back(one)
        for part in parts:
            tasks = [call.tasks.get(id_) for id_ in range(part.first, part.first + part.slices)]
            if None in tasks or part.fd == LOST:  # some were taken back, and done elsewhere
                self._drop_part(part)
                for one in tasks:
                    if one is not None and one.worker is worker:
                        self._again(one)
                continue
            for one in tasks:
                assert one is not None
                one.done_by = worker
                if one.state == HANDED and one.worker is not worker:
                    self._close(one)  # that one goes on, and is not asked
                else:
                    self._over(one)
                row = [one.id, worker.slot, round(spent.get(one.id, 0.0), 6)]
                kept.computed.append(row)
            self._keep_part(call, part)
        if not worker.hand:
            self._drop_files(worker)
        return True

    def _keep_part(self, call, part):
        # type: (Call, Part) -> None
        kept = call.combine
        assert kept is not None
        kept.largest = max(kept.largest, part.size)
        if part.size >= LARGE:
            self._expect_large(call)
            if part.fd is None:  # the worker had no file for it; whoever joins it needs one
                kept.filling += 1
                self._actions.append(Fill(call.serial, part))
                return
        kept.add(part)

    def filled(self, serial, part):
        # type: (int, Part) -> None
        """A part is in a file now, or still as it was if there is none."""
        call = self._calls.get(serial)
        if call is None or call.combine is None or call.combine.broken:
            self._drop_part(part)
            return
        call.combine.filling -= 1
        call.combine.add(part)
        self._stirred[call] = None

    def _parts(self, worker, blocks, payload):
        # type: (Worker, Any, Any) -> List[Part]
        """What a worker's answer holds."""
        parts, position = [], 1
        for first, count, size, length, ticket in blocks:
            if ticket:
                fd = worker.files.pop(ticket, LOST)
                parts.append(Part(first, count, size, None, fd, self.now))
            else:
                segments = payload[position : position + length]
                position += length
                parts.append(Part(first, count, size, segments, None, self.now))
        return parts

    def _joined(self, worker, task, ok, payload):
        # type: (Worker, Task, bool, Any) -> bool
        """What came of a join, or of a task that failed."""
        call, join = task.call, task.join
        parts = []  # type: List[Part]
        if ok and task.state != OVER:
            parts = self._parts(worker, marshal.loads(payload[0])[1], payload)
        if task.ticket in worker.files:
            self._drop_file(worker.files.pop(task.ticket))  # perhaps it began to write
        if task.state == OVER or (not ok and worker.dying is not None):
            return False
        if not ok and join is None and type(payload[3]) is not tuple:
            return False
        if join is not None:
            self._end_join(task)
        else:
            self._over(task)
        if ok:
            self._keep_part(call, parts[0]._replace(since=join.since))  # type: ignore[union-attr]
        else:
            first, count = payload[3] or (join.first, join.count)  # type: ignore[union-attr]
            self._broken(call, first, count, payload[:3])
        return True

    def _end_join(self, task):
        # type: (Task) -> None
        kept = task.call.combine
        assert kept is not None and task.join is not None
        self._over(task)
        self._let_go_of_join(task.call, task.join)

    def _let_go_of_join(self, call, join):
        # type: (Call, Join) -> None
        call.combine.joins.discard(join)  # type: ignore[union-attr]
        for part in join.parts:
            self._drop_part(part)

    def _broken(self, call, first, count, payload):
        # type: (Call, int, int, Any) -> None
        assert call.combine is not None
        if not call.combine.broken:
            call.combine.broken = True
            self._send(call.master, wire.Broken(call.id, first, count, *payload))

    def _lost_join(self, task, exit_, signal, stderr, note):
        # type: (Task, Optional[int], Optional[int], str, str) -> None
        """A worker died while it joined: what it was to join is all here."""
        join = task.join
        assert join is not None
        join.deaths += 1
        if join.deaths < ATTEMPTS:
            self._again(task)
            return
        how = "signal %d" % signal if signal is not None else "exit code %s" % exit_
        message = ", ".join(filter(None, ("%d workers died of it: %s" % (join.deaths, how), note)))
        self._end_join(task)
        self._broken(task.call, join.first, join.count, ("WorkerDied", message, stderr))

    def _stuck_join(self, task, note):
        # type: (Task, str) -> None
        """It takes too long: another worker tries."""
        join = task.join
        assert join is not None
        join.deaths += 1
        self._cancel(task)
        if join.deaths < ATTEMPTS:
            self._enqueue_join(task.call, join)
            return
        self._let_go_of_join(task.call, join)
        self._broken(task.call, join.first, join.count, ("WorkerDied", note, ""))

    # --- what is to be done about it -------------------------------------------------------------

    def _combine(self):
        # type: () -> None
        """Look after the calls in which something happened."""
        stirred, self._stirred = self._stirred, OrderedDict()
        for call in stirred:
            if call.serial in self._calls and not call.refused:
                self._look_over(call)

    def _look_over(self, call):
        # type: (Call) -> None
        kept = call.combine
        assert kept is not None
        if kept.broken:
            return
        if kept.large:
            self._order_files()
        drained = kept.asked and len(call.tasks) == len(kept.joins) and not kept.filling
        joins, parts = [], []  # type: List[Join], List[Part]
        before = self.now - KEEP_SECONDS
        if drained or kept.worth_joining():
            joins = kept.take_joins()
        elif kept.oldest < before:
            joins = kept.take_joins(before)
        for join in joins:
            self._enqueue_join(call, join)
        if not kept.joins and (drained or kept.size > self.keep_bytes):
            parts = kept.take_all()
        elif kept.oldest < before:
            parts = kept.take_old(before)
        if parts:
            self._hand_over(call, parts)
        elif kept.computed and not kept.asked:  # the master waits for us to have done something
            self._tell_computed(call)

    def _enqueue_join(self, call, join):
        # type: (Call, Join) -> None
        task = Task(call, -1 - join.first, None, None)
        task.join = join
        call.tasks[task.id] = task
        self._enqueue(task, first=True)

    def _hand_over(self, call, parts):
        # type: (Call, List[Part]) -> None
        assert call.combine is not None
        computed = call.combine.take_computed()
        self._actions.append(Hand(call.master.number, call.id, computed, parts))

    def _tell_computed(self, call):
        # type: (Call) -> None
        assert call.combine is not None
        computed = call.combine.take_computed()
        self._send(call.master, wire.Combined(call.id, computed, [], []))

    def _tick_combine(self):
        # type: () -> None
        """Masters that wait for answers are told now and then how far we are, and get old ones."""
        for call in self._calls.values():
            if call.combine is not None:
                if call.combine.computed:
                    self._tell_computed(call)
                if self.now - call.combine.oldest > KEEP_SECONDS:
                    self._stirred[call] = None

    def _let_go(self, call):
        # type: (Call) -> None
        """The call is over here."""
        kept = call.combine
        assert kept is not None
        kept.broken = True
        for part in kept.take_all():
            self._drop_part(part)
        for join in list(kept.joins):
            self._let_go_of_join(call, join)

    # --- files for large answers -----------------------------------------------------------------

    def _order_files(self):
        # type: () -> None
        missing = len(self._slots) + 1 - len(self._spare)
        if missing > 0:
            self._actions.append(Shelve(missing))

    def shelved(self, fd):
        # type: (int) -> None
        """An empty file for an answer."""
        self._spare.append(fd)

    def _expect_large(self, call):
        # type: (Call) -> None
        assert call.combine is not None
        call.combine.large = True
        self._large[call.code, call.module] = None
        if len(self._large) > REMEMBERED:
            self._large.popitem(last=False)

    def _drop_part(self, part):
        # type: (Part) -> None
        if part.fd is not None and part.fd != LOST:
            self._drop_file(part.fd)

    def _drop_file(self, fd):
        # type: (int) -> None
        self._actions.append(Unpin("", Handle(None, fd), False))

    def _drop_files(self, worker):
        # type: (Worker) -> None
        """What it was given for tasks that were taken back: it may write there all the same."""
        for fd in worker.files.values():
            self._drop_file(fd)
        worker.files.clear()
