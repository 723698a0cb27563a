"""Processes of this host, as /proc shows them; where there is none, nobody is found.

Used to end what a dead process left behind: its descendants, wherever they moved, and all that
carry a mark in the environment they were started with.
"""

import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterable, List, Optional, Set

OWNER = "JAM_OWNER"  # in the environment of everything an agent starts; see layout.owner
WORKER = "JAM_WORKER"  # in the environment of what a worker's user code starts

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Process(object):
    """state: one letter; Z is a zombie. started: clock ticks after boot."""

    def __init__(self, pid, parent, group, session, state, started):
        # type: (int, int, int, int, str, int) -> None
        self.pid = pid
        self.parent = parent
        self.group = group
        self.session = session
        self.state = state
        self.started = started


def look(pid):
    # type: (int) -> Process
    """Raises OSError if there is no such process."""
    with open("/proc/%d/stat" % pid, "rb") as handle:
        data = handle.read()
    fields = data[data.rindex(b")") + 2 :].split()
    parent, group, session = map(int, fields[1:4])
    return Process(pid, parent, group, session, fields[0].decode(), int(fields[19]))


def everyone():
    # type: () -> Dict[int, Process]
    found = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return {}
    for name in names:
        if name.isdigit():
            try:
                found[int(name)] = look(int(name))
            except (OSError, ValueError):
                pass
    return found


def children(pid):
    # type: (int) -> Set[int]
    """Also those that have ended and are not reaped."""
    found = []  # type: List[bytes]
    try:
        for thread in os.listdir("/proc/%d/task" % pid):
            try:
                with open("/proc/%d/task/%s/children" % (pid, thread), "rb") as handle:
                    found += handle.read().split()
            except FileNotFoundError:
                if os.path.exists("/proc/%d/task/%s" % (pid, thread)):
                    raise  # a kernel without these files
    except OSError:
        return set(process.pid for process in everyone().values() if process.parent == pid)
    return set(map(int, found))


def descendants(pids):
    # type: (Iterable[int]) -> Set[int]
    """Children, their children and so on; without these pids themselves, without zombies."""
    among = everyone()
    children = {}  # type: Dict[int, List[int]]
    for process in among.values():
        children.setdefault(process.parent, []).append(process.pid)
    found = set()  # type: Set[int]
    pending = list(pids)
    while pending:
        for child in children.get(pending.pop(), ()):
            if child not in found:
                found.add(child)
                pending.append(child)
    return set(pid for pid in found if among[pid].state != "Z")


def marked(accept):
    # type: (Callable[[Dict[str, str]], bool]) -> Set[int]
    """Live processes of ours whose OWNER and WORKER, as they were started with, are accepted."""
    found = set()  # type: Set[int]
    uid = os.getuid()
    try:
        names = os.listdir("/proc")
    except OSError:
        return found
    for name in names:
        if not name.isdigit():
            continue
        try:
            if os.stat("/proc/" + name).st_uid != uid:
                continue
            with open("/proc/%s/environ" % name, "rb") as handle:
                data = handle.read()
        except OSError:
            continue
        if b"JAM_" not in data:
            continue
        marks = {}
        for item in data.split(b"\0"):
            key, _, value = item.decode("utf-8", "replace").partition("=")
            if key in (OWNER, WORKER):
                marks[key] = value
        if marks and accept(marks) and is_alive(int(name)):
            found.add(int(name))
    return found


def is_alive(pid):
    # type: (int) -> bool
    try:
        return look(pid).state not in "ZX"
    except (OSError, ValueError):
        return False


def kill(pids, number=signal.SIGKILL):
    # type: (Iterable[int], int) -> None
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            pass


def kill_group(group, number=signal.SIGKILL):
    # type: (int, int) -> None
    """To a group whose leader was not reaped yet, so that the number is still its own."""
    try:
        os.killpg(group, number)
    except OSError:
        pass


def end_descendants(pid, seconds=5.0):
    # type: (int, float) -> int
    """Kill all descendants of a live process until there are none; how many are left.

    They are stopped in passing only: one that forks faster than we look is met again."""
    deadline = time.monotonic() + seconds
    while True:
        found = descendants([pid])
        if not found or time.monotonic() > deadline:
            return len(found)
        kill(found)
        if pid == os.getpid():
            reap()
        time.sleep(0.005)


def reap():
    # type: () -> None
    """Collect all children of this process that ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except OSError:
        pass


def _collect(pid):
    # type: (int) -> None
    try:
        os.waitpid(pid, os.WNOHANG)
    except OSError:
        pass


def reap_strangers(most):
    # type: (int) -> None
    """Collect children of this process that ended in a session that is not its own, if there are
    more than `most`: they daemonised themselves, and were adopted. Of a few we cannot know, and
    somebody may still ask for their status."""
    mine = os.getsid(0)
    ended = []
    for pid in children(os.getpid()):
        try:
            found = look(pid)
        except (OSError, ValueError):
            continue
        if found.state == "Z" and found.session != mine:
            ended.append(pid)
    if len(ended) > most:
        for pid in ended:
            _collect(pid)


def die_with_parent(number=signal.SIGKILL):
    # type: (int) -> None
    """Ask the system to end this process with its parent, where it can (Linux)."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans():
    # type: () -> bool
    """Become the parent of all descendants whose own parent ended. False where impossible."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


_libc_prctl = None  # type: Optional[Callable[..., int]]  # looked up once: forks of us have it


def _prctl(option, value):
    # type: (int, int) -> bool
    global _libc_prctl
    try:
        if _libc_prctl is None:
            import ctypes

            _libc_prctl = ctypes.CDLL(None).prctl
        return _libc_prctl(option, value, 0, 0, 0) == 0
    except (ImportError, AttributeError, OSError):
        return False
