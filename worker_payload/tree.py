"""The tree along which answers are combined: which block of slices goes with which.

The slices 0 .. total - 1 of a call are cut into aligned blocks: a block of 2^k slices begins at a
multiple of 2^k, and one that would reach beyond the last slice ends there. Two halves of a block
are *siblings*. Whoever joins blocks joins siblings, the left one first: so what is joined with what
depends on the number of slices alone. A block is named by its first slice and how many it has.

>>> sibling(4, 2, 7), sibling(6, 1, 7), sibling(4, 3, 7), sibling(0, 7, 7)
((6, 1), (4, 2), (0, 4), None)
"""

from typing import Any, Callable, Dict, Optional, Tuple

Block = Tuple[int, int]
Join = Callable[[Any, Any, int, int], Any]  # left, right, first, count of both


def is_block(first, count, total):
    # type: (int, int, int) -> bool
    """Whether these slices are a block of the tree."""
    if first < 0 or count < 1 or first + count > total:
        return False
    size = 1 << (count - 1).bit_length()
    return not first & (size - 1) and count == min(size, total - first)


def sibling(first, count, total):
    # type: (int, int, int) -> Optional[Block]
    """The block that this one is joined with; None for the whole."""
    size = 1 << (count - 1).bit_length()
    while size < total:
        if first & size:
            return first - size, size
        if first + size < total:
            return first + size, min(size, total - first - size)
        size *= 2  # there is nothing to the right of it: it is all of the next larger block too
    return None


class Tree(object):
    """Values of blocks, joined as soon as both siblings are here.

    blocks: first slice -> (count, value) of those that wait for their sibling. What `join` raises
    comes through; the tree is of no more use then."""

    def __init__(self, total, join):
        # type: (int, Join) -> None
        self.total = total
        self.blocks = {}  # type: Dict[int, Tuple[int, Any]]
        self._join = join

    def add(self, first, count, value):
        # type: (int, int, Any) -> None
        """A block that is not here yet, nor any part of it."""
        blocks, total = self.blocks, self.total
        while True:
            other = sibling(first, count, total)
            if other is None:
                break
            there = blocks.get(other[0])
            if there is None or there[0] != other[1]:
                break
            del blocks[other[0]]
            count += there[0]
            if other[0] < first:
                first = other[0]
                value = self._join(there[1], value, first, count)
            else:
                value = self._join(value, there[1], first, count)
        blocks[first] = count, value
