"""Ctrl-C outside a task: one line, and the exit status 130.

Only what starts a command line calls `end_at_once`; to import jam changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130
WORD = "interrupted"


def end_at_once() -> None:
    """From now on Ctrl-C ends the process where it is, but inside `raised`.

    No task runs then, so there is nothing to end; KeyboardInterrupt would come out of some import
    as a traceback, or not at all. A SIGINT that is ignored (nohup) or handled stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            os.write(2, f"{WORD}\n".encode())  # what is interrupted may be a print
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """For a task: Ctrl-C is KeyboardInterrupt, as Python has it, and its work can be ended."""
    ours = signal.getsignal(signal.SIGINT) is _end
    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, _end)
