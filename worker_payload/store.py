"""Blobs by digest: one file each, shared by all agents and workers of a user on this host.

Two tiers: files in RAM (/dev/shm) while they fit a small part of it, then files on disk. A blob is
written once, under another name, checked, renamed to its digest, and never touched again, so that
any number of processes may map it. Whoever uses a blob holds a descriptor of it: the file may then
be unlinked by anyone (us, a clean-up at logout, a person) and the bytes stay. Every descriptor that
we hand out carries a shared flock, by which other processes see that throwing the blob away would
free nothing; the system drops it with the last copy of the descriptor.

How full the tiers are is a pair of numbers in one file, kept under flock: what is reserved when a
blob begins stays counted until it goes. A process that dies may leave the numbers too high, never
too low for long: before anything is thrown away the directories are counted afresh.

All of it may block on a disk, and `open` reads the whole blob the first time; methods may be called
from any thread. `disk_dir` must be this host's own: under a shared home, put the host in its name.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import struct
import threading
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

from worker_payload import limits

Buffer = Union[bytes, bytearray, memoryview]

DISK_LIMIT = 10 << 30
UNUSED_DAYS = 7
_DAY = 86400
_PIECE = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_ASIDE = ".part"
_COUNTS = struct.Struct("<QQ")  # bytes in use: RAM, disk
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreFull(Exception):
    """The blob fits neither tier; says how large both are. by_choice: of limits that the user set,
    not for want of room."""

    by_choice = False


class Damaged(Exception):
    """The bytes that came are not the blob they were said to be."""


class Store(object):
    """The blobs of this user on this host.

    ram_dir: a file system in memory, or None. ram_limit, disk_limit: bytes, instead of
    JAM_STORE_RAM and JAM_STORE_DISK, or else of what the machine suggests. `notes` says what is
    unusual here, such as a tier that cannot be used."""

    def __init__(self, run_dir, disk_dir, ram_dir="/dev/shm", ram_limit=None, disk_limit=None):
        # type: (str, str, Optional[str], Optional[int], Optional[int]) -> None
        self.notes = []  # type: List[str]
        self._mutex = threading.RLock()  # flock does not keep threads of one process apart
        self._held = 0
        self._lock = _open_lock(os.path.join(run_dir, "store.lock"))
        self._users = _open_lock(os.path.join(run_dir, "store.users"))
        self._checked = {}  # type: Dict[str, Tuple[int, int, int]]
        self._memory = limits.memory_limit()
        ram = None
        if ram_dir is not None and os.path.isdir(ram_dir):
            # one per run directory, so that a test or a container has its own
            name = hashlib.sha256(os.path.realpath(run_dir).encode("utf-8", "surrogateescape"))
            ram = os.path.join(ram_dir, "jam-%d-%s" % (os.getuid(), name.hexdigest()[:8]))
        if ram_limit is None:
            ram_limit = _limit_from("JAM_STORE_RAM", self.notes)
        if disk_limit is None:
            disk_limit = _limit_from("JAM_STORE_DISK", self.notes)
        self._ram = _Tier(0, ram, ram_limit, self.notes)
        self._disk = _Tier(1, disk_dir, disk_limit, self.notes)
        self._tiers = [tier for tier in (self._ram, self._disk) if tier.path]
        self._by_choice = disk_limit is not None and (ram is None or ram_limit is not None)
        with self._locked():
            _flock(self._users, fcntl.LOCK_SH)
            self._recount()
            self._forget_unused()

    # --- reading -------------------------------------------------------------------------------

    def has(self, digest):
        # type: (str) -> bool
        """Whether the blob is here; no promise that it is whole, nor that it stays."""
        return any(tier.stat(digest) for tier in self._tiers if _DIGEST.match(digest))

    def open(self, digest):
        # type: (str) -> Optional[int]
        """A read-only descriptor that pins the blob until it and its copies are closed, or None.

        The first time in this process the bytes are checked, which takes as long as reading them;
        a blob that is damaged is deleted, and then it is not here."""
        for tier in self._tiers if _DIGEST.match(digest) else ():
            fd = tier.open(digest)
            if fd is None:
                continue
            try:
                if self._check(fd, digest):
                    _set_used(fd, time.time())
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
        if self._checked.get(digest) == _identity(fd):
            return True
        sha = hashlib.sha256()
        for piece in _pieces(fd):
            sha.update(piece)
        if sha.hexdigest() != digest:
            return False
        self._checked[digest] = _identity(fd)
        return True

    # --- writing -------------------------------------------------------------------------------

    def begin(self, digest, total):
        # type: (str, int) -> Writer
        """A writer for a blob of `total` bytes, whose room is counted from now on.

        Least recently used blobs that nobody holds make way. Raises StoreFull."""
        if not _DIGEST.match(digest):
            raise ValueError("not a digest: %.80r" % (digest,))
        with self._locked():
            tier = self._reserve(total, self._tiers)
            return Writer(self, tier, digest, total)

    def drop(self, digest):
        # type: (str) -> None
        """Forget a blob; those who hold it keep it."""
        if _DIGEST.match(digest):
            for tier in self._tiers:
                self._remove(tier, digest)

    def room(self):
        # type: () -> int
        """Bytes that the largest possible blob may have: it has to fit one tier, from which all
        that nobody holds can go. Nothing is locked or counted for this."""
        return max([self._limit(tier, tier.used()) for tier in self._tiers] or [0])

    def used(self):
        # type: () -> Tuple[int, int]
        """Bytes in use in RAM and on disk, by count."""
        with self._locked():
            ram, disk = self._counts()
            return ram, disk

    # --- the end -------------------------------------------------------------------------------

    def close(self, last_agent=None):
        # type: (Optional[bool]) -> None
        """Leave the store. The last agent takes all blobs out of RAM: to disk if they fit, or away.

        last_agent: None finds out, by a lock that every open Store holds (and every process forked
        from one that holds it). Moving may take as long as writing them: give up other locks first.
        """
        if self._lock < 0:
            return
        with self._locked():
            if last_agent is None:
                last_agent = _flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if last_agent:
            self._empty_ram()
        with self._locked():
            self._forget_unused()
        for tier in self._tiers:
            tier.close(remove=bool(last_agent) and tier is self._ram)
        for fd in (self._lock, self._users):
            os.close(fd)
        self._lock = self._users = -1

    def _empty_ram(self):
        # type: () -> None
        """Most recently used blobs first, as long as the disk takes them without losing others."""
        for blob in sorted(self._ram.blobs(), key=lambda b: b.used, reverse=True):
            source = self._ram.open(blob.name)
            if source is None:
                continue
            try:
                if not self._disk.stat(blob.name):
                    self._copy_to_disk(source, blob)
            except (OSError, StoreFull, Damaged):
                pass
            finally:
                os.close(source)
            self._remove(self._ram, blob.name)

    def _copy_to_disk(self, source, blob):
        # type: (int, _Blob) -> None
        with self._locked():
            counts = self._counts()
            if not self._disk.path or not self._fits(self._disk, counts, blob.size):
                raise StoreFull("no room on disk")
            self._add(self._disk, blob.size)
            writer = Writer(self, self._disk, blob.name, blob.size)
        try:
            for piece in _pieces(source):
                writer.write(writer.written, piece)
            fd = writer.commit()
        finally:
            writer.abort()
        _set_used(fd, blob.used)
        os.close(fd)

    # --- room: all of this under the lock --------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self):
        # type: () -> Iterator[None]
        with self._mutex:
            self._held += 1
            try:
                if self._held == 1:
                    _flock(self._lock, fcntl.LOCK_EX)
                yield
            finally:
                self._held -= 1
                if self._held == 0:
                    _flock(self._lock, fcntl.LOCK_UN)

    def _counts(self):
        # type: () -> List[int]
        data = os.pread(self._lock, _COUNTS.size, 0)
        return list(_COUNTS.unpack(data)) if len(data) == _COUNTS.size else [0, 0]

    def _add(self, tier, size):
        # type: (_Tier, int) -> None
        if self._lock < 0:
            return
        counts = self._counts()
        counts[tier.index] = max(counts[tier.index] + size, 0)
        self._set_counts(counts)

    def _set_counts(self, counts):
        # type: (List[int]) -> None
        try:
            os.pwrite(self._lock, _COUNTS.pack(*counts), 0)
        except OSError as error:  # the disk is so full that it will say so to writers too
            if error.errno not in _FULL:
                raise

    def _recount(self):
        # type: () -> List[int]
        """Delete what dead writers left, count the rest."""
        counts = [0, 0]
        for tier in self._tiers:
            tier.clean()
            counts[tier.index] = tier.used()
        self._set_counts(counts)
        return counts

    def _limit(self, tier, used):
        # type: (_Tier, int) -> int
        """Bytes that a tier may hold, now."""
        if tier.limit is not None:
            return tier.limit
        free = tier.free() + used
        if tier is self._ram:
            return min(free // 4, self._memory // 8)
        return min(DISK_LIMIT, free // 2)

    def _fits(self, tier, counts, size):
        # type: (_Tier, List[int], int) -> bool
        used = counts[tier.index]
        return used + size <= self._limit(tier, used)

    def _reserve(self, size, tiers):
        # type: (int, List[_Tier]) -> _Tier
        """The tier that takes so many more bytes; they are counted. Raises StoreFull."""
        for tier in tiers:
            if self._fits(tier, self._counts(), size):
                self._add(tier, size)
                return tier
        counts = self._recount()
        limits_ = dict((tier, self._limit(tier, counts[tier.index])) for tier in tiers)
        # a little more than needed, or a full store would be counted again for every blob
        wanted = dict((tier, min(limits_[tier], size + limits_[tier] // 16))
                      for tier in tiers if size <= limits_[tier])  # fmt: skip
        blobs = [(blob.used, tier, blob) for tier in wanted for blob in tier.blobs()]
        for _, tier, blob in sorted(blobs, key=lambda item: item[0]):
            if any(counts[t.index] + wanted[t] <= limits_[t] for t in wanted):
                break
            if tier.evict(blob.name):
                self._add(tier, -blob.size)
                counts = self._counts()
        for tier in wanted:
            if counts[tier.index] + size <= limits_[tier]:
                self._add(tier, size)
                return tier
        error = StoreFull("a blob of %d bytes does not fit: of %s in use" % (size, " and ".join(
            "%d bytes in %s, %d are" % (limits_[t], t.path, counts[t.index]) for t in tiers)
            or "no directory for blobs, none is"))  # fmt: skip
        error.by_choice = self._by_choice
        raise error

    def _remove(self, tier, digest):
        # type: (_Tier, str) -> None
        with self._locked():
            found = tier.stat(digest)
            if found and tier.unlink(digest):
                self._add(tier, -found.st_size)
        self._checked.pop(digest, None)

    def _forget_unused(self):
        # type: () -> None
        old = time.time() - UNUSED_DAYS * _DAY
        for blob in self._disk.blobs() if self._disk.path else ():
            if blob.used < old and self._disk.evict(blob.name):
                self._add(self._disk, -blob.size)


class Writer(object):
    """Takes the bytes of one blob in order. End it with `commit` or `abort`."""

    def __init__(self, store, tier, digest, total):
        # type: (Store, _Tier, str, int) -> None
        self.digest = digest
        self.total = total
        self.written = 0
        self.moved = False  # from RAM to disk, because RAM was full
        self._fd = -1
        self._store = store
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
                if error.errno not in _FULL:
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
        self._store._checked[self.digest] = _identity(fd)
        return fd

    def _publish(self):
        # type: () -> int
        with self._store._locked():
            fd = self._tier.open(self._name)
            before = self._tier.stat(self.digest)
            if fd is None:
                raise Damaged("a blob vanished while it was written")
            if not self._tier.rename(self._name, self.digest):
                os.close(fd)
                raise Damaged("a blob vanished while it was written")
            if before:  # another writer was quicker; those who hold its file keep it
                self._store._add(self._tier, -before.st_size)
            return fd

    def abort(self):
        # type: () -> None
        """Give up; nothing is left. Harmless after `commit`."""
        if self._fd >= 0:
            self._discard(self._tier, self._name, self._fd)
            self._fd = -1

    def _open(self, tier):
        # type: (_Tier) -> None
        """Go on in a new file, in the room that was reserved for it. Raises StoreFull."""
        name = "%s.%s%s" % (self.digest, os.urandom(8).hex(), _ASIDE)
        try:
            fd = tier.create(name)
        except OSError as error:
            self._store._add(tier, -self.total)
            raise self._full(tier, error)
        try:
            # its length tells others who count what it is going to take; this allocates nothing
            os.ftruncate(fd, self.total)
        except OSError as error:
            self._discard(tier, name, fd)
            raise self._full(tier, error)
        self._tier, self._name, self._fd = tier, name, fd

    def _discard(self, tier, name, fd):
        # type: (_Tier, str, int) -> None
        with self._store._locked():
            tier.unlink(name)
            self._store._add(tier, -self.total)
        os.close(fd)

    def _full(self, tier, error):
        # type: (_Tier, OSError) -> StoreFull
        return StoreFull("%s takes no blob of %d bytes: %s" % (tier.path, self.total, error))

    def _move_to_disk(self, length, error):
        # type: (int, OSError) -> None
        """The tier is full before its limit: go on on disk, with the `length` bytes so far."""
        self.moved = True
        store, tier, name, fd = self._store, self._tier, self._name, self._fd
        if tier is not store._ram or not store._disk.path:
            self.abort()
            raise self._full(tier, error)
        try:
            with store._locked():
                self._open(store._reserve(self.total, [store._disk]))
            _copy(fd, self._fd, length)
        except OSError as failure:
            self.abort()
            raise self._full(store._disk, failure)
        except StoreFull:
            self._fd = -1
            raise
        finally:
            self._discard(tier, name, fd)


class _Blob(object):
    """A file of a tier: its name, its length, when it was last used (seconds)."""

    def __init__(self, name, found):
        # type: (str, os.stat_result) -> None
        self.name = name
        self.size = found.st_size
        self.used = found.st_atime


class _Tier(object):
    """One directory of blobs, held open, so that nobody can put another one in its place.

    path: None if there is none, or none that is ours alone. limit: bytes, or None."""

    def __init__(self, index, path, limit, notes):
        # type: (int, Optional[str], Optional[int], List[str]) -> None
        self.index = index
        self.path = path
        self.limit = limit
        self._fd = -1
        if path is not None:
            try:
                self._enter()
            except OSError as error:
                self.path = None
                notes.append("no data is kept in %s: %s" % (path, error.strerror or error))

    def _enter(self):
        # type: () -> None
        """Open the directory, made if need be. Raises OSError unless it is ours and private."""
        path = self.path or ""
        os.makedirs(os.path.dirname(path) or ".", 0o700, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            found = os.fstat(fd)
            if found.st_uid != os.getuid():
                raise OSError(errno.EPERM, "it belongs to user %d" % found.st_uid)
            if stat.S_IMODE(found.st_mode) != 0o700:
                os.fchmod(fd, 0o700)  # what others put there before has another owner or digest
        except OSError:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def close(self, remove=False):
        # type: (bool) -> None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if remove and self.path:
                try:
                    os.rmdir(self.path)
                except OSError:  # somebody's blob, held or just begun
                    pass

    def create(self, name):
        # type: (str) -> int
        """A new file that only we can write, open for both, held. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        except FileNotFoundError:  # the directory was cleaned away (systemd does so at logout)
            self._enter()
            fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        _flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return fd

    def open(self, name):
        # type: (str) -> Optional[int]
        """A held, read-only descriptor, or None if there is no such file of ours."""
        try:
            # O_NONBLOCK: should it be no file but a pipe, opening must not wait
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(name, flags, dir_fd=self._fd)
        except OSError:
            return None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
            os.close(fd)
            return None
        _flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return fd

    def stat(self, name):
        # type: (str) -> Optional[os.stat_result]
        try:
            return os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return None

    def unlink(self, name):
        # type: (str) -> bool
        try:
            os.unlink(name, dir_fd=self._fd)
            return True
        except OSError:
            return False

    def rename(self, old, new):
        # type: (str, str) -> bool
        try:
            os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            return True
        except OSError:
            return False

    def evict(self, name):
        # type: (str) -> bool
        """Delete a file that nobody holds; False if somebody does."""
        try:
            # O_RDWR because NFS makes of an exclusive flock a write lock
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW, dir_fd=self._fd)
        except OSError:
            return False
        try:
            return _flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB) and self.unlink(name)
        finally:
            os.close(fd)

    def clean(self):
        # type: () -> None
        """Delete what writers began and did not live to end."""
        for name, _ in self._files():
            if name.endswith(_ASIDE):
                self.evict(name)

    def blobs(self):
        # type: () -> List[_Blob]
        return [_Blob(name, found) for name, found in self._files() if _DIGEST.match(name)]

    def used(self):
        # type: () -> int
        return sum(found.st_size for _, found in self._files())

    def free(self):
        # type: () -> int
        try:
            found = os.fstatvfs(self._fd)
            return found.f_bavail * found.f_frsize
        except OSError:
            return 0

    def _files(self):
        # type: () -> List[Tuple[str, os.stat_result]]
        try:
            names = os.listdir(self._fd)
        except OSError:
            return []
        found = ((name, self.stat(name)) for name in names)
        return [(name, st) for name, st in found if st is not None and stat.S_ISREG(st.st_mode)]


