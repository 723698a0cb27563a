"""Whose large answer goes to a master next.

A worker with a large answer asks first, and keeps it until it is told to go on: so the answers of a
host come one after the other, the lowest task first, and the master seldom has to keep any; and no
more of them is held here than what the channel has use for.
"""

from typing import Any, Dict, List, Tuple

LARGE = 1 << 20  # bytes from which an answer waits for its turn


class Turns(object):
    """Of one master. limit: bytes under way to it, beyond which nobody is told to go on."""

    def __init__(self, limit):
        # type: (int) -> None
        self._limit = limit
        self._waiting = {}  # type: Dict[int, Tuple[Any, int]]
        self._coming = {}  # type: Dict[int, int]  # bytes of what is on its way from a worker

    def ask(self, worker, order, size):
        # type: (int, Any, int) -> None
        """A worker has an answer of so many bytes. order: the lowest goes first."""
        self._waiting[worker] = (order, size)

    def leave(self, worker):
        # type: (int) -> None
        """Its answer is here, or will not come."""
        self._waiting.pop(worker, None)
        self._coming.pop(worker, None)

    def take(self, unsent):
        # type: (int) -> List[int]
        """The workers that are to go on now. unsent: bytes that are here."""
        taken = []  # type: List[int]
        if self._waiting:  # seldom
            unsent += sum(self._coming.values())
            for worker in sorted(self._waiting, key=lambda one: self._waiting[one][0]):
                if unsent >= self._limit:
                    break
                self._coming[worker] = size = self._waiting.pop(worker)[1]
                unsent += size
                taken.append(worker)
        return taken
