"""Tiny slices travel many to a task: how many, and which. Pure: no I/O, thread or clock.

A *span* is a run of consecutive slices that a worker maps one after the other and answers together.
How many it takes follows the measured time: enough that handing it over costs little beside the
work, never so many that others go without. A span is a task of the scheduler; one that comes back
half done, or that kills its worker, is cut into smaller ones. So slices are answered, and folded,
one by one all the same.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from worker_payload.wire import Buffer

SECONDS = 0.02  # that a span should take: between two a worker waits for half a millisecond
GROWTH = 8  # times the largest that came back whole: the first of a call are not typical
MOST = 10_000  # slices
BYTES = 64 << 10  # that a span's slices, or its answer, may take; a larger slice goes alone
SHARES = 4  # spans that each worker should still get out of what is left
_SAMPLES = 15


@dataclass(frozen=True)
class Span:
    """Slices first .. first + count - 1. digest: of its blob, if that does not travel in the task
    itself. parts: the blob."""

    first: int
    count: int
    parts: Sequence[Buffer] = ()
    size: int = 0
    digest: str | None = None

    def blob(self) -> Sequence[Buffer]:
        return self.parts


class Spans:
    """The spans of one call. total: how many slices there are, None while nobody knows.

    Guarded by whoever owns it."""

    def __init__(self, total: int | None = None):
        self.total = total
        self.cut = 0  # slices that were put into spans so far
        self.done = 0  # slices that were answered, or failed
        self.of: dict[int, Span] = {}  # task -> its span, until it is over
        self.again: deque[Span] = deque()  # slices without a task: cut them anew
        self.limit: int | None = None  # no slice from this one on, for now
        self.making = False  # slices are being put into a span: they are neither cut nor uncut
        self._task_at: dict[int, int] = {}  # first slice -> task
        self._seconds: deque[float] = deque(maxlen=_SAMPLES)  # per slice, of late
        self._answer = 0.0  # bytes per slice
        self._largest = 1

    @property
    def exhausted(self) -> bool:
        """There are no slices that have no task."""
        if self.again or self.making:
            return False
        return self.total is not None and self.cut >= self.total

    @property
    def waits(self) -> bool:
        """There are more slices, but not for now."""
        return not self.again and self.limit is not None and self.cut >= self.limit

    def size(self, workers: int, bytes_each: float = 0.0) -> int:
        """How many slices the next span should take. bytes_each: of a slice."""
        if not self._seconds:
            return 1
        count = int(SECONDS / max(statistics.median(self._seconds), 1e-7))
        largest = max(bytes_each, self._answer)
        if largest:
            count = min(count, int(BYTES / largest))
        count = min(count, GROWTH * self._largest, MOST)
        if self.total is not None:
            count = min(count, (self.total - self.cut) // (SHARES * max(1, workers)))
        return max(1, count)

    def add(self, task: int, span: Span) -> None:
        """The task stands for this span."""
        self.of[task] = span
        self._task_at[span.first] = task

    def task_at(self, first: int) -> int | None:
        """The task whose span begins with this slice."""
        return self._task_at.get(first)

    def first(self, task: int) -> int:
        """The first slice of a task's span; -1 if the task is over."""
        span = self.of.get(task)
        return span.first if span is not None else -1

    def answered(self, task: int, count: int, seconds: float, size: int) -> Span:
        """The first `count` slices of a task were answered; returns them as a span.

        seconds: what that took. size: bytes of the answer. Raises ValueError for a count that
        cannot be."""
        span = self.of[task]
        if not 1 <= count <= span.count:
            raise ValueError(f"{count} answers to a span of {span.count} slices")
        self._close(task)
        if count == span.count:
            self._largest = max(self._largest, count)
        else:
            self.again.append(Span(span.first + count, span.count - count))
        self._seconds.append(seconds / count)
        self._answer = max(size / count, 0.9 * self._answer)
        self.done += count
        return Span(span.first, count)

    def failed(self, task: int, at: int) -> int:
        """Slice `at` of a task failed: those around it get other tasks. Returns its number."""
        span = self.of[task]
        if not 0 <= at < span.count:
            raise ValueError(f"slice {at} of a span of {span.count} failed")
        self._close(task)
        self.done += 1
        if at:
            self.again.append(Span(span.first, at))
        if at + 1 < span.count:
            self.again.append(Span(span.first + at + 1, span.count - at - 1))
        return span.first + at

    def scatter(self, task: int) -> None:
        """A worker died of one of a task's slices: each gets a task of its own."""
        span = self.of[task]
        self._close(task)
        self.again.extend(Span(span.first + index, 1) for index in range(span.count))

    def _close(self, task: int) -> None:
        span = self.of.pop(task)
        self._task_at.pop(span.first, None)
