"""Spans for a call while it runs: cut and encoded as its hosts could take more.

All of it happens in the thread that drives the call, where the user's iterators and datasets
belong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from worker_payload import codec
from worker_payload.wire import Buffer

from .errors import EncodingError
from .spans import BYTES, Span

if TYPE_CHECKING:
    from .calls import Call
    from .engine import Engine
    from .slices import Slices

TINY = 1024  # bytes: larger slices are kept at the hosts, each under its digest
MANY = 16  # slices per worker, from which on tiny ones travel together
AHEAD = 100_000  # items that may be under way beyond the one that is waited for

Encode = Callable[[int, int], tuple[int, list[Buffer]]]
Decode = Callable[[Sequence[Buffer]], list[Any]]


def are_tiny(slices: Slices, workers: int) -> bool:
    """Whether so many slices, so small, are better handed out in spans."""
    count = len(slices)
    if count <= MANY * max(1, workers):
        return False
    samples = (0, count // 2, count - 1)
    return all(codec.blob_size(slices.span(index, 1)) <= TINY for index in samples)


class Feeder:
    """encode(first, count): the blob of these slices as a list, and of how many it is: fewer, or
    none, where there are no more."""

    def __init__(self, engine: Engine, call: Call, encode: Encode):
        self._engine = engine
        self._call = call
        self._encode = encode
        self._each = 0.0  # bytes per slice

    def feed(self) -> None:
        """Make spans until the hosts have enough."""
        call, spans = self._call, self._call.spans
        assert spans is not None
        fed = 0
        while True:
            with self._engine.lock:
                if not call.hungry:
                    break
                wanted = self._next()
                spans.making = True
            try:
                span = self._make(wanted)
            finally:
                with self._engine.lock:
                    spans.making = False
            with self._engine.lock:
                if span.count < wanted.count:
                    spans.cut = spans.total = span.first + span.count
                if span.count:
                    (task,) = call.scheduler.extend(1)
                    spans.add(task, span)
                    fed += 1
            if fed % 16 == 1:  # the first goes out before the others are made
                self._engine.dispatch()
        if fed:
            self._engine.dispatch()

    def limit(self, end: int) -> None:
        """No slice from this one on, for now."""
        spans = self._call.spans
        assert spans is not None
        with self._engine.lock:
            spans.limit = end

    def _next(self) -> Span:
        spans = self._call.spans
        assert spans is not None
        if spans.again:
            return spans.again.popleft()
        count = spans.size(self._call.scheduler.workers, self._each)
        if spans.limit is not None:
            count = min(count, spans.limit - spans.cut)
        spans.cut += count
        return Span(spans.cut - count, count)

    def _make(self, wanted: Span) -> Span:
        count, parts = self._encode(wanted.first, wanted.count)
        if not count:
            return Span(wanted.first, 0)
        size = codec.blob_size(parts)
        self._each = size / count
        if size > BYTES:
            return Span(wanted.first, count, parts, size, codec.blob_digest(parts))
        return Span(wanted.first, count, [b"".join(parts)], size)


def of_slices(engine: Engine, call: Call, slices: Slices) -> Feeder:
    def encode(first: int, count: int) -> tuple[int, list[Buffer]]:
        return count, slices.span(first, count)

    return Feeder(engine, call, encode)


class Order:
    """Answers to spans, in the order of their items, or as they come."""

    def __init__(self, ordered: bool):
        self.next = 0  # the item that is waited for; as they come: how many came
        self._ordered = ordered
        self._waiting: dict[int, tuple[int, Sequence[Buffer], Decode]] = {}

    @property
    def ahead(self) -> int:
        return len(self._waiting)

    def add(self, first: int, count: int, segments: Sequence[Buffer], decode: Decode) -> None:
        self._waiting[first] = count, segments, decode

    def ready(self) -> Iterator[Any]:
        """What can be given out now."""
        while self._waiting:
            first = self.next if self._ordered else next(iter(self._waiting))
            if first not in self._waiting:
                return
            count, segments, decode = self._waiting.pop(first)
            self.next += count
            yield from decode(segments)


class Items:
    """The items of an iterator, by number, as long as they may be asked for again."""

    def __init__(self, items: Iterator[Any]):
        self._items = items
        self._next = 0
        self._kept: dict[int, Any] = {}

    def encode(self, first: int, count: int) -> tuple[int, list[Buffer]]:
        """Raises EncodingError, and what the iterator raises."""
        found: Sequence[Any]
        if first == self._next:
            found = list(islice(self._items, count))
            self._next += len(found)
            self._kept.update(enumerate(found, first))
        else:
            found = [self._kept[index] for index in range(first, first + count)]
        try:
            return len(found), codec.blob_parts(codec.encode(found))
        except codec.EncodeError as error:
            raise EncodingError(f"{self._culprit(found, first, error)}") from None

    def _culprit(self, found: Sequence[Any], first: int, error: codec.EncodeError) -> str:
        for index, item in enumerate(found, first):
            try:
                codec.encode(item)
            except codec.EncodeError as its:
                return f"item {index} cannot travel: {its}"
        return f"items {first} to {first + len(found) - 1} cannot travel: {error}"

    def forget(self, first: int, count: int) -> None:
        """These have been answered."""
        for index in range(first, first + count):
            self._kept.pop(index, None)
