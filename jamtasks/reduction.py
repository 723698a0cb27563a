"""Results into one: the default reduction, and a fold in slice order however results arrive.

Addition of floats is not associative, so the order and the pairing are part of the answer: always
((r0 + r1) + r2) + ..., whatever the number of workers and the order in which they finish.
"""

from __future__ import annotations

import errno
import functools
import io
import operator
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from worker_payload import room, sums
from worker_payload.wire import Buffer

from .errors import JamError, ReduceError

IN_MEMORY = 32 << 20  # bytes of encoded results ahead of the fold that stay in memory
IN_FILE = 4 << 30  # and then in a file

Reduce = Callable[[Any, Any], Any]
Decode = Callable[[Sequence[Buffer]], Any]


def default_reduce(a: Any, b: Any) -> Any:
    """The sum of two results.

    Sequences of equal length (lists, tuples) add element by element, as `+` adds their elements.
    Arrays of equal shape, numbers, strings and anything else add with `+`. Raises ReduceError."""
    try:
        return sums.default_reduce(a, b)
    except sums.CannotAdd as error:
        raise ReduceError(str(error), error.hint) from error.__cause__


def reduced(reduce: Reduce, value: Any, other: Any, index: int) -> Any:
    """reduce(value, other). index: the slice that `other` is of. Raises ReduceError."""
    return all_reduced(reduce, [value, other], [-1, index])


def all_reduced(reduce: Reduce, values: Sequence[Any], slices: Sequence[int]) -> Any:
    """reduce(reduce(value, value), value) and so on. slices: that each is of. Raises
    ReduceError."""
    rest = iter(values)
    try:
        return functools.reduce(reduce, rest)
    except JamError as error:
        whose = _taken_last(slices, rest)
        raise ReduceError(f"{whose} does not fit: {error.message}", error.hint) from error
    except Exception as error:  # whatever the user's reduce raises
        whose = _taken_last(slices, rest)
        raise ReduceError(
            f"{whose} does not fit: reduce raised {sums.kind(error)}: {error}"
        ) from error


def _taken_last(slices: Sequence[int], rest: Iterator[Any]) -> str:
    return f"slice {slices[len(slices) - operator.length_hint(rest) - 1]}"


