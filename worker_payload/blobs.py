"""Blobs that calls and tasks need: which are here, who was asked for others, how long they stay."""

from typing import Any, List

from worker_payload import wire
from worker_payload.pool import Pool
from worker_payload.records import (
    AWAITED,
    HANDED,
    HERE,
    LOOKING,
    OVER,
    QUEUED,
    WAITING,
    Blob,
    Call,
    Handle,
    Interrupt,
    Look,
    Master,
    Task,
    Unpin,
)

PINNED = 256  # files that we keep open though no task needs them now
ATTEMPTS = 3  # for a blob that arrives damaged, for a worker that dies before its first task


class Blobs(Pool):
    """The agent's state as far as data is concerned: tasks are queued when their slice is here."""

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

    def _once_more(self, task):
        # type: (Task) -> None
        """A task that was answered is to be done again, by whoever is free."""
        task.state = WAITING
        if task.digest is None:
            self._enqueue(task)
        else:
            self._need(task.digest, task)

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
        while len(self._idle_blobs) > (0 if self._tight else PINNED):
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
        if not blob.users:
            self._blobs.pop(digest, None)

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

    def _credit(self, master, count):
        # type: (Master, int) -> None
        """So many bytes of a master were taken in, and it may send as many more."""
        master.credit += count
        self._credits.add(master)

    def blob_stalled(self, digest):
        # type: (str) -> None
        """There is no room for it now: who sends it gets no credit before there is."""
        self._stalled.setdefault(digest, 0)
        self.make_room()

    def blob_moves(self, digest):
        # type: (str) -> None
        """What was stalled goes on, or was given up."""
        owed = self._stalled.pop(digest, 0)
        blob = self._blobs.get(digest)
        if owed and blob is not None and blob.asked is not None:
            self._credit(blob.asked, owed)

    def is_needed(self, digest):
        # type: (str) -> bool
        return digest in self._blobs and self._blobs[digest].users > 0

    def has_hope(self):
        # type: () -> bool
        """Whether a task is under way, or about to be, which will leave room behind."""
        if self._tickets or self._dying:
            return True
        if any(call.queued and not call.missing for call in self._calls.values()):
            return True  # they are given to workers as soon as all that came is taken in
        return any(blob.state == LOOKING for blob in self._blobs.values())

    def make_room(self):
        # type: () -> None
        """The store is full: let go of all that nobody needs now, and from now on at once."""
        self._tight = True
        for blob in list(self._idle_blobs.values()):
            self._forget(blob, False)
        for worker in self._workers.values():
            if not worker.hand and not worker.released:
                self._release(worker)

    def _refuse(self, call, reason):
        # type: (Call, str) -> None
        if not call.refused:
            call.refused = True
            self._drop_tasks(call)
            self._send(call.master, wire.Refused(call.id, reason))

    def _drop_tasks(self, call):
        # type: (Call) -> None
        if call.combine is not None:
            self._let_go(call)
        if self._haunted:
            self._end_ghosts(call)
        for task in list(call.tasks.values()):
            self._cancel(task)

    def _let_go(self, call):
        # type: (Call) -> None
        """Of answers that are kept: `combining`."""

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

    def _close(self, task):
        # type: (Task) -> None
        """Nobody waits for it any longer, but it stays in hand, so that we know when its worker is
        through with it."""
        task.state = OVER
        task.call.tasks.pop(task.id, None)
        if task.digest is not None:
            self._unneed(task.digest, waiter=task)

    def _cancel(self, task):
        # type: (Task) -> None
        worker = task.worker
        if task.call.combine is not None:
            self._stirred[task.call] = None
        if worker is not None and worker.dying is None:
            self._condemn(worker)
            self._actions.append(Interrupt(worker.number))
        if worker is not None:
            self._close(task)
        else:
            self._over(task)


def _is_live(waiter, host):
    # type: (Any, Blobs) -> bool
    """Whether a blob is still of use to who waits for it."""
    call = waiter if isinstance(waiter, Call) else waiter.call
    return call.serial in host._calls and (waiter is call or waiter.state == WAITING)
