"""Calls that are repeated with other params: the host's part in them, and the short way past it.

A round of an iterative algorithm takes a few tenths of a millisecond, most of it Python. So once a
call was repeated, and nothing else is to be done here, a `Lap` takes the host's place: it knows who
does what, and knows nothing else. As soon as anything else happens, however small, the host is told
all that went by it (`Host.catch_up`), and goes on as if it had been there from the start.
"""

import itertools
import operator
import struct
from typing import Any, Dict, List, Optional, Tuple

from worker_payload import codec, links, wire
from worker_payload.answers import ONE_SEGMENT, RESULT, SIZE
from worker_payload.combining import Combining
from worker_payload.records import HANDED, HERE, Call, Handle, Master, Repeat, Task, Worker
from worker_payload.shortcuts import read_again, row, write_result
from worker_payload.wire import ProtocolError
from worker_payload.worker import LAP

PARAMS_INLINE = 65536
PASS_BYTES = 160 << 10  # of answers, which do not wait for the rest
_head, _HEAD_SIZE = ONE_SEGMENT.unpack_from, ONE_SEGMENT.size
_TWO_SIZE = _HEAD_SIZE + SIZE.size  # with two segments
_SECONDS, _PAYLOAD = operator.itemgetter(2), operator.itemgetter(3)
LAP_SECONDS = 0.02  # after this, what takes so long is the host's business again


def _sizes(data, length):
    # type: (bytes, int) -> int
    """Of an answer with two segments: its bytes, by what it says. length: of the first."""
    if len(data) < _TWO_SIZE:
        return -1
    return _TWO_SIZE + length + SIZE.unpack_from(data, _HEAD_SIZE)[0]


class Lap(object):
    """A call that is repeated while nothing else happens. workers: their numbers, in the order of
    its tasks. serial: the last that was given away."""

    def __init__(self, call, workers, serial):
        # type: (Call, List[Worker], int) -> None
        self.call = call
        self.workers = [worker.number for worker in workers]
        self.id = call.id  # of the last one that was answered, and its serial
        self.serial = call.serial
        self.estimate = call.estimate or 0.0
        self.under_way = None  # type: Optional[Tuple[int, int, bytes]]  # call, like, params
        self.base = serial  # what the next one counts from
        self.answers = []  # type: List[Tuple[int, int, float, List[Any]]]
        self.passed = 0  # so many of them were passed on
        self._bytes = 0  # of the others
        self._open = {}  # type: Dict[int, int]  # whose answers are to come, by ticket
        tasks = zip(self.workers, call.told, workers)
        self._rows = dict((number, row(task.id, w.slot)) for number, task, w in tasks)

    def begin(self, data):
        # type: (Any) -> Optional[bytes]
        """The command for every worker, if these bytes are the call once more and nothing else;
        None otherwise, and nothing has happened."""
        found = read_again(data)
        if found is None:
            return None
        call, like, params = found
        if like != self.id or call == like or len(params) > PARAMS_INLINE:
            return None
        self.under_way, self.answers, self.passed, self._bytes = found, [], 0, 0
        # each worker counts its ticket from the call's serial, as it did the last time
        self._open = dict(
            zip(range(self.base + 2, self.base + 2 + len(self.workers)), self.workers)
        )
        bare = codec.bare_pickle(params)  # looked for once, and not by each worker
        return links.frame((LAP, self.base + 1, params if bare is None else bare, bare is not None))

    def hear(self, worker, data):
        # type: (int, bytes) -> bool
        """What a worker wrote; False if it is not its answer, short, well and alone. It is not
        taken then."""
        try:
            kind, wrote, ticket, seconds, count, length = _head(data)
        except struct.error:
            return False
        if kind != RESULT or wrote:
            return False
        if count == 1 and length == len(data) - _HEAD_SIZE:
            payload = [data[_HEAD_SIZE:]]  # type: List[Any]
        elif count == 2 and _sizes(data, length) == len(data):  # an array, and what it is
            whole = memoryview(data)
            payload = [whole[_TWO_SIZE : _TWO_SIZE + length], whole[_TWO_SIZE + length :]]
        else:
            return False
        if self._open.pop(ticket, None) != worker:
            return False
        self.answers.append((worker, ticket, seconds, payload))
        self._bytes += len(data)
        return True

    def take(self, worker, answers):
        # type: (int, Any) -> bool
        """What WorkerIO.answers gave of a worker; False if it is not its answer and that alone. It
        is not taken then."""
        if type(answers) is not list or len(answers) != 1:
            return False
        ok, wrote, ticket, seconds, payload = answers[0]
        if not ok or wrote or self._open.pop(ticket, None) != worker:
            return False
        self.answers.append((worker, ticket, seconds, payload))
        self._bytes += sum(map(len, payload))
        return True

    def result(self):
        # type: () -> Optional[List[Any]]
        """The frame that is to be passed on to the master: all that is left when all is here, which
        ends this lap; many bytes at once, so that they are on their way while others work."""
        if self.under_way is None or (self._open and self._bytes < PASS_BYTES):
            return None
        call, rows = self.under_way[0], self._rows
        new = self.answers[self.passed :] if self.passed else self.answers
        taken = [rows[number] % (len(payload), 1e6 * took) for number, _, took, payload in new]
        segments = list(itertools.chain.from_iterable(map(_PAYLOAD, new)))
        self.estimate += (sum(map(_SECONDS, new)) / len(new) - self.estimate) / 4
        self._bytes, self.passed = 0, len(self.answers)
        if not self._open:
            self.id, self.under_way = call, None
            self.serial = self.base + 1
            self.base = self.serial + len(self.workers)
        return write_result(call, taken, segments)


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
        params, before = bytes(message.segments[0]), call.serial
        self._rename(call, message.call, self._new(), params)
        call.talks = False  # as far as we know
        if call.combine is not None:
            self._begin_again(call)
            self._forget_call(before)
            return
        given, serial, slots = [], call.serial, self._slots
        shares = {}  # type: Dict[Worker, int]
        share = -(-count // min(master.workers, len(slots)))  # else they move, and are even again
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
            inline = None
            if task.digest is not None:
                blob = self._blobs[task.digest]
                blob.users += 1
                self._idle_blobs.pop(task.digest, None)
                inline = blob.handle.inline  # type: ignore[union-attr]
            self._serial = ticket = self._serial + 1
            task.state, task.worker, task.ticket = HANDED, worker, ticket
            self._tickets[ticket] = worker.hand[ticket] = task
            if had:
                self._tiny = True
            else:
                worker.since, worker.released, slots[worker.slot].busy = self.now, False, worker
                worker.calls.remove(before)
                worker.calls.add(serial)
            given.append((worker.number, ticket, task.digest, inline))
        if given:
            self._actions.append(Repeat(before, call.serial, params, given))
        if len(shares) < len(self._workers):
            self._forget_call(before)
        if len(given) == len(call.told):
            self._repeated = call

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

    def repeats(self):
        # type: () -> bool
        """Whether it is worth asking for a `lap`."""
        return self._repeated is not None and not self._tickets
