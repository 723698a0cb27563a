"""Jobs into pods, and pods into the queue: a job at a time, all visible at once or none."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from worker_payload.jobs import lines, names, steps
from worker_payload.jobs.files import Files, Trouble
from worker_payload.jobs.lines import Plan
from worker_payload.jobs.names import Pod

from . import parameters
from .errors import JamError, UsageError
from .parameters import Parameters, pod_size

_FOR_EVER = 2**31 - 1
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
        """Make all jobs visible in the queue; how many they are. Raises JamError."""
        if self.jobs:
            self._spool.seek(0)
            try:
                reason = "the file server does not show them"
                if files.run(steps.submit(self._pods(), self.name)):
                    return self.jobs
            except Trouble as error:
                reason = str(error)
            if not self._became_visible(files):
                raise JamError(f"the jobs could not be written: {reason}", "nothing was submitted")
        return self.jobs

    def _became_visible(self, files: Files) -> bool:
        """Whether a submission that failed is there all the same; else nothing is left of it."""
        with contextlib.suppress(Trouble):
            if files.run(steps.discard(self.name)):
                return False
            if self.name in files.do(steps.List(names.SUBMITTED)):
                files.run(steps.publish(self.name))  # or whoever dispatches does it
                return True
        return False

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


# --- what was asked for ------------------------------------------------------------------------


def plan_of(
    command: str | Sequence[str],
    shell: bool,
    cwd: str | os.PathLike[str] | None,
    timeout: float | str | None,
    tries: int,
    env: Mapping[str, str] | None,
    logfile: str | None,
) -> Plan:
    """What the jobs of a submission have in common. Raises UsageError."""
    if isinstance(command, str):
        try:
            words = [command] if shell else shlex.split(command)
        except ValueError as error:
            raise UsageError(f"the command cannot be split into words: {error}") from None
    else:
        words = [os.fspath(word) for word in command]
        if shell and len(words) != 1:
            raise UsageError("with shell the command is one text, not several words")
    if not words or not words[0]:
        raise UsageError("the command is empty")
    if tries < 0:
        raise UsageError(f"a job cannot be tried {tries} times", "0 means: until it succeeds")
    seconds, percent = parameters.timeout(timeout)
    return Plan(
        "",
        words=tuple(words),
        shell=shell,
        cwd=os.path.abspath(cwd or os.curdir),
        timeout=seconds,
        percent=percent,
        tries=tries or _FOR_EVER,
        env=tuple(sorted((env or {}).items())),
        logfile=logfile or "",
    )


def check_priority(priority: int) -> None:
    """Raises UsageError."""
    lowest, highest = names.PRIORITIES
    if not lowest <= priority <= highest:
        raise UsageError(f"the priority {priority} is not within {lowest} and {highest}")


def parameters_of(
    given: str | Iterable[object] | None,
    path: str | os.PathLike[str] | None,
    colsep: str | None,
    grid: Mapping[str, object] | Sequence[str] | None,
    repeat: int | None,
) -> Parameters:
    """What the jobs of a submission do not have in common. Raises UsageError."""
    if sum(source is not None for source in (given, path, grid or None)) > 1:
        raise UsageError(
            "parameters come from more than one place",
            "give one of parameters, parameters-from and grid",
        )
    if grid:
        return parameters.grid(grid, repeat)
    if given is not None:
        if isinstance(given, str):
            found = parameters.from_text(given)
        else:
            found = parameters.from_values(given)
    elif path is not None:
        if colsep is None and os.fspath(path).endswith(".tsv"):
            colsep = "\t"
        found = parameters.from_lines(_lines_of(os.fspath(path)), colsep)
    else:
        found = parameters.one()
    return found if repeat is None else parameters.times(found, repeat)


def _lines_of(path: str) -> Iterator[str]:
    """Raises UsageError, at the first line."""
    try:
        if path == "-":
            yield from open(  # noqa: SIM115 (stdin is not ours to close)
                sys.stdin.fileno(), encoding="utf-8", errors="surrogateescape", closefd=False
            )
            return
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as handle:
            yield from handle
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
