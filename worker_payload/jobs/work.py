"""A worker of the host: a keeper that holds the worker's number, and below it the worker itself.

When the worker dies, its keeper ends what it started, gives its claims back, and starts another
under a new name. The number's lock, in the host's own directory, is held as long as one of the two
lives; what it says is what `fire` and the next start need to clean up after both.
"""

import fcntl
import json
import os
import sys
import time
from typing import Any, Dict, Optional

from worker_payload import keeper, layout, limits, procs
from worker_payload.jobs import names

HIRED = "JAM_HIRED"  # in the environment of a keeper: what `hire` was told, as JSON
IDLE = 12 * 3600.0
_LOG_MAX = 1 << 20
_LOG_KEPT = 1 << 18
_SMALL = 10  # lines about single jobs per second
_PAUSE_MOST = 60.0
_LIVED = 60.0  # seconds after which a death is no longer one of a row
_LOCK_WITHIN = 5.0  # for a predecessor that is ending


class Log(object):
    """The worker's log in the project, and its terminal if it has one. Neither ever blocks it: a
    terminal that somebody stopped misses lines."""

    def __init__(self, path):
        # type: (str) -> None
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._tty = -1
        self._since = 0.0
        self._left = 0
        self._more = 0
        self._written = os.fstat(self._fd).st_size
        try:
            # opened anew, because not to block is a property of who opened it
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self._tty = os.open(os.ttyname(1), flags)
        except OSError:
            pass

    def __call__(self, text):
        # type: (str) -> None
        head = "%s [%d] " % (time.strftime("%Y-%m-%d %H:%M:%S"), os.getpid())
        self._write("".join(head + line + "\n" for line in text.splitlines() or [""]))

    def room(self):
        # type: () -> bool
        """Whether a line about a single job would be written now."""
        now = time.monotonic()
        if now - self._since >= 1.0:
            self._since, self._left = now, _SMALL
            self.pause()
        return self._left > 0

    def small(self, text):
        # type: (str) -> None
        """A line that may be left out, because there are too many."""
        if self.room():
            self._left -= 1
            self(_printable(text))
        else:
            self._more += 1

    def pause(self):
        # type: () -> None
        """There is nothing to do: what was left out is counted now."""
        more, self._more = self._more, 0
        if more:
            self("(%d more lines)" % more)

    def take_standard_streams(self):
        # type: () -> None
        """What anybody prints by mistake goes here."""
        if os.isatty(1):
            os.dup(1)  # screen takes a terminal that nobody holds for the end of its window
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(self._fd, 1)
        os.dup2(self._fd, 2)

    def _write(self, text):
        # type: (str) -> None
        data = text.encode("utf-8", "replace")
        for fd, mine in ((self._fd, data), (self._tty, data.replace(b"\n", b"\r\n"))):
            try:
                if fd >= 0:
                    os.write(fd, mine)
            except OSError:
                pass
        self._written += len(data)
        if self._written > _LOG_MAX:
            self._shorten()

    def _shorten(self):
        # type: () -> None
        try:
            size = os.fstat(self._fd).st_size
            if size > _LOG_MAX:
                kept = os.pread(self._fd, _LOG_KEPT, size - _LOG_KEPT)
                os.ftruncate(self._fd, 0)
                os.write(self._fd, b"[...]\n" + kept[kept.find(b"\n") + 1 :])
            self._written = os.fstat(self._fd).st_size
        except OSError:
            self._written = 0


def _printable(text):
    # type: (str) -> str
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# --- the keeper --------------------------------------------------------------------------------


def work(run, project, number):
    # type: (layout.RunDir, str, int) -> int
    """The verb: this process becomes the keeper of the worker of this number. Raises OSError."""
    told = _told()
    if not os.environ.get(procs.OWNER, "").startswith(layout.worker_mark_prefix(run, project)):
        os.environ[procs.OWNER] = layout.worker_mark(run, project, number)
    root = names.home(project)
    host = str(told.get("host") or "") or os.uname()[1]
    lock = take_slot(run, project, number)
    if lock is None:
        sys.stderr.write("jam: worker %d of project %s runs already\n" % (number, project))
        return 0
    before = read_lock(lock)
    log = Log(os.path.join(root, names.worker_log(host, number)))
    clean_up(before, log)
    if sys.stdout.isatty():
        print("jam: worker %d of project %s on %s" % (number, project, host))
        sys.stdout.flush()
    log.take_standard_streams()
    if told.get("nice"):
        try:
            os.nice(int(told["nice"]))
        except OSError as error:
            log("nice %s: %s" % (told["nice"], error.strerror))
    return _Kept(run, project, number, root, host, told, lock, log).keep()


def _told():
    # type: () -> Dict[str, Any]
    try:
        told = json.loads(os.environ.pop(HIRED, "{}"))
    except ValueError:
        told = {}
    return told if type(told) is dict else {}


