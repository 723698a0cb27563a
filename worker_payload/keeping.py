"""What the agent does with blobs: look for them in the store, write them as they come, let go."""

import os
import tempfile
import threading
import time
from collections import OrderedDict
from typing import Any, Callable, Dict, List, Optional

from worker_payload import records
from worker_payload.host import Host
from worker_payload.pool import INLINE
from worker_payload.store import Damaged, Store, StoreFull

SOON = 0.01  # seconds until we look for room again
PATIENCE = 2.0  # seconds for workers to let go of files when nothing is under way any more


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
        except Damaged as error:
            self._log("blob %s: %s" % (digest[:12], error))
            self._abandon(digest)
            self._host.blob_damaged(digest)
        except (StoreFull, OSError) as error:
            self._full(digest, error)
        else:
            del self._writers[digest]
            self._host.blob_here(digest, _handle(fd))

    def _begin(self, action):
        # type: (records.Keep) -> bool
        """False if there is no room now, but may be later. What never fits is refused."""
        digest = action.digest
        try:
            self._writers[digest] = self._store.begin(digest, action.total)
        except StoreFull as error:
            if action.total <= self._store.room() and self._is_hopeful():
                return False
            self._full(digest, error)
        except OSError as error:
            self._full(digest, error)
        return True

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
            self._retry_in(max(SOON, 9 * (time.monotonic() - began)))

    def _is_hopeful(self):
        # type: () -> bool
        """Whether room may come: something is under way, or ended so late that workers may not
        have let go of their files."""
        now = time.monotonic()
        if self._host.has_hope() or self._writers or not self._stalled:
            self._hoped = now
        return now - self._hoped < PATIENCE

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
            with tempfile.TemporaryFile(dir=self._folder) as handle:
                handle.write(action.data)
                handle.flush()
                fd = os.dup(handle.fileno())
        except OSError as error:
            self._host.refuse(action.call, "no room for the params: %s" % error)
        else:
            self._host.spooled(action.call, records.Handle(None, fd))

    def unpin(self, action):
        # type: (records.Unpin) -> None
        if action.handle.fd is not None:
            os.close(action.handle.fd)
        if action.drop:
            self._store.drop(action.digest)

    def abandon_all(self):
        # type: () -> None
        for digest in list(self._writers):
            self._abandon(digest)


def _handle(fd):
    # type: (int) -> records.Handle
    size = os.fstat(fd).st_size
    if size > INLINE:
        return records.Handle(None, fd)
    try:
        return records.Handle(os.pread(fd, size, 0), None)
    finally:
        os.close(fd)
