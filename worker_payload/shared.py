"""Slices that are read from files where they are: both ends see them under one path.

What travels is a Part: which bytes of which files, and how to know that a file is the one that the
master sees. What it stands for is read by the worker, at the host.
"""

import hashlib
import os
from typing import Any, Dict, List, NamedTuple, Tuple

_SAMPLE = 4096

Stamp = Tuple[int, int, str]


class NotShared(Exception):
    """This host does not see the file that the master sees. Says which, and what differs."""


class Piece(NamedTuple):
    """start, stop: bytes, or rows of an array. size, seconds, sample: as `stamp` gives them."""

    path: str
    size: int
    seconds: int
    sample: str
    start: int
    stop: int


class Part(NamedTuple):
    """A slice. kind: "npy" (rows of one array) | "lines" (of text) | "files" (whole ones)."""

    kind: str
    pieces: Tuple[Piece, ...]


def stamp(path):
    # type: (str) -> Stamp
    """(size, modification time in whole seconds, SHA-256 of some of its bytes). Raises OSError."""
    with open(path, "rb") as handle:
        found = os.fstat(handle.fileno())
        sha = hashlib.sha256()
        for place in (0, found.st_size // 2, found.st_size - _SAMPLE):
            handle.seek(max(0, place))
            sha.update(handle.read(_SAMPLE))
    return found.st_size, int(found.st_mtime), sha.hexdigest()


def lines_of(data):
    # type: (bytes) -> List[str]
    """The lines in it, with their ends, as reading a file gives them."""
    # not splitlines(), to which form feeds and half a dozen more are line ends
    lines = [line + "\n" for line in data.decode("utf-8", "surrogateescape").split("\n")]
    rest = lines.pop()[:-1]
    return lines + [rest] if rest else lines


_checked = {}  # type: Dict[str, Stamp]


def load(value, writable=False):
    # type: (Any, bool) -> Any
    """What a Part stands for; anything else as it is. Raises NotShared."""
    if type(value) is not Part:
        return value
    for piece in value.pieces:
        _check(piece)
    if value.kind == "npy":
        import numpy

        (piece,) = value.pieces
        array = numpy.load(piece.path, mmap_mode="c" if writable else "r", allow_pickle=False)
        return numpy.asarray(array[piece.start : piece.stop])
    if value.kind == "files":
        return [(piece.path, _read(piece)) for piece in value.pieces]
    found = []  # type: List[str]
    for piece in value.pieces:
        found += lines_of(_read(piece))
    return found


def _check(piece):
    # type: (Piece) -> None
    expected = (piece.size, piece.seconds, piece.sample)
    if _checked.get(piece.path) == expected:
        found = os.stat(piece.path)
        if (found.st_size, int(found.st_mtime)) == expected[:2]:
            return
    try:
        seen = stamp(piece.path)
    except OSError as error:
        raise NotShared("%s: %s" % (piece.path, error.strerror))
    if seen != expected:
        words = ("size", "modification time", "content")
        differs = [word for word, a, b in zip(words, seen, expected) if a != b]
        raise NotShared("%s is another file here: its %s differs" % (piece.path, differs[0]))
    if len(_checked) > 10000:
        _checked.clear()
    _checked[piece.path] = seen


def _read(piece):
    # type: (Piece) -> bytes
    try:
        with open(piece.path, "rb") as handle:
            handle.seek(piece.start)
            return handle.read(piece.stop - piece.start)
    except OSError as error:
        raise NotShared("%s: %s" % (piece.path, error.strerror))
