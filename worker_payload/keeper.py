"""The smallest process: it keeps one child, and cleans up after it.

Of the two, whoever survives a SIGKILL of the other ends what is left: the keeper adopts all orphans
among its descendants and kills them when its child is dead; the child holds the reading end
of a pipe, reads EOF when the keeper is gone, and ends itself and its own.
"""

import os
import signal
from typing import Callable

from worker_payload import procs


def keep(child, log):
    # type: (Callable[[int], int], Callable[[str], None]) -> int
    """Run child(pipe) in a process of its own until it ends; its exit status, 128 + n for signal n.

    No descendant is alive on return, wherever it moved."""
    if not procs.adopt_orphans():
        log("cannot adopt orphans here: what leaves its group may be left behind")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(writing)
            status = child(reading)
        except BaseException:
            import traceback

            log(traceback.format_exc())
        finally:
            os._exit(status)
    os.close(reading)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: procs.kill([pid], signal.SIGTERM))
    while True:
        done, status = os.waitpid(-1, 0)
        if done == pid:
            break
    left = procs.end_descendants(os.getpid())
    if left:
        log("%d processes could not be ended" % left)
    if os.WIFSIGNALED(status):
        log("the agent was ended by signal %d" % os.WTERMSIG(status))
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)
