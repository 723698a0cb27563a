"""Memory for long segments: of their own, so that it goes back to the system with the last user.

malloc would keep it in pieces: after a few thousand answers of a megabyte, four times what is in
use.
"""

import mmap
import sys
from typing import Any

OWN_FROM = 512 << 10  # bytes of a segment that has memory of its own
# Whether memory goes back with its last user. Elsewhere that takes a garbage collection, which does
# not come for the sake of memory that it does not know of.
PROMPT = sys.implementation.name == "cpython"
HUGE_FROM = (
    4 << 20
)  # and in large pages, as numpy has it: filling small ones takes four times as long
_OWN_FLAGS = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux, Python 3.8


def make(length):
    # type: (int) -> Any
    """An empty bytearray for a segment, or, if it is long, a view of zeros.

    These take room only as they are written to, so that a length need not be believed."""
    if length < OWN_FROM or not (_OWN_FLAGS and PROMPT):
        return bytearray()
    try:
        memory = mmap.mmap(-1, length, flags=_OWN_FLAGS)
    except (OSError, OverflowError, ValueError):
        return bytearray()  # too many of them, or a length that nobody has: it grows as bytes come
    if _HUGE is not None and length >= HUGE_FROM:
        try:
            memory.madvise(_HUGE)
        except OSError:
            pass  # a system without
    return memoryview(memory)


def zeros(length):
    # type: (int) -> Any
    """So many bytes to be written to. Raises MemoryError."""
    room = make(length)
    return room if len(room) == length else bytearray(length)


def copy(view):
    # type: (memoryview) -> Any
    """The same bytes, to be written to."""
    room = make(len(view))
    if isinstance(room, bytearray):
        return bytearray(view)
    room[:] = view
    return room