# --- small helpers -----------------------------------------------------------------------------


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


def _open_lock(path):
    # type: (str) -> int
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _flock(fd, how):
    # type: (int, int) -> bool
    """False if another holds it, or where the file system has no locks."""
    try:
        fcntl.flock(fd, how)
        return True
    except (OSError, ValueError):  # ValueError: of a store that is closed
        return False


def _set_used(fd, when):
    # type: (int, float) -> None
    """The access time is what "least recently used" goes by; the kernel may not keep it itself."""
    os.utime(fd, ns=(int(when * 1e9), os.fstat(fd).st_mtime_ns))


def _identity(fd):
    # type: (int) -> Tuple[int, int, int]
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _pieces(fd):
    # type: (int) -> Iterator[bytes]
    offset = 0
    while True:
        piece = os.pread(fd, _PIECE, offset)
        if not piece:
            return
        yield piece
        offset += len(piece)


def _copy(source, target, length):
    # type: (int, int, int) -> None
    offset = 0
    while offset < length:
        piece = os.pread(source, min(_PIECE, length - offset), offset)
        if not piece:
            raise OSError(errno.EIO, "a file became shorter while it was copied")
        view = memoryview(piece)  # type: Any
        while view:
            done = os.pwrite(target, view, offset)
            offset += done
            view = view[done:]
