"""Jobs into pods, and pods into the queue: a job at a time, all visible at once or none."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from worker_payload.jobs import lines, names, steps
from worker_payload.jobs.files import Files
from worker_payload.jobs.lines import Plan
from worker_payload.jobs.names import Pod

from .ledger import Ledger, content_of_job
from .parameters import pod_size

_IN_MEMORY = 64 << 20  # bytes of encoded jobs, then a file: how many there are decides their pods
_BLOCK = 1000


@dataclass
class _Run:
    """Consecutive jobs with the same plan."""

    plan: Plan
    priority: int
    first: int
    count: int = 0


class Submission:
    """Collects jobs, then writes them. Use as a context manager."""

    def __init__(self) -> None:
        self.name = names.new_ticket()
        self.jobs = 0
        self._spool: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        self._runs: list[_Run] = []
        self._last = 0

    def __enter__(self) -> Submission:
        return self

    def __exit__(self, *error: object) -> None:
        self._spool.close()

    def add(
        self,
        plan: Plan,
        jobs: Iterable[Sequence[str]],
        priority: int = 0,
        number: int | None = None,
    ) -> None:
        """Add jobs that have this plan. number: of the first; None: the next one."""
        first = self._last + 1 if number is None else number
        run = self._runs[-1] if self._runs else None
        if run is None or (run.plan, run.priority, run.first + run.count) != (
            plan,
            priority,
            first,
        ):
            run = _Run(plan, priority, first)
            self._runs.append(run)
        jobs = iter(jobs)
        count = 0
        while block := [lines.write_job(job) for job in itertools.islice(jobs, _BLOCK)]:
            self._spool.write(b"".join(block))
            count += len(block)
        run.count += count
        self.jobs += count
        self._last = run.first + run.count - 1

    def write(self, files: Files) -> int:
        """Make all jobs visible in the queue; how many they are. Raises Full or Trouble."""
        if self.jobs:
            self._spool.seek(0)
            files.run(steps.submit(self._pods(), self.name))
        return self.jobs

    def _pods(self) -> Iterator[tuple[Pod, bytes]]:
        size = pod_size(self.jobs)
        now = time.time_ns() // 1_000_000
        number = 0
        for run in self._runs:
            for first in range(0, run.count, size):
                count = min(size, run.count - first)
                name = names.new_pod(now, run.priority, number)
                plan = run.plan._replace(
                    submission=self.name, first=run.first + first, total=max(self._last, self.jobs)
                )
                jobs = list(itertools.islice(self._spool, count))
                yield Pod(name, count, 0, names.NO_CUT), lines.pod_of(plan, jobs)
                number += 1


def depends_on_number(plan: Plan) -> bool:
    """Whether a job's number is a part of what it does."""
    return any("{#" in text for text in (*plan.words, plan.logfile))


# --- what was run before -----------------------------------------------------------------------


class Contents:
    """The contents of a project's jobs: of all that were run or wait."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger

    def known(self, failed_again: bool) -> set[bytes]:
        """What need not be run. failed_again: what failed last, does."""
        found: set[bytes] = set()
        for plan, params, number, state, _ in self._ledger.contents():
            key = content_of_job(plan, params, number)
            if state == "failed" and failed_again:
                found.discard(key)
            else:
                found.add(key)
        return found

    def failed(self) -> list[tuple[Plan, list[str], int, int]]:
        """(plan, params, number, priority) of jobs whose last run failed, in job order."""
        found: dict[bytes, tuple[Plan, list[str], int, int]] = {}
        for plan, params, number, state, priority in self._ledger.contents():
            key = content_of_job(plan, params, number)
            found.pop(key, None)
            if state == "failed":
                found[key] = plan, params, number, priority
        return list(found.values())


def without(
    plan: Plan, rows: Iterable[list[str]], known: Callable[[bytes, str], bool]
) -> Iterator[tuple[int, list[str]]]:
    """(number, parameters) of the rows whose job is not known, by content or as it is shown."""
    from worker_payload.jobs import commands

    for number, row in enumerate(rows, 1):
        if not known(content_of_job(plan, row, number), commands.shown(plan, row, number)):
            yield number, row
