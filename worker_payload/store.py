"""Blobs by digest: one file each, shared by all agents and workers of a user on this host.

Two tiers: files in RAM (/dev/shm) while they fit a small part of it, then files on disk. A blob is
written once, under another name, checked, renamed to its digest, and never touched again, so that
any number of processes may map it. Whoever uses a blob holds a descriptor of it: the file may then
be unlinked by anyone (us, a clean-up at logout, a person) and the bytes stay. Every descriptor that
we hand out carries a shared flock, by which other processes see that throwing the blob away would
free nothing; the system drops it with the last copy of the descriptor.

All of it may block on a disk, and `open` reads the whole blob the first time; methods may be called
from any thread. `disk_dir` must be this host's own: under a shared home, put the host in its name.
"""

import fcntl
import hashlib
import os
import time
from typing import Dict, List, Optional, Tuple

from worker_payload.budget import Budget, StoreFull
from worker_payload.tiers import DIGEST, Blob, Tier, flock, identity, open_lock, pieces, set_used
from worker_payload.writing import Damaged, Writer


class Store(object):
    """The blobs of this user on this host.

    ram_dir: a file system in memory, or None. ram_limit, disk_limit: bytes, instead of
    JAM_STORE_RAM and JAM_STORE_DISK, or else of what the machine suggests. `notes` says what is
    unusual here, such as a tier that cannot be used."""

    def __init__(self, run_dir, disk_dir, ram_dir="/dev/shm", ram_limit=None, disk_limit=None):
        # type: (str, str, Optional[str], Optional[int], Optional[int]) -> None
        self.notes = []  # type: List[str]
        self._users = open_lock(os.path.join(run_dir, "store.users"))
        self._checked = {}  # type: Dict[str, Tuple[int, int, int]]
        ram = None
        if ram_dir is not None and os.path.isdir(ram_dir):
            # one per run directory, so that a test or a container has its own
            name = hashlib.sha256(os.path.realpath(run_dir).encode("utf-8", "surrogateescape"))
            ram = os.path.join(ram_dir, "jam-%d-%s" % (os.getuid(), name.hexdigest()[:8]))
        if ram_limit is None:
            ram_limit = _limit_from("JAM_STORE_RAM", self.notes)
        if disk_limit is None:
            disk_limit = _limit_from("JAM_STORE_DISK", self.notes)
        self._ram = Tier(0, ram, ram_limit, self.notes)
        self._disk = Tier(1, disk_dir, disk_limit, self.notes)
        by_choice = disk_limit is not None and (ram is None or ram_limit is not None)
        lock = os.path.join(run_dir, "store.lock")
        self._budget = Budget(lock, self._ram, self._disk, by_choice)
        self._tiers = self._budget.tiers
        with self._budget.locked():
            flock(self._users, fcntl.LOCK_SH)
            self._budget.recount()
            self._budget.forget_unused()

    # --- reading -------------------------------------------------------------------------------

    def has(self, digest):
        # type: (str) -> bool
        """Whether the blob is here; no promise that it is whole, nor that it stays."""
        return any(tier.stat(digest) for tier in self._tiers if DIGEST.match(digest))

    def open(self, digest):
        # type: (str) -> Optional[int]
        """A read-only descriptor that pins the blob until it and its copies are closed, or None.

        The first time in this process the bytes are checked, which takes as long as reading them;
        a blob that is damaged is deleted, and then it is not here."""
        for tier in self._tiers if DIGEST.match(digest) else ():
            fd = tier.open(digest)
            if fd is None:
                continue
            try:
                if self._check(fd, digest):
                    set_used(fd, time.time())
                    return fd
            except OSError:  # a bad disk: what cannot be read is not here
                pass
            os.close(fd)
            self._remove(tier, digest)
        return None

    def is_checked(self, digest):
        # type: (str) -> bool
        """Whether `open` will find the blob without reading all of it."""
        return digest in self._checked and self.has(digest)

    def _check(self, fd, digest):
        # type: (int, str) -> bool
        if self._checked.get(digest) == identity(fd):
            return True
        sha = hashlib.sha256()
        for piece in pieces(fd):
            sha.update(piece)
        if sha.hexdigest() != digest:
            return False
        self._checked[digest] = identity(fd)
        return True

    # --- writing -------------------------------------------------------------------------------

    def begin(self, digest, total):
        # type: (str, int) -> Writer
        """A writer for a blob of `total` bytes, whose room is counted from now on.

        Least recently used blobs that nobody holds make way. Raises StoreFull."""
        if not DIGEST.match(digest):
            raise ValueError("not a digest: %.80r" % (digest,))
        with self._budget.locked():
            tier = self._budget.reserve(total, self._tiers)
            return Writer(self._budget, self._checked, tier, digest, total)

    def drop(self, digest):
        # type: (str) -> None
        """Forget a blob; those who hold it keep it."""
        if DIGEST.match(digest):
            for tier in self._tiers:
                self._remove(tier, digest)

    def room(self):
        # type: () -> int
        """Bytes that the largest possible blob may have: it has to fit one tier, from which all
        that nobody holds can go. Nothing is locked or counted for this."""
        return self._budget.room()

    def used(self):
        # type: () -> Tuple[int, int]
        """Bytes in use in RAM and on disk, by count."""
        ram, disk = self._budget.counts()
        return ram, disk

    def _remove(self, tier, digest):
        # type: (Tier, str) -> None
        self._budget.remove(tier, digest)
        self._checked.pop(digest, None)

    # --- the end -------------------------------------------------------------------------------

    def close(self, last_agent=None):
        # type: (Optional[bool]) -> None
        """Leave the store. The last agent takes all blobs out of RAM: to disk if they fit, or away.

        last_agent: None finds out, by a lock that every open Store holds (and every process forked
        from one that holds it). Moving may take as long as writing them: give up other locks first.
        """
        if self._users < 0:
            return
        with self._budget.locked():
            if last_agent is None:
                last_agent = flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                flock(self._users, fcntl.LOCK_UN)  # who opens a store now does not wait for us
        if last_agent:
            self._empty_ram()
        self._budget.forget_unused()
        for tier in self._tiers:
            tier.close(remove=bool(last_agent) and tier is self._ram)
        self._budget.close()
        os.close(self._users)
        self._users = -1

    def _empty_ram(self):
        # type: () -> None
        """Most recently used blobs first, as long as the disk takes them without losing others."""
        for blob in sorted(self._ram.blobs(), key=lambda b: b.used, reverse=True):
            source = self._ram.open(blob.digest)
            if source is None:
                continue
            try:
                if not self._disk.stat(blob.digest):
                    self._copy_to_disk(source, blob)
            except (OSError, StoreFull, Damaged):
                pass
            finally:
                os.close(source)
            self._remove(self._ram, blob.digest)

    def _copy_to_disk(self, source, blob):
        # type: (int, Blob) -> None
        with self._budget.locked():
            if not self._disk.path or not self._budget.fits(self._disk, blob.size):
                raise StoreFull("no room on disk")
            self._budget.add(self._disk, blob.size)
            writer = Writer(self._budget, self._checked, self._disk, blob.digest, blob.size)
        try:
            for piece in pieces(source):
                writer.write(writer.written, piece)
            fd = writer.commit()
        finally:
            writer.abort()
        set_used(fd, blob.used)
        os.close(fd)


def _limit_from(name, notes):
    # type: (str, List[str]) -> Optional[int]
    """Bytes, from the environment."""
    text = os.environ.get(name)
    if not text:
        return None
    try:
        return max(int(text), 0)
    except ValueError:
        notes.append("%s is not a number of bytes: %s" % (name, text))
        return None
