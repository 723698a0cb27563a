"""How full the tiers of the store are, as all processes of a user count it, and what makes way.

It is a pair of numbers in one file, kept under flock: what is reserved when a blob begins stays
counted until it goes. A process that dies may leave the numbers too high, never too low for long:
before anything is thrown away the directories are counted afresh.
"""

import contextlib
import errno
import fcntl
import os
import struct
import threading
import time
from typing import Iterator, List, Optional

from worker_payload import limits
from worker_payload.tiers import Tier, flock, open_lock

DISK_LIMIT = 10 << 30
UNUSED_DAYS = 7
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DAY = 86400
_COUNTS = struct.Struct("<QQ")  # bytes in use: RAM, disk


class StoreFull(Exception):
    """The blob fits neither tier; says how large both are. by_choice: of limits that the user set,
    not for want of room."""

    by_choice = False


class Budget(object):
    """path: of the file with the numbers. by_choice: whether the user set the limits of the tiers.

    tiers: those of `ram` and `disk` that can be used, in the order in which they are filled."""

    def __init__(self, path, ram, disk, by_choice):
        # type: (str, Tier, Tier, bool) -> None
        self.ram = ram
        self.disk = disk
        self.tiers = [tier for tier in (ram, disk) if tier.path]
        self._by_choice = by_choice
        self._memory = limits.memory_limit()
        self._mutex = threading.RLock()  # flock does not keep threads of one process apart
        self._held = 0
        self._fd = open_lock(path)

    def close(self):
        # type: () -> None
        """From now on nothing is counted."""
        os.close(self._fd)
        self._fd = -1

    @contextlib.contextmanager
    def locked(self):
        # type: () -> Iterator[None]
        """No other thread or process changes the numbers meanwhile; one thread may nest it."""
        with self._mutex:
            self._held += 1
            try:
                if self._held == 1:
                    flock(self._fd, fcntl.LOCK_EX)
                yield
            finally:
                self._held -= 1
                if self._held == 0:
                    flock(self._fd, fcntl.LOCK_UN)

    def counts(self):
        # type: () -> List[int]
        """Bytes in use in RAM and on disk, by count."""
        with self.locked():
            data = os.pread(self._fd, _COUNTS.size, 0)
        return list(_COUNTS.unpack(data)) if len(data) == _COUNTS.size else [0, 0]

    def room(self):
        # type: () -> int
        """Bytes that the largest possible blob may have: it has to fit one tier, from which all
        that nobody holds can go. Nothing is locked or counted for this."""
        return max([self._limit(tier, tier.used()) for tier in self.tiers] or [0])

    def recount(self):
        # type: () -> List[int]
        """Delete what dead writers left, count the rest."""
        counts = [0, 0]
        with self.locked():
            for tier in self.tiers:
                tier.clean()
                counts[tier.index] = tier.used()
            self._set_counts(counts)
        return counts

    def add(self, tier, size):
        # type: (Tier, int) -> None
        """So many bytes more, or less, are in use."""
        if self._fd < 0:
            return
        with self.locked():
            counts = self.counts()
            counts[tier.index] = max(counts[tier.index] + size, 0)
            self._set_counts(counts)

    def fits(self, tier, size):
        # type: (Tier, int) -> bool
        """Whether a tier takes so many more bytes as it is."""
        used = self.counts()[tier.index]
        return used + size <= self._limit(tier, used)

    def reserve(self, size, tiers):
        # type: (int, List[Tier]) -> Tier
        """The first of these tiers that takes so many more bytes; they are counted. Least recently
        used blobs that nobody holds make way. Raises StoreFull.

        Others who count afresh see files only: stay under the lock until there is one."""
        with self.locked():
            for tier in tiers:
                if self.fits(tier, size):
                    break
            else:
                tier = self._make_room(size, tiers)
            self.add(tier, size)
            return tier

    def remove(self, tier, digest):
        # type: (Tier, str) -> None
        """Delete a blob, whoever holds it."""
        with self.locked():
            found = tier.stat(digest)
            if found and tier.unlink(digest):
                self.add(tier, -found.st_size)

    def forget_unused(self):
        # type: () -> None
        """Delete from disk what nobody has used for UNUSED_DAYS."""
        old = time.time() - UNUSED_DAYS * _DAY
        with self.locked():
            for blob in self.disk.blobs() if self.disk.path else ():
                if blob.used < old and self.disk.evict(blob.digest):
                    self.add(self.disk, -blob.size)

    def _make_room(self, size, tiers):
        # type: (int, List[Tier]) -> Tier
        """The tier that takes so many more bytes once others are gone. Raises StoreFull."""
        counts = self.recount()
        most = dict((tier, self._limit(tier, counts[tier.index])) for tier in tiers)
        # a little more than needed, or a full store would be counted again for every blob
        wanted = dict((tier, min(most[tier], size + most[tier] // 16))
                      for tier in tiers if size <= most[tier])  # fmt: skip
        blobs = [(tier, blob) for tier in wanted for blob in tier.blobs()]
        for tier, blob in sorted(blobs, key=lambda item: item[1].used):
            if any(counts[t.index] + wanted[t] <= most[t] for t in wanted):
                break
            if tier.evict(blob.digest):
                self.add(tier, -blob.size)
                counts = self.counts()
        for tier in wanted:
            if counts[tier.index] + size <= most[tier]:
                return tier
        error = StoreFull("a blob of %d bytes does not fit: of %s in use" % (size, " and ".join(
            "%d bytes in %s, %d are" % (most[t], t.path, counts[t.index]) for t in tiers)
            or "no directory for blobs, none is"))  # fmt: skip
        error.by_choice = self._by_choice
        raise error

    def _limit(self, tier, used):
        # type: (Tier, int) -> int
        """Bytes that a tier may hold, now."""
        if tier.limit is not None:
            return tier.limit
        free = tier.free() + used
        if tier is self.ram:
            return min(free // 4, self._memory // 8)
        return min(DISK_LIMIT, free // 2)

    def _set_counts(self, counts):
        # type: (List[int]) -> None
        try:
            os.pwrite(self._fd, _COUNTS.pack(*counts), 0)
        except OSError as error:  # the disk is so full that it will say so to writers too
            if error.errno not in FULL:
                raise
