"""The process that workers are forked from: warm, small, and without any master's descriptors.

The agent forks one root template before the first master arrives. The root forks a template for
each kind of worker (threads, nice, environment), which imports numpy once; that one forks workers
in milliseconds. Each has a control socket to the agent; when that closes, all of them end.
"""

import gc
import importlib
import importlib.util
import os
import select
import signal
import socket
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

from worker_payload import links, procs, worker

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

KEPT_BYTES = 16 << 20  # what is smaller and freed in a worker is not given back at once
ORPHANS_SECONDS = 0.5  # that killing what a dead worker left may take; no worker begins meanwhile

# from the agent, as (kind, name, ...); from us likewise
TEMPLATE, WORKER, REQUIRE = "template", "worker", "require"
READY, BORN, GONE, LACKS = "ready", "born", "gone", "lacks"


def fork(board):
    # type: (Any) -> Tuple[int, socket.socket]
    """Fork the root template: (pid, the agent's end of its control socket)."""
    ours, theirs = links.pair()
    pid = os.fork()
    if pid:
        theirs.close()
        ours.setblocking(False)
        return pid, ours
    _become(theirs.fileno(), board, None)
    return 0, theirs  # not reached


def _become(control, board, settings):
    # type: (int, Any, Optional[Dict[str, Any]]) -> None
    """Turn a fresh fork into a template. Never returns."""
    status = 1
    try:
        sock = links.adopt(*_keep_only(control))
        procs.die_with_parent()
        procs.adopt_orphans()  # what daemonised itself below a worker that is dead comes to us
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # of a terminal: for the agent to judge
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        numpy = _prepare(settings) if settings is not None else ""
        _Template(sock, board, numpy).run()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _keep_only(*fds):
    # type: (*int) -> List[int]
    """Close all descriptors but the standard streams and these, which have other numbers then."""
    kept = sorted(os.dup(fd) for fd in fds)  # in the order of fds: each takes the lowest free
    position = 3
    for fd in kept:
        os.closerange(position, fd)
        position = fd + 1
    os.closerange(position, max(position, _highest() + 1))
    return kept


def _highest():
    # type: () -> int
    try:
        return max(map(int, os.listdir("/proc/self/fd")))
    except (OSError, ValueError):
        return 4096


def _prepare(settings):
    # type: (Dict[str, Any]) -> str
    """Environment, priority, memory and numpy of all workers of this kind; numpy's version, or
    ""."""
    # Of what was freed glibc keeps twice the largest block that was freed so far. Without this the
    # temporary arrays of a map function are new pages from the system each time, which takes as
    # long as computing with them. Idle workers give all back (`calls.release_memory`).
    bytes(KEPT_BYTES)  # made, and freed at once
    threads = str(settings.get("threads") or 1)
    for name in THREADS:
        os.environ[name] = threads
    for name, value in settings.get("env", {}).items():
        if name not in (procs.OWNER, procs.WORKER):
            os.environ[name] = value
        if name == "PYTHONPATH":
            sys.path[1:1] = [path for path in value.split(os.pathsep) if path]
    if settings.get("nice"):
        try:
            os.nice(int(settings["nice"]))
        except OSError:
            pass
    if not settings.get("numpy", True):
        return ""
    try:
        import numpy

        # reduced later at the first array otherwise, in each worker again
        import numpy.ma  # noqa: F401
    except Exception:
        return ""
    return str(numpy.__version__)


class _Template(object):
    def __init__(self, sock, board, numpy):
        # type: (socket.socket, Any, str) -> None
        self._sock = sock
        self._board = board
        self._reader = links.Reader()
        self._children = {}  # type: Dict[int, Tuple[Any, bool]]
        self._wake, wake = os.pipe()
        for fd in (self._wake, wake):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake)
        self._wake_end = wake
        self._say((READY, numpy))

    def _say(self, value):
        # type: (Any) -> None
        links.ask(self._sock, value)

    def run(self):
        # type: () -> None
        gc.collect()
        if hasattr(gc, "freeze"):
            gc.freeze()  # collections in workers then leave these shared pages alone
        try:
            while True:
                ready = select.select([self._sock.fileno(), self._wake], [], [])[0]
                if self._wake in ready:
                    try:
                        os.read(self._wake, 4096)
                    except BlockingIOError:
                        pass
                    self._reap()
                if self._sock.fileno() in ready:
                    data, fds = links.receive(self._sock)
                    if not data:
                        return
                    for command, files in self._reader.feed(data, fds):
                        self._do(command, files)
        except ConnectionError:
            pass
        finally:
            for pid, (_, group) in self._children.items():
                if group:
                    procs.kill_group(pid)

    def _do(self, command, files):
        # type: (Any, List[int]) -> None
        kind, name = command[:2]
        if kind == REQUIRE:
            self._say((LACKS, name, [item for item in command[2] if not _can_import(item)]))
            return
        try:
            pid = os.fork()
        except OSError as error:
            self._say((GONE, name, None, None, "cannot fork: %s" % error))
            for fd in files:
                os.close(fd)
            return
        if pid == 0:
            self._child(command, files)
        for fd in files:
            os.close(fd)
        if kind == WORKER:
            try:
                os.setpgid(pid, pid)  # here and there, so that it holds for both from now on
            except OSError:
                pass
        self._children[pid] = (name, kind == WORKER)
        self._say((BORN, name, pid))

    def _child(self, command, files):
        # type: (Any, List[int]) -> None
        """Never returns."""
        try:
            signal.set_wakeup_fd(-1)
            if command[0] == TEMPLATE:
                _become(files[0], self._board, command[2])
            else:
                self._worker(command, files)
        finally:
            os._exit(1)

    def _worker(self, command, files):
        # type: (Any, List[int]) -> None
        _, _, place, nonce = command
        os.setpgid(0, 0)
        procs.die_with_parent()
        procs.adopt_orphans()  # so that they are still known as this worker's
        channel, replies, out, err = files[:4]
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        commands, answers, *bell = _keep_only(channel, replies, *files[4:])
        os.environ[procs.WORKER] = nonce
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        worker.main(links.adopt(commands), links.adopt(answers), bell, self._board, place)

    def _reap(self):
        # type: () -> None
        for pid in _ended(self._children):
            name, group = self._children.pop(pid)
            if group:
                procs.kill_group(pid)  # before its number can be anybody else's
            status = os.waitpid(pid, 0)[1]
            if os.WIFSIGNALED(status):
                self._say((GONE, name, None, os.WTERMSIG(status), ""))
            else:
                self._say((GONE, name, os.WEXITSTATUS(status), None, ""))
        self._end_orphans()

    def _end_orphans(self):
        # type: () -> None
        """Kill and reap children that are not ours: their worker is dead."""
        deadline = time.monotonic() + ORPHANS_SECONDS
        while True:
            orphans = procs.children(os.getpid()) - set(self._children)
            if not orphans or time.monotonic() > deadline:
                return
            procs.kill(orphans | procs.descendants(orphans))
            for pid in orphans:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except OSError:
                    pass
            time.sleep(0.001)


def _ended(pids):
    # type: (Any) -> List[int]
    """Which of our children have ended, without reaping them."""
    if hasattr(os, "waitid"):
        found = []
        for pid in pids:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                found.append(pid)
        return found
    return [pid for pid in pids if not procs.is_alive(pid)]


def _can_import(name):
    # type: (str) -> bool
    if name in sys.modules or name in sys.builtin_module_names:
        return True
    importlib.invalidate_caches()
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False
