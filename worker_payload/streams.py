"""stdout and stderr of a worker, which tell at once whether anything was done to them."""

import io
import os
import select
import sys
from typing import Any, List


class _Marks(object):
    """touched: something was done to a stream. wrote: it has written."""

    touched = wrote = False


class _Raw(io.FileIO):
    """Standard output or error."""

    def __init__(self, fd, marks):
        # type: (int, _Marks) -> None
        super().__init__(fd, "w", closefd=False)
        self._marks = marks

    def write(self, data):
        # type: (Any) -> int
        self._marks.touched = self._marks.wrote = True
        return super().write(data)

    def close(self):
        # type: () -> None
        self._marks.touched = True
        super().close()


class _Buffer(io.BufferedWriter):
    """In front of it. What is written, flushed or taken off passes here, so that nobody has to look
    at streams to which nothing was done."""

    def __init__(self, raw, marks):
        # type: (_Raw, _Marks) -> None
        super().__init__(raw)
        self._marks = marks

    def write(self, data):
        # type: (Any) -> int
        self._marks.touched = True
        return super().write(data)

    def flush(self):
        # type: () -> None
        self._marks.touched = True
        super().flush()


class Streams(object):
    """stdout and stderr of this process, put right again after each task."""

    def __init__(self):
        # type: () -> None
        self._kept = [os.dup(fd) for fd in (1, 2)]
        self._marks = _Marks()
        poller = select.poll()
        for fd in (1, 2):
            poller.register(fd, 0)
        self._poll = poller.poll  # tells in one go of both whether something is wrong with them
        self._open()

    def _open(self):
        # type: () -> None
        self.out, self.err = (
            io.TextIOWrapper(
                _Buffer(_Raw(fd, self._marks), self._marks),
                encoding="utf-8",
                errors="backslashreplace",
                line_buffering=True,
                write_through=True,
            )
            for fd in (1, 2)
        )
        sys.stdout, sys.stderr = self.out, self.err
        sys.__stdout__, sys.__stderr__ = self.out, self.err  # type: ignore[misc]

    def settle(self):
        # type: () -> int
        """Flush; 1 if anything was written since the last time. Undoes closing and replacing."""
        try:
            whole = sys.stdout is self.out and sys.stderr is self.err and not self._marks.touched
            if whole and not self._poll(0):
                return 0
        except AttributeError:  # sys has none
            pass
        return self._put_right()

    def _put_right(self):
        # type: () -> int
        ours = self.out, self.err
        for other in _there():
            if other is not self.out and other is not self.err:
                _flush(other)
        sys.stdout, sys.stderr = ours
        broken = not all([_flush(stream) for stream in ours])
        wrote = self._marks.wrote
        if broken or any(event & select.POLLNVAL for _, event in self._poll(0)):
            broken = True
            for fd, kept in zip((1, 2), self._kept):
                os.dup2(kept, fd)
        if broken or not all(getattr(stream, "write_through", True) for stream in ours):
            self._open()
        self._marks.touched = self._marks.wrote = False
        return 1 if wrote else 0


def _flush(stream):
    # type: (Any) -> bool
    try:
        stream.flush()
        return True
    except BaseException:  # closed, or not a file at all
        return False


def _there():
    # type: () -> List[Any]
    """What stands for the streams now: user code may have taken them away."""
    return [getattr(sys, "stdout", None), getattr(sys, "stderr", None)]


def flush_what_is_there():
    # type: () -> None
    for stream in _there():
        _flush(stream)
