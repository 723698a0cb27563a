"""The real scheduler against thousands of hosts that are not there: a virtual clock, no processes.

Hosts die and come back, some are ten times slower than the others, workers die, messages take time:
all by seed. How well are the workers used, and what does the scheduler take per task?
"""

from __future__ import annotations

import gc
import heapq
import math
import random
import statistics
import time
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jamtasks.scheduler import Assign, Revoke, Scheduler

from . import common

TICK = 0.5  # seconds between looks of a master at what is late
AGENT_TICK = 0.25  # and of an agent
STARTED_AFTER = 0.2  # tasks that run longer are reported as started
DEAD_AFTER = 10.0  # until silence is noticed
FRESH_WORKER = 0.1  # until one takes the place of a dead one
MOVE_SECONDS = 0.03
SIZES = ((1_000, 2, 60), (10_000, 20, 6), (100_000, 200, 3), (1_000_000, 2_000, 3))  # and seeds
SHOWN = 3
# The same hosts, more and more tasks: hosts, and (tasks, seeds).
GROWTH = (
    (20, ((1_000, 20), (10_000, 6), (100_000, 3), (1_000_000, 1))),
    (2_000, ((1_000, 6), (100_000, 3), (1_000_000, 1))),
)
LIMIT = 1_000_000.0  # virtual seconds, after which a run is said to hang


@dataclass(frozen=True)
class Setting:
    """What is simulated. Durations in seconds, of the median task on a usual host."""

    tasks: int
    hosts: int
    workers: int = 16
    seed: int = 1
    median: float = 2.0
    spread: float = 0.4  # of the logarithm of the tasks' durations
    stragglers: float = 0.01  # the part of the hosts that is `slowness` times slower
    slowness: float = 10.0
    host_life: float = 3600.0  # mean seconds until a host dies; inf: never
    worker_deaths: float = 0.001  # per task
    round_trip: tuple[float, float] = (0.001, 0.2)  # of the nearest and the farthest host
    move_seconds: float = MOVE_SECONDS
    speculate: bool = True


@dataclass(frozen=True)
class Outcome:
    """What came of it. seconds: virtual. busy: worker-seconds spent on answers that were used, as
    a part of those that there were. scheduler: seconds per task."""

    result: int
    seconds: float
    busy: float
    scheduler: float
    retried: int
    copies: int
    dead_hosts: int
    dead_workers: int


class Machine:
    """A host: its agent and workers, and how far away it is."""

    def __init__(self, name: str, workers: int, slowness: float, trip: float):
        self.name = name
        self.workers = self.free = workers
        self.slowness = slowness
        self.trip = trip
        self.life = 1  # grows with each death: what was sent to or by an earlier one is void
        self.queue: deque[int] = deque()
        self.waiting: set[int] = set()  # those of the queue that were not revoked
        self.running: dict[int, float] = {}
        self.untold: list[int] = []  # running, and not reported as started
        self.alive = True
        self.up_since = 0.0
        self.up = 0.0  # seconds, over earlier lives


