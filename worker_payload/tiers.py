"""Directories of blobs, one in RAM and one on disk, and what is done to a file of theirs.

A file is a blob under its digest, or one that is being written under a name that ends in ASIDE.
Whoever uses it holds a descriptor with a shared flock.
"""

import errno
import fcntl
import os
import re
import stat
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

DIGEST = re.compile(r"[0-9a-f]{64}\Z")
ASIDE = ".part"
_PIECE = 1 << 20


class Blob(NamedTuple):
    """A blob of a tier: its digest, its length, when it was last used (seconds)."""

    digest: str
    size: int
    used: float


class Tier(object):
    """One directory of blobs, held open, so that nobody can put another one in its place.

    path: None if there is none, or none that is ours alone. limit: bytes, or None. index: of its
    number among those of the budget."""

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
        flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
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
        flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
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
            return flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB) and self.unlink(name)
        finally:
            os.close(fd)

    def clean(self):
        # type: () -> None
        """Delete what writers began and did not live to end."""
        for name, _ in self._files():
            if name.endswith(ASIDE):
                self.evict(name)

    def blobs(self):
        # type: () -> List[Blob]
        return [
            Blob(name, found.st_size, found.st_atime)
            for name, found in self._files()
            if DIGEST.match(name)
        ]

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


# --- files -----------------------------------------------------------------------------------


def open_lock(path):
    # type: (str) -> int
    """A file for flock, made if need be."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def flock(fd, how):
    # type: (int, int) -> bool
    """False if another holds it, or where the file system has no locks."""
    try:
        fcntl.flock(fd, how)
        return True
    except (OSError, ValueError):  # ValueError: of a store that is closed
        return False


def set_used(fd, when):
    # type: (int, float) -> None
    """The access time is what "least recently used" goes by; the kernel may not keep it itself."""
    os.utime(fd, ns=(int(when * 1e9), os.fstat(fd).st_mtime_ns))


def identity(fd):
    # type: (int) -> Tuple[int, int, int]
    """Of a file with these bytes: another one, or one that was written to, has another."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, found.st_mtime_ns


def pieces(fd):
    # type: (int) -> Iterator[bytes]
    """All bytes of a file, in order."""
    offset = 0
    while True:
        piece = os.pread(fd, _PIECE, offset)
        if not piece:
            return
        yield piece
        offset += len(piece)


def copy(source, target, length):
    # type: (int, int, int) -> None
    """The first `length` bytes of a file into another."""
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
