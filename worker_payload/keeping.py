"""What the agent does with blobs: look for them in the store, write them as they come, let go."""

import hashlib
import os
import threading
import time
from collections import OrderedDict
from typing import Any, Callable, Dict, List, Optional, Set

from worker_payload import limits, records
from worker_payload.budget import StoreFull
from worker_payload.host import Host
from worker_payload.pool import INLINE
from worker_payload.store import Store
from worker_payload.writing import Damaged

SOON, LATER = 0.01, 0.5  # seconds until we look for room again, at least and at most
PATIENCE = 2.0  # seconds for workers to let go of files when nothing is under way any more
FULL_SECONDS = 10.0  # that a disk which was full is left alone
ASIDE_PART = 4  # a blob that no file system takes may take this part of the memory that is free
NO_ROOM = "its store is full: data that no task needs is not kept, and sent again"
ASIDE = "its memory file system and its disk are full: data is not kept there, and sent again"
MOVED = "its memory file system is full: data is kept on disk"


class Keeping(object):
    """Methods take actions and answer the host. from_thread runs a function in the agent's loop;
    act does what the host wants done. folder: for files without a name."""

    def __init__(self, store, host, folder, from_thread, act, log):
        # type: (Store, Host, str, Callable, Callable[[], None], Callable[[str], None]) -> None
        self._store = store
        self._host = host
        self._folder = folder
        self._from_thread = from_thread
        self._act = act
        self._log = log
        self._writers = {}  # type: Dict[str, Any]
        self._stalled = OrderedDict()  # type: OrderedDict[str, List[records.Keep]]
        self._hoped = 0.0  # when something was last under way that may leave room behind
        self._full_until = 0.0
        self._aside = set()  # type: Set[int]  # descriptors of blobs set aside

    def look(self, action):
        # type: (records.Look) -> None
        digest = action.digest
        if not self._store.has(digest):
            self._host.blob_absent(digest)
        elif self._store.is_checked(digest):
            self._looked(digest, self._store.open(digest))
        else:
            # its first use reads all of it: others shall not wait for that
            threading.Thread(target=self._look, args=(digest,), daemon=True).start()

    def _look(self, digest):
        # type: (str) -> None
        fd = self._store.open(digest)
        self._from_thread(lambda: self._looked(digest, fd))

    def _looked(self, digest, fd):
        # type: (str, Optional[int]) -> None
        if fd is None:
            self._host.blob_absent(digest)
        else:
            self._host.blob_here(digest, _handle(fd))

    def keep(self, action):
        # type: (records.Keep) -> None
        digest = action.digest
        if digest in self._stalled:
            self._stalled[digest].append(action)
            return
        if digest not in self._writers:
            if action.offset:
                return  # the rest of one that was damaged, or of one nobody wants
            if self._stalled or not self._begin(action):
                self._stall(action)
                return
        self._write(action)

    def _write(self, action):
        # type: (records.Keep) -> None
        digest = action.digest
        writer = self._writers.get(digest)
        if writer is None:
            return
        try:
            writer.write(action.offset, action.data)
            if action.offset + len(action.data) < action.total:
                return
            fd = writer.commit()
            if writer.moved:
                self._host.tell(MOVED)
        except Damaged as error:
            self._log("blob %s: %s" % (digest[:12], error))
            self._abandon(digest)
            self._host.blob_damaged(digest)
        except (StoreFull, OSError) as error:
            self._log("blob %s: %s" % (digest[:12], error))
            self._full_until = time.monotonic() + FULL_SECONDS
            if not self._may_set_aside(error):
                self._full(digest, error)
                return
            self._abandon(digest)
            self._host.blob_damaged(digest)  # asked for once more, it finds its place in memory
        else:
            del self._writers[digest]
            handle = _handle(fd)
            if isinstance(writer, Aside) and handle.fd is not None:
                self._aside.add(handle.fd)
            self._host.blob_here(digest, handle)

    def _begin(self, action):
        # type: (records.Keep) -> bool
        """False if there is no room now, but may be later. What never fits is refused."""
        digest, total = action.digest, action.total
        if time.monotonic() < self._full_until:
            return self._begin_aside(digest, total, StoreFull("the disk is full"))
        try:
            self._writers[digest] = self._store.begin(digest, total)
        except StoreFull as error:
            if total <= self._store.room() and self._is_hopeful():
                self._host.tell(NO_ROOM)
                return False
            return self._begin_aside(digest, total, error)
        except OSError as error:
            return self._begin_aside(digest, total, error)
        return True

    def _begin_aside(self, digest, total, error):
        # type: (str, int, Exception) -> bool
        """As `_begin`, where no file system takes it."""
        if not self._may_set_aside(error):
            self._full(digest, error)
        elif total > limits.memory_free() // ASIDE_PART:
            if self._aside and self._is_hopeful():
                return False
            self._full(digest, error)
        else:
            self._host.tell(ASIDE)
            self._host.make_room()
            self._writers[digest] = Aside(digest, total)
        return True

    def _may_set_aside(self, error):
        # type: (Exception) -> bool
        return hasattr(os, "memfd_create") and not getattr(error, "by_choice", False)

    def _full(self, digest, error):
        # type: (str, Exception) -> None
        self._abandon(digest)
        self._host.blob_full(digest, "no room: %s" % error)

    # --- blobs that wait until there is room -----------------------------------------------------

    def _stall(self, action):
        # type: (records.Keep) -> None
        """Their bytes wait in memory: as many as a master sends without getting credit."""
        if not self._stalled:
            self._hoped = time.monotonic()
            self._retry_in(SOON)
        self._stalled[action.digest] = [action]
        self._host.blob_stalled(action.digest)

    def _retry_in(self, seconds):
        # type: (float) -> None
        timer = threading.Timer(seconds, lambda: self._from_thread(self._retry))
        timer.daemon = True
        timer.start()

    def _retry(self):
        # type: () -> None
        began = time.monotonic()
        self._host.make_room()
        self._act()
        while self._stalled:
            digest, actions = next(iter(self._stalled.items()))
            if not self._host.is_needed(digest):
                self._full(digest, StoreFull("and no need"))
                continue
            if not self._begin(actions[0]):
                break
            self._stalled.pop(digest, None)
            self._host.blob_moves(digest)
            for action in actions:
                self._write(action)
        if self._stalled:
            # looking for room costs: nine tenths of the time are for others
            self._retry_in(min(max(SOON, 9 * (time.monotonic() - began)), LATER))

    def _is_hopeful(self):
        # type: () -> bool
        """Whether room may come: something is under way, or ended so late that workers may not
        have let go of their files."""
        now = time.monotonic()
        if self._host.has_hope() or self._writers or not self._stalled:
            self._hoped = now
        return now - max(self._hoped, self._host.let_go) < PATIENCE

    def _abandon(self, digest):
        # type: (str) -> None
        if self._stalled.pop(digest, None) is not None:
            self._host.blob_moves(digest)
        writer = self._writers.pop(digest, None)
        if writer is not None:
            writer.abort()

    def abandon(self, action):
        # type: (records.Abandon) -> None
        self._abandon(action.digest)

    def spool(self, action):
        # type: (records.Spool) -> None
        try:
            fd = self._spool(action.data)
        except OSError as error:
            self._host.refuse(action.call, "no room for the params: %s" % error)
        else:
            self._host.spooled(action.call, records.Handle(None, fd))

    def _spool(self, data):
        # type: (Any) -> int
        try:
            import tempfile

            with tempfile.TemporaryFile(dir=self._folder) as handle:
                handle.write(data)
                handle.flush()
                return os.dup(handle.fileno())
        except OSError as error:
            if not self._may_set_aside(error):
                raise
        aside = Aside("", len(data))
        aside.write(0, data)
        return aside.fd

    def unpin(self, action):
        # type: (records.Unpin) -> None
        if action.handle.fd is not None:
            self._aside.discard(action.handle.fd)
            os.close(action.handle.fd)
        if action.drop:
            self._store.drop(action.digest)

    def abandon_all(self):
        # type: () -> None
        for digest in list(self._writers):
            self._abandon(digest)


