"""Files without names in which answers pass between processes of a host: blobs, written once."""

import mmap
import os
import tempfile
from typing import Any, List, Optional

from worker_payload import codec

READ_BYTES = 256 << 10  # up to this many, reading is cheaper than a mapping and its page faults


def make(folder):
    # type: (str) -> Optional[int]
    """An empty file, in memory where that can be, else in this folder; None if nothing works."""
    fd = in_memory()
    if fd is not None:
        return fd
    try:
        with tempfile.TemporaryFile(dir=folder) as handle:
            return os.dup(handle.fileno())
    except OSError:
        return None


def in_memory():
    # type: () -> Optional[int]
    """An empty file in memory; None where the system, or this Python, has none (Linux, 3.8)."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        return os.memfd_create("jam answer", os.MFD_CLOEXEC)
    except OSError:
        return None


def put(fd, parts):
    # type: (int, List[Any]) -> bool
    """Write a blob; False if there is no room, and the file is empty as before."""
    try:
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                view = view[os.write(fd, view) :]
        return True
    except OSError:
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        return False


def take(fd, access=mmap.ACCESS_COPY):
    # type: (int, int) -> List[memoryview]
    """The segments of a blob, as memory of our own; the descriptor is closed."""
    try:
        size = os.fstat(fd).st_size
        if size <= READ_BYTES:
            return codec.blob_segments(bytearray(os.pread(fd, size, 0)))
        return codec.blob_segments(memoryview(mmap.mmap(fd, 0, access=access)))
    finally:
        os.close(fd)