class _Kept(object):
    """A number's keeper: knows the name of the worker that runs, and mends what it leaves."""

    def __init__(self, run, project, number, root, host, told, lock, log):
        # type: (layout.RunDir, str, int, str, str, Dict[str, Any], int, Log) -> None
        self._run = run
        self._project = project
        self._number = number
        self._root = root
        self._host = host
        self._told = told
        self._lock = lock
        self._log = log
        self._deaths = 0
        self._begin()

    def keep(self):
        # type: () -> int
        return keeper.keep(self._child, self._log, self._again)

    def _begin(self):
        # type: () -> None
        """A new name for the worker that comes next; nothing of it exists yet."""
        self._owner = names.new_owner(self._host, self._number)
        self._since = time.monotonic()
        write_lock(
            self._lock,
            {
                "mark": os.environ[procs.OWNER],
                "pid": os.getpid(),
                "owner": self._owner,
                "project": self._project,
                "number": self._number,
                "root": self._root,
                "cwd": self._told.get("cwd") or "",
                "started": time.time(),
            },
        )

    def _again(self, status):
        # type: (int) -> Optional[float]
        # imported here and below, so that a keeper that only waits stays small
        from worker_payload.jobs import sweeping, worker

        try:
            sweeping.give_up(self._root, self._owner)
        except Exception as error:
            self._log("claims of %s are left to others: %s" % (self._owner, error))
        if status == worker.ENDED:
            return None
        lived = time.monotonic() - self._since
        if status == worker.AGAIN or lived > _LIVED:
            self._deaths = 0
        pause = min(2.0**self._deaths - 1.0, _PAUSE_MOST)
        self._deaths += 1
        self._log("worker ended with %d; another starts in %.0f s" % (status, pause))
        self._begin()
        return pause

    def _child(self, pipe):
        # type: (int) -> int
        from worker_payload.jobs import (
            drops,
            files,
            heart,
            leases,
            runner,
            sweeping,
            view,
            worker,
        )

        hired = str(self._told.get("cwd") or "") or os.environ.get("HOME") or "/"
        project_files = files.Files(self._root)
        about = {
            "host": self._host,
            "label": self._told.get("label") or self._host,
            "number": self._number,
            "pid": os.getpid(),
            "keeper": os.getppid(),
            "project": self._project,
            "cwd": hired,
            "cpus": limits.cpus(),
            "python": "%d.%d.%d" % sys.version_info[:3],
            "started": round(time.time(), 3),
        }
        lease = float(os.environ.get("JAM_LEASE") or leases.LEASE)
        beat = heart.Heart(
            self._root,
            self._owner,
            about,
            pipe,
            self._give_up,
            min(heart.EVERY, lease / 9),
            lease / 2,  # who is late gives up before its jobs are given away
        )
        queue = os.path.join(self._root, names.QUEUE)
        dropped = drops.Drops(queue, project_files.network, hired)
        environ = dict(os.environb)
        man = worker.Worker(
            project_files,
            self._owner,
            view.View(self._run, self._project, project_files, self._host, dropped),
            runner.Runner(self._root, self._project, self._owner, hired, environ),
            beat,
            sweeping.Watch(project_files, names.host_part(self._host), lease, self._log),
            float(self._told.get("idle") or IDLE),
            self._log,
        )
        beat.start()
        self._log("worker %s starts in %s" % (self._owner, hired))
        status = man.run()
        beat.close()
        self._log("worker %s ends" % self._owner)
        return status

    def _give_up(self):
        # type: () -> None
        """The worker's last means: its keeper is dead, or its main thread is stuck."""
        procs.end_descendants(os.getpid(), 1.0)
        mark, me = os.environ[procs.OWNER], (os.getpid(), os.getppid())
        found = procs.marked(lambda marks: marks.get(procs.OWNER) == mark)
        procs.kill([pid for pid in found if pid not in me])
        from worker_payload.jobs import worker

        os._exit(worker.AGAIN)


# --- the number's lock -------------------------------------------------------------------------


def take_slot(run, project, number, within=_LOCK_WITHIN):
    # type: (layout.RunDir, str, int, float) -> Optional[int]
    """The lock of this number; None if another holds it. Kept by all forks of this process."""
    path = run.file(layout.worker_lock_name(project, number))
    deadline = time.monotonic() + within
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except OSError:
            if time.monotonic() > deadline:
                os.close(fd)
                return None
            time.sleep(0.02)
        os.close(fd)  # its file was removed between the two steps, or it is held


def read_lock(fd):
    # type: (int) -> Dict[str, Any]
    """What its holder, or the last one, wrote about itself."""
    try:
        found = json.loads(os.pread(fd, 65536, 0).decode("ascii"))
        return found if type(found) is dict else {}
    except (OSError, ValueError):
        return {}


def write_lock(fd, record):
    # type: (int, Dict[str, Any]) -> None
    data = json.dumps(record).encode("ascii")
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))


def clean_up(before, log):
    # type: (Dict[str, Any], Any) -> int
    """Ends what is left of a worker whose lock was free, and gives its claims back. before: what
    the lock said. Returns how many claims there were."""
    mark = before.get("mark")
    if mark and mark != os.environ.get(procs.OWNER):
        procs.kill(procs.marked(lambda marks: marks.get(procs.OWNER) == mark))
    if not before.get("owner") or not before.get("root"):
        return 0
    from worker_payload.jobs import sweeping

    try:
        return sweeping.give_up(before["root"], before["owner"])
    except Exception as error:
        log("claims of %s are left to others: %s" % (before["owner"], error))
        return 0