class OrderedFold:
    """Folds the results of slices 0 .. count-1 in this order, as they come.

    Results ahead of the fold wait as they came, encoded: in memory, then in an unlinked file.
    `full` says that both are used up: then only slice `next` should be worked on. Results that
    come all the same are kept. Use as a context manager, or call `close`."""

    def __init__(
        self,
        reduce: Reduce,
        count: int,
        *,
        in_memory: int = IN_MEMORY,
        in_file: int = IN_FILE,
        directory: str | None = None,
    ):
        self.next = 0  # the slice that the fold waits for
        self._reduce = reduce
        self._count = count
        self._waiting: dict[int, tuple[_Kept, Decode, int] | None] = {}  # None: skipped
        self._memory = in_memory
        self._file = _Overflow(in_file, directory)
        self._value: Any = None
        self._any = False

    @property
    def full(self) -> bool:
        """Nothing beyond slice `next` should be handed out."""
        return self._file.full

    @property
    def ahead(self) -> int:
        """How many answers wait for slice `next`."""
        return len(self._waiting)

    def add(self, index: int, segments: Sequence[Buffer], decode: Decode, span: int = 0) -> None:
        """The result of a slice; a second one of the same slice is not counted.

        decode: makes the value of the segments, when its turn comes. span: so many slices from
        this one on have a result in these segments; decode makes a list of them. A list of
        segments is emptied when they are used. Raises ReduceError, and what decode raises."""
        if not self.next <= index < self._count or index in self._waiting:
            return
        if index != self.next:
            self._waiting[index] = self._keep(segments), decode, span
            return
        self._take(segments, decode, span)
        self._catch_up()

    def skip(self, index: int) -> None:
        """The slice failed, and the result does without it."""
        if index != self.next:
            if self.next < index < self._count:
                self._waiting.setdefault(index, None)
            return
        self._leave_out()
        self._catch_up()

    def result(self) -> Any:
        """What all slices came to. Raises ReduceError if one is missing, or all were skipped."""
        if self.next < self._count:
            raise ReduceError(f"slice {self.next} of {self._count} has no result")
        if not self._any:
            raise ReduceError("there are no results to reduce")
        return self._value

    def close(self) -> None:
        self._waiting.clear()
        self._value = None
        self._file.close()

    def __enter__(self) -> OrderedFold:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _catch_up(self) -> None:
        while self.next in self._waiting:
            waiting = self._waiting.pop(self.next)
            if waiting is None:
                self._leave_out()
                continue
            kept, decode, span = waiting
            if isinstance(kept, list):
                self._memory += _size(kept)
                segments: Sequence[Buffer] = kept
            else:
                segments = self._file.take(kept)
            self._take(segments, decode, span)
        if not self._waiting:
            self._file.start_over()

    def _leave_out(self) -> None:
        """Slice `next` has no result."""
        self.next += 1

    def _take(self, segments: Sequence[Buffer], decode: Decode, span: int) -> None:
        """What comes to slice `next` is here."""
        value = decode(segments)
        if isinstance(segments, list):
            segments.clear()  # whoever gave them has them still, and what is not used may go
        if not span:
            self._fold(self.next, value)
            return
        for one in value:
            self._fold(self.next, one)

    def _fold(self, index: int, value: Any) -> None:
        self.next = index + 1
        if not self._any:
            self._value, self._any = value, True
            return
        self._value = reduced(self._reduce, self._value, value, index)

    def _keep(self, segments: Sequence[Buffer]) -> _Kept:
        size = _size(segments)
        if size > self._memory:
            spilled = self._file.put(segments)
            if spilled is not None:
                return spilled
        self._memory -= size
        return list(segments)


_Spilled = tuple[int, tuple[int, ...]]  # where in the file, and the lengths
_Kept = _Spilled | list[Buffer]


def _size(segments: Sequence[Buffer]) -> int:
    return sum(map(len, segments))


class _Overflow:
    """A file without a name, for what does not fit into memory."""

    def __init__(self, limit: int, directory: str | None):
        self.full = False
        self._limit = limit
        self._directory = directory
        self._handle: io.FileIO | None = None
        self._end = 0

    def put(self, segments: Sequence[Buffer]) -> _Spilled | None:
        """None if the disk is full; the segments then have to stay where they are."""
        start = self._end
        try:
            if self._handle is None:
                self._handle = tempfile.TemporaryFile(  # noqa: SIM115 (it lives as long as we)
                    buffering=0, dir=self._directory
                )
            end = start
            for segment in segments:
                view = memoryview(segment).cast("B")
                while view:
                    done = os.pwrite(self._handle.fileno(), view, end)
                    end += done
                    view = view[done:]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise JamError(f"cannot keep results that came early: {error}") from error
            self.full = True
            return None
        self._end = end
        self.full = self.full or self._end >= self._limit
        return start, tuple(map(len, segments))

    def take(self, spilled: _Spilled) -> list[Buffer]:
        """The segments, for the only time: writeable, as they came."""
        assert self._handle is not None
        position, lengths = spilled
        segments: list[Buffer] = []
        for length in lengths:
            segment = room.zeros(length)
            view = memoryview(segment)
            self._handle.seek(position)
            while view:
                done = self._handle.readinto(view)
                if not done:
                    raise JamError("results that came early were lost from their file")
                position += done
                view = view[done:]
            segments.append(segment)
        return segments

    def start_over(self) -> None:
        """Nothing in the file is needed any more."""
        self.full = False
        if self._end:
            assert self._handle is not None
            self._end = 0
            os.ftruncate(self._handle.fileno(), 0)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None
