"""Slices of a dataset as the master hands them out, and the bases of all datasets.

A slice is read to find its digest, and read again if a host lacks it; in between only the digest
stays, so a dataset may be larger than memory. A digest is of the bytes that travel, and so of what
the slice is, never of where it sits.
"""

from __future__ import annotations

import abc
import operator
import os
import threading
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, overload

from worker_payload import codec
from worker_payload.wire import Buffer

from .errors import DataSetError, JamError

Bounds = Sequence[tuple[int, int]]

SMALLEST = 256 << 10  # bytes: below this a slice costs more to hand out than to compute
PER_WORKER = 4  # slices: enough that a slow one does not hold up the rest
_DIGEST_THREADS = 4
_AHEAD = 2 * _DIGEST_THREADS  # slices digested before anybody asked for them


def slice_count(items: int, workers: int, size: int | None = None) -> int:
    """Into how many slices to cut so many items (1 or more) of `size` bytes in all.

    A power of two where possible, so that a few workers more or less cut the same slices and find
    them where they are: at or above PER_WORKER for each worker, at most one per item; but none
    under SMALLEST (size None: not known, not counted) unless a worker would go without."""
    workers = max(workers, 1)
    count = 1 << (PER_WORKER * workers - 1).bit_length()
    if size is not None:
        large = max(size // SMALLEST, 1)
        count = min(count, max(1 << (large.bit_length() - 1), workers))
    return min(count, items)


class Sealed(NamedTuple):
    """What is known of a slice that has been encoded once. size: bytes that travel."""

    digest: str
    size: int
    needs_numpy: bool


class SliceRef:
    """One slice: where it is, and what it is once somebody asks."""

    __slots__ = ("_slices", "index")

    def __init__(self, slices: Slices, index: int):
        self._slices = slices
        self.index = index

    @property
    def digest(self) -> str:
        """SHA-256 of the slice's blob, 64 hex digits. Reads the slice the first time."""
        return self._slices.sealed(self.index).digest

    @property
    def size(self) -> int:
        """Bytes of the slice's blob. Reads the slice the first time."""
        return self._slices.sealed(self.index).size

    @property
    def needs_numpy(self) -> bool:
        """Whether a host needs numpy to read it."""
        known = self._slices.needs_numpy
        return self._slices.sealed(self.index).needs_numpy if known is None else known

    def parts(self) -> list[Buffer]:
        """The slice's blob, encoded anew. Raises DataSetError if it is not what it was before."""
        return self._slices.parts(self.index)

    def __repr__(self) -> str:
        return f"SliceRef({self.index})"


class Slices(Sequence[SliceRef]):
    """All slices of a dataset for one run, in order.

    load: makes slice i. known: digests, by key(i), of this run and earlier ones. steady: what is
    loaded twice is the same (memory that nobody writes to), so a digest of this run is not checked
    again. threads: loading and hashing large slices is worth several threads. blame: for a slice
    that cannot be encoded, says what in it cannot, given the reason."""

    def __init__(
        self,
        count: int,
        load: Callable[[int], Any],
        *,
        key: Callable[[int], Hashable],
        known: MutableMapping[Hashable, Sealed],
        steady: bool = False,
        threads: bool = False,
        needs_numpy: bool | None = None,
        blame: Callable[[int, str], str] | None = None,
    ):
        self.needs_numpy = needs_numpy
        self._count = count
        self._load = load
        self._blame = blame
        self._key = key
        self._known = known
        self._steady = steady
        self._fresh: set[int] = set()
        self._threads = threads
        self._lock = threading.Lock()
        self._futures: dict[int, Future[Sealed]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> SliceRef: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[SliceRef]: ...

    def __getitem__(self, index: int | slice) -> SliceRef | Sequence[SliceRef]:
        if isinstance(index, slice):
            return [SliceRef(self, i) for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"slice {index} of {self._count}")
        return SliceRef(self, index % self._count)

    def peek(self, index: int) -> Sealed | None:
        """Digest and size of a slice if they are known without reading it."""
        return self._known.get(self._key(index))

    def sealed(self, index: int) -> Sealed:
        """Digest and size of a slice; may be called from any thread."""
        sealed = self._known.get(self._key(index))
        if sealed is not None:
            return sealed
        if not self._threads:
            return self._seal(index)
        with self._lock:
            future = self._start(index)
            for ahead in range(index + 1, min(index + 1 + _AHEAD, self._count)):
                if self._key(ahead) not in self._known:
                    self._start(ahead)
        try:
            return future.result()
        finally:
            with self._lock:
                self._futures.pop(index, None)

    def parts(self, index: int) -> list[Buffer]:
        parts, _ = self._encode(index)
        if not (self._steady and index in self._fresh):
            sealed = self._known.get(self._key(index))
            if sealed is not None and codec.blob_digest(parts) != sealed.digest:
                raise DataSetError(
                    f"slice {index} of the dataset is not what it was when it was first read",
                    "leave data alone during a run; after a change, call changed() of the DataSet",
                )
        return parts

    def span(self, first: int, count: int) -> list[Buffer]:
        """The blob of a list of so many slices from this one on."""
        values = [self._load(index) for index in range(first, first + count)]
        try:
            return codec.blob_parts(codec.encode(values))
        except codec.EncodeError:
            for index in range(first, first + count):
                self._encode(index)  # raises for the one that is to blame
            raise

    def _start(self, index: int) -> Future[Sealed]:
        future = self._futures.get(index)
        if future is None:
            if self._pool is None:
                # of this object, so that its threads end with it
                self._pool = ThreadPoolExecutor(
                    min(_DIGEST_THREADS, os.cpu_count() or 1), thread_name_prefix="jam digest"
                )
            future = self._futures[index] = self._pool.submit(self._seal, index)
        return future

    def _seal(self, index: int) -> Sealed:
        parts, needs_numpy = self._encode(index)
        sealed = Sealed(codec.blob_digest(parts), codec.blob_size(parts), needs_numpy)
        self._known[self._key(index)] = sealed
        self._fresh.add(index)
        return sealed

    def _encode(self, index: int) -> tuple[list[Buffer], bool]:
        value = self._load(index)
        try:
            segments = codec.encode(value)
        except codec.EncodeError as error:
            reason = str(error) if self._blame is None else self._blame(index, str(error))
            raise DataSetError(f"slice {index} of the dataset cannot travel: {reason}") from error
        return codec.blob_parts(segments), codec.needs_numpy(segments)


# --- the bases of all datasets -------------------------------------------------------------------


class BaseDataSet(abc.ABC):
    """The base of your own datasets: say how many slices there are, and make each.

    frozen: True in a subclass promises that a slice stays what it was, so that its digest is made
    once, and not for every call."""

    frozen = False

    @abc.abstractmethod
    def chunks(self) -> int:
        """How many slices there are, 1 or more."""

    @abc.abstractmethod
    def slice(self, index: int) -> Any:
        """Slice `index`, from 0: any object of plain values and arrays."""

    def plan(self, workers: int, slice_size: int | None = None) -> Slices:
        """The slices for a run on so many workers. Raises DataSetError."""
        if slice_size is not None:
            raise DataSetError(
                f"{type_name(self)} says itself how it is cut, and takes no slice_size",
                "leave slice_size out, or change what chunks() returns",
            )
        count = self._guard("chunks()", self.chunks)
        if isinstance(count, bool) or not hasattr(count, "__index__"):
            raise DataSetError(
                f"{type_name(self)}.chunks() returned {count!r}, not a number of slices"
            )
        if count < 1:
            raise DataSetError(f"{type_name(self)} is empty: chunks() returned {count}")
        return Slices(
            count,
            lambda index: self._guard(f"slice({index})", self.slice, index),
            key=lambda index: index,
            known=self._digests() if self.frozen else {},
        )

    def changed(self) -> None:
        """The data is not what it was: forget its digests."""
        self.__dict__.pop("_known", None)

    def _digests(self) -> dict[Hashable, Sealed]:
        # not made in __init__, because subclasses need not call ours
        known: dict[Hashable, Sealed] = self.__dict__.setdefault("_known", {})
        return known

    def _guard(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """The user's own method; what it raises becomes an error that says where."""
        try:
            return function(*args)
        except JamError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            raise DataSetError(f"{type_name(self)}.{what} raised {text}") from error


class Cut(BaseDataSet):
    """A dataset that can be cut anywhere between its items.

    Positions are whatever `_bounds` and `_take` agree on: numbers of items, or bytes."""

    frozen = True
    _steady = False
    _needs_numpy: bool | None = None

    def __init__(self, slice_size: int | None) -> None:
        self.slice_size = checked_size(slice_size)

    @abc.abstractmethod
    def _bounds(self, workers: int, slice_size: int | None) -> Bounds:
        """Start and end of each slice. Raises DataSetError if there is nothing to cut."""

    @abc.abstractmethod
    def _take(self, start: int, stop: int) -> Any:
        """What lies between two positions."""

    def _blame(self, start: int, stop: int, reason: str) -> str:
        """What between two positions cannot be encoded, and why."""
        return reason

    def _refresh(self) -> None:
        """Look whether the source has changed; called before each run."""

    def _large(self, bounds: Bounds) -> bool:
        """Whether reading and hashing is worth several threads."""
        return False

    def chunks(self) -> int:
        return len(self._bounds(1, self.slice_size))

    def slice(self, index: int) -> Any:
        bounds = self._bounds(1, self.slice_size)
        if not 0 <= index < len(bounds):
            raise DataSetError(f"{type_name(self)} has no slice {index}: it has {len(bounds)}")
        return self._take(*bounds[index])

    def plan(self, workers: int, slice_size: int | None = None) -> Slices:
        self._refresh()
        size = self.slice_size if slice_size is None else checked_size(slice_size)
        bounds = self._bounds(workers, size)
        return Slices(
            len(bounds),
            lambda index: self._take(*bounds[index]),
            key=lambda index: bounds[index],
            known=self._digests() if self.frozen else {},
            steady=self._steady,
            threads=self._large(bounds),
            needs_numpy=self._needs_numpy,
            blame=lambda index, reason: self._blame(*bounds[index], reason),
        )


class _Even(Sequence[tuple[int, int]]):
    """Bounds of `count` slices of nearly the same number of items, or of `size` items each."""

    def __init__(self, items: int, *, count: int = 0, size: int = 0):
        self._items = items
        self._size = size
        self._count = count or -(-items // size)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        if self._size:
            return index * self._size, min((index + 1) * self._size, self._items)
        return index * self._items // self._count, (index + 1) * self._items // self._count


def even_bounds(
    items: int, what: str, workers: int, slice_size: int | None, size: int | None = None
) -> Bounds:
    if not items:
        raise DataSetError(f"the dataset is empty: {what} has no items")
    if slice_size is not None:
        return _Even(items, size=slice_size)
    return _Even(items, count=slice_count(items, workers, size))


def checked_size(slice_size: Any) -> int | None:
    if slice_size is None:
        return None
    try:
        size = operator.index(slice_size)
    except TypeError:
        size = 0
    if size < 1:
        raise DataSetError(f"slice_size {slice_size!r} is not a whole number above zero")
    return size


def type_name(value: Any) -> str:
    return type(value).__name__
