"""What a host keeps of a call whose answers it combines, and which of it a worker is to join.

A *part* is an encoded answer for a block of slices, as a worker gave it: we never decode it. Parts
that make up a block of the tree lie in one *pile*, in order, and are joined by a worker: a few that
are large at once, small ones when there are many, or when the host has nothing else to do.
"""

from typing import Any, List, NamedTuple, Optional, Set, Tuple

from worker_payload.tree import Tree

LARGE = 32 << 10  # answers from this size on are handed over in files
JOIN_BYTES = 1 << 20  # that lie in piles are worth a worker's turn; more is for several workers
JOIN_PARTS = 256  # likewise
FILES = 40  # descriptors that may come with the tasks that a worker is given, before it gets none
# for its answers: together with their slices they have to fit into one message
_NEVER = float("inf")


class Part(NamedTuple):
    """The answer for a block of slices: its segments, or a file that is the blob. since: when the
    first of them came."""

    first: int
    slices: int
    size: int
    segments: Optional[List[Any]]
    fd: Optional[int]
    since: float = 0.0


class Join(object):
    """What a worker is to join, in order. deaths: workers that died of it. since: of its parts."""

    def __init__(self, first, count, parts):
        # type: (int, int, List[Part]) -> None
        self.first = first
        self.count = count
        self.parts = parts
        self.deaths = 0
        self.since = min(part.since for part in parts)


class Kept(object):
    """Of one call."""

    def __init__(self, total):
        # type: (int) -> None
        self.total = total
        self.computed = []  # type: List[List[Any]]  # slices of which the master has not been told
        self.joins = set()  # type: Set[Join]  # under way
        self.filling = 0  # parts on their way into files
        self.asked = False  # the master wants answers whenever there is nothing to do
        self.large = False  # its answers are
        self.largest = 0  # bytes of any of them
        self.broken = False  # reduce raised, and what is kept is of no use
        self.size = 0  # bytes that are kept, without those that are being joined
        self.oldest = _NEVER  # no part is older
        self._piled = self._pieces = 0  # bytes and parts in piles of several
        self._tree = Tree(total, self._pile)

    def add(self, part):
        # type: (Part) -> None
        self.size += part.size
        self.oldest = min(self.oldest, part.since)
        self._tree.add(part.first, part.slices, [part])

    def _pile(self, left, right, first, count):
        # type: (List[Part], List[Part], int, int) -> List[Part]
        for pile in (left, right):
            if len(pile) == 1:
                self._piled += pile[0].size
                self._pieces += 1
        return left + right

    def worth_joining(self):
        # type: () -> bool
        return self._piled >= JOIN_BYTES or self._pieces >= JOIN_PARTS

    def take_joins(self, before=_NEVER):
        # type: (float) -> List[Join]
        """All that can be joined, or what of it came before this time; it is kept no longer."""
        found = []  # type: List[Join]
        for first, (count, pile) in list(self._tree.blocks.items()):
            if len(pile) > 1 and min(part.since for part in pile) < before:
                del self._tree.blocks[first]
                size = sum(part.size for part in pile)
                self._piled -= size
                self._pieces -= len(pile)
                self.size -= size
                self._split(first, count, pile, found)
        self.joins.update(found)
        return found

    def _split(self, first, count, pile, found):
        # type: (int, int, List[Part], List[Join]) -> None
        """A join, or what can be joined first, by several workers."""
        if len(pile) == 1:
            self.add(pile[0])
        elif len(pile) == 2 or (
            len(pile) <= JOIN_PARTS and sum(part.size for part in pile) <= JOIN_BYTES
        ):
            found.append(Join(first, count, pile))
        else:
            half = 1 << (count - 1).bit_length() - 1
            left = [part for part in pile if part.first < first + half]
            self._split(first, half, left, found)
            self._split(first + half, count - half, pile[len(left) :], found)

    def take_old(self, before):
        # type: (float) -> List[Part]
        """Blocks that came before this time, as far as they are joined; they are kept no longer."""
        found = []  # type: List[Part]
        self.oldest = _NEVER
        for first, (_, pile) in sorted(self._tree.blocks.items()):
            since = min(part.since for part in pile)
            if len(pile) == 1 and since < before:
                del self._tree.blocks[first]
                self.size -= pile[0].size
                found += pile
            else:
                self.oldest = min(self.oldest, since)
        return found

    def take_all(self):
        # type: () -> List[Part]
        """All parts, in order; none is kept any longer."""
        blocks, self._tree.blocks = self._tree.blocks, {}
        self.size = self._piled = self._pieces = 0
        self.oldest = _NEVER
        return [part for first in sorted(blocks) for part in blocks[first][1]]

    def take_computed(self):
        # type: () -> List[List[Any]]
        computed, self.computed = self.computed, []
        return computed


def command(kind, task, files, spare, fds):
    # type: (int, Any, Any, List[int], List[int]) -> List[Any]
    """What a worker has to know of a task before it comes. files: of its worker, by ticket."""
    kept = task.call.combine
    parts = None  # type: Optional[List[Tuple[int, int, Any]]]
    if task.join is not None:
        parts = []
        for part in task.join.parts:
            segments = None
            if part.fd is not None:
                fds.append(part.fd)
            else:
                segments = [bytes(segment) for segment in part.segments]
            parts.append((part.first, part.slices, segments))
    writes = bool(kept.large and spare and len(fds) < FILES)
    if writes:
        files[task.ticket] = spare.pop()
        fds.append(files[task.ticket])
    return [kind, task.call.serial, task.ticket, task.id, parts, writes, parts is None]
