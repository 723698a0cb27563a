"""A host's store in memory, for a real `Keeping`: its files, threads and timers only pretend.

Whoever drives it says how much goes in, when a file system is full before its limit, and what is
damaged."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

from worker_payload import keeping
from worker_payload.budget import StoreFull
from worker_payload.keeping import Keeping
from worker_payload.writing import Damaged

INLINE = 24  # larger blobs are handed to workers as files
RAM, DISK = 0, 1


class File:
    """Bytes, and how many descriptors hold them."""

    __slots__ = ("data", "holders", "tier")

    def __init__(self, data: bytes, tier: int | None = None):
        self.data = bytearray(data)
        self.tier = tier
        self.holders = 0


class Files:
    """Stands in for `os` in keeping."""

    MFD_CLOEXEC = 0

    def __init__(self) -> None:
        self._open: dict[int, File] = {}
        self._next = 0

    def open(self, file: File) -> int:
        self._next += 1
        self._open[self._next] = file
        file.holders += 1
        return self._next

    def dup(self, fd: int) -> int:
        return self.open(self._open[fd])

    def close(self, fd: int) -> None:
        self._open.pop(fd).holders -= 1

    def read(self, fd: int) -> bytes:
        return bytes(self._open[fd].data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return self.read(fd)[offset : offset + size]

    def fstat(self, fd: int) -> Any:
        return SimpleNamespace(st_size=len(self._open[fd].data))

    def memfd_create(self, name: str, flags: int) -> int:
        return self.open(File(b""))

    def write(self, fd: int, data: bytes) -> int:
        self._open[fd].data += data
        return len(data)

    def __len__(self) -> int:
        return len(self._open)


class Threads:
    """Stands in for `threading` in keeping: what it starts runs when `run` is called, or later."""

    def __init__(self) -> None:
        self._jobs: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        self.now = 0.0

    def _later(self, seconds: float, work: Callable[[], object]) -> Any:
        def start() -> None:
            self._count += 1
            heapq.heappush(self._jobs, (self.now + seconds, self._count, work))

        return SimpleNamespace(start=start)

    def Thread(self, target: Callable[..., object], args: Any, daemon: bool) -> Any:
        return self._later(0.0, lambda: target(*args))

    def Timer(self, seconds: float, work: Callable[[], object]) -> Any:
        return self._later(seconds, work)

    def run(self, now: float) -> bool:
        """What is due; whether that was anything."""
        self.now = now
        some = False
        while self._jobs and self._jobs[0][0] <= now:
            heapq.heappop(self._jobs)[2]()
            some = True
        return some


class Shelf:
    """Stands in for `Store`. limits: bytes in memory and on disk. chosen: by the user."""

    def __init__(self, files: Files, limits: tuple[int, int], chosen: bool):
        self.files = files
        self.limits = limits
        self.chosen = chosen
        self.full = -1  # the last tier whose file system takes nothing more
        self.kept: OrderedDict[str, File] = OrderedDict()  # least recently used first
        self.reserved = [0, 0]
        self.checked: set[str] = set()
        self.rotten: set[str] = set()

    def restart(self) -> None:
        """The agent died: its writers are gone, and it trusts no file."""
        self.reserved = [0, 0]
        self.checked.clear()

    def rot(self, pick: int, how: str) -> None:
        """A file is damaged, or deleted."""
        if self.kept:
            digest = sorted(self.kept)[pick % len(self.kept)]
            if how == "delete":
                del self.kept[digest]
            else:
                self.rotten.add(digest)
                self.checked.discard(digest)

    def used(self, tier: int) -> int:
        held = sum(len(file.data) for file in self.kept.values() if file.tier == tier)
        return held + self.reserved[tier]

    # --- as of Store -----------------------------------------------------------------------

    def has(self, digest: str) -> bool:
        return digest in self.kept

    def is_checked(self, digest: str) -> bool:
        return digest in self.checked

    def open(self, digest: str) -> int | None:
        if digest in self.rotten:
            self.drop(digest)
        if digest not in self.kept:
            return None
        self.checked.add(digest)
        self.kept.move_to_end(digest)
        return self.files.open(self.kept[digest])

    def begin(self, digest: str, total: int) -> Writer:
        return Writer(self, digest, total, self.reserve(total, (RAM, DISK)))

    def drop(self, digest: str) -> None:
        self.kept.pop(digest, None)
        self.rotten.discard(digest)
        self.checked.discard(digest)

    def room(self) -> int:
        return max(self.limits)

    # --- room ------------------------------------------------------------------------------

    def reserve(self, total: int, tiers: tuple[int, ...]) -> int:
        while True:
            for tier in tiers:
                if self.used(tier) + total <= self.limits[tier]:
                    self.reserved[tier] += total
                    return tier
            for digest, file in self.kept.items():
                if not file.holders and file.tier in tiers and total <= self.limits[file.tier]:
                    self.drop(digest)
                    break
            else:
                error = StoreFull("no room")
                error.by_choice = self.chosen
                raise error


class Writer:
    """Stands in for `writing.Writer`."""

    def __init__(self, shelf: Shelf, digest: str, total: int, tier: int):
        self.moved = False
        self._shelf, self._digest, self._total = shelf, digest, total
        self._tier: int | None = tier
        self._data = bytearray()

    def write(self, offset: int, data: bytes) -> None:
        if offset != len(self._data) or offset + len(data) > self._total:
            raise Damaged("not in order")
        if self._tier is not None and self._tier <= self._shelf.full:
            tier = self._tier
            self.abort()
            if tier == DISK or self._shelf.full == DISK:
                raise StoreFull("the disk is full")
            self._tier, self.moved = self._shelf.reserve(self._total, (DISK,)), True
        self._data += data

    def commit(self) -> int:
        tier = self._tier
        self.abort()
        if len(self._data) != self._total or sha256(self._data).hexdigest() != self._digest:
            raise Damaged("another digest")
        self._shelf.drop(self._digest)
        self._shelf.kept[self._digest] = File(self._data, tier)
        self._shelf.checked.add(self._digest)
        return self._shelf.files.open(self._shelf.kept[self._digest])

    def abort(self) -> None:
        if self._tier is not None:
            self._shelf.reserved[self._tier] -= self._total
            self._tier = None


class Shelving(Keeping):
    """The one of a Shelf. There are no files without names but those in memory."""

    dead = False  # its threads end with its agent

    def _look(self, digest: str) -> None:
        if not self.dead:
            super()._look(digest)

    def _spool(self, data: Any) -> int:
        shelf: Any = self._store
        if shelf.full < DISK:
            return int(shelf.files.open(File(bytes(data))))
        error = StoreFull("the disk is full")
        if not self._may_set_aside(error):
            raise error
        aside = keeping.Aside("", len(data))
        aside.write(0, data)
        return aside.fd
