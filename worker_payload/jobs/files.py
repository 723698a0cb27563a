"""The files of a project: does what steps.py yields, for real.

Where a shared home answers late, wrongly or not at all, this is the one place that knows. NFS may
do a rename and report that it failed: then the unique target is there. It says ESTALE for what
another removed or renamed: looked up anew, that is ENOENT, or there after all; ESTALE alone proves
nothing. A soft mount says EIO or ETIMEDOUT for what passes.
"""

import errno
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List, Optional

from worker_payload import layout
from worker_payload.jobs import leases, lines, names, steps

FULL = (errno.ENOSPC, errno.EDQUOT)
PASSING = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ENOLCK)
PAUSES = (0.1, 0.5, 2.0)  # before what failed by something that passes is tried again, seconds
LITTER_SECONDS = leases.LEASE + 86400.0  # after which a file that was to become another is nobody's
SYNC_THREADS = 8  # a disk writes many files at once quicker than one after the other
NETWORK = frozenset(
    "nfs nfs4 cifs smb smb2 smb3 smbfs lustre gpfs beegfs fhgfs ceph afs openafs 9p panfs orangefs"
    " pvfs2 glusterfs ncpfs coda davfs vboxsf virtiofs fuse.sshfs fuse.glusterfs fuse.ceph"
    " fuse.lizardfs fuse.moosefs fuse.s3fs fuse.rclone fuse.juicefs autofs".split()
)


class Trouble(Exception):
    """The file system refuses, and will not do otherwise soon."""

    def __init__(self, path, error):
        # type: (str, OSError) -> None
        super(Trouble, self).__init__("%s: %s" % (path, error.strerror or error))
        self.path = path
        self.error = error


class Full(Trouble):
    """No room, or no quota. Nothing was changed; to be tried again when there may be room."""


