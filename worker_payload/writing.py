"""One blob on its way into the store.

It is written under a name of its own, checked, and renamed to its digest: others see it as a whole
or not at all.
"""

import hashlib
import os
from typing import Dict, Tuple, Union

from worker_payload.budget import FULL, Budget, StoreFull
from worker_payload.tiers import ASIDE, Tier, copy, identity

Buffer = Union[bytes, bytearray, memoryview]


class Damaged(Exception):
    """The bytes that came are not the blob they were said to be."""


class Writer(object):
    """Takes the bytes of one blob in order. End it with `commit` or `abort`.

    tier: where `total` bytes are reserved for it. checked: told which file was written as a whole,
    by digest."""

    def __init__(self, budget, checked, tier, digest, total):
        # type: (Budget, Dict[str, Tuple[int, int, int]], Tier, str, int) -> None
        self.digest = digest
        self.total = total
        self.written = 0
        self.moved = False  # from RAM to disk, because RAM was full
        self._fd = -1
        self._budget = budget
        self._checked = checked
        self._sha = hashlib.sha256()
        self._open(tier)

    def write(self, offset, data):
        # type: (int, Buffer) -> None
        """The next bytes. Raises Damaged if they are not next, StoreFull if no disk takes them."""
        view = memoryview(data).cast("B")
        if offset != self.written or offset + len(view) > self.total:
            raise Damaged("bytes %d to %d of a blob of %d came after %d"
                          % (offset, offset + len(view), self.total, self.written))  # fmt: skip
        self._sha.update(view)
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(self._fd, view[done:], offset + done)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self._move_to_disk(offset + done, error)
        self.written += len(view)

    def commit(self):
        # type: () -> int
        """Publish the blob; a descriptor as from `Store.open`. Raises Damaged."""
        try:
            if self.written != self.total or self._sha.hexdigest() != self.digest:
                raise Damaged("a blob of %d bytes came as %d bytes of another digest"
                              % (self.total, self.written))  # fmt: skip
            fd = self._publish()
        except BaseException:
            self.abort()
            raise
        os.close(self._fd)
        self._fd = -1
        self._checked[self.digest] = identity(fd)
        return fd

    def _publish(self):
        # type: () -> int
        with self._budget.locked():
            fd = self._tier.open(self._name)
            before = self._tier.stat(self.digest)
            if fd is None:
                raise Damaged("a blob vanished while it was written")
            if not self._tier.rename(self._name, self.digest):
                os.close(fd)
                raise Damaged("a blob vanished while it was written")
            if before:  # another writer was quicker; those who hold its file keep it
                self._budget.add(self._tier, -before.st_size)
            return fd

    def abort(self):
        # type: () -> None
        """Give up; nothing is left. Harmless after `commit`."""
        if self._fd >= 0:
            self._discard(self._tier, self._name, self._fd)
            self._fd = -1

    def _open(self, tier):
        # type: (Tier) -> None
        """Go on in a new file, in the room that was reserved for it. Raises StoreFull."""
        name = "%s.%s%s" % (self.digest, os.urandom(8).hex(), ASIDE)
        try:
            fd = tier.create(name)
        except OSError as error:
            self._budget.add(tier, -self.total)
            raise self._full(tier, error)
        try:
            # its length tells others who count what it is going to take; this allocates nothing
            os.ftruncate(fd, self.total)
        except OSError as error:
            self._discard(tier, name, fd)
            raise self._full(tier, error)
        self._tier, self._name, self._fd = tier, name, fd

    def _discard(self, tier, name, fd):
        # type: (Tier, str, int) -> None
        with self._budget.locked():
            tier.unlink(name)
            self._budget.add(tier, -self.total)
        os.close(fd)

    def _full(self, tier, error):
        # type: (Tier, OSError) -> StoreFull
        return StoreFull("%s takes no blob of %d bytes: %s" % (tier.path, self.total, error))

    def _move_to_disk(self, length, error):
        # type: (int, OSError) -> None
        """The tier is full before its limit: go on on disk, with the `length` bytes so far."""
        self.moved = True
        budget, tier, name, fd = self._budget, self._tier, self._name, self._fd
        if tier is not budget.ram or not budget.disk.path:
            self.abort()
            raise self._full(tier, error)
        self._fd = -1  # until there is another
        try:
            with budget.locked():
                self._open(budget.reserve(self.total, [budget.disk]))
            copy(fd, self._fd, length)
        except OSError as failure:
            self.abort()
            raise self._full(budget.disk, failure)
        finally:
            self._discard(tier, name, fd)
