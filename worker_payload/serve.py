"""What runs in the background: a keeper, and below it the agent that holds the project's lock."""

import fcntl
import gc
import json
import os
import sys
import time

from worker_payload import attach, keeper, layout, procs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

IDLE = 900.0
_LOCK_WITHIN = 15.0  # seconds that a predecessor may take to end
_LOG_MAX = 1 << 20


class Log(object):
    def __init__(self, run, project, build):
        # type: (layout.RunDir, str, str) -> None
        self._fd = os.open(
            run.file(layout.log_name(project, build)),
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )

    def __call__(self, text):
        # type: (str) -> None
        line = "%s [%d] %s\n" % (time.strftime("%Y-%m-%d %H:%M:%S"), os.getpid(), text)
        try:
            os.write(self._fd, line.encode("utf-8", "replace"))
        except OSError:
            pass

    def take_standard_streams(self):
        # type: () -> None
        """What anybody prints by mistake goes here, not to a terminal that may be stopped."""
        if os.isatty(1):
            # kept, unused: screen takes a terminal that nobody holds for the end of its window
            os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(self._fd, 1)
        os.dup2(self._fd, 2)

    def begin(self):
        # type: () -> None
        if os.fstat(self._fd).st_size > _LOG_MAX:
            os.ftruncate(self._fd, 0)


def serve(run, project, build, options):
    # type: (layout.RunDir, str, str, List[str]) -> int
    """options: "last" ends the agent with its last master."""
    log = Log(run, project, build)
    if not os.environ.get(procs.OWNER, "").startswith(layout.owner_prefix(run, project)):
        os.environ[procs.OWNER] = layout.owner(run, project, build)
    if sys.stdout.isatty():
        print(
            "jam: agent of project %s, log in %s"
            % (project, run.file(layout.log_name(project, build)))
        )
        sys.stdout.flush()
    log.take_standard_streams()
    try:
        os.chdir(os.environ.get("HOME") or "/")
    except OSError:
        os.chdir("/")
    idle = 0.0 if "last" in options else float(os.environ.get("JAM_IDLE") or IDLE)
    return keeper.keep(lambda pipe: _agent(run, project, build, idle, pipe, log), log)


def _agent(run, project, build, idle, pipe, log):
    # type: (layout.RunDir, str, str, float, int, Log) -> int
    lock = _lock(run, project, build)
    if lock is None:
        return 0
    log.begin()
    gc.disable()  # what is imported stays
    # imported here, so that the keeper stays small
    from worker_payload.agent import Agent
    from worker_payload.host import MASTER_GONE_AFTER

    if hasattr(gc, "freeze"):
        gc.freeze()
    gc.enable()
    gone_after = float(os.environ.get("JAM_MASTER_GONE_AFTER") or MASTER_GONE_AFTER)
    Agent(project, build, run, lock, idle, gone_after, pipe, log).run()
    return 0


def _lock(run, project, build):
    # type: (layout.RunDir, str, str) -> Optional[int]
    """The lock that an agent holds all its life; None if another one lives."""
    fd = os.open(
        run.file(layout.lock_name(project, build)),
        os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
    )
    deadline = time.monotonic() + _LOCK_WITHIN
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if attach._listens(run, project, build) or time.monotonic() > deadline:
                os.close(fd)
                return None
            time.sleep(0.01)
    before = read_lock(fd).get("owner")
    mine = os.environ[procs.OWNER]
    if before and before != mine:
        # what a predecessor left that was killed together with its keeper
        procs.kill(procs.marked(lambda marks: marks.get(procs.OWNER) == before))
    record = {
        "owner": mine,
        "pid": os.getpid(),
        "keeper": os.getppid(),
        "project": project,
        "build": build,
        "started": time.time(),
    }
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(record).encode("ascii"), 0)
    except OSError:  # a full disk; `fire` then finds us by our marks
        pass
    return fd


def read_lock(fd):
    # type: (int) -> Dict[str, Any]
    """What the holder of a lock, or its last one, wrote about itself."""
    try:
        found = json.loads(os.pread(fd, 65536, 0).decode("ascii"))
        return found if type(found) is dict else {}
    except (OSError, ValueError):
        return {}
