"""Which hosts were given which slices of a dataset: so that the next command gives them the same.

Hosts keep what they were given, but nobody asks them what that is: tasks are handed out before
most slices have been read, let alone hashed. Where all went as planned the plan is enough; where a
host took over slices of another, or came late, this is what tells the next master.

One small file per dataset and way of cutting it, in the cache directory, under the digest of its
first slice and once more under that of its last, so that it is found again when one of them has
changed. No run needs it: it says where data probably is, an error here is nobody's error, and what
cannot be read is as if it had never been.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from worker_payload import layout

from .private_files import publish, remove

KEPT, MORE = 200, 100  # files; if there are so many more, the oldest go
MOST_SLICES = 20_000  # of a dataset: beyond, it costs more than it is worth

MOVE_SECONDS, MOVE_RATE = 0.03, 100e6  # seconds, and bytes per second, to send a slice elsewhere


class Sized(Protocol):
    """What is known of a slice."""

    @property
    def digest(self) -> str: ...

    @property
    def size(self) -> int: ...


class Data(Protocol):
    """Slices in their order."""

    def __len__(self) -> int: ...

    def peek(self, index: int) -> Sized | None: ...

    def sealed(self, index: int) -> Sized: ...


class Place(Protocol):
    """A host. holds: digests of slices that it was given in this process."""

    holds: dict[str, None]

    @property
    def label(self) -> str: ...

    @property
    def workers(self) -> int: ...


def plan(data: Data, hosts: Sequence[Place]) -> tuple[dict[int, list[str]], float]:
    """The hosts that have each slice, as far as is known: first of all the one that should run it.
    And how long it takes to send one elsewhere, in seconds.

    What several have is shared out: after one of them was away, the others have it all."""
    known = [data.peek(index) for index in range(len(data))]
    holders: dict[int, list[Place]] = {}
    for index, sized in enumerate(known):
        if sized is not None:
            found = [host for host in hosts if sized.digest in host.holds]
            if found:
                holders[index] = found
    if len(holders) < len(known):
        labels = {host.label: host for host in hosts}
        for index, names in recall(data).items():
            found = [labels[name] for name in names if name in labels]
            if found:
                holders.setdefault(index, found)
    load = dict.fromkeys((host.label for host in hosts), 0)
    homes: dict[int, list[str]] = {}
    for index in sorted(holders, key=lambda index: len(holders[index])):  # no choice: first
        in_order = sorted(holders[index], key=lambda host: load[host.label] / max(1, host.workers))
        load[in_order[0].label] += 1
        homes[index] = [host.label for host in in_order]
    size = max((sized.size for sized in known if sized is not None), default=0)
    return homes, MOVE_SECONDS + size / MOVE_RATE


# --- from one command to the next --------------------------------------------------------------


def recall(data: Data) -> dict[int, list[str]]:
    """The hosts that were given each slice; none where that is not known."""
    slices = len(data)
    if not 0 < slices <= MOST_SLICES:
        return {}
    folder = layout.placement_dir()
    try:
        if not any(name.startswith(f"{slices}.") for name in os.listdir(folder)):
            return {}  # and nothing has to be read
    except OSError:
        return {}
    for index in (0, slices - 1):
        path = os.path.join(folder, layout.placement_name(slices, data.sealed(index).digest))
        with contextlib.suppress(OSError, ValueError), open(path, "rb") as handle:
            return decode(handle.read(), slices)
    return {}


def keep(data: Data, given: Mapping[str, Iterable[int]]) -> None:
    """These hosts were given these slices of the data. What was kept before stays if these are not
    all of them: there it says more."""
    slices = len(data)
    if slices > MOST_SLICES or len(set().union(*given.values())) < slices:
        return
    ends = {sized.digest for sized in (data.peek(0), data.peek(slices - 1)) if sized is not None}
    told = encode(given)
    with contextlib.suppress(OSError):
        folder = layout.placement_dir()
        os.makedirs(folder, mode=0o700, exist_ok=True)
        for digest in ends:
            path = os.path.join(folder, layout.placement_name(slices, digest))
            if not _says(path, told):  # to replace a file takes ten times as long as to read it
                publish(path, told)
        _forget_oldest(folder)


def encode(given: Mapping[str, Iterable[int]]) -> bytes:
    """As JSON: {host: [first, end, first, end, ...]}."""
    ends: dict[str, list[int]] = {}
    for host, slices in given.items():
        runs = ends.setdefault(host, [])
        for index in sorted(set(slices)):
            if runs and runs[-1] == index:
                runs[-1] = index + 1
            else:
                runs += index, index + 1
    return json.dumps(ends).encode("ascii")


def decode(data: bytes, slices: int) -> dict[int, list[str]]:
    """Raises ValueError if that is not what `encode` makes for so many slices."""
    ends: Any = json.loads(data)
    if not isinstance(ends, dict):
        raise ValueError("no placement")
    hosts: dict[int, list[str]] = {}
    for host, runs in ends.items():
        if not isinstance(runs, list) or len(runs) % 2 or set(map(type, runs)) - {int}:
            raise ValueError("no placement")
        if runs != sorted(set(runs)) or (runs and not 0 <= runs[0] < runs[-1] <= slices):
            raise ValueError("a placement of other data")
        for first, end in zip(runs[::2], runs[1::2], strict=True):
            for index in range(first, end):
                hosts.setdefault(index, []).append(host)
    return hosts


def _says(path: str, told: bytes) -> bool:
    """Whether that stands there already; it counts as new then."""
    try:
        with open(path, "rb") as handle:
            if handle.read() != told:
                return False
        os.utime(path)
    except OSError:
        return False
    return True


def _forget_oldest(folder: str) -> None:
    names = os.listdir(folder)
    if len(names) <= KEPT + MORE:
        return
    paths = [os.path.join(folder, name) for name in names]
    times = {}
    for path in paths:
        with contextlib.suppress(OSError):
            times[path] = os.stat(path).st_mtime_ns
    for path in sorted(times, key=times.__getitem__)[:-KEPT]:
        remove(path)
