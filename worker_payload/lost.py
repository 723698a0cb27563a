"""Why a worker may have died, as far as the system tells."""

import signal
from typing import Optional


class Obituary(object):
    """Counts the kernel's out-of-memory kills, so that a new one explains a death."""

    def __init__(self):
        # type: () -> None
        self._kills = _oom_kills()

    def note(self, number, by_us):
        # type: (Optional[int], bool) -> str
        """A hint on a death by this signal, or "". by_us: the agent sent it."""
        if number is None or by_us:
            return ""
        kills, before = _oom_kills(), self._kills
        self._kills = kills
        if number == signal.SIGKILL and kills > before:
            return "out of memory: the system killed it"
        if number == signal.SIGKILL:
            return "killed from outside, perhaps for its use of memory"
        if number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
            return "a crash in compiled code"
        return ""


def _oom_kills():
    # type: () -> int
    try:
        with open("/proc/vmstat") as handle:
            for line in handle:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