class Simulation:
    def __init__(self, setting: Setting):
        self.setting = setting
        self.now = 0.0
        self.random = random.Random(setting.seed)
        self.scheduler = Scheduler(
            setting.tasks,
            speculate=setting.speculate,
            move_seconds=setting.move_seconds,
            max_kills=setting.tasks,  # here workers die by chance, not of their task
        )
        self.seconds = array("d", (self._seconds() for _ in range(setting.tasks)))
        slow = round(setting.stragglers * setting.hosts)
        self.machines = {
            f"h{number}": self._machine(number, number >= setting.hosts - slow)
            for number in range(setting.hosts)
        }
        self._events: list[tuple[float, int, Callable[[Machine, Any], None], Machine, Any, int]]
        self._events = []
        self._sequence = 0
        self._spent = 0.0  # in the scheduler, by the clock on the wall
        self._used = 0.0  # worker-seconds
        self._copies = self._dead_hosts = self._dead_workers = 0
        self._answered = bytearray(setting.tasks)
        self._next = 0
        self._result = 0

    def _machine(self, number: int, slow: bool) -> Machine:
        own = random.Random(f"{self.setting.seed} {number}")  # the same whatever others there are
        usual, trip = own.uniform(0.9, 1.1), own.uniform(*self.setting.round_trip) / 2
        slowness = self.setting.slowness if slow else usual
        return Machine(f"h{number}", self.setting.workers, slowness, trip)

    def _seconds(self) -> float:
        return self.setting.median * math.exp(self.random.gauss(0.0, self.setting.spread))

    # --- running ---------------------------------------------------------------------------

    def run(self) -> Outcome:
        wall, cpu = time.perf_counter(), time.process_time()
        everything = Machine("everything", 0, 0.0, 0.0)
        for machine in self.machines.values():
            self._join(machine)
            if self.setting.host_life < math.inf:
                life = self.random.expovariate(1 / self.setting.host_life)
                self._after(life, self._die, machine, None)
        self._act()
        self._after(TICK, self._tick, everything, None)
        events, left = self._events, self.scheduler
        while left.left:
            if not events or self.now > LIMIT:
                raise AssertionError(f"hangs with {left.left} tasks left: {self.setting}")
            self.now, _, method, machine, what, life = heapq.heappop(events)
            if life == machine.life:
                method(machine, what)
        assert self._next == self.setting.tasks
        up = sum(
            machine.workers * (machine.up + (self.now - machine.up_since) * machine.alive)
            for machine in self.machines.values()
        )
        # the machine may do other things meanwhile: the share of the time, of the CPU time
        share = self._spent / (time.perf_counter() - wall)
        cost = share * (time.process_time() - cpu) / self.setting.tasks
        return Outcome(
            self._result, self.now, self._used / up, cost, self.scheduler.retried, self._copies,
            self._dead_hosts, self._dead_workers,
        )  # fmt: skip

    def _after(
        self, seconds: float, method: Callable[[Machine, Any], None], machine: Machine, what: Any
    ) -> None:
        self._sequence += 1
        heapq.heappush(
            self._events,
            (self.now + seconds, self._sequence, method, machine, what, machine.life),
        )

    # --- the master ------------------------------------------------------------------------

    def _act(self) -> None:
        began = time.perf_counter()
        actions = self.scheduler.actions(self.now)
        self._spent += time.perf_counter() - began
        for action in actions:
            machine = self.machines[str(action.host)]
            if type(action) is Assign:
                self._after(machine.trip, self._assigned, machine, action.tasks)
            elif type(action) is Revoke:
                self._after(machine.trip, self._revoke, machine, action.tasks)
            else:
                self._copies += len(action.tasks)
                self._after(machine.trip, self._cancel, machine, action.tasks)

    def _tell(self, method: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        value = method(*arguments)
        self._spent += time.perf_counter() - began
        return value

    def _tick(self, machine: Machine, _: None) -> None:
        self._act()
        self._after(TICK, self._tick, machine, None)

    def _join(self, machine: Machine) -> None:
        machine.alive, machine.up_since = True, self.now
        machine.free = machine.workers
        began = time.perf_counter()
        self.scheduler.add_host(machine.name, machine.workers, round_trip=2 * machine.trip)
        self._spent += time.perf_counter() - began

    def _answer(self, machine: Machine, answer: tuple[int, float]) -> None:
        task, seconds = answer
        if self._tell(self.scheduler.finished, machine.name, task, seconds):
            self._used += seconds
            assert not self._answered[task], f"the answer of {task} is used twice"
            self._answered[task] = 1
            while self._next < self.setting.tasks and self._answered[self._next]:
                self._result = zlib.crc32(b"%d," % self._next, self._result)
                self._next += 1
        self._act()

    def _started(self, machine: Machine, tasks: Sequence[int]) -> None:
        self._tell(self.scheduler.running, machine.name, tasks, self.now)
        self._act()

    def _lost_worker(self, machine: Machine, task: int) -> None:
        self._tell(self.scheduler.killed, machine.name, task)
        self._act()

    def _revoked(self, machine: Machine, tasks: Sequence[int]) -> None:
        self._tell(self.scheduler.revoked, machine.name, tasks)
        self._act()

    # --- a host ----------------------------------------------------------------------------

    def _assigned(self, machine: Machine, tasks: Sequence[int]) -> None:
        machine.queue.extend(tasks)
        machine.waiting.update(tasks)
        self._start(machine)

    def _start(self, machine: Machine) -> None:
        while machine.free and machine.queue:
            task = machine.queue.popleft()
            if task not in machine.waiting:
                continue
            machine.waiting.discard(task)
            machine.free -= 1
            machine.running[task] = self.now
            seconds = self.seconds[task] * machine.slowness
            if seconds > STARTED_AFTER:
                if not machine.untold:
                    self._after(AGENT_TICK, self._report, machine, None)
                machine.untold.append(task)
            if self.random.random() < self.setting.worker_deaths:
                self._after(seconds * self.random.random(), self._kill, machine, (task, self.now))
            else:
                self._after(seconds, self._end, machine, (task, self.now))

    def _end(self, machine: Machine, run: tuple[int, float]) -> None:
        task, began = run
        if machine.running.get(task) == began:
            del machine.running[task]
            machine.free += 1
            self._after(machine.trip, self._answer, machine, (task, self.now - began))
            self._start(machine)

    def _kill(self, machine: Machine, run: tuple[int, float]) -> None:
        task, began = run
        if machine.running.get(task) == began:
            del machine.running[task]
            self._dead_workers += 1
            self._after(machine.trip, self._lost_worker, machine, task)
            self._after(FRESH_WORKER, self._fresh, machine, None)

    def _fresh(self, machine: Machine, _: None) -> None:
        machine.free += 1
        self._start(machine)

    def _report(self, machine: Machine, _: None) -> None:
        tasks = [task for task in machine.untold if task in machine.running]
        machine.untold.clear()
        if tasks:
            self._after(machine.trip, self._started, machine, tasks)

    def _revoke(self, machine: Machine, tasks: Sequence[int]) -> None:
        given = [task for task in tasks if task in machine.waiting]
        machine.waiting.difference_update(given)
        self._after(machine.trip, self._revoked, machine, given)

    def _cancel(self, machine: Machine, tasks: Sequence[int]) -> None:
        for task in tasks:
            machine.waiting.discard(task)
            if machine.running.pop(task, None) is not None:
                machine.free += 1
        self._start(machine)

    def _die(self, machine: Machine, _: None) -> None:
        self._dead_hosts += 1
        machine.up += self.now - machine.up_since
        machine.life += 1
        machine.queue.clear()
        machine.waiting.clear()
        machine.running.clear()
        machine.untold.clear()
        machine.alive = False
        noticed = DEAD_AFTER if self.random.random() < 0.5 else machine.trip
        self._after(noticed, self._lost, machine, None)

    def _lost(self, machine: Machine, _: None) -> None:
        self._tell(self.scheduler.remove_host, machine.name)
        self._act()
        self._after(self.random.uniform(1.0, 30.0), self._back, machine, None)

    def _back(self, machine: Machine, _: None) -> None:
        self._join(machine)
        self._after(self.random.expovariate(1 / self.setting.host_life), self._die, machine, None)
        self._act()


def without_stragglers(setting: Setting) -> Setting:
    """The same without the hosts that are slow."""
    slow = round(setting.stragglers * setting.hosts)
    return replace(setting, hosts=setting.hosts - slow, stragglers=0.0)


def expected(tasks: int) -> int:
    """The answer of every run of so many tasks."""
    result = 0
    for task in range(tasks):
        result = zlib.crc32(b"%d," % task, result)
    return result


def _show(setting: Setting, outcome: Outcome) -> list[str]:
    if outcome.result != expected(setting.tasks):
        raise SystemExit(f"another result: {setting}")
    return [
        f"{setting.tasks:,}", f"{setting.hosts:,} × {setting.workers}", str(setting.seed),
        f"{outcome.result:08x}", f"{outcome.seconds:.1f}", f"{outcome.busy:.1%}",
        f"{outcome.dead_hosts} / {outcome.dead_workers}",
        f"{outcome.retried} / {outcome.copies}", f"{outcome.scheduler * 1e6:.1f}",
    ]  # fmt: skip


def main() -> None:
    gc.disable()  # it would walk our events, which are many more than the scheduler's own objects
    rows, first = [], 0.0
    for tasks, hosts, seeds in SIZES:
        costs = []
        for seed in range(1, seeds + 1):
            setting = Setting(tasks, hosts, seed=seed)
            outcome = Simulation(setting).run()
            costs.append(outcome.scheduler)
            if seed <= SHOWN:
                rows.append(_show(setting, outcome))
            gc.collect()
        cost = statistics.median(costs)
        first = first or cost
        rows[-1][-1] += f" (median {cost * 1e6:.1f}, {cost / first:.2f} times)"
    common.table(
        "The scheduler against simulated hosts",
        ["tasks", "hosts", "seed", "result", "seconds", "busy", "deaths: hosts / workers",
         "run again / copies", "scheduler, µs per task"],
        rows,
    )  # fmt: skip
    rows = []
    for hosts, steps in GROWTH:
        first = 0.0
        for tasks, seeds in steps:
            settings = [Setting(tasks, hosts, seed=seed) for seed in range(1, seeds + 1)]
            cost = statistics.median(Simulation(one).run().scheduler for one in settings)
            gc.collect()
            first = first or cost
            rows.append(
                [f"{hosts:,} × 16", f"{tasks:,}", f"{cost * 1e6:.1f}", f"{cost / first:.2f}"]
            )
    common.table(
        "The same hosts, more and more tasks",
        ["hosts", "tasks", "scheduler, µs per task", "times the first"],
        rows,
    )
    rows = []
    for median in (0.1, 0.5, 2.0, 6.0, 15.0, 20.0):
        ratios = []
        for seed in range(1, 6):
            setting = Setting(
                round(3 * 4 * 60 / median / 1.083), 4, workers=4, median=median, seed=seed,
                stragglers=0.25, host_life=math.inf, worker_deaths=0.0,
            )  # fmt: skip
            usual = Simulation(without_stragglers(setting)).run().seconds
            ratios.append(Simulation(setting).run().seconds / usual)
        rows.append([f"{median:g}", *(f"{ratio:.2f}" for ratio in ratios)])
    common.table(
        "One of 4 hosts is ten times slower: seconds, as a multiple of the run without it",
        ["seconds per task", *(f"seed {seed}" for seed in range(1, 6))],
        rows,
    )


if __name__ == "__main__":
    main()
