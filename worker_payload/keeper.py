"""The smallest process: it keeps one child, and cleans up after it.

Of the two, whoever survives a SIGKILL of the other ends what is left: the keeper adopts all orphans
among its descendants and kills them when its child is dead; the child holds the reading end
of a pipe, reads EOF when the keeper is gone, and ends itself and its own.
"""

import os
import signal
import time

from worker_payload import procs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

DRAIN = signal.SIGUSR1  # passed on to the child, which is to end when its work at hand is done


def keep(child, log, again=None):
    # type: (Callable[[int], int], Callable[[str], None], Optional[Callable[[int], Any]]) -> int
    """Run child(pipe) in a process of its own until it ends; its exit status, 128 + n for signal n.

    No descendant is alive on return, wherever it moved. again(status): asked whenever the child has
    ended and nothing of it is alive: seconds after which it is to be run anew, None for never. A
    keeper that was told to end asks too, and then ends."""
    if not procs.adopt_orphans():
        log("cannot adopt orphans here: what leaves its group may be left behind")
    told = _Told(again is not None)
    while True:
        status = _once(child, told, log)
        left = procs.end_descendants(os.getpid())
        if left:
            log("%d processes could not be ended" % left)
        if status > 128:
            log("its child was ended by signal %d" % (status - 128))
        pause = again(status) if again is not None else None
        if pause is not None:
            deadline = time.monotonic() + pause
            while not told.ending and time.monotonic() < deadline:
                time.sleep(0.05)
        if told.ending or pause is None:
            return status


class _Told(object):
    """What signals tell the keeper: it passes them on to its child, and ends with it."""

    def __init__(self, drains):
        # type: (bool) -> None
        self.ending = 0
        self.child = 0
        self._keeper = os.getpid()
        self._numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP] + [DRAIN] * drains

    def listen(self):
        # type: () -> None
        for number in self._numbers:
            signal.signal(number, self._on_signal)

    def pass_on(self):
        # type: () -> None
        if self.child:
            procs.kill([self.child], DRAIN if self.ending == DRAIN else signal.SIGTERM)

    def _on_signal(self, number, frame):
        # type: (int, Any) -> None
        if os.getpid() != self._keeper:
            os._exit(128 + number)  # a child that has no handlers of its own yet
        self.ending = number
        self.pass_on()


def _once(child, told, log):
    # type: (Callable[[int], int], _Told, Callable[[str], None]) -> int
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
    told.child = pid
    told.listen()
    if told.ending:
        told.pass_on()
    try:
        while True:
            done, status = os.waitpid(-1, 0)
            if done == pid:
                break
    finally:
        told.child = 0
        os.close(writing)
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)
