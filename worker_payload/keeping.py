"""What the agent does with blobs: look for them in the store, write them as they come, let go."""

import os
import tempfile
import threading
import time
from typing import Any, Callable, Dict, Optional

from worker_payload import records
from worker_payload.host import Host
from worker_payload.pool import INLINE
from worker_payload.store import Damaged, Store, StoreFull


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
        writer = self._writers.get(digest)
        try:
            if writer is None:
                if action.offset:
                    return  # the rest of one that was damaged, or of one nobody wants
                writer = self._writers[digest] = self._begin(digest, action.total)
            writer.write(action.offset, action.data)
            if action.offset + len(action.data) < action.total:
                return
            fd = writer.commit()
        except Damaged as error:
            self._log("blob %s: %s" % (digest[:12], error))
            self._abandon(digest)
            self._host.blob_damaged(digest)
        except (StoreFull, OSError) as error:
            self._abandon(digest)
            self._host.blob_full(digest, "no room: %s" % error)
        else:
            del self._writers[digest]
            self._host.blob_here(digest, _handle(fd))

    def _begin(self, digest, total):
        # type: (str, int) -> Any
        try:
            return self._store.begin(digest, total)
        except StoreFull:
            self._host.make_room()
            self._act()
            for _ in range(10):  # workers let go of their files
                time.sleep(0.02)
                try:
                    return self._store.begin(digest, total)
                except StoreFull as error:
                    last = error
            raise last

    def _abandon(self, digest):
        # type: (str) -> None
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