class Files:
    """root: the project's folder. system: where the calls come from that change files (a test gives
    its own). counted: how many operations on directories were done.

    Not for several threads at once, except for reading."""

    def __init__(self, root, system=os, sleep=time.sleep):
        # type: (str, Any, Callable[[float], None]) -> None
        self.root = root
        self.network = is_network(root)
        self.counted = 0
        self._top = os.path.join(root, "")
        self._os = system
        self._sleep = sleep
        self._grown = {}  # type: Dict[str, _Grown]
        self._do = {
            steps.Rename: self._rename,
            steps.Append: self._append,
            steps.Read: self._read,
            steps.Sync: self._sync,
            steps.Create: self._create,
            steps.Write: self._write,
            steps.SyncFolder: self._sync_folder,
            steps.List: self._list,
            steps.Remove: self._remove,
            steps.MakeFolder: self._make_folder,
            steps.RemoveFolder: self._remove_folder,
        }  # type: Dict[type, Callable[..., Any]]

    def do(self, operation):
        # type: (Any) -> Any
        """Raises Full or Trouble."""
        return self._do[operation.__class__](*operation)

    def run(self, generator):
        # type: (steps.Steps) -> Any
        """Does all steps of it; returns what it returns. Raises Full or Trouble, as if the process
        had died at that step: the directory stays whole, and the steps may be begun anew."""
        do, send, answer = self._do, generator.send, None
        try:
            while True:
                operation = send(answer)
                answer = do[operation.__class__](*operation)
        except StopIteration as end:
            return end.value

    def close(self):
        # type: () -> None
        for grown in self._grown.values():
            os.close(grown.fd)
        self._grown.clear()

    # --- names -----------------------------------------------------------------------------

    def _rename(self, source, target):
        # type: (str, str) -> bool
        def rename():
            # type: () -> bool
            try:
                self._os.rename(self._top + source, self._top + target)
            except OSError:
                if not self._there(target):
                    raise
            return True

        return bool(self._tried(source, rename))

    def _there(self, path):
        # type: (str) -> bool
        """Whether the file exists, as the server sees it now."""
        self.counted += 1
        try:
            if self.network:  # opening the folder ends the time for which "no such file" is cached
                os.close(self._os.open(os.path.dirname(self._top + path), os.O_RDONLY))
            self._os.stat(self._top + path)
            return True
        except OSError:
            return False

    def _wait_or_raise(self, path, error, pause):
        # type: (str, OSError, Optional[float]) -> None
        if error.errno in FULL:
            raise Full(path, error)
        if error.errno not in PASSING or pause is None:
            raise Trouble(path, error)
        if pause:
            self._sleep(pause)

    def _tried(self, path, call):
        # type: (str, Callable[[], Any]) -> Any
        """What call returns; None where the file is gone. Tries again what may pass."""
        for pause in (0.0,) + PAUSES + (None,):
            self.counted += 1
            try:
                return call()
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return None
                self._wait_or_raise(path, error, pause)
        return None

    def _needed(self, path, call):
        # type: (str, Callable[[], Any]) -> Any
        """The same, where the file can not be gone."""
        found = self._tried(path, call)
        if found is None:
            raise Trouble(path, OSError(errno.ENOENT, "gone, and it was to stay"))
        return found

    def _list(self, folder):
        # type: (str) -> List[str]
        found = self._tried(folder, lambda: self._os.listdir(self._top + folder))
        return [] if found is None else found

    def _remove(self, path):
        # type: (str) -> bool
        def remove():
            # type: () -> bool
            self._os.unlink(self._top + path)
            return True

        return bool(self._tried(path, remove))

    def _make_folder(self, path):
        # type: (str) -> bool
        def make():
            # type: () -> bool
            try:
                self._os.mkdir(self._top + path, 0o700)
                return True
            except FileExistsError:
                return False

        return bool(self._needed(path, make))

    def _remove_folder(self, path):
        # type: (str) -> str
        def remove():
            # type: () -> str
            try:
                self._os.rmdir(self._top + path)
                return "removed"
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return "full"
                raise

        return self._tried(path, remove) or "gone"

    def tidy(self):
        # type: () -> int
        """Removes what processes left that died within a Create; returns how many files. One that
        lives after all, and goes on after more than a day, finds its file gone: for the steps
        that is as if it had died there. Raises Full or Trouble."""
        count = 0
        for folder in ("", names.QUEUE, names.CLAIMED, names.CUTS, names.TAILS):
            found = [name for name in self._list(folder) if names.is_aside(name)]
            now = self._now(folder) if found else 0.0
            for name in found:
                path = os.path.join(folder, name)
                changed = self._changed(path)
                if changed is not None and now - changed > LITTER_SECONDS:
                    count += self._remove(path)
        return count

    def _now(self, folder):
        # type: (str) -> float
        """The time there: clocks of a file server and its clients differ."""
        path = os.path.join(folder, "." + layout.aside("now"))
        try:
            self._write(path, b"")
            return self._changed(path) or 0.0
        finally:
            self._remove(path)

    def _changed(self, path):
        # type: (str) -> Optional[float]
        """When, by the clock of who keeps the file; nobody can set that."""
        found = self._tried(path, lambda: self._os.stat(self._top + path).st_ctime)
        return None if found is None else float(found)

    # --- whole files -----------------------------------------------------------------------

    def _read(self, path):
        # type: (str) -> Optional[bytes]
        def read():
            # type: () -> bytes
            with open(self._os.open(self._top + path, os.O_RDONLY | os.O_CLOEXEC), "rb", 0) as file:
                return file.readall()

        return self._tried(path, read)

    def _create(self, path, data):
        # type: (str, bytes) -> bool
        """By a link, which unlike a rename never overwrites."""
        folder, name = os.path.split(path)
        aside = os.path.join(folder, "." + layout.aside("new"))
        try:
            self._needed(aside, lambda: self._fill(aside, data, True))
            made = self._needed(path, lambda: self._link(aside, path))
        finally:
            try:
                self._os.unlink(self._top + aside)
            except OSError:
                pass  # it was renamed, or never made
        if made:
            self._sync_path(folder)
        return bool(made)

    def _link(self, aside, path):
        # type: (str, str) -> bool
        top = self._top
        try:
            self._os.link(top + aside, top + path)
            return True
        except FileExistsError:
            # Of ours, if the server did it and its answer was lost.
            return self._os.stat(top + aside).st_nlink == 2
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
        if self._there(path):  # no links on this file system; but names are unique
            return False
        return self._rename(aside, path)

    def _write(self, path, data):
        # type: (str, bytes) -> None
        self._needed(path, lambda: self._fill(path, data, False))

    def _fill(self, path, data, sync):
        # type: (str, bytes, bool) -> bool
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        fd = self._os.open(self._top + path, flags, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._os.write(fd, rest) :]
            if sync:
                self._os.fsync(fd)
        finally:
            os.close(fd)
        return True

    def _sync_folder(self, folder):
        # type: (str) -> None
        found = self._needed(folder, lambda: self._os.listdir(self._top + folder))
        paths = [os.path.join(folder, name) for name in found]
        if len(paths) > SYNC_THREADS:
            with ThreadPoolExecutor(SYNC_THREADS) as threads:
                list(threads.map(self._sync_path, paths))
        else:
            for path in paths:
                self._sync_path(path)
        self._sync_path(folder)

    def _sync_path(self, path):
        # type: (str) -> None
        def sync():
            # type: () -> bool
            fd = self._os.open(self._top + path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._os.fsync(fd)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EBADF):  # not for folders, some say
                    raise
            finally:
                os.close(fd)
            return True

        self._needed(path, sync)

    # --- files that grow -------------------------------------------------------------------

    def _append(self, path, data):
        # type: (str, bytes) -> None
        grown = self._grown.get(path)
        if grown is None:
            grown = self._grown[path] = self._needed(path, lambda: _Grown(self, path))
        grown.append(data)

    def _sync(self, path):
        # type: (str) -> None
        grown = self._grown.get(path)
        if grown is not None:
            grown.sync()
            if grown.new:
                self._sync_path(os.path.dirname(path))
                grown.new = False


