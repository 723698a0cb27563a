"""640 workers of 40 hosts on one directory: what they ask of the file server, on a virtual clock.

The code that chooses and claims is the real one (worker_payload/jobs/view.py and steps.py); the
directory is a set of names in memory that counts each operation, jobs take virtual time only.
"""

from __future__ import annotations

import heapq
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from worker_payload import layout
from worker_payload.jobs import names, steps, view
from worker_payload.jobs.names import Pod

from . import common

HOSTS, WORKERS = 40, 16
JOB_SECONDS = 20.0  # on average, of a pod
PODS = 1_500
SEEDS = (1, 2)
LIST_SECONDS = 20e-6  # per name: of a listing over a network, and of putting it in order


class Clock:
    """Stands in for the module time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now

    def sleep(self, seconds: float) -> None:
        """Whoever sleeps holds up nobody else here."""


class Server:
    """One project's directory, and how often it was asked for what."""

    network = True
    root = "/nowhere"

    def __init__(self, pods: int, hosts: list[str], clock: Clock):
        self.clock = clock
        self.queue = {
            Pod(names.new_pod(1_700_000_000_000, 0, n), 1, 0, names.NO_CUT).name()
            for n in range(pods)
        }
        self.owners = [names.new_owner(host, n + 1) for host in hosts for n in range(WORKERS)]
        self.asked: dict[str, int] = {"listings": 0, "renames": 0, "others": 0}
        self.won = 0

    def do(self, operation: Any) -> Any:
        if isinstance(operation, steps.List):
            self.asked["listings"] += 1
            self.clock.now += LIST_SECONDS * len(self.queue)
            return list(self.queue) if operation.folder == names.QUEUE else self.owners
        if isinstance(operation, steps.Rename):
            self.asked["renames"] += 1
            name = operation.source.split("/")[-1]
            if name in self.queue:
                self.queue.remove(name)
                self.won += 1
                return True
            return False
        self.asked["others"] += 1
        return None

    def run(self, generator: Any) -> Any:
        answer = None
        try:
            while True:
                answer = self.do(generator.send(answer))
        except StopIteration as end:
            return end.value


class NoDrops:
    """Nobody drops files here."""

    seen: dict[str, Any] = {}  # noqa: RUF012


def simulate(seed: int, folder: Path) -> dict[str, float]:
    """One sweep; figures per second and per claim."""
    clock, chance = Clock(), random.Random(seed)
    random.seed(seed)
    view.time = clock  # type: ignore[assignment]
    hosts = [f"node{n:02d}" for n in range(HOSTS)]
    server = Server(PODS, hosts, clock)
    views, waiting = [], []
    for host in hosts:
        path = folder / f"{seed}-{host}"
        path.mkdir(mode=0o700)
        run = layout.RunDir(str(path), layout.open_private(str(path)))
        views.append(view.View(run, "bench", server, host, NoDrops()))
        waiting.append(list(range(WORKERS)))
    # one look at a time per host, as its lock has it
    events = [(clock.now + chance.random(), 0, host, -1) for host in range(HOSTS)]
    heapq.heapify(events)
    serial, began, full = 0, clock.now, 0.0
    busy = 0.0
    while events and (server.queue or any(len(w) < WORKERS for w in waiting)):
        when, _, host, worker = heapq.heappop(events)
        clock.now = max(clock.now, when)
        serial += 1
        if worker >= 0:
            waiting[host].append(worker)
        if not server.queue and not full:
            full = clock.now
        looked = False
        while waiting[host] and not looked:
            taken = views[host].take(1, 0.0)
            looked = not taken
            for item in taken:
                got = server.run(steps.claim(item.pod, server.owners[host * WORKERS]))
                views[host].claimed(got is not None)
                if got is not None:
                    seconds = chance.expovariate(1 / JOB_SECONDS)
                    busy += seconds
                    worker = waiting[host].pop()
                    serial += 1
                    heapq.heappush(events, (clock.now + seconds, serial, host, worker))
        if waiting[host] and server.queue:
            serial += 1
            heapq.heappush(events, (clock.now + 0.25, serial, host, -1))
    for one in views:
        one.close()
    spent = (full or clock.now) - began
    return {
        "seconds": spent,
        "operations": sum(server.asked.values()) / spent,
        "listings": server.asked["listings"] / spent,
        "tries": server.asked["renames"] / server.won,
        "busy": busy / (HOSTS * WORKERS) / (clock.now - began),
    }


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="jam-shared-", dir="/tmp"))
    try:
        found = [simulate(seed, folder) for seed in SEEDS]
    finally:
        view.time = time  # type: ignore[assignment]
        shutil.rmtree(folder, ignore_errors=True)

    def middle(key: str) -> float:
        return statistics.median(one[key] for one in found)

    common.table(
        f"{HOSTS} hosts x {WORKERS} workers, {PODS} pods of {JOB_SECONDS:.0f} s on average, "
        f"seeds {', '.join(map(str, SEEDS))}",
        ["", "median", "most"],
        [
            [text, f"{middle(key):.2f}", f"{max(one[key] for one in found):.2f}"]
            for key, text in (
                ("operations", "directory operations per second, all hosts"),
                ("listings", "of these listings, all hosts"),
                ("tries", "renames tried per claim"),
                ("busy", "share of the time that workers are busy"),
            )
        ],
    )


if __name__ == "__main__":
    main()
