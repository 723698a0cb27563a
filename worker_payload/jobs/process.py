"""One job's process at a time: started, timed, ended with all that it started, and measured.

Throughput of the job plane is decided here. So a process is made by posix_spawn, which does not
copy this one, where Python has it; and the one thread that runs jobs blocks in the kernel until the
job has ended. Whatever else should end a job comes as a signal to that thread.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from worker_payload import procs

GRACE = 1.0  # seconds from TERM to KILL
SLOW = 1.0  # seconds after which a job is none of the many short ones
_BUSY_TRIES = 20
_LOOKS = hasattr(os, "waitid") and hasattr(os, "WNOWAIT")
_MAXRSS = 1 if sys.platform == "darwin" else 1024
# what Python ignores, and a program expects to find as usual
_USUAL = [signal.SIGPIPE, signal.SIGXFSZ]


class Ended(NamedTuple):
    """exit: its status, -1 if it died of a signal. signal: that, or 0. memory: its peak, bytes.
    cpu: seconds. late: its time was over."""

    exit: int
    signal: int
    seconds: float
    memory: int
    cpu: float
    late: bool


class Processes(object):
    """To be made and used in the main thread, because only that one gets signals."""

    def __init__(self):
        # type: () -> None
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._running = 0  # the group that signals go to; 0 as soon as its number may be reused
        self._late = False
        self._stopped = False
        self._deadline = 0.0  # monotonic; when the job's time is over, 0 for never
        self._meanwhile = None  # type: Optional[Callable[[], None]]
        signal.signal(signal.SIGALRM, self._on_alarm)
        self._adopts = procs.adopt_orphans()
        self._spawns = _spawns()

    def run(self, argv, environ, out, err, timeout=0.0, meanwhile=None):
        # type: (List[Any], Dict[bytes, bytes], int, int, float, Any) -> Ended
        """Run a program to its end, in the present directory. argv[0]: a path, see find. environ:
        all of it. out, err: descriptors. timeout: seconds, 0 for none. meanwhile: called once if
        the program takes longer than SLOW; it must not raise.

        No process of its group is left on return; nor any other descendant, where Linux lets us
        adopt them. Raises OSError if it cannot be started, ValueError for a zero byte in words."""
        self._late = False
        began = time.monotonic()
        pid = self._start(argv, environ, out, err)
        self._running = pid
        if self._stopped:
            procs.kill_group(pid)
        if timeout > 0 or meanwhile:
            self._deadline = began + timeout if timeout > 0 else 0.0
            self._meanwhile = meanwhile
            signal.setitimer(
                signal.ITIMER_REAL, min(SLOW, timeout or SLOW) if meanwhile else timeout
            )
        if _LOOKS:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            self._running = 0
            procs.kill_group(pid)  # its leader is not reaped: the number is still the group's own
            _, status, usage = os.wait4(pid, 0)
        else:
            _, status, usage = os.wait4(pid, 0)
            self._running = 0
            procs.kill_group(pid)
        seconds = time.monotonic() - began
        if timeout > 0 or meanwhile:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        self._end_orphans()
        died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return Ended(
            -1 if died else os.WEXITSTATUS(status),
            died,
            seconds,
            usage.ru_maxrss * _MAXRSS,
            usage.ru_utime + usage.ru_stime,
            self._late,
        )

    def stop(self):
        # type: () -> None
        """Kill what runs, and whatever will be started: for signal handlers of the main thread."""
        self._stopped = True
        if self._running:
            procs.kill_group(self._running)

    def resume(self):
        # type: () -> None
        """What is started from now on lives."""
        self._stopped = False

    @property
    def running(self):
        # type: () -> int
        """The group of the job that runs now, or 0."""
        return self._running

    def _start(self, argv, environ, out, err):
        # type: (List[Any], Dict[bytes, bytes], int, int) -> int
        for left in range(_BUSY_TRIES, -1, -1):
            try:
                return self._spawn(argv, environ, out, err)
            except OSError as error:
                if error.errno == errno.ENOEXEC:
                    # a script without #!: sh runs it, as if a person had typed its name
                    argv = ["/bin/sh"] + argv
                elif error.errno != errno.ETXTBSY or not left:
                    raise
                else:  # somebody forked while the file was being written, and will exec soon
                    time.sleep(0.05)
        raise AssertionError("the last try returns or raises")

    def _spawn(self, argv, environ, out, err):
        # type: (List[Any], Dict[bytes, bytes], int, int) -> int
        if self._spawns:
            return os.posix_spawn(
                argv[0],
                argv,
                environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, self._null, 0),
                    (os.POSIX_SPAWN_DUP2, out, 1),
                    (os.POSIX_SPAWN_DUP2, err, 2),
                ],
                setsid=True,  # a group as well, and without a terminal to be stopped by
                setsigdef=_USUAL,
            )
        process = subprocess.Popen(
            argv,
            env=environ,
            stdin=self._null,
            stdout=out,
            stderr=err,
            start_new_session=True,  # not preexec_fn, which is slow
        )
        process.returncode = 0  # waiting is our own affair
        return process.pid

    def _end_orphans(self):
        # type: () -> None
        """Descendants that left the group are our children now."""
        if not self._adopts:
            return
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except OSError:
            return  # no children: the usual case
        procs.end_descendants(os.getpid())
        procs.reap()

    def _on_alarm(self, number, frame):
        # type: (int, Any) -> None
        """Runs in the main thread while that waits for the job."""
        meanwhile, self._meanwhile = self._meanwhile, None
        if not self._running:
            return
        if meanwhile is not None:
            meanwhile()
        if not self._deadline:
            return
        left = self._deadline - time.monotonic()
        if left <= 0:
            procs.kill_group(self._running, signal.SIGKILL if self._late else signal.SIGTERM)
            self._late = True
            left = GRACE
        signal.setitimer(signal.ITIMER_REAL, left)


def _spawns():
    # type: () -> bool
    """Whether this Python and its C library can spawn as we do. An empty name starts nothing."""
    if not hasattr(os, "posix_spawn") or not sys.platform.startswith("linux"):
        return False
    try:
        os.posix_spawn("", ["none"], {}, setsid=True)
    except NotImplementedError:
        return False
    except OSError:
        pass
    return True


def find(word, path, folder):
    # type: (str, Optional[str], str) -> str
    """The file that a command's first word means: one with a slash is relative to the folder, else
    it is looked for in path (as in $PATH). What is not found is returned as it is."""
    if "/" in word:
        return os.path.join(folder, word)
    return shutil.which(word, path=path) or word


def failure(error):
    # type: (OSError) -> int
    """The exit status that a shell gives to a command that it cannot start."""
    return 127 if error.errno == errno.ENOENT else 126


def last_line(fd, begin, end, most=200):
    # type: (int, int, int, int) -> str
    """The last line that is not empty between two places of a file."""
    begin = max(begin, end - 4096)
    try:
        data = os.pread(fd, max(end - begin, 0), begin)
    except OSError:
        return ""
    lines = data.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip()[-most:] if lines else ""