class _Grown:
    """A file that grows by whole lines, and is written by this process only.

    What a failing fsync was to bring to disk is lost for good, on Linux even if the next fsync
    succeeds; NFS tells only then that the disk is full. So what is not yet on disk is kept here,
    and written anew.

    base: bytes that are on disk. size: with those of fresh, which follow them. torn: the file may
    not hold just that."""

    def __init__(self, files, path):
        # type: (Files, str) -> None
        self._files = files
        self._path = path
        self._system = files._os
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.fd = self._system.open(files._top + path, flags, 0o600)
        with open(files._top + path, "rb") as file:
            self._base = lines.whole(file.read())
        self._size = self._base
        self._fresh = []  # type: List[bytes]
        self._torn = True  # a last line may be
        self.new = True  # its name may not yet be on disk

    def append(self, data):
        # type: (bytes) -> None
        self._again(lambda: self._write_all(data))
        self._fresh.append(data)
        self._size += len(data)

    def sync(self):
        # type: () -> None
        if self._fresh:
            self._again(self._flush)
            self._base = self._size
            self._fresh = []

    def _again(self, act):
        # type: (Callable[[], Any]) -> None
        """Acts on a file that holds its whole lines and no more. Raises Full or Trouble and leaves
        it so, as far as that can be done now."""
        for pause in PAUSES + (None,):
            try:
                if self._torn:
                    self._system.ftruncate(self.fd, self._base)
                    self._write_all(b"".join(self._fresh))
                    self._torn = False
                act()
                return
            except OSError as error:
                try:
                    self._system.ftruncate(self.fd, self._base if self._torn else self._size)
                except OSError:
                    self._torn = True
                self._files._wait_or_raise(self._path, error, pause)

    def _flush(self):
        # type: () -> None
        try:
            self._system.fsync(self.fd)
        except OSError:
            self._torn = True
            raise

    def _write_all(self, data):
        # type: (bytes) -> None
        rest = memoryview(data)
        while rest:
            rest = rest[self._system.write(self.fd, rest) :]


def is_network(path):
    # type: (str) -> bool
    """Whether other hosts may see this path, as far as /proc/mounts tells; if it does not: yes."""
    try:
        path = os.path.realpath(path)
        with open("/proc/mounts", "rb") as file:
            mounts = [row.split()[1:3] for row in file if row.count(b" ") >= 2]
    except OSError:
        return True
    best, kind = "", ""
    for where, what in mounts:
        point = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found.group(1), 8)]), where)
        top = os.fsdecode(point)
        inside = path == top or path.startswith(os.path.join(top, ""))
        if inside and len(top) >= len(best):  # of two mounts at one point the later one is seen
            best, kind = top, os.fsdecode(what)
    return kind in NETWORK


def prepare(root):
    # type: (str) -> str
    """Makes the project's folders, closed to others, and its identity; or finds them. Returns the
    identity, by which hosts tell that they see the same folder."""
    os.makedirs(os.path.dirname(root) or ".", 0o700, exist_ok=True)
    files = Files(root)
    for folder in ("",) + names.FOLDERS:
        files.do(steps.MakeFolder(folder))
    if files.do(steps.Read(names.IDENTITY)) is None:
        files.do(steps.Create(names.IDENTITY, layout.nonce().encode("ascii") + b"\n"))
    return (files.do(steps.Read(names.IDENTITY)) or b"").decode("ascii").strip()