class Aside(object):
    """Takes a blob that no file system takes, like a `writing.Writer`: into a file in memory that
    has no name, and is gone when nobody uses it any more."""

    moved = False

    def __init__(self, digest, total):
        # type: (str, int) -> None
        self.total = total
        self.fd = os.memfd_create("jam blob", os.MFD_CLOEXEC)
        self._digest = digest
        self._sha = hashlib.sha256()
        self._written = 0

    def write(self, offset, data):
        # type: (int, Any) -> None
        view = memoryview(data).cast("B")
        if offset != self._written or offset + len(view) > self.total:
            raise Damaged("bytes at %d came after %d of %d" % (offset, self._written, self.total))
        self._sha.update(view)
        self._written += len(view)
        while view:
            done = os.write(self.fd, view)
            view = view[done:]

    def commit(self):
        # type: () -> int
        if self._written != self.total or self._sha.hexdigest() != self._digest:
            self.abort()
            raise Damaged("a blob of %d bytes came as another" % self.total)
        fd, self.fd = self.fd, -1
        return fd

    def abort(self):
        # type: () -> None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _handle(fd):
    # type: (int) -> records.Handle
    size = os.fstat(fd).st_size
    if size > INLINE:
        return records.Handle(None, fd)
    try:
        return records.Handle(os.pread(fd, size, 0), None)
    finally:
        os.close(fd)
